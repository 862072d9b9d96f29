package postgres

import (
	"context"
	"time"
	"unsafe"

	"myticket/internal/ticket"
)

// Known returns how many products a store remembers, however old.
func (s *Store) Known() (n int) {
	s.known.mu.RLock()
	defer s.known.mu.RUnlock()
	if s.known.server == 0 {
		return 0
	}
	for i := range s.known.sets {
		for _, id := range s.known.sets[i].ids {
			if id != 0 {
				n++
			}
		}
	}
	return n
}

// Pause makes the store as it is after its process was paused, between looking at what it knows and sending its transaction:
// all that it knows is older by Postgres' clock, and it does not notice.
func (s *Store) Pause(d time.Duration) {
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	s.known.ahead -= d
	for i := range s.known.sets {
		set := &s.known.sets[i]
		for j := range set.ids {
			if set.ids[j] != 0 {
				set.products[j].asOf -= uint32(d / time.Second)
			}
		}
	}
}

// Wait makes what the store knows older, which it notices.
func (s *Store) Wait(d time.Duration) {
	s.Pause(d)
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	s.known.ahead += d
}

// Elsewhere makes what the store knows that of another Postgres server.
func (s *Store) Elsewhere() {
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	s.known.server--
}

// KnownProductSize is the memory of one remembered product.
const KnownProductSize = unsafe.Sizeof(knownSet{}) / knownWays

// RememberMany remembers products that no ticket names.
func (s *Store) RememberMany(n int) {
	seen := seenProducts{server: 1, sent: time.Since(s.known.start), began: time.Now().UnixMicro() - postgresEpoch}
	for i := range n {
		hash := uint64(i+1) * 0x9e3779b97f4a7c15
		seen.products = append(seen.products, seenProduct{hash, knownProduct{words: hash, asOf: uint32(seen.began / second)}})
	}
	s.known.remember(seen)
}

// News does what Save does before it asks about products, and returns the number of products to ask about and the bytes to send.
func (s *Store) News(tickets []*ticket.Ticket) (products, bytes int) {
	rows := make([]row, len(tickets))
	for i, t := range tickets {
		rows[i] = rowOf(t)
	}
	sayings, _ := s.news(rows)
	if len(sayings) == 0 {
		return 0, 0
	}
	for _, p := range s.productParams(sayings) {
		bytes += len(p)
	}
	return len(sayings), bytes
}

// Forget forgets all products.
func (s *Store) Forget() { s.known.forget() }

// Setting returns a setting of Postgres in the sessions of a store.
func (s *Store) Setting(ctx context.Context, name string) (value string, err error) {
	err = s.pool.QueryRow(ctx, `SELECT current_setting($1)`, name).Scan(&value)
	return value, err
}
