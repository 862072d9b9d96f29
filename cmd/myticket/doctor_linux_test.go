package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mount mounts a file system in memory, or skips the test where this user may not.
func mount(t *testing.T, options string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("this user may not mount a file system: %v", err)
	}
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestDoctor_DiskOfTheSpool(t *testing.T) {
	t.Parallel()
	of := func(dir string) diagnosis {
		return diagnose(t, away("--skip=database", "--spool-max-bytes=100MiB", "--spool-dir", dir)...)
	}
	t.Run("in memory", func(t *testing.T) {
		t.Parallel()
		f := of(mount(t, "size=200m")).says(t, "spool_disk", isWarning, "the folder is in memory")
		require.Contains(t, f.Means+f.Do, "answered 202")
	})
	t.Run("too small", func(t *testing.T) {
		t.Parallel()
		of(mount(t, "size=110m")).says(t, "spool_disk", isWarning, "110 MiB are free, for a spool of up to 100 MiB, which needs 125 MiB")
	})
	t.Run("no inodes", func(t *testing.T) {
		t.Parallel()
		f := of(mount(t, "size=200m,nr_inodes=50")).says(t, "spool_disk", isProblem, "the disk can take only 49 more files")
		require.Equal(t, "docs/runbooks/MyticketSpoolFilling.md", f.Runbook)
	})
	t.Run("full", func(t *testing.T) {
		t.Parallel()
		dir := mount(t, "size=1m")
		file, err := os.Create(filepath.Join(dir, "other"))
		require.NoError(t, err)
		for err == nil {
			_, err = file.Write(make([]byte, 4096))
		}
		require.ErrorIs(t, err, unix.ENOSPC)
		require.NoError(t, file.Close())
		d := of(dir)
		d.says(t, "spool", isProblem, "no space left on device")
		d.says(t, "spool_disk", isProblem, "0 B are free")
		require.Equal(t, 1, d.code)
	})
	t.Run("only for reading", func(t *testing.T) {
		t.Parallel()
		dir := mount(t, "size=200m")
		require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		f := of(dir).says(t, "spool", isProblem, "read-only file system")
		require.Contains(t, f.Do, "mount it for writing")
	})
}

func TestDoctor_SourcesFileThatHangs_HidesNoOtherCheck(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "sources") // nobody writes to it, as on a disk that hangs
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	d := diagnose(t, away("--skip=database,spool", "--sources-file", pipe)...)
	d.says(t, "settings", isUnknown, "no end after 5s")
	d.says(t, "sources", isUnknown, "no end after 5s")
	require.NotEqual(t, isUnknown, d.of(t, "memory").Status)
}
