package events

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestSender_GivesWayToABurst_AndNotToAnEndlessLoad(t *testing.T) {
	t.Parallel()
	s := NewSender(SenderConfig{GiveWay: 10 * time.Second})
	const took = 20 * time.Millisecond
	assert.Equal(t, 180*time.Millisecond, s.giveWay(Chunk{More: true}, took))
	assert.Equal(t, 90*time.Millisecond, s.giveWay(Chunk{More: true, Age: 5 * time.Second}, took))
	assert.Zero(t, s.giveWay(Chunk{More: true, Age: 10 * time.Second}, took))
	assert.Zero(t, s.giveWay(Chunk{More: true, Age: time.Hour}, took))
	assert.Zero(t, s.giveWay(Chunk{}, took), "nothing waits behind them")
	assert.Equal(t, yieldMost, s.giveWay(Chunk{More: true}, time.Minute))
	assert.Zero(t, NewSender(SenderConfig{GiveWay: -1}).giveWay(Chunk{More: true}, took))
	assert.Equal(t, 180*time.Millisecond, NewSender(SenderConfig{}).giveWay(Chunk{More: true}, took))
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
