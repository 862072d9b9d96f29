package spool

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"myticket/internal/intake"
)

// each calls f with the records that are still needed, oldest first, until f returns false. It does not wait for an append
// that is under way.
func (s *segment) each(f func(r *record, size int64) bool) error {
	s.file.Lock()
	defer s.file.Unlock()
	s.mu.Lock()
	drained, last, left := s.drained, s.records, s.left
	s.mu.Unlock()
	if left == 0 {
		return nil
	}
	if s.scattered {
		return s.walkSalvaged(s.isNeeded, f)
	}
	found := false
	err := s.walk(drained+1, last, s.isNeeded, func(r *record, size int64) bool {
		found = true
		return f(r, size)
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: there are no records after number %d", errDamaged, drained)
	}
	return err
}

// isNeeded reports whether a record is still to be drained.
func (s *segment) isNeeded(sequence uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.needs(sequence)
}

// walk calls f with the records of a range that are wanted, until f returns false. The records must be whole and follow
// each other without a gap. The caller must hold s.file.
func (s *segment) walk(from, last uint64, wanted func(uint64) bool, f func(r *record, size int64) bool) error {
	return s.view(func(_ *bolt.Tx, b *bolt.Bucket) error {
		c := b.Cursor()
		next := from
		for key, value := c.Seek(sequenceKey(from)); key != nil && next <= last; key, value = c.Next() {
			if len(key) != 8 || binary.BigEndian.Uint64(key) != next {
				return fmt.Errorf("%w: record %d is not where it should be", errDamaged, next)
			}
			next++
			if !wanted(next - 1) {
				continue
			}
			r, length, err := s.nonce.decode(value)
			if err != nil {
				return err
			}
			if r.Sequence != next-1 || length != len(value) {
				return fmt.Errorf("%w: record %d is not what it should be", errDamaged, next-1)
			}
			if !f(&r, cost(value)) {
				return nil
			}
		}
		return nil
	})
}

// view calls f with what the structure of the file gives access to, in a transaction. The caller must hold s.file.
func (s *segment) view(f func(tx *bolt.Tx, records *bolt.Bucket) error) error {
	begun := false
	err := whole(func() error {
		if err := s.openFile(); err != nil {
			return err
		}
		return s.db.View(func(tx *bolt.Tx) error {
			begun = true
			b := tx.Bucket(bucketName)
			if b == nil {
				return fmt.Errorf("%w: it has no tickets at all", errDamaged)
			}
			return f(tx, b)
		})
	})
	if err != nil && !begun && s.db != nil {
		// bbolt panicked while it held its locks, because it cannot read the first pages. Even to close it would hang.
		s.stuck.Store(true)
		s.db = nil
	}
	return err
}

// walkSalvaged is walk for a file that is read without its structure. The caller must hold s.file.
func (s *segment) walkSalvaged(wanted func(uint64) bool, f func(r *record, size int64) bool) error {
	file, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, at := range s.salvaged {
		if !wanted(at.sequence) {
			continue
		}
		value := make([]byte, at.length)
		if _, err := file.ReadAt(value, at.offset); err != nil {
			return fmt.Errorf("read a damaged file of the spool: %w", err)
		}
		r, _, err := s.nonce.decode(value)
		if err != nil {
			return err
		}
		if !f(&r, cost(value)) {
			return nil
		}
	}
	return nil
}

// openFile opens the file for reading, if it is not open already. The caller must hold s.file.
func (s *segment) openFile() (err error) {
	if s.db != nil {
		return nil
	}
	s.db, err = bolt.Open(s.path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	return err
}

// whole calls a function that reads a memory map of a file which may be damaged, and returns a panic as errDamaged: bbolt
// panics on pages that make no sense, and the processor faults on a page that is missing.
func whole(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return f()
}

// read returns the oldest tickets that are still needed, without those to skip: up to n tickets of up to b bytes, at least
// one ticket if there is any.
func (s *segment) read(n int, b int64, skip func(uuid.UUID) bool) (tickets []intake.Spooled, err error) {
	err = s.each(func(r *record, size int64) bool {
		if skip(r.ID) {
			return true
		}
		if b -= size; b < 0 && len(tickets) > 0 {
			return false
		}
		place := intake.Place{Segment: s.id, Sequence: r.Sequence}
		tickets = append(tickets, intake.Spooled{Entry: r.entry(), Place: place})
		return len(tickets) < n
	})
	return tickets, err
}
