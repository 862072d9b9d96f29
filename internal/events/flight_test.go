package events_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/events"
)

func batch(sizes map[string]int, keys ...string) []events.Event {
	batch := make([]events.Event, len(keys))
	for i, key := range keys {
		batch[i] = events.Event{Key: key, JSON: make([]byte, sizes[key])}
	}
	return batch
}

func next(f *events.Flight) (given []int) {
	for {
		i, ok := f.Next()
		if !ok {
			return given
		}
		given = append(given, i)
	}
}

func TestFlight_BoundsWhatIsOnItsWay(t *testing.T) {
	t.Parallel()
	f := events.NewFlight(batch(nil, "a", "a", "b", "a"), 2, false)
	require.Equal(t, []int{0, 1}, next(f))
	require.Equal(t, 2, f.Waiting())
	f.Delivered(1)
	require.Equal(t, []int{2}, next(f))
	require.True(t, f.IsWaiting(0))
	require.False(t, f.IsWaiting(1))
	require.False(t, f.IsWaiting(3))
	require.False(t, f.IsWaiting(4))

	// 8 MiB together, and a larger one alone.
	f = events.NewFlight(batch(map[string]int{"a": 5 << 20, "b": 3 << 20, "c": 1, "d": 9 << 20}, "a", "b", "c", "d", "c"), 100, false)
	require.Equal(t, []int{0, 1}, next(f))
	f.Delivered(0)
	require.Equal(t, []int{2}, next(f))
	f.Delivered(1)
	require.Empty(t, next(f))
	f.Delivered(2)
	require.Equal(t, []int{3}, next(f))
	f.Delivered(3)
	require.Equal(t, []int{4}, next(f))
}

func TestFlight_AfterAFailureGivesNoLaterOneOfItsKey(t *testing.T) {
	t.Parallel()
	refused, ended := errors.New("refused"), errors.New("ended")
	f := events.NewFlight(batch(nil, "a", "b", "a", "b", "a", "c", "c"), 2, false)
	require.Equal(t, []int{0, 1}, next(f))
	f.Failed(0, refused)
	require.Equal(t, []int{3}, next(f))
	f.Delivered(1)
	require.Equal(t, []int{5}, next(f))
	require.Equal(t, []error{refused, nil, events.ErrNotSent, ended, events.ErrNotSent, ended, events.ErrNotSent}, f.Errors(ended))
}

func TestFlight_Strict_OneOfEachKeyIsOnItsWay(t *testing.T) {
	t.Parallel()
	f := events.NewFlight(batch(nil, "a", "a", "b", "a", "b"), 10, true)
	require.Equal(t, []int{0, 2}, next(f))
	f.Delivered(0)
	require.Equal(t, []int{1}, next(f))
	f.Delivered(1)
	require.Equal(t, []int{3}, next(f))
	refused := errors.New("refused")
	f.Failed(2, refused)
	f.Delivered(3)
	require.Empty(t, next(f))
	require.Zero(t, f.Waiting())
	require.Equal(t, []error{nil, nil, refused, nil, events.ErrNotSent}, f.Errors(nil))
}

func TestFlight_NothingSent_FailsTheFirstOfEachKey(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	f := events.NewFlight(batch(nil, "a", "a", "b"), 10, true)
	require.Equal(t, []error{away, events.ErrNotSent, away}, f.Errors(away))
}
