package spool_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// Nothing that deliveries to a healthy database need waits for a disk that hangs.
func TestSpool_DiskThatHangs_DoesNotHoldUpReaders(t *testing.T) {
	t.Parallel()
	s := open(t, spool.Config{Dir: t.TempDir()})
	first := keyed(t, "k", "first")
	put(t, s, []*intake.Entry{first})
	release := s.HangDisk()
	putting := make(chan error, 1)
	second := entry(t, "second")
	go func() { putting <- tryPut(s, []*intake.Entry{second}) }()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for range 100 {
			_, _ = s.Peek(10, 1<<20, none)
			_, _, _ = s.Find("shop-1", "k")
			_ = s.Stats()
		}
	}()
	select {
	case <-read:
	case <-time.After(30 * time.Second):
		t.Error("Peek, Find or Stats waits for the disk")
	}
	release()
	require.NoError(t, <-putting)
	<-read
	require.Len(t, take(t, s), 2)
}

func TestSpool_Peek_StepsOver_AndAFileGoesWhenAllOfItIsRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir, SegmentBytes: 4096})
	var sent []*intake.Entry
	for i := range 4 { // a file each
		batch := numbered(t, 10*i, 10*i+10)
		batch[9] = entry(t, strings.Repeat("x", 5000))
		put(t, s, batch)
		sent = append(sent, batch...)
	}
	files := func() int { return len(glob(t, dir, "*.spool")) }
	require.Equal(t, 4, files())
	skipped := map[uuid.UUID]bool{sent[0].Ticket.ID: true, sent[5].Ticket.ID: true, sent[12].Ticket.ID: true}
	skip := func(id uuid.UUID) bool { return skipped[id] }
	var got []*intake.Entry
	for {
		some, err := s.Peek(3, 1<<20, skip)
		require.NoError(t, err)
		if len(some) == 0 {
			break
		}
		got = append(got, entriesOf(some)...)
		require.NoError(t, s.Remove(some))
	}
	var want []*intake.Entry
	for _, e := range sent {
		if !skip(e.Ticket.ID) {
			want = append(want, e)
		}
	}
	requireSame(t, want, got)
	require.Equal(t, 3, s.Stats().Tickets)
	require.Equal(t, sent[0].Ticket.ReceivedAt, s.Stats().Oldest)
	require.Equal(t, 2, files(), "those of which nothing is left are gone")

	only := func(id uuid.UUID) func(uuid.UUID) bool { return func(other uuid.UUID) bool { return other != id } }
	for _, i := range []int{5, 0, 12} { // in another order than they came
		some, err := s.Peek(10, 1<<20, only(sent[i].Ticket.ID))
		require.NoError(t, err)
		requireSame(t, sent[i:i+1], entriesOf(some))
		require.NoError(t, s.Remove(some))
		require.NoError(t, s.Remove(some), "twice is once")
	}
	require.Zero(t, s.Stats().Tickets)
	require.Zero(t, files())
}

func TestSpool_FileThatIsDamaged_WhileOneOfItsTicketsIsSteppedOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	sent := numbered(t, 0, 300)
	put(t, s, sent)
	skip := func(id uuid.UUID) bool { return id == sent[0].Ticket.ID }
	some, err := s.Peek(100, 1<<20, skip)
	require.NoError(t, err)
	require.NoError(t, s.Remove(some))
	damage(t, glob(t, dir, "*.spool")[0], sent[250])
	rest := take(t, s)
	require.NotEmpty(t, rest)
	for _, e := range rest {
		for _, removed := range some {
			require.NotEqual(t, removed.Ticket.ID, e.Ticket.ID, "it was removed")
		}
	}
	require.Equal(t, 1, s.Stats().Aside)
}

// damage clears the pages of a file that hold a ticket.
func damage(t *testing.T, path string, e *intake.Entry) {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	for at := bytes.Index(content, e.Ticket.ID[:]); at >= 0; at = bytes.Index(content, e.Ticket.ID[:]) {
		page := at / 4096 * 4096
		clear(content[page : page+4096])
	}
	require.NoError(t, os.WriteFile(path, content, 0o600))
}
