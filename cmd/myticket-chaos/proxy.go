package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"myticket/internal/lab"
)

// proxy stands between a server and Postgres. It can be slow, and it can lose the answer to a commit. It reads what
// Postgres sends (https://www.postgresql.org/docs/current/protocol-message-formats.html: a type byte, the length, the
// content), and passes on unchanged what the server sends.
type proxy struct {
	*lab.Proxy

	latency atomic.Int64 // in ns, before each answer
	armed   atomic.Bool  // the next answer to a commit of tickets gets lost
	dropped atomic.Int64 // answers that were lost
}

// newProxy starts a proxy before the database of a trial, and returns the URL that leads through it.
func (t *trial) newProxy(ctx context.Context) (*proxy, string, error) {
	u, err := url.Parse(t.url)
	if err != nil {
		return nil, "", fmt.Errorf("read the URL of the database: %w", err)
	}
	p := &proxy{}
	p.Proxy, err = lab.StartProxy(ctx, u.Host, func(ctx context.Context, postgres io.Reader, server io.Writer) {
		p.answers(ctx, bufio.NewReaderSize(postgres, 64<<10), bufio.NewWriterSize(server, 64<<10))
	})
	if err != nil {
		return nil, "", err
	}
	t.onEnd(p.Close)
	u.Host = p.Addr()
	return p, u.String(), nil
}

// point makes new connections go to another Postgres, as the Service of a cluster does after a failover.
func (p *proxy) point(to string) error {
	u, err := url.Parse(to)
	if err != nil {
		return fmt.Errorf("read the URL of the database: %w", err)
	}
	p.Point(u.Host)
	return nil
}

// Messages of Postgres.
const (
	commandComplete = 'C'
	readyForQuery   = 'Z'

	idle = 'I' // in readyForQuery: no transaction is open, so what was done is committed

	longestMessage = 1 << 30
)

// answers passes on what Postgres sends. Everything up to a readyForQuery is passed on as a whole. It returns when the connection
// ends.
func (p *proxy) answers(ctx context.Context, from *bufio.Reader, to *bufio.Writer) {
	var held []byte // the answer so far
	stored := false // it says that tickets were stored
	for {
		message, err := appendMessage(held, from)
		if err != nil {
			// The server gets the last message of Postgres, such as why it refuses the connection.
			_, _ = to.Write(held)
			_ = to.Flush()
			return
		}
		kind, content := message[len(held)], message[len(held)+headerLen:]
		held = message
		if kind == commandComplete && isInsert(string(content)) {
			stored = true
		}
		if kind == readyForQuery {
			if stored && content[0] == idle && p.armed.CompareAndSwap(true, false) {
				p.dropped.Add(1)
				return
			}
			if latency := time.Duration(p.latency.Load()); latency > 0 {
				lab.Pause(ctx, latency)
			}
		}
		// While Postgres waits for the server in the middle of an answer (a password), it must be passed on at once.
		if kind == readyForQuery || kind == authentication {
			if _, err := to.Write(held); err != nil || to.Flush() != nil {
				return
			}
			held, stored = held[:0], false
		}
	}
}

const (
	authentication = 'R'
	headerLen      = 5 // a type byte and the length, which counts itself
)

// appendMessage reads one message and appends all of it.
func appendMessage(b []byte, from *bufio.Reader) ([]byte, error) {
	var header [headerLen]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return b, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length < 4 || length > longestMessage {
		return b, fmt.Errorf("a message of Postgres has the length %d", length)
	}
	start := len(b) + headerLen
	longer := append(append(b, header[:]...), make([]byte, length-4)...)
	if _, err := io.ReadFull(from, longer[start:]); err != nil {
		return b, err
	}
	return longer, nil
}

// isInsert reports whether a command inserted rows, by its tag.
func isInsert(tag string) bool {
	tag = strings.TrimSuffix(tag, "\x00")
	return strings.HasPrefix(tag, "INSERT ") && tag != "INSERT 0 0"
}
