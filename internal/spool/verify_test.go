package spool_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// left makes a folder with files that a process left, of 10 tickets each, and returns their tickets.
func left(t *testing.T, files int) (dir string, tickets []*intake.Entry) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, spool.Config{Dir: dir, SegmentBytes: 1})
	for i := range files {
		batch := numbered(t, 10*i, 10*i+10)
		put(t, s, batch)
		tickets = append(tickets, batch...)
	}
	require.NoError(t, s.Close())
	require.Len(t, glob(t, dir, "*.spool"), files)
	return dir, tickets
}

func areRead(s *spool.Spool) bool {
	select {
	case <-s.KeysRead():
		return true
	default:
		return false
	}
}

func TestSpool_Open_TakesTickets_BeforeTheOldOnesAreVerified(t *testing.T) {
	t.Parallel()
	dir, old := left(t, 4)
	s := openOnly(t, spool.Config{Dir: dir})
	have := s.Stats()
	require.Equal(t, 4, have.Unverified)
	require.Equal(t, len(old), have.Tickets, "they count at once")
	require.Equal(t, old[0].Ticket.ReceivedAt, have.Oldest)
	require.Positive(t, have.Bytes)
	require.False(t, areRead(s))

	fresh := numbered(t, 100, 110)
	put(t, s, fresh)
	require.Equal(t, 4, s.Stats().Unverified)
	some, err := s.Peek(5, 1<<20, none)
	require.NoError(t, err)
	requireSame(t, old[:5], entriesOf(some))
	require.Equal(t, 3, s.Stats().Unverified, "only the file that was needed")
	require.NoError(t, s.Remove(some))
	requireSame(t, append(slices.Clone(old[5:]), fresh...), take(t, s))
	require.Zero(t, s.Stats().Unverified)
	require.True(t, areRead(s), "nothing is left to verify")
	require.NoError(t, s.Verify(t.Context()))
	require.NoError(t, s.Close())
	require.Empty(t, glob(t, dir, "*.spool"))
}

func TestSpool_Verify_BesidePutAndDrain_GivesEachTicketOnce(t *testing.T) {
	t.Parallel()
	dir, want := left(t, 20)
	damage(t, glob(t, dir, "*.spool")[7], want[75])
	s := openOnly(t, spool.Config{Dir: dir})
	fresh := numbered(t, 200, 400)
	want = append(want, fresh...)
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(t, s.Verify(t.Context())) })
	group.Go(func() {
		for some := range slices.Chunk(fresh, 10) {
			assert.NoError(t, tryPut(s, some))
		}
	})
	got := map[uuid.UUID]int{}
	deadline := time.Now().Add(time.Minute)
	for len(got) < len(want)-10 || s.Stats().Tickets > 0 { // all but those of the damaged page
		require.True(t, time.Now().Before(deadline), "%d of %d tickets came", len(got), len(want))
		_ = s.Stats()
		_, _, _ = s.Find("shop-1", "k")
		some, err := s.Peek(7, 1<<20, none)
		require.NoError(t, err)
		for _, e := range some {
			got[e.Ticket.ID]++
		}
		require.NoError(t, s.Remove(some))
	}
	group.Wait()
	for _, e := range want {
		require.LessOrEqual(t, got[e.Ticket.ID], 1, "%s", e.Ticket.Body)
	}
	require.Equal(t, 1, s.Stats().Aside)
	require.True(t, areRead(s))
}

// The old files count against the bounds from the first request, whether or not they make sense.
func TestSpool_FilesThatAreNotVerified_CountAgainstItsBounds(t *testing.T) {
	t.Parallel()
	dir, old := left(t, 2)
	one := numbered(t, 0, 1)
	for name, c := range map[string]struct {
		config spool.Config
		damage func(dir string)
	}{
		"tickets": {spool.Config{MaxTickets: len(old)}, func(string) {}},
		"bytes":   {spool.Config{MaxBytes: 16 << 10}, func(string) {}},
		"bytes of files without a structure": {spool.Config{MaxBytes: 16 << 10}, func(dir string) {
			for _, path := range glob(t, dir, "*.spool") {
				info, err := os.Stat(path)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(path, make([]byte, info.Size()), 0o600))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.config.Dir = copyOf(t, dir)
			c.damage(c.config.Dir)
			s := openOnly(t, c.config)
			require.ErrorIs(t, tryPut(s, one), intake.ErrSpoolFull)
			require.ErrorIs(t, s.Stats().Failure, intake.ErrSpoolFull)
			take(t, s)
			put(t, s, one)
		})
	}
}

