package httpapi

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// lingerBytes and lingerTime bound what is still read of a request that was answered before it was completely read.
	// Closing at once would reset the connection, and its sender might lose the answer (RFC 9112, section 9.6).
	lingerBytes = 64 << 10
	lingerTime  = time.Second
	lingerPause = 250 * time.Millisecond // before the connection of a sender that sends even more is closed
	// maxLeaving bounds two kinds of connections that are open besides the allowed ones: those that have been closed for new
	// ones and have not ended yet, and those that are being answered that there is no place.
	maxLeaving = 64
)

// slowRequest is how long a request may take to arrive before its connection may be closed for a new one. A ticket arrives
// within milliseconds. A sender of heads byte by byte must not keep other senders out.
const slowRequest = time.Second

// connections accepts the webhook's connections: at most max, and at most perPeer from each peer. When max are open, a new one
// replaces the one that has idled longest. If none idles, it replaces the one whose request has been arriving longest, if for
// over slowRequest. A connection whose request has arrived is never closed for a new one.
type connections struct {
	net.Listener

	max     int
	perPeer int           // 0 for no limit
	slack   time.Duration // of the connections' deadlines

	refused    atomic.Int64 // because max were open, and none could be closed
	peerFull   atomic.Int64 // refused because their peer had perPeer
	closedIdle atomic.Int64 // closed for a new one while idle
	closedSlow atomic.Int64 // closed for a new one while their request was arriving
	refusing   atomic.Int64 // goroutines that answer refused connections

	mu      sync.Mutex // guards the fields below
	open    map[*conn]struct{}
	peers   map[netip.Addr]int // connections of each peer that has any; empty without a limit
	leaving int                // connections that were closed for a new one, and have not ended yet
	idle    []waiter           // idle at the last scan, longest first; some may no longer be
	slow    []waiter           // likewise for those whose request was arriving
}

// monotonic returns the time since an arbitrary moment in the past. It takes half the time of time.Now, and is called twice
// for each request.
func monotonic() int64 { return int64(time.Since(reference)) }

var reference = time.Now().Add(-time.Hour) // an hour ago, so that all times are positive, also that of a second ago

// waiter is a connection that waits, since a time, for its next request or for the rest of one. A new scan is needed only when
// all waiters of the last one have been tried, because connections that began to wait later have waited for less time.
type waiter struct {
	conn  *conn
	since int64
}

func newConnections(listener net.Listener, most, perPeer int, slack time.Duration) *connections {
	return &connections{
		Listener: listener, max: most, perPeer: perPeer, slack: slack, open: map[*conn]struct{}{}, peers: map[netip.Addr]int{},
	}
}

// Accept waits for the next connection that gets a place.
func (l *connections) Accept() (net.Conn, error) {
	for {
		inner, err := l.Listener.Accept()
		if err != nil {
			return nil, err //nolint:wrapcheck // fasthttp looks at it
		}
		c := &conn{
			Conn: inner, owner: l, peer: peerOf(inner.RemoteAddr()), between: true, deadlines: deadlines{slack: l.slack},
		}
		if status := l.add(c); status != 0 {
			l.refuse(inner, status)
			continue
		}
		return c, nil
	}
}

// add gives a connection a place and returns 0. If there is no place, it returns the HTTP status to refuse it with.
func (l *connections) add(c *conn) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perPeer > 0 && l.peers[c.peer] >= l.perPeer {
		l.peerFull.Add(1)
		return http.StatusTooManyRequests
	}
	if len(l.open) >= l.max && !l.makePlace() {
		l.refused.Add(1)
		return http.StatusServiceUnavailable
	}
	l.open[c] = struct{}{}
	if l.perPeer > 0 && c.peer.IsValid() {
		l.peers[c.peer]++
	}
	return 0
}

