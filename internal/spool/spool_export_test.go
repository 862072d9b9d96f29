package spool

import (
	"os"

	"github.com/fxamacker/cbor/v2"

	"myticket/internal/intake"
)

// PieceBytes is how much of a damaged file is searched at once.
const PieceBytes = scanBytes

// Scan makes a file of zeros with one record in it at a place, and returns where records are found.
func Scan(path string, size, at int, e *intake.Entry) (found []int64, err error) {
	s := segment{path: path, nonce: nonce{1, 2, 3, 4, 5, 6, 7, 8}}
	value, err := s.nonce.encode(1, e)
	if err != nil {
		return nil, err
	}
	content := make([]byte, size)
	copy(content[at:], value)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return nil, err
	}
	seen := map[int64]bool{}
	_, err = s.scan(0, func(_ *record, at int64, _ int) bool {
		if !seen[at] {
			seen[at] = true
			found = append(found, at)
		}
		return true
	})
	return found, err
}

// HangDisk makes the disk hang, as far as a test can: every write waits until it is released.
func (s *Spool) HangDisk() (release func()) {
	s.write.Lock()
	return s.write.Unlock
}

// Check does at once what Watch does every second.
func (s *Spool) Check() { s.check() }

// FailSync puts entries as a disk does whose fsync fails: they are in the file, and the write is reported as failed. It
// calls during between the two, and returns the path of the file.
func (s *Spool) FailSync(entries []*intake.Entry, during func(path string)) error {
	s.write.Lock()
	defer s.write.Unlock()
	values, _, err := s.active.encode(entries)
	if err != nil {
		return err
	}
	if err := s.active.append(values); err != nil {
		return err
	}
	during(s.active.name())
	s.abandon()
	return nil
}

// DecodeRecord reads the CBOR of a record in both ways. Plain is false if only the general one can read it.
func DecodeRecord(b []byte) (plain bool, fast, general any, err error) {
	r, ok := decodePlain(b)
	var all record
	err = cbor.Unmarshal(b, &all)
	return ok, r, all, err
}

// EncodeRecord returns the CBOR of a record.
func EncodeRecord(e *intake.Entry) ([]byte, error) {
	b, err := nonce{}.encode(1<<20, e)
	return b[min(len(b), headerSize):], err
}
