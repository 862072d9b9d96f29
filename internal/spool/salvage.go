package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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

// salvage finds the records that are whole in a file whose structure is not, wherever they are. It returns how many are
// missing between the first and the last.
func (s *file) salvage() (missing int, err error) {
	s.close()
	content, err := readWhatCanBe(s.path)
	if err != nil {
		return 0, err
	}
	s.salvaged, s.scattered, s.left, s.bytes = nil, true, 0, int64(len(content))
	seen := map[uuid.UUID]bool{} // a page that was written anew leaves its old copy behind
	for at := 0; ; {
		i := bytes.Index(content[at:], s.nonce[:])
		if i < 0 {
			break
		}
		at += i
		r, length, err := s.nonce.decode(content[at:])
		if err != nil {
			at++
			continue
		}
		if !seen[r.ID] {
			seen[r.ID] = true
			s.salvaged = append(s.salvaged, salvagedRecord{r.Sequence, int64(at), length})
		}
		at += length
	}
	slices.SortStableFunc(s.salvaged, func(a, b salvagedRecord) int {
		if a.sequence < b.sequence {
			return -1
		}
		return 1
	})
	var last uint64
	for _, r := range s.salvaged {
		last = max(last, r.sequence)
		if r.sequence > s.drained {
			s.left++
		}
	}
	s.records = max(s.records, last)
	return int(s.records) - len(s.salvaged), nil
}

// endsEarly tells that a file holds records that its structure does not know of: the page that names the newest
// transaction is lost and bbolt went back to the one before, or a process was killed in the middle of a transaction.
func (s *file) endsEarly() (bool, error) {
	content, err := readWhatCanBe(s.path)
	if err != nil {
		return false, err
	}
	for at := 0; ; {
		i := bytes.Index(content[at:], s.nonce[:])
		if i < 0 {
			return false, nil
		}
		at += i
		r, length, err := s.nonce.decode(content[at:])
		if err == nil && r.Sequence > s.records {
			return true, nil
		}
		at += max(length, 1)
	}
}

// readWhatCanBe reads a file, with zeros for what its disk does not give back.
func readWhatCanBe(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	content := make([]byte, info.Size())
	page := os.Getpagesize()
	for at := 0; at < len(content); at += page {
		piece := content[at:min(at+page, len(content))]
		if _, err := file.ReadAt(piece, int64(at)); err != nil && !errors.Is(err, io.EOF) {
			clear(piece)
		}
	}
	return content, nil
}

// eachSalvaged is each, for a file that is read without its structure.
func (s *file) eachSalvaged(from uint64, f func(r *record, size int64) bool) error {
	file, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, at := range s.salvaged {
		if at.sequence < from {
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
