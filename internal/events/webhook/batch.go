package webhook

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"sync/atomic"

	"myticket/internal/events"
)

// Limits of a batch.
const (
	maxBatch          = 100
	defaultBatchBytes = 1 << 20
	minBatchBytes     = 1 << 10
	maxBatchBytes     = 16 << 20
)

// batchContentType is that of CloudEvents' batched mode: a JSON array of events
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#33-batched-content-mode).
const batchContentType = "application/cloudevents-batch+json; charset=UTF-8"

// lanes puts the events of all keys into n lists of about the same length, each in the order in which they came. The events of a
// key are in one list.
func lanes(keys [][]int, n int) [][]int {
	all := make([][]int, n)
	for _, key := range keys {
		shortest := 0
		for i := range all {
			if len(all[i]) < len(all[shortest]) {
				shortest = i
			}
		}
		all[shortest] = append(all[shortest], key...)
	}
	for i := range all {
		slices.Sort(all[i])
	}
	return slices.DeleteFunc(all, func(lane []int) bool { return len(lane) == 0 })
}

// sendBatches sends the events of a lane, one batch after the other, and sets their outcomes. If a batch fails, but perhaps only
// because of one of its events, each is sent by itself, as a batch of one, to find that one. If the target as a whole fails,
// nothing behind it is sent, and only the first event of the batch counts as tried.
func (t *target) sendBatches(ctx context.Context, all []events.Event, lane []int, outcomes []error, down *atomic.Bool) {
	failed, single := false, 0 // so many events are to be sent by themselves
	for len(lane) > 0 {
		if failed || down.Load() {
			for _, i := range lane {
				outcomes[i] = events.ErrNotSent
			}
			return
		}
		n := 1
		if single == 0 {
			n = t.fits(all, lane)
		}
		part := lane[:n]
		whole, err := t.post(ctx, batchOf(all, part))
		if err != nil && !whole && n > 1 {
			single = n
			continue
		}
		if err != nil {
			for _, i := range part[1:] {
				outcomes[i] = events.ErrNotSent
			}
		}
		outcomes[part[0]] = err
		failed = err != nil && !errors.Is(err, events.ErrRejected)
		if whole {
			down.Store(true)
		}
		lane, single = lane[n:], max(single-1, 0)
	}
}

// fits returns how many of the first events are a batch: at least one.
func (t *target) fits(all []events.Event, lane []int) int {
	size := len("[]")
	for n, i := range lane {
		size += len(all[i].JSON) + len(",")
		if n > 0 && (n == t.batch || size > t.batchBytes) {
			return n
		}
	}
	return len(lane)
}

// batchOf makes a message of some events. Its id is made of what it says, so it is the same in each repeat of the same batch.
func batchOf(all []events.Event, part []int) message {
	body := []byte{'['}
	for n, i := range part {
		if n > 0 {
			body = append(body, ',')
		}
		body = append(body, all[i].JSON...)
	}
	body = append(body, ']')
	sum := sha256.Sum256(body)
	return message{"batch_" + hex.EncodeToString(sum[:16]), batchContentType, body}
}
