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
	fresh, outcomes := s.keys.withoutDuplicates(entries)
	if len(fresh) > 0 {
		if err := s.put(fresh); err != nil {
			return intake.Saved{}, err
		}
	}
	return intake.Saved{Outcomes: outcomes}, nil
}

// put stores entries, at least one. The caller must hold s.write.
func (s *Spool) put(fresh []*intake.Entry) error {
	if wait, failure := s.health.failing(); failure != nil && wait > 0 {
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
	s.queue.count(s.active, len(fresh), bytes, fresh[0].Came())
	s.lastPut = time.Now()
	s.health.works()
	if _, size := s.active.holds(); size >= s.config.SegmentBytes {
		s.active = nil // the file stays open until it is drained
	}
	return nil
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

// ensureActive makes a file to write to, if there is none that can be written. The caller must hold s.write.
func (s *Spool) ensureActive() error {
	if s.active != nil && !s.active.stuck.Load() {
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
	if wait, failure := s.health.failing(); failure == nil || wait > 0 || s.config.ReadOnly {
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
