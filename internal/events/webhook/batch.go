package webhook

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
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

// batchSize is how many events a batch has at most. A receiver may be too slow for as many as the option allows, or a gateway may
// refuse so many bytes. Then batches become shorter. Else all of a batch would be sent again after each single event of it.
type batchSize struct {
	limit int // by the option; 0 if there are no batches

	mu    sync.Mutex
	most  int // now
	taken int // batches of so many that were taken since the last one that was not
}

// tryMore is after how many batches one that is twice as long is tried again.
const tryMore = 100

func (s *batchSize) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

// took notes that a batch of n events was taken.
func (s *batchSize) took(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n < s.most || s.most == s.limit {
		return
	}
	if s.taken++; s.taken >= tryMore {
		s.most, s.taken = min(2*s.most, s.limit), 0
	}
}

// failed notes that a batch of n events was not taken, which no event alone is known to have caused.
func (s *batchSize) failed(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most, s.taken = max(min(s.most, n/2), 1), 0
}

// sendBatches sends the events of a lane, one batch after the other, and sets their outcomes. If a batch fails, but perhaps only
// because of one of its events, each is sent by itself, as a batch of one, to find that one. If the target as a whole fails,
// nothing behind it is sent, and only the first event of the batch counts as tried.
func (t *target) sendBatches(ctx context.Context, all []events.Event, lane []int, outcomes []error, down *atomic.Bool) {
	failed := false
	for len(lane) > 0 {
		if failed || down.Load() {
			for _, i := range lane {
				outcomes[i] = events.ErrNotSent
			}
			return
		}
		part := lane[:t.fits(all, lane)]
		whole, err := t.post(ctx, batchOf(all, part))
		switch {
		case err == nil:
			t.batch.took(len(part))
		case len(part) > 1 && !whole:
			failed = t.sendSingly(ctx, all, part, outcomes, down)
			lane = lane[len(part):]
			continue
		case len(part) > 1:
			t.batch.failed(len(part))
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
		lane = lane[len(part):]
	}
}

// sendSingly sends the events of a batch that failed one by one. It reports whether one of them failed, too, and is not refused.
func (t *target) sendSingly(
	ctx context.Context, all []events.Event, part []int, outcomes []error, down *atomic.Bool,
) (failed bool) {
	refused := false
	for n, i := range part {
		if failed || down.Load() {
			outcomes[i] = events.ErrNotSent
			failed = true
			continue
		}
		whole, err := t.post(ctx, batchOf(all, part[n:n+1]))
		outcomes[i] = err
		refused = refused || errors.Is(err, events.ErrRejected)
		failed = err != nil && !errors.Is(err, events.ErrRejected)
		if whole {
			down.Store(true)
		}
	}
	if !failed && !refused {
		t.batch.failed(len(part))
	}
	return failed
}

// fits returns how many of the first events are a batch: at least one.
func (t *target) fits(all []events.Event, lane []int) int {
	size, most := len("[]"), t.batch.now()
	for n, i := range lane {
		size += len(all[i].JSON) + len(",")
		if n > 0 && (n == most || size > t.batchBytes) {
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
