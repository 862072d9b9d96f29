package spool

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"

	"myticket/internal/intake"
)

var bucketName = []byte("tickets")

// segment is one file of a spool. A process appends only to files that it made itself. It only reads a file that a process
// before it left, and removes it as a whole when all of it is in the database. So nothing inside a file is ever overwritten
// or deleted, and a damaged file can hide no tickets but its own.
type segment struct {
	number uint64 // in the file's name; two files that were copied from two folders may have the same
	nonce  nonce
	id     uint64   // in the queue; it does not change once the segment is there
	writer *bolt.DB // for append; nil if this process did not make the file. It never changes. It is db until that is closed.

	stuck atomic.Bool // the locks of the writer may be held for ever, so it must not be used again

	verifying sync.Mutex // held by Spool.verify, so that it verifies the file once; locked before Spool.write

	// file guards what follows. It is held while the file is opened, read, renamed or closed, but not while records are
	// appended: a reader does not wait for a writer.
	file      sync.Mutex
	path      string
	db        *bolt.DB // reads; nil while the file is closed
	scattered bool     // the file is read without its structure, from salvaged
	salvaged  []salvagedRecord
	damaged   bool // the file is kept for a person

	// mu guards the counts that follow. The disk is never touched under it.
	mu       sync.Mutex
	verified bool                // this process made the file, or has verified it; until then the counts are estimates
	records  uint64              // the sequence number of the newest record that was acknowledged or loaded; the first is 1
	drained  uint64              // no record up to this sequence number is needed any more
	removed  map[uint64]struct{} // records after drained that are not needed: their tickets overtook one that was stepped over
	left     int                 // records that are still needed
	bytes    int64               // about what the records take in the file
}

// encode returns the records of entries that are to be appended next, and what they take in the file.
func (s *segment) encode(entries []*intake.Entry) (values [][]byte, bytes int64, err error) {
	s.mu.Lock()
	sequence := s.records
	s.mu.Unlock()
	values = make([][]byte, len(entries))
	for i, e := range entries {
		sequence++
		if values[i], err = s.nonce.encode(sequence, e); err != nil {
			return nil, 0, err
		}
		bytes += cost(values[i])
	}
	return values, bytes, nil
}

// append writes what encode returned in one transaction, and returns when it is on disk (fdatasync). After an error the
// records may be in the file all the same. They do not count, so they are not read while this process runs.
func (s *segment) append(values [][]byte) error {
	s.mu.Lock()
	sequence := s.records
	s.mu.Unlock()
	return s.writer.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketName)
		b.FillPercent = 1 // sequence numbers only grow, so a full page stays full
		for _, value := range values {
			sequence++
			if err := b.Put(sequenceKey(sequence), value); err != nil {
				return err
			}
		}
		return nil
	})
}

// count counts records that were appended.
func (s *segment) count(n int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records += uint64(n)
	s.left += n
	s.bytes += bytes
}

func sequenceKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// cost is what a record takes in the file. One that is longer than a page has pages of its own.
func cost(value []byte) int64 {
	const elementHeader, sequence = 16, 8
	n := int64(len(value) + elementHeader + sequence)
	if page := int64(os.Getpagesize()); n > page/2 {
		n = (n + page - 1) / page * page
	}
	return n
}

// holds returns how many records are still needed, and about how many bytes all records take in the file.
func (s *segment) holds() (left int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left, s.bytes
}

// isVerified reports whether the counts are true and the records may be drained.
func (s *segment) isVerified() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verified
}

// setVerified notes that the file is verified, and salvaged if it was damaged.
func (s *segment) setVerified() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verified = true
}

// isSpent reports whether the file holds nothing that is needed. A file that is not verified may hold more than it seems.
func (s *segment) isSpent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verified && s.left == 0
}

// isDrained reports whether the segment has records, and none of them is needed any more.
func (s *segment) isDrained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records > 0 && s.left == 0
}

// needs reports whether a record is still to be drained. The caller must hold s.mu.
func (s *segment) needs(sequence uint64) bool {
	_, removed := s.removed[sequence]
	return sequence > s.drained && !removed
}

// forget notes that a record is not needed any more.
func (s *segment) forget(sequence uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.needs(sequence) {
		return
	}
	s.left--
	if s.removed == nil {
		s.removed = map[uint64]struct{}{}
	}
	s.removed[sequence] = struct{}{}
	for {
		if _, ok := s.removed[s.drained+1]; !ok {
			return
		}
		s.drained++
		delete(s.removed, s.drained)
	}
}

// name returns the path of the file.
func (s *segment) name() string {
	s.file.Lock()
	defer s.file.Unlock()
	return s.path
}

// close closes the file. The next reader opens it again.
func (s *segment) close() {
	s.file.Lock()
	defer s.file.Unlock()
	s.closeFile()
}

// closeFile does the same. The caller must hold s.file.
func (s *segment) closeFile() {
	if s.db == nil {
		return
	}
	_ = whole(s.db.Close)
	s.db = nil
}

// rename gives the file another suffix.
func (s *segment) rename(suffix string) error {
	s.file.Lock()
	defer s.file.Unlock()
	path := s.withSuffix(suffix)
	if path == s.path {
		return nil
	}
	if err := os.Rename(s.path, path); err != nil {
		return err
	}
	s.path = path
	return syncDir(filepath.Dir(path))
}

// withSuffix returns the path of the file under another suffix. The caller must hold s.file.
func (s *segment) withSuffix(suffix string) string {
	return strings.TrimSuffix(s.path, filepath.Ext(s.path)) + suffix
}

// remove closes and removes the file. A damaged one stays under another name, because a person may find more in it.
func (s *segment) remove() error {
	s.file.Lock()
	defer s.file.Unlock()
	s.closeFile()
	var err error
	if s.damaged {
		err = os.Rename(s.path, s.withSuffix(suffixRecovered))
	} else {
		err = os.Remove(s.path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}
