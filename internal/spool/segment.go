package spool

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"myticket/internal/intake"
)

// The kinds of files in a spool's folder, by how their names end.
const (
	suffixSegment   = ".spool"     // tickets, to be drained
	suffixNew       = ".new"       // a segment that is being made, and holds nothing yet
	suffixDamaged   = ".damaged"   // a segment whose structure is broken; what is readable is drained
	suffixRecovered = ".recovered" // a damaged one of which everything readable was drained; for a person to look at
	suffixRefused   = ".refused"   // tickets that the database refuses even unread; tried again at the next start
)

var bucketName = []byte("tickets")

// file is one file of a spool, a segment. A process appends to files that it made itself and to no other: what a process
// before it left is only read, and removed as a whole when all of it is in the database. So nothing is ever overwritten or
// deleted inside a file, and a file that was damaged meanwhile can do no more harm than hide some of its own tickets.
type file struct {
	path   string
	number uint64
	nonce  nonce

	reading sync.Mutex // held while db is opened, read or closed
	db      *bolt.DB   // nil while the file is closed

	records uint64              // their sequence numbers are 1 to records, but for damaged segments
	drained uint64              // no record up to this sequence number is needed any more
	left    int                 // records that are still needed
	removed map[uint64]struct{} // those behind drained that are not: their tickets overtook one that was stepped over
	bytes   int64               // what the records take in the file, more or less

	scattered bool // it is read without its structure, from salvaged
	salvaged  []salvagedRecord
	damaged   bool // it is kept for a person
}

// createSegment makes a file that is whole at the moment it has its name.
func createSegment(dir string, number uint64, suffix string) (_ *file, err error) {
	s := &file{number: number}
	if _, err := rand.Read(s.nonce[:]); err != nil {
		return nil, err
	}
	s.path = filepath.Join(dir, fmt.Sprintf("%016x-%s%s", number, hex.EncodeToString(s.nonce[:]), suffix))
	temporary := s.path + suffixNew
	s.db, err = bolt.Open(temporary, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		_ = os.Remove(temporary)
		return nil, err
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket(bucketName)
		return err
	})
	if err == nil {
		err = os.Rename(temporary, s.path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		_ = s.db.Close()
		_ = os.Remove(temporary)
		_ = os.Remove(s.path)
		return nil, err
	}
	return s, nil
}

// syncDir makes names durable: fsync(2), "Calling fsync() does not necessarily ensure that the entry in the directory
// containing the file has also reached disk".
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// parseName reads the name of a file that createSegment made.
func parseName(path string) (*file, error) {
	name := filepath.Base(path)
	stem, _, _ := strings.Cut(name, ".")
	number, random, ok := strings.Cut(stem, "-")
	s := &file{path: path}
	var err error
	if s.number, err = strconv.ParseUint(number, 16, 64); err == nil {
		var decoded []byte
		decoded, err = hex.DecodeString(random)
		ok = ok && copy(s.nonce[:], decoded) == nonceSize && len(decoded) == nonceSize
	}
	if err != nil || !ok {
		return nil, fmt.Errorf("%s is no file of a spool: its name should be two numbers of 16 hexadecimal digits", name)
	}
	return s, nil
}

// needs reports whether a record is still to be drained.
func (s *file) needs(sequence uint64) bool {
	_, removed := s.removed[sequence]
	return sequence > s.drained && !removed
}

// forget notes that a record is not needed any more.
func (s *file) forget(sequence uint64) {
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

// append writes records in one transaction, and returns when they are on disk (fdatasync).
func (s *file) append(values [][]byte) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketName)
		b.FillPercent = 1 // sequence numbers only grow, so a full page stays full
		for i, value := range values {
			if err := b.Put(sequenceKey(s.records+uint64(i)+1), value); err != nil {
				return err
			}
		}
		return nil
	})
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

// open opens the file for reading, if it is not open already. It holds reading.
func (s *file) open() (err error) {
	if s.db != nil {
		return nil
	}
	s.db, err = bolt.Open(s.path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	return err
}

func (s *file) close() {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.db == nil {
		return
	}
	_ = whole(s.db.Close)
	s.db = nil
}

// all wants every record from a sequence number on.
func all(uint64) bool { return true }

// each calls f with the records from a sequence number on that are wanted, until f returns false. It needs the records to
// be whole and to follow each other without a gap.
func (s *file) each(from uint64, wanted func(uint64) bool, f func(r *record, size int64) bool) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	return whole(func() error {
		if err := s.open(); err != nil {
			return err
		}
		return s.db.View(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketName)
			if b == nil {
				return fmt.Errorf("%w: it has no tickets at all", errDamaged)
			}
			c := b.Cursor()
			next := from
			for key, value := c.Seek(sequenceKey(from)); key != nil; key, value = c.Next() {
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
	})
}

// whole calls a function that reads a memory map of a file which may be damaged: bbolt panics on pages that make no
// sense, and a page that is missing is a fault of the processor.
func whole(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return f()
}

// read returns up to so many records that are still needed and not to skip, oldest first, of up to so many bytes; but at
// least one if there is any.
func (s *file) read(records int, bytes int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	var tickets []intake.Spooled
	found := false
	take := func(r *record, size int64) bool {
		found = true
		if skip(r.ID) {
			return true
		}
		if bytes -= size; bytes < 0 && len(tickets) > 0 {
			return false
		}
		place := intake.Place{Segment: s.number, Sequence: r.Sequence}
		tickets = append(tickets, intake.Spooled{Entry: r.entry(), Place: place})
		return len(tickets) < records
	}
	if s.scattered {
		err := s.eachSalvaged(s.drained+1, s.needs, take)
		return tickets, err
	}
	err := s.each(s.drained+1, s.needs, take)
	if err == nil && !found {
		err = fmt.Errorf("%w: there are no records after number %d", errDamaged, s.drained)
	}
	return tickets, err
}

// none skips nothing.
func none(uuid.UUID) bool { return false }

// remove closes and removes the file. A damaged one is kept under another name: it may hold what only a person can read.
func (s *file) remove() error {
	s.close()
	var err error
	if s.damaged {
		err = os.Rename(s.path, strings.TrimSuffix(s.path, filepath.Ext(s.path))+suffixRecovered)
	} else {
		err = os.Remove(s.path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}

// rename gives the file another kind.
func (s *file) rename(suffix string) error {
	path := strings.TrimSuffix(s.path, filepath.Ext(s.path)) + suffix
	if path == s.path {
		return nil
	}
	if err := os.Rename(s.path, path); err != nil {
		return err
	}
	s.path = path
	return syncDir(filepath.Dir(path))
}

func sortSegments(segments []*file) {
	slices.SortFunc(segments, func(a, b *file) int { return cmp.Compare(a.number, b.number) })
}
