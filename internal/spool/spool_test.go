package spool_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
	"myticket/internal/ticket"
)

// open opens a spool, and verifies what it holds.
func open(tb testing.TB, config spool.Config) *spool.Spool {
	tb.Helper()
	s := openOnly(tb, config)
	require.NoError(tb, s.Verify(tb.Context()))
	return s
}

// openOnly opens a spool as a server does, which takes tickets before it has verified the old ones.
func openOnly(tb testing.TB, config spool.Config) *spool.Spool {
	tb.Helper()
	config.Logger = slog.New(slog.DiscardHandler)
	s, err := spool.Open(config)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func entry(tb testing.TB, body string) *intake.Entry {
	tb.Helper()
	id, at, err := ticket.NewID()
	require.NoError(tb, err)
	return &intake.Entry{Ticket: ticket.Ticket{
		ID: id, ReceivedAt: at, Source: "shop-1", Body: []byte(body), ContentType: "text/plain",
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}}
}

func keyed(tb testing.TB, key, body string) *intake.Entry {
	tb.Helper()
	e := entry(tb, body)
	e.Key, e.KeyExpiresAt, e.BodySHA256 = key, time.Now().Add(time.Hour).Truncate(time.Millisecond), sha256.Sum256([]byte(body))
	return e
}

func numbered(tb testing.TB, from, to int) []*intake.Entry {
	tb.Helper()
	var entries []*intake.Entry
	for i := from; i < to; i++ {
		entries = append(entries, entry(tb, fmt.Sprintf("ticket %d", i)))
	}
	return entries
}

func none(uuid.UUID) bool { return false }

// take drains everything, some at a time.
func take(tb testing.TB, s *spool.Spool) []*intake.Entry {
	tb.Helper()
	var all []*intake.Entry
	for {
		some, err := s.Peek(7, 1<<20, none)
		require.NoError(tb, err)
		if len(some) == 0 {
			return all
		}
		all = append(all, entriesOf(some)...)
		require.NoError(tb, s.Remove(some))
	}
}

// entriesOf returns what was put, without where it was.
func entriesOf(tickets []intake.Spooled) []*intake.Entry {
	var entries []*intake.Entry
	for i := range tickets {
		entries = append(entries, &tickets[i].Entry)
	}
	return entries
}

func put(tb testing.TB, s *spool.Spool, entries []*intake.Entry) []intake.Outcome {
	tb.Helper()
	saved, err := s.Put(entries)
	require.NoError(tb, err)
	require.Len(tb, saved.Outcomes, len(entries))
	return saved.Outcomes
}

// tryPut returns only the error.
func tryPut(s *spool.Spool, entries []*intake.Entry) error {
	_, err := s.Put(entries)
	return err
}

func requireSame(tb testing.TB, want, got []*intake.Entry) {
	tb.Helper()
	require.Len(tb, got, len(want))
	for i := range want {
		w, g := *want[i], *got[i]
		assert.True(tb, w.KeyExpiresAt.Equal(g.KeyExpiresAt))
		w.KeyExpiresAt, g.KeyExpiresAt = time.Time{}, time.Time{}
		require.Equal(tb, w, g)
	}
}

func TestSpool_GivesBackAllThatATicketHad_InOrder_AlsoAfterARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir, SegmentBytes: 4096})
	var want []*intake.Entry
	for i := range 20 {
		batch := numbered(t, 10*i, 10*i+10)
		batch[3] = keyed(t, fmt.Sprint("k", i), "\x00\xff not text "+strings.Repeat("x", 100*i*i))
		put(t, s, batch)
		want = append(want, batch...)
	}
	stats := s.Stats()
	require.Equal(t, 200, stats.Tickets)
	require.Equal(t, want[0].Ticket.ReceivedAt, stats.Oldest)
	require.Greater(t, len(glob(t, dir, "*.spool")), 3, "segments are rolled")

	some, err := s.Peek(50, 1<<20, none)
	require.NoError(t, err)
	requireSame(t, want[:len(some)], entriesOf(some))
	require.NoError(t, s.Remove(some[:5]))
	require.Equal(t, 195, s.Stats().Tickets)
	require.Equal(t, want[5].Ticket.ReceivedAt, s.Stats().Oldest)

	require.NoError(t, s.Close())
	s = open(t, spool.Config{Dir: dir})
	requireSame(t, want, take(t, s)) // what was removed from a file that is still there comes again: that is harmless
	require.Zero(t, s.Stats().Tickets)
	require.NoError(t, s.Close())
	require.Empty(t, glob(t, dir, "*.spool"), "drained files are removed")
}

