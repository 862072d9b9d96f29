package jetstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// connection is a connection to a server, from which answers come.
type connection struct {
	nats     *nats.Conn
	line     *line
	server   string         // host:port
	inbox    string         // the prefix of what answers are sent to
	answers  chan *nats.Msg // as many as events can wait for one, and those of something else that answers, too
	refusals chan error     // what the server does not permit
	closed   chan struct{}
	message  *nats.Msg
	sends    int // how many Sends there were
}

// connect makes a connection if there is none that can be used.
func (t *target) connect(ctx context.Context) error {
	if t.connection != nil {
		if t.connection.nats.IsConnected() {
			return ctx.Err()
		}
		t.Close()
	}
	c := &connection{
		line:     &line{ctx: ctx, patience: t.patience},
		answers:  make(chan *nats.Msg, 2*t.window),
		refusals: make(chan error, 16),
		closed:   make(chan struct{}),
		message:  newMessage(),
	}
	defer context.AfterFunc(ctx, c.line.abort)()
	options := slices.Clone(t.options)
	options = append(options,
		nats.SetCustomDialer(c.line),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				select {
				case c.refusals <- err:
				default: // events that nothing is said of fail when time is up
				}
			}
		}))
	var err error
	if c.nats, err = nats.Connect(t.servers, options...); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("connect to NATS at %s: %w", t.address.URL.Host, errors.Join(err, c.line.err()))
	}
	c.server = "NATS at " + c.nats.ConnectedAddr()
	c.inbox = c.nats.NewInbox()
	if _, err := c.nats.ChanSubscribe(c.inbox+".*.*", c.answers); err != nil {
		c.close()
		return fmt.Errorf("subscribe to acknowledgements of %s: %w", c.server, err)
	}
	t.logger.InfoContext(ctx, "connected to NATS", "server", c.server, "version", c.nats.ConnectedServerVersion())
	t.connection = c
	return ctx.Err()
}

// reason returns why the connection ended.
func (c *connection) reason(err error) error {
	if last := c.nats.LastError(); last != nil {
		err = last
	}
	if err == nil {
		err = nats.ErrConnectionClosed
	}
	return fmt.Errorf("the connection to %s ended: %w", c.server, err)
}

// close does not wait for the server, which may hang.
func (c *connection) close() {
	c.line.abort()
	c.nats.Close()
}

// line opens the network connection of a NATS client, and can break it. The client itself waits for a hanging server when it
// closes.
type line struct {
	ctx      context.Context //nolint:containedctx // of the Send that connects: the client's interface has none
	patience time.Duration

	mu      sync.Mutex // guards what follows
	conn    net.Conn
	aborted bool
	failure error
}

// Dial implements nats.CustomDialer.
func (l *line) Dial(network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: l.patience}).DialContext(l.ctx, network, address)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failure = err
		return nil, err
	}
	if l.aborted {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	l.conn, l.failure = conn, nil
	return conn, nil
}

// err returns why the last attempt to open a network connection failed, which the client leaves out.
func (l *line) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

// abort breaks the network connection, and those that are opened later.
func (l *line) abort() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aborted = true
	if l.conn != nil {
		_ = l.conn.Close()
	}
}
