package spool

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"
)

// salvagedRecord is where a whole record is in a damaged file.
type salvagedRecord struct {
	sequence uint64
	offset   int64
	length   int
}

// salvage finds the records that are whole in a file whose structure is not, wherever they are, in their order. It also
// returns the size of the file.
func (s *file) salvage(buffer *[]byte) ([]salvagedRecord, int64, error) {
	s.close()
	content, err := readWhatCanBe(s.path, buffer)
	if err != nil {
		return nil, 0, err
	}
	var found []salvagedRecord
	seen := map[uuid.UUID]bool{} // a page that was written anew leaves its old copy behind
	s.scan(content, func(r *record, at, length int) bool {
		if !seen[r.ID] {
			seen[r.ID] = true
			found = append(found, salvagedRecord{r.Sequence, int64(at), length})
		}
		return true
	})
	slices.SortStableFunc(found, func(a, b salvagedRecord) int { return cmp.Compare(a.sequence, b.sequence) })
	return found, int64(len(content)), nil
}

// scan calls f with every record that is whole, until it returns false.
func (s *file) scan(content []byte, f func(r *record, at, length int) bool) {
	for at := 0; ; {
		i := bytes.Index(content[at:], s.nonce[:])
		if i < 0 {
			return
		}
		at += i
		r, length, err := s.nonce.decode(content[at:])
		if err == nil && !f(&r, at, length) {
			return
		}
		at += max(length, 1)
	}
}

// adopt has the file read by what salvage found, and returns how many records are missing before the last.
func (s *file) adopt(found []salvagedRecord, size int64) (missing int) {
	s.salvaged, s.scattered, s.left, s.bytes = found, true, 0, size
	for _, r := range found {
		s.records = max(s.records, r.sequence)
		if s.needs(r.sequence) {
			s.left++
		}
	}
	return int(s.records) - len(found)
}

// endsEarly tells that a file holds records that its structure does not know of: the page that names the newest
// transaction is lost and bbolt went back to the one before, or a process was killed in the middle of a transaction.
func (s *file) endsEarly(buffer *[]byte) (bool, error) {
	content, err := readWhatCanBe(s.path, buffer)
	if err != nil {
		return false, err
	}
	early := false
	s.scan(content, func(r *record, _, _ int) bool {
		early = r.Sequence > s.records
		return !early
	})
	return early, nil
}

// readWhatCanBe reads a file into a buffer, which grows if it must, with zeros for what its disk does not give back. A file
// is about as long as Config.SegmentBytes.
func readWhatCanBe(path string, buffer *[]byte) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	*buffer = slices.Grow((*buffer)[:0], int(info.Size()))[:info.Size()]
	content := *buffer
	page := os.Getpagesize()
	for at := 0; at < len(content); at += page {
		piece := content[at:min(at+page, len(content))]
		if n, err := file.ReadAt(piece, int64(at)); err != nil {
			clear(piece[n:])
		}
	}
	return content, nil
}

// eachSalvaged is each, for a file that is read without its structure.
func (s *file) eachSalvaged(from uint64, wanted func(uint64) bool, f func(r *record, size int64) bool) error {
	file, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, at := range s.salvaged {
		if at.sequence < from || !wanted(at.sequence) {
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