func glob(tb testing.TB, dir, pattern string) []string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(tb, err)
	return files
}

func TestSpool_OneLongTicket_IsPeekedAlone(t *testing.T) {
	t.Parallel()
	s := open(t, spool.Config{Dir: t.TempDir()})
	want := []*intake.Entry{entry(t, strings.Repeat("x", 1<<20)), entry(t, "short")}
	put(t, s, want)
	some, err := s.Peek(10, 1000, none)
	require.NoError(t, err)
	requireSame(t, want[:1], entriesOf(some))
}

func TestSpool_IsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, spool.Config{Dir: t.TempDir(), MaxTickets: 10, MaxBytes: 20_000})
	put(t, s, numbered(t, 0, 8))
	require.ErrorIs(t, tryPut(s, numbered(t, 8, 11)), intake.ErrSpoolFull)
	require.Equal(t, 8, s.Stats().Tickets, "all or none")
	require.ErrorIs(t, tryPut(s, []*intake.Entry{entry(t, strings.Repeat("x", 20_000))}), intake.ErrSpoolFull)
	require.NoError(t, s.Stats().Failure)
	put(t, s, numbered(t, 8, 10))
	require.ErrorIs(t, s.Stats().Failure, intake.ErrSpoolFull)
	require.Len(t, take(t, s), 10)
	put(t, s, numbered(t, 0, 10)) // room again
}

// Files that were copied from two folders into one may have the same number.
func TestSpool_FilesOfTwoFolders_InOne_KeepTheirTicketsApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var want []*intake.Entry
	for range 2 {
		from := t.TempDir()
		s := open(t, spool.Config{Dir: from})
		sent := numbered(t, 0, 3)
		put(t, s, sent)
		want = append(want, sent...)
		require.NoError(t, s.Close())
		for _, path := range glob(t, from, "*.spool") {
			require.NoError(t, os.Rename(path, filepath.Join(dir, filepath.Base(path))))
		}
	}
	s := open(t, spool.Config{Dir: dir})
	some, err := s.Peek(10, 1<<20, none)
	require.NoError(t, err)
	require.Len(t, some, 3)
	require.NoError(t, s.Remove(some))
	require.Equal(t, 3, s.Stats().Tickets)
	require.ElementsMatch(t, ids(want), ids(append(entriesOf(some), take(t, s)...)))
}

func ids(entries []*intake.Entry) (found []uuid.UUID) {
	for _, e := range entries {
		found = append(found, e.Ticket.ID)
	}
	return found
}

func TestSpool_IdempotencyKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	first, again, other := keyed(t, "k", "a"), keyed(t, "k", "a"), keyed(t, "k", "b")
	known := []intake.Outcome{{ID: first.Ticket.ID, Status: ticket.Spooled, Duplicate: true}, {KeyReused: true}}
	outcomes := put(t, s, []*intake.Entry{first, again, other})
	require.Equal(t, intake.Outcome{ID: first.Ticket.ID, Status: ticket.Spooled}, outcomes[0])
	require.Equal(t, known, outcomes[1:])
	require.NoError(t, s.Close())
	s = open(t, spool.Config{Dir: dir})
	require.Equal(t, 1, s.Stats().Tickets)
	id, body, ok := s.Find("shop-1", "k")
	require.True(t, ok)
	require.Equal(t, first.Ticket.ID, id)
	require.Equal(t, first.BodySHA256, body)
	require.Equal(t, known, put(t, s, []*intake.Entry{keyed(t, "k", "a"), keyed(t, "k", "b")}))
	take(t, s)
	_, _, ok = s.Find("shop-1", "k")
	require.False(t, ok, "the database knows it now")
}

