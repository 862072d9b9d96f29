package spool

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// errEndsEarly means that the structure of a file is right, but does not have all of the file's records.
var errEndsEarly = errors.New("the file holds records that its structure does not know of")

// Verify verifies the files that processes before this one left, oldest first, and then closes KeysRead. It returns when all
// are verified, with an error if the disk does not return some of them, or when ctx ends and the present file is verified.
// Meanwhile any other method but Close may be called. If Peek gets to a file first, it verifies it.
func (s *Spool) Verify(ctx context.Context) error {
	var failure error
	for _, segment := range s.queue.all() {
		if ctx.Err() != nil {
			return errors.Join(failure, ctx.Err())
		}
		failure = errors.Join(failure, s.verify(segment))
	}
	s.keys.complete()
	return failure
}

// KeysRead is closed when Find knows the keys of all tickets in the spool. Until then it may not know those in files that are
// not verified. A file that the disk does not return is not waited for.
func (s *Spool) KeysRead() <-chan struct{} { return s.keys.read }

// verify verifies a file of a process before this one, if that was not done before. It salvages a damaged file and sets it
// aside. It returns an error if the disk does not return the file; then the file may be verified later.
func (s *Spool) verify(segment *segment) error {
	if segment.isVerified() {
		return nil
	}
	segment.verifying.Lock()
	defer segment.verifying.Unlock()
	if segment.isVerified() {
		return nil
	}
	damage, err := segment.load(s.keys.addRecord)
	if err != nil {
		return fmt.Errorf("verify a file of the spool: %w", err)
	}
	s.write.Lock()
	defer s.write.Unlock()
	switch {
	case damage != nil:
		err = s.setAside(segment, damage)
	case !s.config.ReadOnly:
		err = s.folder.rename(segment, suffixSegment) // what the database refused is tried again
	case filepath.Ext(segment.name()) == suffixRefused:
		s.aside.Add(1)
	}
	segment.setVerified() // under any name
	if s.queue.unverified() == 0 {
		s.keys.complete()
	}
	s.refreshOldest()
	if err = errors.Join(err, s.forgetDrained()); err != nil {
		s.config.Logger.Warn("a file of the spool cannot be renamed or removed; its tickets are drained", "error", err)
	}
	return nil
}

// estimate counts the records of a file that is not verified, by its structure and its last record. If they make no sense,
// the file counts with its size, and with no records.
func (s *segment) estimate() error {
	s.file.Lock()
	defer s.file.Unlock()
	info, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	var last uint64
	bytes := info.Size()
	if !s.damaged {
		// Whatever is wrong, verify finds it.
		_ = s.view(func(tx *bolt.Tx, b *bolt.Bucket) error {
			if _, value := b.Cursor().Last(); value != nil {
				r, _, err := s.nonce.decode(value)
				if err != nil {
					return err
				}
				last = r.Sequence
			}
			bytes = tx.Size()
			return nil
		})
		s.closeFile()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records, s.left, s.bytes = last, int(last), bytes
	return nil
}

// load reads a file that a process before this one left, counts its records, and calls f with each. It salvages a file whose
// structure is not right, and may then call f with a record twice.
func (s *segment) load(f func(*record)) (*damage, error) {
	cause := s.verify(f)
	if cause == nil {
		return nil, nil //nolint:nilnil // no damage is no error
	}
	d, err := s.salvage(cause)
	if err != nil {
		return nil, err
	}
	// What cannot be read a second time, the next Peek finds.
	_ = s.each(func(r *record, _ int64) bool { f(r); return true })
	return d, nil
}

// verify counts the records, and returns an error if the structure of the file is not right.
func (s *segment) verify(f func(*record)) error {
	s.file.Lock()
	defer s.file.Unlock()
	if s.damaged {
		return errDamaged
	}
	var records uint64
	var left int
	var bytes int64
	every := func(uint64) bool { return true }
	err := s.walk(1, math.MaxUint64, every, func(r *record, size int64) bool {
		records = r.Sequence
		left++
		bytes += size
		f(r)
		return true
	})
	s.closeFile()
	if err != nil {
		return err
	}
	if err := s.endsEarly(records); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records, s.left, s.bytes = records, left, bytes
	return nil
}

// endsEarly returns errEndsEarly if the file holds a record after the last one that its structure knows of: the page that
// names the newest transaction is lost and bbolt went back to the one before, or a process was killed in the middle of a
// transaction. The caller must hold s.file.
func (s *segment) endsEarly(last uint64) error {
	found := false
	_, err := s.scan(last, func(*record, int64, int) bool {
		found = true
		return false
	})
	if err == nil && found {
		err = errEndsEarly
	}
	return err
}