// makePlace closes the connection that has idled longest, or else a slow one, and reports whether there was one. The caller
// must hold l.mu.
func (l *connections) makePlace() bool {
	if l.leaving >= maxLeaving {
		return false
	}
	for range 2 {
		if l.closeOne(&l.idle, func(c *conn) *atomic.Int64 { return &c.since }) {
			l.closedIdle.Add(1)
			return true
		}
		if l.closeOne(&l.slow, func(c *conn) *atomic.Int64 { return &c.arriving }) {
			l.closedSlow.Add(1)
			return true
		}
		slow := monotonic() - int64(slowRequest)
		for c := range l.open {
			if since := c.since.Load(); since > 0 {
				l.idle = append(l.idle, waiter{c, since})
			} else if since := c.arriving.Load(); since > 0 && since < slow {
				l.slow = append(l.slow, waiter{c, since})
			}
		}
		l.idle, l.slow = longestFirst(l.idle), longestFirst(l.slow)
	}
	return false
}

func longestFirst(all []waiter) []waiter {
	slices.SortFunc(all, func(a, b waiter) int { return cmp.Compare(a.since, b.since) })
	return all[:min(len(all), 4*maxLeaving)]
}

// closeOne closes the first connection that still waits since the time of the last scan, and reports whether there was one.
// The connection itself also swaps this time, when it goes on. The first to swap decides. The caller must hold l.mu.
func (l *connections) closeOne(waiting *[]waiter, state func(*conn) *atomic.Int64) bool {
	for len(*waiting) > 0 {
		longest := (*waiting)[0]
		*waiting = (*waiting)[1:]
		if _, open := l.open[longest.conn]; open && state(longest.conn).CompareAndSwap(longest.since, evicted) {
			l.remove(longest.conn)
			l.leaving++
			_ = longest.conn.Conn.Close() // wakes its goroutine, which ends it
			return true
		}
	}
	*waiting = nil
	return false
}

// remove takes a connection's place away. The caller must hold l.mu.
func (l *connections) remove(c *conn) {
	delete(l.open, c)
	if l.perPeer == 0 || !c.peer.IsValid() {
		return
	}
	if l.peers[c.peer]--; l.peers[c.peer] == 0 {
		delete(l.peers, c.peer)
	}
}

// ended is called once for each connection, after it was closed.
func (l *connections) ended(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, open := l.open[c]; open {
		l.remove(c)
		return
	}
	l.leaving--
}

func (l *connections) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// idling returns how many connections could be closed for a new one.
func (l *connections) idling() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		if c.since.Load() > 0 {
			n++
		}
	}
	return n
}

// refuse answers a connection that gets no place, without holding up others. If more than maxLeaving are being refused at the
// same time, it closes the connection without an answer.
func (l *connections) refuse(c net.Conn, status int) {
	if l.refusing.Add(1) > maxLeaving {
		l.refusing.Add(-1)
		_ = c.Close()
		return
	}
	go func() {
		defer l.refusing.Add(-1)
		defer c.Close()
		detail := "The maximum of connections is open, each with a request in progress. Nothing was stored; send it again."
		if status == http.StatusTooManyRequests {
			detail = "Your address has the maximum of connections. Nothing was stored; use those connections, or send it again later."
		}
		r := retryLater(status, "too_many_connections", retryOverloaded, detail)
		_ = c.SetWriteDeadline(time.Now().Add(lingerTime))
		_, err := fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: %s\r\n"+
			"Retry-After: %d\r\nContent-Length: %d\r\n\r\n%s",
			status, http.StatusText(status), r.ContentType, r.RetryAfter, len(r.Body), r.Body)
		if err == nil {
			linger(c)
		}
	}()
}

// evicted is the value of conn.since or conn.arriving when the connection is closed for another one.
const evicted = -1

