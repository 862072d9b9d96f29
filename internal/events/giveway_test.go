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
