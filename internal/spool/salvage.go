package spool

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
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

// damage is what is known of a file that may have lost records.
type damage struct {
	cause   error
	missing int // records before the last, at least
}

// salvage finds the whole records in a file whose structure is not whole. From then on only these are read, in the order of
// their sequence numbers. It returns no damage if the file only ended early and every record is there. It returns the cause
// as an error if the file was salvaged before.
func (s *segment) salvage(cause error) (*damage, error) {
	s.file.Lock()
	defer s.file.Unlock()
	if s.scattered {
		return nil, cause
	}
	s.closeFile()
	var salvaged []salvagedRecord
	seen := map[uuid.UUID]bool{} // a page that was written anew leaves its old copy behind
	size, err := s.scan(0, func(r *record, at int64, length int) bool {
		if !seen[r.ID] {
			seen[r.ID] = true
			salvaged = append(salvaged, salvagedRecord{r.Sequence, at, length})
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read the damaged file %s: %w", s.path, err)
	}
	slices.SortStableFunc(salvaged, func(a, b salvagedRecord) int { return cmp.Compare(a.sequence, b.sequence) })
	s.scattered, s.salvaged = true, salvaged
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.bytes = 0, size
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

// scanBytes is how much of a file is searched at once.
const scanBytes = 1 << 20

// scan calls f with every whole record after a sequence number, wherever it is in the file, until f returns false. It returns
// the size of the file. What the disk does not return counts as zeros. The caller must hold s.file.
func (s *segment) scan(after uint64, f func(r *record, at int64, length int) bool) (size int64, err error) {
	file, err := os.Open(s.path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	size = info.Size()
	buffer := make([]byte, min(scanBytes, size))
	for from := int64(0); from < size; {
		content := buffer[:min(int64(len(buffer)), size-from)]
		readWhatCanBe(file, from, content)
		at := 0
		for at < len(content) {
			i := bytes.Index(content[at:], s.nonce[:])
			if i < 0 {
				break
			}
			at += i
			if n, ok := statedSequence(content[at:]); ok && n <= after {
				at++
				continue
			}
			r, length, err := s.recordAt(file, from+int64(at), size)
			if err == nil && !f(&r, from+int64(at), length) {
				return size, nil
			}
			at += max(length, 1)
		}
		next := from + int64(len(content))
		if next < size {
			next -= nonceSize - 1 // a nonce may begin in this piece and end in the next
		}
		from = max(next, from+int64(at))
	}
	return size, nil
}

// recordAt reads a record of a file of a size, and returns its length, too, if it is whole.
func (s *segment) recordAt(file *os.File, at, size int64) (record, int, error) {
	var header [headerSize]byte
	if _, err := file.ReadAt(header[:], at); err != nil {
		return record{}, 0, err
	}
	length := headerSize + int64(binary.BigEndian.Uint32(header[nonceSize:]))
	if at+length > size {
		return record{}, 0, errDamaged
	}
	value := make([]byte, length)
	if _, err := file.ReadAt(value, at); err != nil {
		return record{}, 0, err
	}
	return s.nonce.decode(value)
}

// readWhatCanBe fills content with what is in a file from a place on. What the disk does not return is zeros.
func readWhatCanBe(file *os.File, from int64, content []byte) {
	if _, err := file.ReadAt(content, from); err == nil {
		return
	}
	page := os.Getpagesize()
	for at := 0; at < len(content); at += page {
		piece := content[at:min(at+page, len(content))]
		if n, err := file.ReadAt(piece, from+int64(at)); err != nil {
			clear(piece[n:])
		}
	}
}
