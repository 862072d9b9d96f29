package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	heartbeat = 10 * time.Second
	// farewell is how long a server may take to say goodbye.
	farewell = time.Second
)

// connection is a connection to a server with one channel, whose messages are confirmed.
type connection struct {
	amqp    *amqp.Connection
	channel *amqp.Channel
	line    *line
	server  string // with host:port

	confirmations chan amqp.Confirmation // closed with the channel
	returns       chan amqp.Return
	closed        chan *amqp.Error
	underway      []int            // the events that wait for a confirmation, in the order in which they were sent
	returned      map[string]error // by the events' ids: those that came back, until they are confirmed

	mu      sync.Mutex // guards blocked
	blocked string     // why the server takes nothing; empty if it does
}

// connect makes a connection to one of the hosts if there is none that can be used.
func (t *target) connect(ctx context.Context) error {
	if t.connection != nil {
		if !t.connection.channel.IsClosed() {
			return ctx.Err()
		}
		t.close(false)
	}
	var failures []error
	for host := range strings.SplitSeq(t.address.URL.Host, ",") {
		c, err := t.connectTo(ctx, host)
		if err == nil {
			t.connection = c
			t.logger.InfoContext(ctx, "connected to RabbitMQ", "server", c.server, "version", c.amqp.Properties["version"])
			return ctx.Err()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failures = append(failures, fmt.Errorf("connect to RabbitMQ at %s: %w", host, err))
	}
	return errors.Join(failures...)
}

func (t *target) connectTo(ctx context.Context, host string) (*connection, error) {
	c := &connection{
		line:   &line{patience: t.patience},
		server: "RabbitMQ at " + host,
		// The client's reader waits if these are full.
		confirmations: make(chan amqp.Confirmation, t.window),
		returns:       make(chan amqp.Return, t.window),
		closed:        make(chan *amqp.Error, 1),
		returned:      make(map[string]error),
	}
	defer context.AfterFunc(ctx, c.line.abort)()
	config := amqp.Config{
		Vhost:      t.vhost,
		Heartbeat:  heartbeat,
		Properties: amqp.Table{"connection_name": "myticket events", "product": "myticket"},
		Dial: func(network, address string) (net.Conn, error) {
			return c.line.dial(ctx, network, address)
		},
	}
	if user := t.address.URL.User.Username(); user != "" {
		config.SASL = []amqp.Authentication{&amqp.PlainAuth{Username: user, Password: string(t.address.Secret)}}
	}
	var err error
	if config.TLSClientConfig, err = t.address.TLS(); err != nil {
		return nil, err
	}
	if c.amqp, err = amqp.DialConfig(t.address.URL.Scheme+"://"+host, config); err != nil {
		c.line.abort()
		return nil, err
	}
	c.watchAlarms(c.amqp.NotifyBlocked(make(chan amqp.Blocking, 1)))
	if c.channel, err = c.amqp.Channel(); err == nil {
		err = c.channel.Confirm(false)
	}
	if err != nil {
		c.close(false)
		return nil, err
	}
	c.channel.NotifyPublish(c.confirmations)
	c.channel.NotifyReturn(c.returns)
	c.channel.NotifyClose(c.closed)
	return c, nil
}

// watchAlarms keeps what the server says of itself, until the connection ends
// (https://www.rabbitmq.com/docs/connection-blocked).
func (c *connection) watchAlarms(alarms <-chan amqp.Blocking) {
	go func() {
		for alarm := range alarms {
			c.mu.Lock()
			c.blocked = ""
			if alarm.Active {
				c.blocked = alarm.Reason
			}
			c.mu.Unlock()
		}
	}()
}

func (c *connection) blockedBy() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocked
}

// reason returns why the channel was closed, if that is known.
func (c *connection) reason() *amqp.Error {
	select {
	case reason := <-c.closed:
		return reason
	default:
		return nil
	}
}

// close ends the connection. It says goodbye to the server only if that did not fail yet, because it may hang.
func (c *connection) close(inOrder bool) {
	if inOrder {
		c.line.hurry(farewell)
		_ = c.amqp.CloseDeadline(time.Now().Add(farewell))
	}
	c.line.abort()
}

// line is the network connection of a client, which can be broken: the client itself waits for a hanging server.
type line struct {
	mu       sync.Mutex // guards what follows
	patience time.Duration
	conn     net.Conn
	aborted  bool
}

// dial opens it. The client takes the deadline away once it is connected.
func (l *line) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: l.patience}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.aborted {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	l.conn = conn
	return &patientConn{Conn: conn, line: l}, conn.SetDeadline(time.Now().Add(l.patience))
}

func (l *line) hurry(patience time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.patience = min(l.patience, patience)
}

func (l *line) abort() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aborted = true
	if l.conn != nil {
		_ = l.conn.Close()
	}
}

// patientConn bounds how long a write may take, which the client does not.
type patientConn struct {
	net.Conn

	line *line
}

func (c *patientConn) Write(p []byte) (int, error) {
	c.line.mu.Lock()
	patience := c.line.patience
	c.line.mu.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
