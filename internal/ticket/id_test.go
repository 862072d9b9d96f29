package ticket_test

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

// clock is a clock that a test sets.
type clock struct{ now time.Time }

func newID(t *testing.T, ids *ticket.IDs) uuid.UUID {
	t.Helper()
	id, at, err := ids.New()
	require.NoError(t, err)
	require.Equal(t, ticket.IDTime(id), at)
	require.Equal(t, uuid.Version(7), id.Version())
	require.Equal(t, uuid.RFC4122, id.Variant())
	return id
}

func TestIDs_HaveTheTimeOfTheClock(t *testing.T) {
	t.Parallel()
	c := clock{time.Date(2026, 11, 24, 12, 0, 0, 123_999_999, time.UTC)}
	ids := &ticket.IDs{Now: func() time.Time { return c.now }}
	require.Equal(t, c.now.Truncate(time.Millisecond), ticket.IDTime(newID(t, ids)))
	begin := time.Now().Truncate(time.Millisecond)
	_, at, err := ticket.NewID()
	require.NoError(t, err)
	require.False(t, at.Before(begin))
	require.False(t, at.After(time.Now()))
}

func TestIDs_Grow_WhileTheClockStandsOrGoesBackALittle(t *testing.T) {
	t.Parallel()
	c := clock{time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	ids := &ticket.IDs{Now: func() time.Time { return c.now }}
	last := newID(t, ids)
	for i := range 20_000 { // several times as many as a millisecond has room for
		if i == 10_000 {
			c.now = c.now.Add(-900 * time.Millisecond)
		}
		next := newID(t, ids)
		require.Positive(t, bytes.Compare(next[:], last[:]), "%s comes after %s", next, last)
		last = next
	}
	require.WithinDuration(t, c.now, ticket.IDTime(last), time.Second)
	c.now = c.now.Add(2 * time.Second)
	require.Equal(t, c.now, ticket.IDTime(newID(t, ids)), "the clock has caught up")
}

// A clock was an hour ahead and is corrected: new ids must not have a time in the future.
func TestIDs_FollowAClockThatWasCorrected(t *testing.T) {
	t.Parallel()
	c := clock{time.Date(2026, 11, 24, 13, 0, 0, 0, time.UTC)}
	ids := &ticket.IDs{Now: func() time.Time { return c.now }}
	wrong := newID(t, ids)
	c.now = c.now.Add(-time.Hour)
	next := newID(t, ids)
	require.Equal(t, c.now, ticket.IDTime(next))
	require.Negative(t, bytes.Compare(next[:], wrong[:]))
	after := newID(t, ids)
	require.Positive(t, bytes.Compare(after[:], next[:]), "and they grow from there")
}

func TestIDs_ManyGoroutines_AllDifferent_AndEachGrows(t *testing.T) {
	t.Parallel()
	var ids ticket.IDs
	made := make([][]uuid.UUID, 8)
	var group sync.WaitGroup
	for i := range made {
		group.Go(func() {
			for range 5000 {
				id, _, err := ids.New()
				if err != nil {
					return
				}
				made[i] = append(made[i], id)
			}
		})
	}
	group.Wait()
	seen := map[uuid.UUID]bool{}
	for _, own := range made {
		require.True(t, slices.IsSortedFunc(own, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }))
		for _, id := range own {
			seen[id] = true
		}
	}
	require.Len(t, seen, 8*5000)
}

func BenchmarkNewID(b *testing.B) {
	for name, f := range map[string]func() error{
		"ours":       func() error { _, _, err := ticket.NewID(); return err },
		"uuid.NewV7": func() error { _, err := uuid.NewV7(); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := f(); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
