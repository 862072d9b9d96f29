package spool_test

import (
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// An fsync may fail after its records reached the file. They were not acknowledged, so they must not count beside those that
// were: a file would be removed while it holds tickets that are needed.
func TestSpool_SyncFailsBesideAPeek_AndNoAcknowledgedTicketIsLost(t *testing.T) {
	t.Parallel()
	for name, reopens := range map[string]bool{"the file can be opened again": true, "it cannot": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, spool.Config{Dir: t.TempDir()})
			acknowledged, failed := numbered(t, 0, 3), numbered(t, 3, 6)
			put(t, s, acknowledged)
			stepsOver := func(id uuid.UUID) bool {
				for _, e := range acknowledged {
					if e.Ticket.ID == id {
						return true
					}
				}
				return false
			}
			var peeked []intake.Spooled
			restore := func() {}
			require.NoError(t, s.FailSync(failed, func(path string) {
				var err error
				peeked, err = s.Peek(10, 1<<20, stepsOver)
				require.NoError(t, err)
				if !reopens {
					require.NoError(t, os.Rename(path, path+".gone"))
					restore = func() { require.NoError(t, os.Rename(path+".gone", path)) }
				}
			}))
			restore()
			require.NoError(t, s.Remove(peeked))
			require.Equal(t, len(acknowledged), s.Stats().Tickets)
			requireSame(t, acknowledged, take(t, s))
			require.Zero(t, s.Stats().Tickets)
		})
	}
}
