package main

import (
	"crypto/sha256"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// sent is a ticket that was sent, and its answer.
type sent struct {
	body   [sha256.Size]byte // its hash: bodies are unique
	id     uuid.UUID         // that the server gave it
	at     time.Duration     // since the ledger began
	took   time.Duration     // until the answer, or until the sender gave up
	status int16             // of the answer; 0 for none
	keyed  bool              // it had an idempotency key, so it may have been sent more than once
}

func (s *sent) acknowledged() bool {
	return s.status == http.StatusOK || s.status == http.StatusAccepted
}

// ledger keeps what was sent, in the order in which it was sent.
type ledger struct {
	start time.Time

	mu      sync.Mutex
	tickets []sent

	repeated atomic.Int64 // requests that were sent again, with the same key
}

func newLedger() *ledger { return &ledger{start: time.Now()} }

// begin notes a ticket before its first byte is sent, and returns its number.
func (l *ledger) begin(body []byte, keyed bool) int {
	hash := sha256.Sum256(body)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tickets = append(l.tickets, sent{body: hash, at: time.Since(l.start), keyed: keyed})
	return len(l.tickets) - 1
}

// end notes the answer. A zero one means that there was none.
func (l *ledger) end(n int, a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.tickets[n]
	s.took, s.status, s.id = time.Since(l.start)-s.at, int16(a.status), a.id
}

// between returns the tickets that were sent at or after from, and answered (or given up) before to.
func (l *ledger) between(from, to time.Time) []sent {
	first, last := from.Sub(l.start), to.Sub(l.start)
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []sent
	for i := len(l.tickets) - 1; i >= 0 && l.tickets[i].at >= first; i-- {
		if s := l.tickets[i]; s.took > 0 && s.at+s.took < last {
			found = append(found, s)
		}
	}
	return found
}

// since counts the tickets that were sent at or after from and answered with the status.
func (l *ledger) since(from time.Time, status int16) int {
	n := 0
	for _, s := range l.between(from, time.Now()) {
		if s.status == status {
			n++
		}
	}
	return n
}
