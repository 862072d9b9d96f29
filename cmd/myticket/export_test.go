package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// An attacker who knows the folder that an operator exports to, often as root, puts a link or a file in its place.
func TestSpoolExport_FolderThatAnAttackerPrepared_IsNotWrittenTo(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, to, other string){
		"a link to another folder": func(t *testing.T, to, other string) {
			t.Helper()
			require.NoError(t, os.Symlink(other, to))
		},
		"a link to nothing": func(t *testing.T, to, other string) {
			t.Helper()
			require.NoError(t, os.Symlink(filepath.Join(other, "new"), to))
		},
		"a folder that others may write to": func(t *testing.T, to, _ string) {
			t.Helper()
			require.NoError(t, os.Mkdir(to, 0o700))
			require.NoError(t, os.Chmod(to, 0o777))
		},
		"a folder of another user": func(t *testing.T, to, _ string) {
			t.Helper()
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			require.NoError(t, os.Mkdir(to, 0o700))
			require.NoError(t, os.Chown(to, 1234, 1234))
		},
		"a list that is a link": func(t *testing.T, to, other string) {
			t.Helper()
			require.NoError(t, os.Mkdir(to, 0o700))
			require.NoError(t, os.Symlink(filepath.Join(other, "victim"), filepath.Join(to, "tickets.jsonl")))
		},
		"a file": func(t *testing.T, to, _ string) {
			t.Helper()
			require.NoError(t, os.WriteFile(to, []byte("kept"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := spoolOf(t, "first", "second")
			base, other := t.TempDir(), t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(other, "victim"), []byte("kept"), 0o600))
			to := filepath.Join(base, "export")
			prepare(t, to, other)
			out, code := command(t, "spool", "export", "--to", to, dir)
			require.Equal(t, 1, code, out)
			require.Contains(t, out, "--to: ")
			files, err := os.ReadDir(other)
			require.NoError(t, err)
			require.Len(t, files, 1, "it was followed")
			content, err := os.ReadFile(filepath.Join(other, "victim"))
			require.NoError(t, err)
			require.Equal(t, "kept", string(content))
		})
	}
}

func TestSpoolExport_IsForThisUserOnly(t *testing.T) {
	t.Parallel()
	dir, to := spoolOf(t, "first", "second"), filepath.Join(t.TempDir(), "export")
	out, code := command(t, "spool", "export", "--to", to, dir)
	require.Zero(t, code, out)
	require.Contains(t, out, "2 tickets were copied")
	info, err := os.Stat(to)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	files, err := os.ReadDir(to)
	require.NoError(t, err)
	require.Len(t, files, 3)
	for _, file := range files {
		info, err := file.Info()
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
		require.Equal(t, os.Geteuid(), int(info.Sys().(*syscall.Stat_t).Uid))
	}
}
