package events

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestSender_GivesWayToABurst_AndNotToAnEndlessLoad(t *testing.T) {
	t.Parallel()
	s := NewSender(SenderConfig{GiveWay: 10 * time.Second})
	const took = 20 * time.Millisecond
	burst := func(age time.Duration) Chunk { return Chunk{More: true, Tickets: ChunkTickets, Age: age} }
	assert.Equal(t, 780*time.Millisecond, s.giveWay(burst(0), took))
	assert.Equal(t, 390*time.Millisecond, s.giveWay(burst(5*time.Second), took))
	assert.Zero(t, s.giveWay(burst(10*time.Second), took))
	assert.Zero(t, s.giveWay(burst(time.Hour), took))
	assert.Zero(t, s.giveWay(Chunk{Tickets: ChunkTickets}, took), "nothing waits behind them")
	assert.Zero(t, s.giveWay(Chunk{More: true, Tickets: yieldTickets - 1}, took), "the chunks grow")
	assert.Equal(t, yieldMost, s.giveWay(burst(0), 8*time.Second))
	assert.Equal(t, time.Second, s.giveWay(burst(9*time.Second), 8*time.Second), "then they are old enough")
	assert.Equal(t, 100*time.Millisecond, NewSender(SenderConfig{GiveWay: 100 * time.Millisecond}).giveWay(burst(0), took))
	assert.Zero(t, s.giveWay(burst(0), 20*time.Second), "the target is slow")
	assert.Zero(t, NewSender(SenderConfig{GiveWay: -1}).giveWay(burst(0), took))
	assert.Equal(t, 780*time.Millisecond, NewSender(SenderConfig{}).giveWay(burst(0), took))
}

// storing is a Reader that only knows how many tickets are being stored.
type storing struct {
	Reader

	rates []float64
	err   error
}

func (s *storing) Storing(context.Context) (rate float64, err error) {
	rate = s.rates[0]
	if len(s.rates) > 1 {
		s.rates = s.rates[1:]
	}
	return rate, s.err
}

func TestWorker_ThePause_EndsWithTheBurst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		paused := func(ctx context.Context, s *storing, pause time.Duration) time.Duration {
			start := time.Now()
			(&worker{reader: s}).yield(ctx, pause)
			return time.Since(start)
		}
		assert.Zero(t, paused(t.Context(), nil, 0), "nothing is asked")
		assert.Zero(t, paused(t.Context(), &storing{rates: []float64{burstRate - 1}}, time.Second))
		assert.Equal(t, time.Second, paused(t.Context(), &storing{rates: []float64{burstRate}}, time.Second))
		assert.Equal(t, 2*yieldLook, paused(t.Context(), &storing{rates: []float64{30_000, 20_000, 0}}, time.Second))
		assert.Equal(t, time.Second, paused(t.Context(), &storing{rates: []float64{0}, err: errors.New("away")}, time.Second))
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		assert.Zero(t, paused(stopped, &storing{rates: []float64{burstRate}}, time.Second))
	})
}

// Small chunks cost much more for each event, so a fast target soon gets large ones.
func TestWorker_AFastTarget_GetsAFullChunkAfterFiveOthers(t *testing.T) {
	t.Parallel()
	w := &worker{}
	w.most.Store(1)
	var sizes []int64
	for range 6 {
		n := w.most.Load()
		sizes = append(sizes, n)
		w.pace(&Chunk{Events: make([]Event, n), Tickets: int(n), Full: true}, 20*time.Millisecond)
	}
	assert.Equal(t, []int64{1, 4, 16, 64, 256, ChunkTickets}, sizes)
}

func TestWorker_ASlowTarget_GetsSmallChunks(t *testing.T) {
	t.Parallel()
	w := &worker{}
	w.most.Store(1)
	full := &Chunk{Events: make([]Event, 1000), Tickets: 1000, Full: true}
	for range 20 {
		w.pace(full, time.Millisecond)
	}
	assert.EqualValues(t, ChunkTickets, w.most.Load())
	w.pace(full, 1000*5*time.Second)
	assert.EqualValues(t, 1, w.most.Load())
	one := &Chunk{Events: make([]Event, 1), Tickets: 1, Full: true}
	w.pace(one, time.Hour)
	assert.EqualValues(t, 1, w.most.Load(), "never less")
	w.pace(&Chunk{Events: make([]Event, 1), Tickets: 1}, time.Millisecond)
	assert.EqualValues(t, 1, w.most.Load(), "a chunk that could have been larger shows nothing")
	w.most.Store(1000)
	w.pace(full, 20*time.Second)
	assert.EqualValues(t, 250, w.most.Load(), "about five seconds")
	w.pace(&Chunk{Events: make([]Event, 4000), Tickets: 200, Full: true}, 100*time.Second)
	assert.EqualValues(t, 10, w.most.Load(), "tickets with many products are fewer than their events")
}

// A target that answers slowly, but takes several events at once, is not told one event at a time.
func TestWorker_ATargetThatAnswersSlowly_GetsChunksThatGrow(t *testing.T) {
	t.Parallel()
	for _, latency := range []time.Duration{600 * time.Millisecond, 3 * time.Second, 8 * time.Second} {
		w := &worker{}
		w.most.Store(1)
		for range 40 {
			n := int(w.most.Load())
			w.pace(&Chunk{Events: make([]Event, n), Tickets: n, Full: true}, latency*time.Duration((n+15)/16))
		}
		assert.GreaterOrEqual(t, w.most.Load(), int64(16), latency)
		for range 40 { // and if it takes one at a time
			n := int(w.most.Load())
			w.pace(&Chunk{Events: make([]Event, n), Tickets: n, Full: true}, latency*time.Duration(n))
		}
		assert.LessOrEqual(t, time.Duration(w.most.Load())*latency, slowestChunk, latency)
	}
}