// copyOf returns a folder with the files of a folder. If a spool is using it, these are what remains when its process is
// killed.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	return copied
}

func TestSpool_KilledDuringVerification_TheNextStartHasAll(t *testing.T) {
	t.Parallel()
	dir, want := left(t, 4)
	files := glob(t, dir, "*.spool")
	loseStructure(t, files[1])
	refused := files[2][:len(files[2])-len(".spool")] + ".refused"
	require.NoError(t, os.Rename(files[2], refused))
	loseStructure(t, files[3])
	s := openOnly(t, spool.Config{Dir: dir})
	fresh := numbered(t, 40, 50)
	want = append(want, fresh...)
	put(t, s, fresh)
	for verified := range 5 {
		next := openOnly(t, spool.Config{Dir: copyOf(t, dir)})
		require.NotZero(t, next.Stats().Unverified)
		requireSame(t, want, take(t, next))
		require.Equal(t, 2, next.Stats().Aside, "both damaged files")
		if verified < 4 {
			_, err := s.Peek(1, 1<<20, skipsTo(want[10*verified])) // verifies one file more
			require.NoError(t, err)
			require.Equal(t, 3-verified, s.Stats().Unverified)
		}
	}
	requireSame(t, want, take(t, s))
}

// skipsTo steps over all tickets before one.
func skipsTo(e *intake.Entry) func(uuid.UUID) bool {
	return func(id uuid.UUID) bool { return id != e.Ticket.ID }
}

// loseStructure clears the pages that bbolt begins to read with.
func loseStructure(t *testing.T, path string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = file.WriteAt(make([]byte, 2*os.Getpagesize()), 0)
	require.NoError(t, err)
	require.NoError(t, file.Close())
}

// A damaged file is searched piece by piece, and a record may begin in one and end in the next.
func TestSpool_RecordAcrossTwoPiecesOfAFile_IsFound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	e := entry(t, "x")
	for at := spool.PieceBytes - 300; at <= spool.PieceBytes; at++ {
		found, err := spool.Scan(path, 2*spool.PieceBytes, at, e)
		require.NoError(t, err)
		require.Equal(t, []int64{int64(at)}, found)
	}
	long := entry(t, string(make([]byte, 3*spool.PieceBytes)))
	found, err := spool.Scan(path, 5*spool.PieceBytes, 100, long)
	require.NoError(t, err)
	require.Equal(t, []int64{100}, found)
}

// A file without a structure seems to hold nothing. It must not be taken for drained.
func TestSpool_DamagedFileThatIsNotVerified_IsNotTakenForEmpty(t *testing.T) {
	t.Parallel()
	dir, old := left(t, 1)
	loseStructure(t, glob(t, dir, "*.spool")[0])
	s := openOnly(t, spool.Config{Dir: dir})
	require.Zero(t, s.Stats().Tickets)
	require.Equal(t, 1, s.Stats().Unverified)
	fresh := numbered(t, 10, 20)
	put(t, s, fresh)
	require.NoError(t, s.Close())
	require.Len(t, glob(t, dir, "*.spool"), 2, "what is not verified stays")

	s = openOnly(t, spool.Config{Dir: dir})
	requireSame(t, append(old, fresh...), take(t, s))
	require.Equal(t, 1, s.Stats().Aside)
	require.NoError(t, s.Close())
	require.Len(t, glob(t, dir, "*.recovered"), 1)
	require.Empty(t, glob(t, dir, "*.spool"))
}