func TestSpool_IdempotencyKey_OfAnExpiredDelivery_IsThatOfTheNextTicket(t *testing.T) {
	t.Parallel()
	s := open(t, spool.Config{Dir: t.TempDir()})
	first, second := keyed(t, "k", "a"), keyed(t, "k", "b")
	first.KeyExpiresAt = time.Now().Add(-time.Second)
	put(t, s, []*intake.Entry{first})
	_, _, ok := s.Find("shop-1", "k")
	require.False(t, ok, "it has expired")
	require.False(t, put(t, s, []*intake.Entry{second})[0].KeyReused)
	some, err := s.Peek(1, 1<<20, none)
	require.NoError(t, err)
	require.Equal(t, first.Ticket.ID, some[0].Ticket.ID)
	require.NoError(t, s.Remove(some))
	id, _, ok := s.Find("shop-1", "k")
	require.True(t, ok, "the second ticket is still in the spool")
	require.Equal(t, second.Ticket.ID, id)
}

func TestSpool_SecondProcess_IsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, spool.Config{Dir: dir})
	for _, readOnly := range []bool{false, true} {
		_, err := spool.Open(spool.Config{Dir: dir, ReadOnly: readOnly})
		require.ErrorIs(t, err, spool.ErrInUse)
		require.ErrorContains(t, err, dir)
	}
}

func TestSpool_ReadOnly_ChangesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	want := numbered(t, 0, 3)
	put(t, s, want)
	require.NoError(t, s.Close())
	before := contents(t, dir)
	s = open(t, spool.Config{Dir: dir, ReadOnly: true})
	var got []*intake.Entry
	require.NoError(t, s.All(func(e *intake.Entry) error { got = append(got, e); return nil }))
	requireSame(t, want, got)
	require.ErrorIs(t, tryPut(s, numbered(t, 0, 1)), ticket.ErrUnavailable)
	some, err := s.Peek(10, 1<<20, none)
	require.NoError(t, err)
	requireSame(t, want, entriesOf(some))
	require.ErrorContains(t, s.Remove(some), "read-only")
	require.ErrorContains(t, s.Refuse(want[0]), "read-only")
	require.NoError(t, s.Close())
	require.Equal(t, before, contents(t, dir))
}

func contents(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	found := map[string]string{}
	for _, path := range glob(tb, dir, "*") {
		content, err := os.ReadFile(path)
		require.NoError(tb, err)
		found[filepath.Base(path)] = string(content)
	}
	return found
}

