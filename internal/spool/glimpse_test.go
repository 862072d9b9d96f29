package spool_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// Who looks into a folder must neither keep a server from starting on it nor change what it finds.
func TestLookInto_IsNoticedByNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := spool.LookInto(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	g, err := spool.LookInto(dir)
	require.NoError(t, err)
	require.Equal(t, spool.Glimpse{}, g)

	var looking sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		looking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, err := spool.LookInto(dir)
					assert.NoError(t, err)
				}
			}
		})
	}
	for n := range 5 { // servers that start one after the other, each with the tickets of those before it
		s, err := spool.Open(spool.Config{Dir: dir})
		require.NoError(t, err)
		require.NoError(t, s.Verify(t.Context()))
		require.Equal(t, 2*n, s.Stats().Tickets)
		put(t, s, []*intake.Entry{entry(t, "a"), entry(t, "b")})
		require.NoError(t, s.Close())
	}
	close(stop)
	looking.Wait()

	s, err := spool.Open(spool.Config{Dir: dir})
	require.NoError(t, err)
	g, err = spool.LookInto(dir)
	require.NoError(t, err)
	require.True(t, g.InUse, "the file that is written to is locked")
	oldest := s.Stats().Oldest
	require.NoError(t, s.Close())
	rotten := filepath.Join(dir, "00000000000000ff-0000000000000000.damaged")
	require.NoError(t, os.WriteFile(rotten, []byte("rotten"), 0o600))
	before, err := os.ReadDir(dir)
	require.NoError(t, err)
	g, err = spool.LookInto(dir)
	require.NoError(t, err)
	require.Positive(t, g.Bytes)
	g.Bytes = 0
	require.Equal(t, spool.Glimpse{Tickets: 10, Oldest: oldest, Aside: 1, Unknown: 1}, g)
	after, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Equal(t, before, after)
}
