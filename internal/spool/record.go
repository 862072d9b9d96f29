package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// record is what is kept of a ticket, as CBOR (RFC 8949) with integer keys. The order in the body is not kept: the body is
// read again. Keys may be added; their meaning never changes.
type record struct {
	Sequence     uint64    `cbor:"1,keyasint"` // of its file, from 1 without gaps
	ID           uuid.UUID `cbor:"2,keyasint"`
	Source       string    `cbor:"3,keyasint"`
	Body         []byte    `cbor:"4,keyasint"`
	ContentType  string    `cbor:"5,keyasint,omitempty"`
	Traceparent  string    `cbor:"6,keyasint,omitempty"`
	Key          string    `cbor:"7,keyasint,omitempty"`
	KeyExpiresAt int64     `cbor:"8,keyasint,omitempty"` // Unix milliseconds
	CameAt       int64     `cbor:"9,keyasint,omitempty"` // Unix milliseconds; 0 for the time in the ID
}

// A record on disk is the nonce of its file, the length of its CBOR, the CRC-32C of the CBOR, and the CBOR. No sender knows
// the nonce, so a record can be found by it in a file whose structure is lost. The checksum shows that a record is whole.
const (
	nonceSize  = 8
	headerSize = nonceSize + 4 + 4
)

type nonce [nonceSize]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errDamaged = errors.New("the record is damaged")

func (n nonce) encode(sequence uint64, e *intake.Entry) ([]byte, error) {
	t := &e.Ticket
	r := record{
		Sequence: sequence, ID: t.ID, Source: t.Source, Body: t.Body, ContentType: t.ContentType,
		Traceparent: t.Traceparent, Key: e.Key,
	}
	if e.Key != "" {
		r.KeyExpiresAt = e.KeyExpiresAt.UnixMilli()
	}
	if !e.CameAt.IsZero() {
		r.CameAt = e.CameAt.UnixMilli()
	}
	var b bytes.Buffer
	b.Grow(headerSize + len(t.Body) + 128)
	b.Write(n[:])
	b.Write(make([]byte, headerSize-nonceSize))
	if err := cbor.MarshalToBuffer(&r, &b); err != nil {
		return nil, fmt.Errorf("encode a ticket for the spool: %w", err)
	}
	encoded := b.Bytes()
	payload := encoded[headerSize:]
	binary.BigEndian.PutUint32(encoded[nonceSize:], uint32(len(payload)))
	binary.BigEndian.PutUint32(encoded[nonceSize+4:], crc32.Checksum(payload, castagnoli))
	return encoded, nil
}

// decode reads the record that b begins with, and returns how long it is. It shares no memory with b.
func (n nonce) decode(b []byte) (record, int, error) {
	if len(b) < headerSize || nonce(b[:nonceSize]) != n {
		return record{}, 0, errDamaged
	}
	length := int64(binary.BigEndian.Uint32(b[nonceSize:]))
	if length > int64(len(b)-headerSize) {
		return record{}, 0, errDamaged
	}
	payload := b[headerSize : headerSize+length]
	if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(b[nonceSize+4:]) {
		return record{}, 0, errDamaged
	}
	if r, ok := decodePlain(payload); ok {
		return r, headerSize + len(payload), nil
	}
	var r record
	if err := cbor.Unmarshal(payload, &r); err != nil {
		return record{}, 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return r, headerSize + len(payload), nil
}

// entry returns the ticket as intake had it before it was read.
func (r *record) entry() intake.Entry {
	e := intake.Entry{Ticket: ticket.Ticket{
		ID: r.ID, Source: r.Source, ReceivedAt: ticket.IDTime(r.ID), Body: r.Body, ContentType: r.ContentType,
		Traceparent: r.Traceparent,
	}}
	if r.CameAt != 0 {
		e.CameAt = time.UnixMilli(r.CameAt)
	}
	if r.Key != "" {
		e.Key, e.KeyExpiresAt, e.BodySHA256 = r.Key, time.UnixMilli(r.KeyExpiresAt), sha256.Sum256(r.Body)
	}
	return e
}