// TestSpool_DamagedFile: whatever happens to the bytes of a file, the spool opens, gives back nothing that was not put,
// and every ticket whose own bytes are whole.
func TestSpool_DamagedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	var want []*intake.Entry
	for i := range 30 {
		batch := numbered(t, 10*i, 10*i+10)
		batch[0] = entry(t, strings.Repeat(fmt.Sprint(i), 3000))
		want = append(want, batch...)
		put(t, s, batch)
	}
	require.NoError(t, s.Close())
	name := glob(t, dir, "*.spool")[0]
	whole, err := os.ReadFile(name)
	require.NoError(t, err)
	sent := map[uuid.UUID]string{}
	for _, e := range want {
		sent[e.Ticket.ID] = string(e.Ticket.Body)
	}
	asides := 0
	for round := range 100 {
		random := rand.New(rand.NewPCG(uint64(round), 1))
		damaged := bytes.Clone(whole)
		switch round % 5 {
		case 0: // torn: the end is missing
			damaged = damaged[:random.IntN(len(damaged))]
		case 1: // a lost page
			at := random.IntN(len(damaged)/4096) * 4096
			clear(damaged[at : at+4096])
		case 2: // a page of garbage
			at := random.IntN(len(damaged)/4096) * 4096
			for i := range 4096 {
				damaged[at+i] = byte(random.Uint32())
			}
		case 3: // a header of a page: what bbolt itself trusts
			at := random.IntN(len(damaged)/4096)*4096 + random.IntN(64)
			damaged[at] ^= byte(1 + random.IntN(255))
		case 4:
			for range 1 + random.IntN(20) {
				damaged[random.IntN(len(damaged))] ^= byte(1 + random.IntN(255))
			}
		}
		copied := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(copied, filepath.Base(name)), damaged, 0o600))
		s := open(t, spool.Config{Dir: copied})
		got := map[uuid.UUID]bool{}
		for _, e := range take(t, s) {
			require.Equal(t, sent[e.Ticket.ID], string(e.Ticket.Body), "round %d: not what was put", round)
			require.False(t, got[e.Ticket.ID], "round %d: twice", round)
			got[e.Ticket.ID] = true
		}
		for id, body := range sent {
			const before = 23 // nonce, length, checksum, sequence number
			at := bytes.Index(whole, append(id[:], wire(body)...))
			require.Greater(t, at, before)
			if !got[id] && bytes.Contains(damaged, whole[at-before:at+16+len(wire(body))]) {
				require.Failf(t, "not recovered", "round %d: the bytes of %.20q are still there", round, body)
			}
		}
		asides += s.Stats().Aside
		if len(got) < len(sent) {
			require.Equal(t, 1, s.Stats().Aside, "round %d: something is missing, and no file is set aside", round)
			require.Len(t, glob(t, copied, "*.recovered"), 1, "the damaged file is kept")
		}
		put(t, s, numbered(t, 0, 1)) // it works on
		require.NoError(t, s.Close())
	}
	require.Greater(t, asides, 50)
}

// wire is what follows an id in a record: two text strings and the body. Long bodies are compared by their whole bytes,
// too, so a record counts as whole only when it is.
func wire(body string) []byte {
	b := append([]byte{3, 0x66}, "shop-1"...)
	b = append(b, 4)
	switch n := len(body); {
	case n < 24:
		b = append(b, 0x40+byte(n))
	case n < 256:
		b = append(b, 0x58, byte(n))
	default:
		b = append(b, 0x59, byte(n>>8), byte(n))
	}
	b = append(b, body...)
	b = append(append(b, 5, 0x6a), "text/plain"...)
	return append(append(b, 6, 0x78, 55), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"...)
}

func TestSpool_FileThatIsDamagedWhileOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	put(t, s, numbered(t, 0, 100))
	name := glob(t, dir, "*.spool")[0]
	require.NoError(t, os.Truncate(name, 2*4096))
	require.Less(t, len(take(t, s)), 100)
	require.Equal(t, 1, s.Stats().Aside)
	put(t, s, numbered(t, 0, 10))
	require.Len(t, take(t, s), 10)
}

func TestSpool_RefusedTickets_AreTriedAgainAtTheNextStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	refused := entry(t, "refused")
	require.NoError(t, s.Refuse(refused))
	require.Empty(t, take(t, s))
	require.Equal(t, 1, s.Stats().Aside)
	require.NoError(t, s.Close())
	s = open(t, spool.Config{Dir: dir, ReadOnly: true})
	require.Equal(t, 1, s.Stats().Tickets, "the next drain tries it")
	require.Equal(t, 1, s.Stats().Aside, "it is set aside until then")
	require.NoError(t, s.Close())
	s = open(t, spool.Config{Dir: dir})
	require.Zero(t, s.Stats().Aside)
	requireSame(t, []*intake.Entry{refused}, take(t, s))
}

// smallDisk mounts a disk in memory.
func smallDisk(t *testing.T, options string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skip("needs the right to mount a small disk:", err)
	}
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

