package spool

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"
)

// errEndsEarly means that the structure of a file is right, but does not have all of the file's records.
var errEndsEarly = errors.New("the file holds records that its structure does not know of")

// salvagedRecord is where a whole record is in a damaged file.
type salvagedRecord struct {
	sequence uint64
	offset   int64
	length   int
}

// damage is what is known of a file that may have lost records.
type damage struct {
	cause   error
	missing int // records before the last, at least
}

// salvage finds the whole records in a file whose structure is not whole. From then on only these are read, in the order of
// their sequence numbers. It returns no damage if the file only ended early and every record is there. It returns the cause
// as an error if the file was salvaged before. The buffer is for the content of the file, and grows if it must.
func (s *segment) salvage(buffer *[]byte, cause error) (*damage, error) {
	s.file.Lock()
	defer s.file.Unlock()
	if s.scattered {
		return nil, cause
	}
	s.closeFile()
	content, err := readWhatCanBe(s.path, buffer)
	if err != nil {
		return nil, fmt.Errorf("read the damaged file %s: %w", s.path, err)
	}
	s.scattered = true
	seen := map[uuid.UUID]bool{} // a page that was written anew leaves its old copy behind
	s.scan(content, func(r *record, at, length int) bool {
		if !seen[r.ID] {
			seen[r.ID] = true
			s.salvaged = append(s.salvaged, salvagedRecord{r.Sequence, int64(at), length})
		}
		return true
	})
	slices.SortStableFunc(s.salvaged, func(a, b salvagedRecord) int { return cmp.Compare(a.sequence, b.sequence) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.bytes = 0, int64(len(content))
	for _, r := range s.salvaged {
		s.records = max(s.records, r.sequence)
		if s.needs(r.sequence) {
			s.left++
		}
	}
	d := &damage{cause: cause, missing: int(s.records) - len(s.salvaged)}
	if d.missing == 0 && errors.Is(cause, errEndsEarly) {
		return nil, nil //nolint:nilnil // no damage is no error
	}
	s.damaged = true
	return d, nil
}

// scan calls f with every record that is whole, until f returns false.
func (s *segment) scan(content []byte, f func(r *record, at, length int) bool) {
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

// endsEarly returns errEndsEarly if the file holds a record after the last one that its structure knows of: the page that
// names the newest transaction is lost and bbolt went back to the one before, or a process was killed in the middle of a
// transaction. The caller must hold s.file.
func (s *segment) endsEarly(buffer *[]byte, last uint64) error {
	content, err := readWhatCanBe(s.path, buffer)
	if err != nil {
		return err
	}
	s.scan(content, func(r *record, _, _ int) bool {
		if r.Sequence > last {
			err = errEndsEarly
		}
		return err == nil
	})
	return err
}

// readWhatCanBe reads a file into a buffer, which grows if it must. What the disk does not return is zeros. A file is about
// as long as Config.SegmentBytes.
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
