package spool

import (
	"bytes"
	"math"
	"unicode/utf8"

	"github.com/google/uuid"
)

// decodePlain reads the CBOR of a record that has nothing but what this version writes. It is not ok for any other, which is
// not damaged for that. It costs a third of what the general decoder does. A start reads up to a million records, and
// deliveries with a key wait for that.
func decodePlain(b []byte) (r record, ok bool) {
	kind, fields, b := head(b)
	if kind != kindMap {
		return r, false
	}
	for range fields {
		var key, n uint64
		if kind, key, b = head(b); kind != kindNumber {
			return r, false
		}
		kind, n, b = head(b)
		var value []byte
		if kind == kindBytes || kind == kindText {
			if n > uint64(len(b)) {
				return r, false
			}
			value, b = b[:n], b[n:]
		}
		if !r.set(key, kind, n, value) {
			return r, false
		}
	}
	return r, len(b) == 0
}

// set sets the field with a key to a number, or to a value of bytes or text. It reports whether there is such a field of that
// kind.
func (r *record) set(key uint64, kind byte, n uint64, value []byte) bool {
	switch {
	case key == 1 && kind == kindNumber:
		r.Sequence = n
	case key == 2 && kind == kindBytes && len(value) == len(r.ID):
		r.ID = uuid.UUID(value)
	case key == 3 && kind == kindText && utf8.Valid(value):
		r.Source = string(value)
	case key == 4 && kind == kindBytes:
		r.Body = append([]byte{}, value...)
	case key == 5 && kind == kindText && utf8.Valid(value):
		r.ContentType = string(value)
	case key == 6 && kind == kindText && utf8.Valid(value):
		r.Traceparent = string(value)
	case key == 7 && kind == kindText && utf8.Valid(value):
		r.Key = string(value)
	case key == 8 && kind == kindNumber && n <= math.MaxInt64:
		r.KeyExpiresAt = int64(n)
	case key == 9 && kind == kindNumber && n <= math.MaxInt64:
		r.CameAt = int64(n)
	default:
		return false
	}
	return true
}

// The major types of CBOR that a record has (RFC 8949, section 3.1).
const (
	kindNumber = 0
	kindBytes  = 2
	kindText   = 3
	kindMap    = 5
	kindNone   = 0xff // none that decodePlain reads
)

// head reads the head of a CBOR item (RFC 8949, section 3): its major type, its number or length, and what follows.
func head(b []byte) (kind byte, n uint64, rest []byte) {
	if len(b) == 0 {
		return kindNone, 0, nil
	}
	kind, info, b := b[0]>>5, b[0]&31, b[1:]
	if info < 24 {
		return kind, uint64(info), b
	}
	size := 1 << (info - 24)
	if info > 27 || len(b) < size {
		return kindNone, 0, nil
	}
	for _, digit := range b[:size] {
		n = n<<8 | uint64(digit)
	}
	return kind, n, b[size:]
}

// statedSequence returns the sequence number that a record with its header begins with, if it is one. It does not check
// whether the record is whole, and costs much less than that.
func statedSequence(b []byte) (n uint64, ok bool) {
	kind, _, b := head(b[min(headerSize, len(b)):])
	if kind != kindMap || !bytes.HasPrefix(b, []byte{1}) {
		return 0, false
	}
	kind, n, _ = head(b[1:])
	return n, kind == kindNumber
}
