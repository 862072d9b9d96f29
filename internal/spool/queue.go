package spool

import (
	"slices"
	"sync"
	"time"

	"myticket/internal/intake"
)

// queue is the segments of which something is to be drained, and the one that is written. Any goroutine may use it, and it
// never waits for the disk.
type queue struct {
	mu       sync.Mutex // guards what follows; the disk is never touched under it
	segments []*segment // oldest first
	added    uint64     // how many segments were ever added
	oldest   time.Time  // when the oldest ticket was received; zero when there is none
}

// add adds segments that are newer than all others.
func (q *queue) add(segments ...*segment) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range segments {
		q.added++
		s.id = q.added
		q.segments = append(q.segments, s)
	}
}

// all returns the segments, oldest first.
func (q *queue) all() []*segment {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.segments)
}

// drop takes the segments of which nothing is needed out of the queue, but for the active one, and returns them.
func (q *queue) drop(active *segment) (drained []*segment) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.segments = slices.DeleteFunc(q.segments, func(s *segment) bool {
		if !s.isSpent() || s == active {
			return false
		}
		drained = append(drained, s)
		return true
	})
	return drained
}

// forget notes that a ticket is not needed any more.
func (q *queue) forget(at intake.Place) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.segments {
		if s.id == at.Segment {
			s.forget(at.Sequence)
			return
		}
	}
}

// count counts tickets that were put into a segment, of which the first was received at a time.
func (q *queue) count(s *segment, tickets int, bytes int64, received time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.count(tickets, bytes)
	if q.oldest.IsZero() {
		q.oldest = received
	}
}

// setOldest notes when the oldest ticket was received.
func (q *queue) setOldest(at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.oldest = at
}

// holds returns how many tickets are to be drained, about how many bytes the files hold, and when the oldest ticket was
// received.
func (q *queue) holds() (tickets int, bytes int64, oldest time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.segments {
		left, size := s.holds()
		tickets += left
		bytes += size
	}
	return tickets, bytes, q.oldest
}

// unverified returns how many segments are not verified.
func (q *queue) unverified() (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.segments {
		if !s.isVerified() {
			n++
		}
	}
	return n
}