func TestSpool_DiskFull_AndFreed(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "size=1m")
	s := open(t, spool.Config{Dir: dir})
	var want []*intake.Entry
	var err error
	for i := 0; err == nil; i++ {
		require.Less(t, i, 1000, "the disk never gets full")
		batch := []*intake.Entry{entry(t, strings.Repeat(fmt.Sprint(i%10), 10_000))}
		if err = tryPut(s, batch); err == nil {
			want = append(want, batch...)
		}
	}
	require.ErrorIs(t, err, ticket.ErrUnavailable)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorIs(t, s.Stats().Failure, syscall.ENOSPC)
	require.Greater(t, len(want), 50)

	got := take(t, s)
	require.GreaterOrEqual(t, len(got), len(want))
	requireSame(t, want, got[:len(want)])
	require.Eventually(t, func() bool { s.Check(); return s.Stats().Failure == nil }, 10*time.Second, 10*time.Millisecond)
	put(t, s, want[:10])
	require.NoError(t, s.Close())
}

func TestSpool_PutAndDrainedAtOnce_OnADiskThatIsAlwaysFull(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "size=300k")
	s := open(t, spool.Config{Dir: dir, SegmentBytes: 64 << 10})
	acknowledged := make(chan uuid.UUID, 10_000)
	refused := 0
	entries := make([]*intake.Entry, 1000)
	for i := range entries {
		entries[i] = entry(t, strings.Repeat("x", 5000))
	}
	go func() {
		defer close(acknowledged)
		for _, e := range entries {
			if refused == 20 {
				return
			}
			if err := tryPut(s, []*intake.Entry{e}); err == nil {
				acknowledged <- e.Ticket.ID
			} else {
				refused++
				s.Check()
				time.Sleep(50 * time.Millisecond)
			}
		}
	}()
	drained := map[uuid.UUID]bool{}
	drain := func() {
		some, err := s.Peek(3, 1<<20, none)
		require.NoError(t, err)
		for _, e := range some {
			drained[e.Ticket.ID] = true
		}
		require.NoError(t, s.Remove(some))
	}
	var ids []uuid.UUID
	for id := range acknowledged {
		ids = append(ids, id)
		if len(ids)%7 == 0 { // slower than it fills
			drain()
		}
		_ = s.Stats()
	}
	for s.Stats().Tickets > 0 {
		drain()
	}
	require.Positive(t, refused)
	for _, id := range ids {
		require.True(t, drained[id], "an acknowledged ticket is lost")
	}
	t.Logf("%d acknowledged, %d refused", len(ids), refused)
}

func TestSpool_ReadOnlyDisk_IsNoReasonNotToStart(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "size=1m")
	s := open(t, spool.Config{Dir: dir})
	want := numbered(t, 0, 10)
	put(t, s, want)
	require.NoError(t, s.Close())
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=1m"))
	s = open(t, spool.Config{Dir: dir})
	require.ErrorIs(t, s.Stats().Failure, syscall.EROFS)
	require.ErrorIs(t, tryPut(s, numbered(t, 0, 1)), ticket.ErrUnavailable)
	some, err := s.Peek(100, 1<<20, none)
	require.NoError(t, err)
	requireSame(t, want, entriesOf(some))
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=1m"))
	require.Eventually(t, func() bool { s.Check(); return s.Stats().Failure == nil }, 10*time.Second, 10*time.Millisecond)
	put(t, s, numbered(t, 0, 1))
}

// onDisk is what a file takes of its disk: bbolt makes files longer than what it writes.
func onDisk(info os.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }

func BenchmarkPut(b *testing.B) {
	for _, tickets := range []int{1, 32, 256, 2048} {
		b.Run(fmt.Sprint(tickets), func(b *testing.B) {
			s := open(b, spool.Config{Dir: b.TempDir(), MaxBytes: 1 << 40, MaxTickets: 1 << 40})
			batch := make([]*intake.Entry, tickets)
			for i := range batch {
				batch[i] = entry(b, strings.Repeat("Order: 1 ", 20))
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := tryPut(s, batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*tickets)/b.Elapsed().Seconds(), "tickets/s")
		})
	}
}