// conn is a connection that has a place. Fields that are not atomic belong to the goroutine that serves it.
type conn struct {
	net.Conn

	owner *connections
	peer  netip.Addr // see peerOf

	between  bool         // no byte of the next request has been read
	since    atomic.Int64 // since when it idles, by monotonic; 0 if it does not, or evicted
	arriving atomic.Int64 // likewise since when a request has been arriving; 0 if it has arrived, or there is none
	lingers  atomic.Bool  // an answer was sent before its request was completely read
	closed   atomic.Bool
	bounded  bool // left holds
	left     int  // bytes that may still be read for the body of this request
	allowed  int  // bytes that may be read for it in total
	timedOut bool // a read of this request timed out
	framed   bool // left was not enough: the body has too much framing

	deadlines deadlines

	scraping *atomic.Int64 // counts this connection while an answer of /metrics is made or written; nil otherwise
}

// scraped ends the count of an answer of /metrics.
func (c *conn) scraped() {
	if c.scraping != nil {
		c.scraping.Add(-1)
		c.scraping = nil
	}
}

// Read reads from the connection. The server reads ahead, so between two requests it calls Read only if nothing of the next
// request has come. The connection idles until then.
func (c *conn) Read(p []byte) (int, error) {
	if c.deadlines.read.due(c.deadlines.slack) {
		if err := c.Conn.SetReadDeadline(c.deadlines.read.wanted); err != nil {
			return 0, err //nolint:wrapcheck // fasthttp looks at it
		}
	}
	if c.between {
		now := monotonic()
		c.since.Store(now)
		n, err := c.Conn.Read(p)
		if !c.since.CompareAndSwap(now, 0) {
			return 0, net.ErrClosed
		}
		return n, err //nolint:wrapcheck // fasthttp looks at it
	}
	if c.bounded {
		if c.left <= 0 {
			c.framed = true // fasthttp hides the error
			return 0, errFraming
		}
		p = p[:min(len(p), c.left)]
	}
	n, err := c.Conn.Read(p)
	c.left -= n
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // what net returns
		c.timedOut = true
	}
	return n, err //nolint:wrapcheck // fasthttp looks at it
}

// bound bounds what is read from the connection for the body of this request, counted from the first call. What the server's
// buffer already holds is not counted.
func (c *conn) bound(most int) {
	if !c.bounded {
		c.bounded, c.left = true, most
		c.allowed = most
		return
	}
	c.left += most - c.allowed
	c.allowed = most
}

// Close closes the connection. If an answer was sent early, its sender first gets time to read it.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return c.Conn.Close() //nolint:wrapcheck // fasthttp looks at it
	}
	if c.lingers.Load() {
		c.since.Store(monotonic()) // a new connection may replace it
		linger(c.Conn)
	}
	err := c.Conn.Close()
	c.owner.ended(c)
	return err //nolint:wrapcheck // fasthttp looks at it
}

var scratch = sync.Pool{New: func() any { return new([2 << 10]byte) }}

// linger ends the writing side, and reads what the sender still sends, within bounds.
func linger(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	buffer, _ := scratch.Get().(*[2 << 10]byte)
	defer scratch.Put(buffer)
	for left := lingerBytes; left > 0; {
		n, err := c.Read(buffer[:])
		if err != nil {
			return
		}
		left -= n
	}
	time.Sleep(lingerPause)
}

// connState is called by fasthttp when the state of a connection changes, in the goroutine that serves it.
func connState(nc net.Conn, state fasthttp.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	switch state {
	case fasthttp.StateActive:
		c.between = false
		c.arriving.CompareAndSwap(0, monotonic())
	case fasthttp.StateIdle:
		c.arrived()
		c.between, c.bounded, c.timedOut, c.framed = true, false, false, false
		c.lingers.Store(false)
		c.scraped()
	case fasthttp.StateClosed:
		c.scraped()
	case fasthttp.StateNew, fasthttp.StateHijacked:
	}
}

// arrived notes that a request has been completely read. It returns false if the connection was closed for a new one before.
func (c *conn) arrived() bool {
	since := c.arriving.Load()
	return since != evicted && c.arriving.CompareAndSwap(since, 0)
}
