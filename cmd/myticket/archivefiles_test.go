package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/archive"
)

// bulky gives each ticket 1.3 KiB of text that hardly shrinks, so that a file of 1 MiB does not hold 3,000 of them.
func (b *archiveBundle) bulky(t *testing.T) {
	t.Helper()
	b.exec(t, `UPDATE tickets SET body = convert_to('Note: ' || (SELECT string_agg(md5(id::text || n), '') FROM generate_series(1, 40) n) || E'\n', 'UTF8')
		|| body`)
}

// manifest reads that of the one part, and returns it with its files with tickets.
func (b *archiveBundle) manifest(t *testing.T) (m archive.Manifest, files []archive.File) {
	t.Helper()
	text, err := os.ReadFile(b.manifestPath(t))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &m))
	for _, f := range m.Files {
		if f.Kind == archive.KindTickets {
			files = append(files, f)
		}
	}
	return m, files
}

// inEach returns an id of each file: that of a ticket in the middle of its time.
func (b *archiveBundle) inEach(t *testing.T, files []archive.File) (ids []uuid.UUID) {
	t.Helper()
	next := 0
	for _, f := range files { // tickets come in the order of time, and their files do
		ids = append(ids, b.ids[next], b.ids[next+int(f.Rows)/2], b.ids[next+int(f.Rows)-1])
		next += int(f.Rows)
	}
	require.Equal(t, len(b.ids), next)
	return ids
}

func TestArchive_PartOfSeveralFiles_IsListed_Verified_AndFoundInEach(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 3000, 0)
	b.bulky(t)
	for i, at := range []string{"infinity", "-infinity", "9999-12-31 23:59:59.999999", "4713-01-01 BC"} { // as SQL may have set it
		b.exec(t, `UPDATE tickets SET next_attempt_at = $2::text::timestamptz WHERE id = $1`, b.ids[i], at)
	}
	before := b.text(t, allTickets)
	assert.True(t, b.run(t, "--file-size=1MiB").Parts[0].Archived)
	m, files := b.manifest(t)
	require.GreaterOrEqual(t, len(files), 3)
	assert.Len(t, b.objects(t)["tickets"], len(files))
	assert.EqualValues(t, 3000, m.Tickets)
	for i, f := range files {
		assert.LessOrEqual(t, f.Bytes, int64(1<<20), f.Key)
		assert.FileExists(t, filepath.Join(b.folder, f.Key))
		assert.Contains(t, f.Key, ".000"+strconv.Itoa(i+1)+".parquet")
		if i > 0 {
			assert.True(t, files[i-1].Last.Before(*f.First), "files follow each other in time")
		}
	}
	assert.Equal(t, len(files), b.parts(t)[0].Files)
	assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
	b.everywhere(t, b.inEach(t, files)...)

	last := filepath.Join(b.folder, files[len(files)-1].Key)
	require.NoError(t, os.Rename(last, last+".away"))
	code, out, _ := b.myticket(t, b.args("archive", "verify")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, out, archive.ErrDamaged.Error())
	code, _, _ = b.myticket(t, b.args("archive", "restore", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Equal(t, "0", b.text(t, `SELECT count(*)::text FROM tickets`))
	require.NoError(t, os.Rename(last+".away", last))

	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
	assert.Equal(t, before, b.text(t, allTickets), "every column is as it was")
	b.ok(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Empty(t, b.objects(t)["tickets"], "all files of the part are deleted")
}

func TestArchive_KilledBetweenTwoFiles_BeginsThePartAgain(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"file:2", "upload:2", "read-back:3"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := setupArchive(t, 3000, 0)
			b.bulky(t)
			b.killedAt(t, step, "--file-size=1MiB")
			left := b.objects(t)
			assert.Empty(t, left["manifests"])
			assert.NotEmpty(t, left["tickets"])
			b.everywhere(t, b.ids[0], b.ids[2999])
			b.minuteLater(t)

			assert.True(t, b.run(t, "--file-size=1MiB").Parts[0].Archived)
			_, files := b.manifest(t)
			require.GreaterOrEqual(t, len(files), 3)
			assert.Len(t, b.objects(t)["tickets"], len(files), "no file of the killed run is left")
			for _, key := range left["tickets"] {
				assert.NoFileExists(t, filepath.Join(b.folder, key))
			}
			assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
			b.everywhere(t, b.inEach(t, files)...)
		})
	}
}
