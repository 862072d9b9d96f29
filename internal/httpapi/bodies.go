package httpapi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// SmallBody is the largest body that counts as small for the budget, in bytes. A body gets up to this much memory as soon as
// its head is accepted. It is part of what a connection costs (ConnectionCost).
const SmallBody = 8 << 10

// Bounds of what is read for a chunked body, with its framing: sizes, extensions, line ends and trailers. A chunk of one byte
// takes a byte for itself and 5 for its frame. The rest is for leading zeros and a few extensions.
const (
	framingBytes   = 16 << 10
	framingPerByte = 8
)

// budget bounds the memory of the bodies that are being read or wait for their answer, over all connections.
//
// A body takes from the budget before it takes memory: at most twice what has come of it, and at least SmallBody. It gives
// this back when its request is answered. Bodies that are no longer small together hold at most half of the budget. The
// derived settings ensure that --max-connections × SmallBody fits into the other half. Then no number of large or slow bodies
// makes the server refuse a small ticket. A slow body holds its share for at most --read-timeout, and then for as long as its
// ticket waits (--request-timeout).
type budget struct {
	max   int64
	held  atomic.Int64 // by all bodies
	large atomic.Int64 // by those that are not small
}

// share is what one body holds of a budget.
type share struct {
	budget *budget
	held   int64
	large  int64
}

// grow takes n more bytes and reports whether they were left. If not, it takes nothing. A body that holds more than SmallBody
// counts as large.
func (s *share) grow(n int) bool {
	more, large := int64(n), int64(0)
	if s.held+more > SmallBody {
		large = s.held + more - s.large
	}
	if large > 0 && s.budget.large.Add(large) > s.budget.max/2 {
		s.budget.large.Add(-large)
		return false
	}
	if s.budget.held.Add(more) > s.budget.max {
		s.budget.held.Add(-more)
		s.budget.large.Add(-large)
		return false
	}
	s.held, s.large = s.held+more, s.large+large
	return true
}

// shrink gives n bytes back.
func (s *share) shrink(n int) {
	s.budget.held.Add(-int64(n))
	s.held -= int64(n)
	if s.large > 0 {
		s.budget.large.Add(-int64(n))
		s.large -= int64(n)
	}
}

// release gives everything back.
func (s *share) release() { s.shrink(int(s.held)) }

// full reports whether there is no memory to begin a body of length bytes (-1 if unknown).
func (b *budget) full(length int) bool {
	return length > SmallBody && b.large.Load()+SmallBody >= b.max/2 || b.held.Load() >= b.max
}

var (
	errBodyTooLarge = errors.New("the body is over the limit")
	errNoBudget     = errors.New("no memory is left for the body")
	errFraming      = errors.New("the chunks of the body are mostly framing")
)

// body reads a request's whole body. Its memory grows with what has come, not with what was announced: to at most twice as
// much, or SmallBody. A body that is shorter than announced is an error.
type body struct {
	from     io.Reader
	conn     *conn // bounds the framing of chunks; nil in a test
	declared int   // bytes; -1 for a chunked body
	max      int
}

func (b body) read(held *share) ([]byte, error) {
	most := b.declared // bytes of the buffer
	if most < 0 {
		most = b.max + 1 // one byte more than allowed shows that the body is too large
	}
	size := min(most, SmallBody)
	if !held.grow(size) {
		return nil, errNoBudget
	}
	buffer := make([]byte, size)
	n := 0
	for {
		if b.declared >= 0 && n == b.declared {
			return buffer, nil
		}
		if n > b.max {
			return nil, errBodyTooLarge
		}
		if n == len(buffer) {
			size = min(2*len(buffer), most)
			if !held.grow(size) {
				return nil, errNoBudget
			}
			larger := make([]byte, size)
			copy(larger, buffer)
			held.shrink(len(buffer))
			buffer = larger
		}
		got, err := b.readSome(buffer[n:], n)
		n += got
		switch {
		case errors.Is(err, io.EOF) && b.declared < 0:
			return exactly(buffer[:n]), nil
		case errors.Is(err, io.EOF) && n == b.declared:
			return buffer, nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
	}
}

// readSome reads a part of the body. n bytes have been read before.
func (b body) readSome(p []byte, n int) (int, error) {
	if b.declared >= 0 || b.conn == nil {
		return b.from.Read(p)
	}
	b.conn.bound(framingBytes + framingPerByte*n)
	return b.from.Read(p[:min(len(p), SmallBody)])
}

// exactly returns a body without unused memory after it, because a ticket that waits is counted by its length.
func exactly(b []byte) []byte {
	if cap(b)-len(b) > len(b)/8 {
		return bytes.Clone(b)
	}
	return b
}

// bodyFailed answers a request whose body could not be read. The rest of the body is still on the connection.
func (w *Webhook) bodyFailed(err error, c *conn) Response {
	switch {
	case errors.Is(err, errNoBudget):
		return w.noBudget()
	case errors.Is(err, errBodyTooLarge):
		return w.tooLarge()
	case c != nil && c.timedOut:
		return requestTimeout()
	case c != nil && c.framed:
		return problem(http.StatusBadRequest, "bad_request",
			"The chunks of the body have more framing than a ticket needs. Nothing was stored; send larger chunks.")
	}
	return problem(http.StatusBadRequest, "bad_request", "The body did not arrive completely. Nothing was stored; send it again.")
}

func (w *Webhook) noBudget() Response {
	return retryLater(http.StatusServiceUnavailable, "overloaded", retryOverloaded,
		"The server has no memory left for this body. The ticket was not stored; send it again.")
}
