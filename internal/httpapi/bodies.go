package httpapi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// SmallBody is up to how many bytes a body is given memory as soon as its head was accepted, and up to where it counts as
// small for the budget. It is part of what a connection costs (ConnectionCost).
const SmallBody = 8 << 10

// What a chunked body may bring along besides its bytes, in sizes, extensions, line ends and trailers: a byte for itself, 5
// for the frame of a chunk of one byte, a little more for leading zeros, and something for a few extensions.
const (
	framingBytes   = 16 << 10
	framingPerByte = 8
)

// budget bounds the memory of the bodies that are being read or wait for their answer, over all connections.
//
// What holds: a body takes from it before it takes memory, at most twice what has come of it (and at least SmallBody), and
// gives back when its request is answered. Bodies that are no longer small hold at most half of it together. So as long as
// --max-connections × SmallBody fits into the other half, which the derived settings ensure, no number of large bodies, and
// no number of slow ones, makes the server refuse a small ticket. A body that comes slowly holds its share for at most
// --read-timeout, and then for as long as its ticket waits (--request-timeout).
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

// grow takes n more bytes and reports whether they were there; where they were not, nothing is taken. The body counts as
// large as soon as it holds more than SmallBody.
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

// full reports whether a body of so many bytes (-1 if that is unknown) would not even be begun.
func (b *budget) full(length int) bool {
	return length > SmallBody && b.large.Load()+SmallBody >= b.max/2 || b.held.Load() >= b.max
}

var (
	errBodyTooLarge = errors.New("the body is over the limit")
	errNoBudget     = errors.New("too many bytes of bodies are under way")
	errFraming      = errors.New("the chunks of the body are mostly framing")
)

// body reads a request's body whole. Its memory grows with what has come, never with what was announced: at most twice as
// much, or SmallBody. A body that is shorter than announced is an error.
type body struct {
	from     io.Reader
	conn     *conn // bounds the framing of chunks; nil in a test
	declared int   // bytes; -1 for a chunked body
	max      int
}

func (b body) read(held *share) ([]byte, error) {
	most := b.declared // of the buffer
	if most < 0 {
		most = b.max + 1 // one more shows that there is more
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

// readSome reads some of the body; n bytes have been read before.
func (b body) readSome(p []byte, n int) (int, error) {
	if b.declared >= 0 || b.conn == nil {
		return b.from.Read(p)
	}
	b.conn.bound(framingBytes + framingPerByte*n)
	return b.from.Read(p[:min(len(p), SmallBody)])
}

// exactly returns a body without the memory behind it: what waits to be stored is counted by its length.
func exactly(b []byte) []byte {
	if cap(b)-len(b) > len(b)/8 {
		return bytes.Clone(b)
	}
	return b
}

// bodyFailed answers a request whose body could not be read. What is left of it is on the connection.
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
			"The body is chunked, and has more framing than a ticket needs. Nothing was stored; send larger chunks.")
	}
	return problem(http.StatusBadRequest, "bad_request", "The body did not arrive whole. Nothing was stored; send it again.")
}

func (w *Webhook) noBudget() Response {
	return retryLater(http.StatusServiceUnavailable, "overloaded", retryOverloaded,
		"Too many bytes of tickets are under way. This one was not stored; send it again.")
}
