package spool

import (
	"context"
	"fmt"
	"time"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// Put stores entries durably, all or none, and returns what became of each. An entry whose idempotency key is in the spool
// already is not stored again. Put returns intake.ErrSpoolFull, or ticket.ErrUnavailable when the disk does not take them.
func (s *Spool) Put(entries []*intake.Entry) (intake.Saved, error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.config.ReadOnly {
		return intake.Saved{}, fmt.Errorf("%w: %w", ticket.ErrUnavailable, errReadOnly)
	}
	fresh, outcomes := s.withoutDuplicates(entries)
	if len(fresh) > 0 {
		if err := s.put(fresh); err != nil {
			return intake.Saved{}, err
		}
	}
	return intake.Saved{Outcomes: outcomes}, nil
}

// put stores entries, at least one. The caller must hold s.write.
func (s *Spool) put(fresh []*intake.Entry) error {
	if failure, wait := s.health.failing(); failure != nil && wait > 0 {
		return fmt.Errorf("%w: the spool's disk failed a moment ago: %w", ticket.ErrUnavailable, failure)
	}
	if err := s.ensureActive(); err != nil {
		return s.health.failed(err)
	}
	values, bytes, err := s.active.encode(fresh)
	if err != nil {
		return err
	}
	if err := s.room(len(fresh), bytes); err != nil {
		return err
	}
	if err := s.active.append(values); err != nil {
		s.abandon()
		return s.health.failed(err)
	}
	s.keys.add(fresh...)
	s.queue.count(s.active, len(fresh), bytes, fresh[0].Ticket.ReceivedAt)
	s.lastPut = time.Now()
	s.health.works()
	if _, size := s.active.holds(); size >= s.config.SegmentBytes {
		s.active = nil // the file stays open until it is drained
	}
	return nil
}

// withoutDuplicates returns the entries that are to be stored, and what becomes of all entries if they are. The caller must
// hold s.write.
func (s *Spool) withoutDuplicates(entries []*intake.Entry) (fresh []*intake.Entry, outcomes []intake.Outcome) {
	fresh, outcomes = make([]*intake.Entry, 0, len(entries)), make([]intake.Outcome, len(entries))
	own := map[deliveryKey]*intake.Entry{}
	for i, e := range entries {
		outcomes[i] = intake.Outcome{ID: e.Ticket.ID, Status: ticket.Spooled}
		if e.Key == "" {
			fresh = append(fresh, e)
			continue
		}
		key := newDeliveryKey(e.Ticket.Source, e.Key)
		known, ok := s.keys.find(key)
		if first := own[key]; first != nil {
			known, ok = delivery{id: first.Ticket.ID, body: first.BodySHA256}, true
		}
		switch {
		case !ok || known.id == e.Ticket.ID:
			own[key] = e
			fresh = append(fresh, e)
		case known.body != e.BodySHA256:
			outcomes[i] = intake.Outcome{KeyReused: true}
		default:
			outcomes[i] = intake.Outcome{ID: known.id, Status: ticket.Spooled, Duplicate: true}
		}
	}
	return fresh, outcomes
}

// room returns intake.ErrSpoolFull if the spool has no room for n tickets of b bytes.
func (s *Spool) room(n int, b int64) error {
	tickets, bytes, _ := s.queue.holds()
	if tickets+n > s.config.MaxTickets || bytes+b > s.config.MaxBytes {
		return fmt.Errorf("%w: it holds %d tickets (at most %d) in %d bytes (at most %d)",
			intake.ErrSpoolFull, tickets, s.config.MaxTickets, bytes, s.config.MaxBytes)
	}
	return nil
}

// ensureActive makes a file to write to, if there is none. The caller must hold s.write.
func (s *Spool) ensureActive() error {
	if s.active != nil {
		return nil
	}
	segment, err := s.folder.create(suffixSegment)
	if err != nil {
		return err
	}
	s.active = segment
	s.queue.add(segment)
	return nil
}

// abandon gives up the active file after a failed append. A disk that failed once may have dropped what was written
// (https://lwn.net/Articles/752063/), so nothing is written to that file again. What was acknowledged before is in it. The
// caller must hold s.write.
func (s *Spool) abandon() {
	s.active.close()
	s.active = nil
	if err := s.forgetDrained(); err != nil {
		s.config.Logger.Warn("an empty file of the spool stays", "error", err)
	}
}

// Watch checks every second whether a disk that failed takes tickets again, until ctx ends.
func (s *Spool) Watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.check()
		}
	}
}

// check tries a disk that failed, if it is time to.
func (s *Spool) check() {
	if failure, wait := s.health.failing(); failure == nil || wait > 0 || s.config.ReadOnly {
		return
	}
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.ensureActive(); err != nil {
		_ = s.health.failed(err) // Stats reports it
		return
	}
	s.health.works()
}
