package spool

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"myticket/internal/intake"
)

var errReadOnly = errors.New("the spool was opened read-only")

// Peek returns the oldest tickets but for those to skip, in the order in which they were put: up to n tickets of up to b
// bytes, at least one ticket if there is any. They stay until Remove. What they say is not read. Peek verifies a file that is
// not verified yet, or waits until it is. It does not wait for a Put that is under way, except to finish that.
func (s *Spool) Peek(n int, b int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	s.dropIdle()
	var failure error
	for _, segment := range s.queue.all() {
		tickets, err := s.read(segment, n, b, skip)
		if err != nil { // the disk does not return this file, but it may return the next
			failure = errors.Join(failure, err)
			continue
		}
		if len(tickets) == 0 {
			continue
		}
		if failure != nil {
			s.config.Logger.Error("a file of the spool cannot be read; its tickets stay in it, and those behind it are drained meanwhile",
				"error", failure)
		}
		return tickets, nil
	}
	return nil, failure
}

// read returns what Peek returns of one file.
func (s *Spool) read(segment *segment, n int, b int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	if err := s.verify(segment); err != nil {
		return nil, err
	}
	tickets, err := segment.read(n, b, skip)
	if err == nil {
		return tickets, nil
	}
	if err := s.salvage(segment, err); err != nil {
		return nil, err
	}
	return segment.read(n, b, skip) // what was salvaged of it
}

// salvage sets a file aside that was whole when it was loaded or made, and cannot be read now.
func (s *Spool) salvage(segment *segment, cause error) error {
	s.write.Lock()
	defer s.write.Unlock()
	if s.active == segment {
		s.active = nil
	}
	damage, err := segment.salvage(cause)
	if err == nil && damage != nil {
		err = s.setAside(segment, damage)
	}
	return errors.Join(err, s.forgetDrained())
}

// Remove removes tickets that Peek returned: they are in the database, or kept by Refuse. A ticket that is gone already is no
// error. The file goes when all of its tickets are removed. If the process ends before that, they are drained once more,
// which stores nothing twice.
func (s *Spool) Remove(tickets []intake.Spooled) error {
	if len(tickets) == 0 {
		return nil
	}
	s.write.Lock()
	defer s.write.Unlock()
	if s.config.ReadOnly {
		return errReadOnly
	}
	for i := range tickets {
		s.queue.forget(tickets[i].Place)
		s.keys.remove(&tickets[i].Entry)
	}
	err := s.forgetDrained()
	s.refreshOldest()
	return err
}

// forgetDrained removes the files that hold nothing that is needed, but for the active one. The caller must hold s.write.
func (s *Spool) forgetDrained() error {
	if s.config.ReadOnly {
		return nil
	}
	var err error
	for _, segment := range s.queue.drop(s.active) {
		if removeErr := s.folder.remove(segment); removeErr != nil {
			err = errors.Join(err, fmt.Errorf("remove a drained file of the spool: %w", removeErr))
		}
	}
	return err
}

// refreshOldest finds out how old the oldest ticket is. The caller must hold s.write.
func (s *Spool) refreshOldest() {
	var oldest time.Time
	for _, segment := range s.queue.all() {
		if left, _ := segment.holds(); left == 0 {
			continue
		}
		// If it cannot be read, the next Peek finds out why.
		_ = segment.each(func(r *record, _ int64) bool {
			e := r.entry()
			oldest = e.Came()
			return false
		})
		break
	}
	s.queue.setOldest(oldest)
}

// dropIdle removes the active file when it is drained and no more tickets come: after a crash its records would be drained
// once more, and its bytes count. A file that is being written is not idle, so dropIdle never waits for a disk that hangs.
func (s *Spool) dropIdle() {
	if !s.write.TryLock() {
		return
	}
	defer s.write.Unlock()
	if s.active == nil || !s.active.isDrained() || time.Since(s.lastPut) < idle {
		return
	}
	s.active = nil
	if err := s.forgetDrained(); err != nil {
		s.config.Logger.Warn("a drained file of the spool stays; its tickets are drained once more after a restart", "error", err)
	}
}

// Refuse keeps a ticket that the database refuses even unread in a file that is not drained until the next start.
func (s *Spool) Refuse(e *intake.Entry) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.refuse(e); err != nil {
		return fmt.Errorf("keep a refused ticket: %w", err)
	}
	return nil
}

func (s *Spool) refuse(e *intake.Entry) error {
	if s.config.ReadOnly {
		return errReadOnly
	}
	if s.refused == nil {
		segment, err := s.folder.create(suffixRefused)
		if err != nil {
			return err
		}
		s.refused = segment
		s.aside.Add(1)
	}
	values, bytes, err := s.refused.encode([]*intake.Entry{e})
	if err == nil {
		err = s.refused.append(values)
	}
	if err != nil {
		s.refused.close()
		s.refused = nil
		return err
	}
	s.refused.count(1, bytes)
	return nil
}
