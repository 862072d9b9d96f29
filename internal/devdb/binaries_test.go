package devdb

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func fakeInstallation(t *testing.T, root, name string, initdb, postgres int) string {
	t.Helper()

	dir := filepath.Join(root, name, "bin")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for program, version := range map[string]int{"initdb": initdb, "postgres": postgres} {
		script := fmt.Sprintf("#!/bin/sh\necho '%s (PostgreSQL) %d.3'\n", program, version)
		require.NoError(t, os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755))
	}

	return dir
}

func TestFindBinaries_PrefersPathThenTheNewest(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	nine := fakeInstallation(t, root, "lib/9", 9, 9)
	seventeen := fakeInstallation(t, root, "lib/17", 17, 17)
	inPath := fakeInstallation(t, root, "path", 12, 12)
	fakeInstallation(t, root, "lib/18", 18, 16) // half of an upgrade
	patterns := []string{filepath.Join(root, "lib/*/bin")}

	found := findBinaries(t.Context(), []string{"relative", filepath.Join(root, "missing"), inPath}, patterns)
	assert.Equal(t, []binaries{{dir: inPath, major: 12}, {dir: seventeen, major: 17}, {dir: nine, major: 9}}, found)
}

func TestChooseBinaries_TakesTheVersionOfTheCluster(t *testing.T) {
	t.Parallel()
	f := folder{path: t.TempDir()}
	installed := []binaries{{dir: "/new", major: 17}, {dir: "/old", major: 15}}

	chosen, err := f.chooseBinaries(installed)
	require.NoError(t, err)
	assert.Equal(t, "/new", chosen.dir, "the newest for a new cluster")

	require.NoError(t, os.Mkdir(f.data(), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(f.data(), "PG_VERSION"), []byte("15\n"), 0o600))
	chosen, err = f.chooseBinaries(installed)
	require.NoError(t, err)
	assert.Equal(t, "/old", chosen.dir)
}

func TestStart_RefusesBinariesOfTwoVersions(t *testing.T) {
	t.Parallel()
	dir := fakeInstallation(t, t.TempDir(), "mixed", 15, 16)

	_, err := Start(t.Context(), Config{BinDir: dir})
	assert.ErrorContains(t, err, "install them from one package")
}