func TestSpool_FileThatTheDiskDoesNotReturn_HoldsUpNoOther_AndIsTriedAgain(t *testing.T) {
	t.Parallel()
	dir, old := left(t, 3)
	first := glob(t, dir, "*.spool")[0]
	s := openOnly(t, spool.Config{Dir: dir})
	require.NoError(t, os.Rename(first, first+".away"))
	require.ErrorIs(t, s.Verify(t.Context()), os.ErrNotExist)
	require.Equal(t, 1, s.Stats().Unverified)
	require.Equal(t, len(old), s.Stats().Tickets)
	require.True(t, areRead(s), "the keys of the others are known, and no delivery waits for the rest")
	some, err := s.Peek(100, 1<<20, none)
	require.NoError(t, err)
	requireSame(t, old[10:20], entriesOf(some))
	require.NoError(t, s.Remove(some))
	some, err = s.Peek(100, 1<<20, none)
	require.NoError(t, err)
	require.NoError(t, s.Remove(some))
	_, err = s.Peek(100, 1<<20, none)
	require.ErrorIs(t, err, os.ErrNotExist, "it is not empty")
	require.Error(t, s.All(func(*intake.Entry) error { return nil }))

	require.NoError(t, os.Rename(first+".away", first))
	requireSame(t, old[:10], take(t, s))
	require.Zero(t, s.Stats().Unverified)
}

func TestSpool_Verify_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir, old := left(t, 2)
	s := openOnly(t, spool.Config{Dir: dir})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Verify(ctx), context.Canceled)
	require.Equal(t, 2, s.Stats().Unverified)
	require.False(t, areRead(s))
	require.NoError(t, s.Close())
	requireSame(t, old, take(t, open(t, spool.Config{Dir: dir})))
}

func TestSpool_IdempotencyKeys_WhileTheOldFilesAreVerified(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	first := keyed(t, "k", "a")
	put(t, s, []*intake.Entry{first})
	require.NoError(t, s.Close())

	s = openOnly(t, spool.Config{Dir: dir})
	_, _, ok := s.Find("shop-1", "k")
	require.False(t, ok)
	require.False(t, areRead(s), "so intake waits")
	again := keyed(t, "k", "a")
	outcomes := put(t, s, []*intake.Entry{again}) // by a sender who did not want to wait longer
	require.Equal(t, again.Ticket.ID, outcomes[0].ID)
	require.NoError(t, s.Verify(t.Context()))
	require.True(t, areRead(s))
	id, _, ok := s.Find("shop-1", "k")
	require.True(t, ok)
	require.Equal(t, first.Ticket.ID, id, "the older one counts")
	require.Equal(t, first.Ticket.ID, put(t, s, []*intake.Entry{keyed(t, "k", "a")})[0].ID)
	require.True(t, put(t, s, []*intake.Entry{keyed(t, "k", "b")})[0].KeyReused)
	// The database gets the older one first, and knows the other as its duplicate.
	requireSame(t, []*intake.Entry{first, again}, take(t, s))
}

// The tickets of a key that has expired come before those that used it next, in files that may be read in any order.
func TestSpool_IdempotencyKey_ThatExpired_AndCameAgain_IsThatOfTheLaterTicket(t *testing.T) {
	t.Parallel()
	for name, reversed := range map[string]bool{"in order": false, "the later file first": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, spool.Config{Dir: dir, SegmentBytes: 1})
			expired, later := keyed(t, "k", "a"), keyed(t, "k", "b")
			expired.KeyExpiresAt = time.Now().Add(-time.Second)
			put(t, s, []*intake.Entry{expired})
			put(t, s, []*intake.Entry{later})
			require.NoError(t, s.Close())
			if reversed {
				for i, path := range glob(t, dir, "*.spool") {
					name := filepath.Base(path)
					require.NoError(t, os.Rename(path, filepath.Join(dir, fmt.Sprintf("%016x%s", 9-i, name[16:]))))
				}
			}
			s = open(t, spool.Config{Dir: dir})
			id, _, ok := s.Find("shop-1", "k")
			require.True(t, ok)
			require.Equal(t, later.Ticket.ID, id)
		})
	}
}
