package archive_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/archive"
)

func TestNextRun_SortsAfterThoseBefore_EvenIfTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	first, err := archive.NextRun(nil)
	require.NoError(t, err)
	ahead := uuid.MustParse("ffffffff-ffff-7fff-bfff-ffffffffffff")
	ahead[15], ahead[0] = 0xff, 0x7f
	for _, last := range []uuid.UUID{first, ahead} {
		before := []uuid.UUID{last}
		for range 1000 {
			run, err := archive.NextRun(before)
			require.NoError(t, err)
			require.Positive(t, bytes.Compare(run[:], before[0][:]), "%s after %s", run, before[0])
			before = append([]uuid.UUID{run}, before...)
		}
	}
	run, err := archive.NextRun([]uuid.UUID{first, ahead})
	require.NoError(t, err)
	require.Positive(t, bytes.Compare(run[:], ahead[:]), "in whatever order they are")
}

func TestManifestRun_KnowsOnlyKeysThatAProgramMakes(t *testing.T) {
	t.Parallel()
	run := uuid.MustParse("01a0b1c2-0000-7000-8000-000000000001")
	got, shared, ok := archive.ManifestRun("20260801-20260802", archive.ManifestKey("20260801-20260802", run))
	assert.Equal(t, run, got)
	assert.False(t, shared)
	assert.True(t, ok)
	_, shared, ok = archive.ManifestRun("20260801-20260802", "manifests/20260801-20260802.json")
	assert.True(t, shared)
	assert.True(t, ok)
	for _, key := range []string{
		"", "manifests/20260801-20260802-2.json", "manifests/20260801-20260802.json.old", "manifests/20260801-20260802.x.json",
		"manifests/20260801-20260802." + run.String(), "manifests/20260801-20260802.." + run.String() + ".json",
		"manifests/20260801-20260802." + strings.ToUpper(run.String()) + ".json", "manifests/20260801-20260802.(" + run.String() + ").json",
		"manifests/20260801-20260802." + uuid.Nil.String() + ".json",
	} {
		_, _, ok := archive.ManifestRun("20260801-20260802", key)
		assert.False(t, ok, key)
	}
}
