package spool_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// TestSpool_FilesAreAboutAsLargeAsItsBytes: MaxBytes is what an operator sizes a disk by.
func TestSpool_FilesAreAboutAsLargeAsItsBytes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ ticket, batch, batches int }{
		"short tickets, one by one": {200, 1, 4000},
		"short tickets, in batches": {200, 256, 100},
		"a page and a bit":          {4200, 16, 100},
		"long tickets":              {100_000, 4, 50},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, spool.Config{Dir: dir})
			for range c.batches {
				batch := make([]*intake.Entry, c.batch)
				for i := range batch {
					batch[i] = entry(t, strings.Repeat("x", c.ticket))
				}
				put(t, s, batch)
			}
			var files int64
			for _, path := range glob(t, dir, "*.spool") {
				info, err := os.Stat(path)
				require.NoError(t, err)
				files += onDisk(info)
			}
			have := s.Stats()
			t.Logf("%d tickets of %d bytes: %d counted, %d on disk", have.Tickets, c.ticket, have.Bytes, files)
			assert.Less(t, float64(files), 1.25*float64(have.Bytes)+float64(256<<10))
			assert.Greater(t, files, int64(have.Tickets*c.ticket))
		})
	}
}
