package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Answers passes on what a server sends to one client of a Proxy. It returns when either side ends the connection.
type Answers func(ctx context.Context, from io.Reader, to io.Writer)

// Proxy passes on TCP connections to a server, such as Postgres. What clients send goes through unchanged. Its Answers decide
// what becomes of what the server sends. The methods may be called from any goroutine.
type Proxy struct {
	listener net.Listener
	answers  Answers
	backend  atomic.Pointer[string] // host:port of the server
	stop     context.CancelFunc
	pipes    sync.WaitGroup
}

// StartProxy starts a proxy for a server (host:port) on a free port of 127.0.0.1. It runs until Close, or until ctx ends.
func StartProxy(ctx context.Context, backend string, answers Answers) (*Proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start a proxy: %w", err)
	}
	p := &Proxy{listener: listener, answers: answers}
	p.backend.Store(&backend)
	ctx, p.stop = context.WithCancel(ctx)
	p.pipes.Go(func() { p.accept(ctx) })
	return p, nil
}

// Addr returns the proxy's own host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Point makes new connections go to another server, as the Service of a cluster does after a failover.
func (p *Proxy) Point(backend string) { p.backend.Store(&backend) }

// Close ends all connections, and returns when nothing of the proxy runs any more.
func (p *Proxy) Close() error {
	p.stop()
	err := p.listener.Close()
	p.pipes.Wait()
	return err
}

func (p *Proxy) accept(ctx context.Context) {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.pipes.Go(func() { p.connect(ctx, client) })
	}
}

// connect passes on what both sides of a connection send, until one of them ends it.
func (p *Proxy) connect(ctx context.Context, client net.Conn) {
	defer client.Close()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp4", *p.backend.Load())
	if err != nil {
		return // as if the server itself had refused
	}
	defer server.Close()
	defer context.AfterFunc(ctx, func() { _ = errors.Join(client.Close(), server.Close()) })()
	p.pipes.Go(func() {
		_, _ = io.Copy(server, client)
		_ = errors.Join(client.Close(), server.Close())
	})
	p.answers(ctx, server, client)
}

const (
	delayedPieces = 256      // of one connection that wait at the same time
	pieceBytes    = 64 << 10 // of one piece
)

// Delay returns Answers that come later by d. All that the server sends within d is under way at the same time, as on a long
// line, so a delay costs no throughput. A request and its answer take d longer together; a client that waits cannot tell in
// which direction.
func Delay(d time.Duration) Answers {
	type piece struct {
		due  time.Time
		text []byte
	}
	return func(ctx context.Context, from io.Reader, to io.Writer) {
		pause, err := newTimer()
		if err != nil {
			return // as if the server had ended the connection
		}
		defer pause.close()
		defer context.AfterFunc(ctx, pause.close)() // no caller waits for answers any more
		line := make(chan piece, delayedPieces)
		var sender sync.WaitGroup
		defer sender.Wait()
		defer close(line)
		sender.Go(func() {
			for p := range line {
				if err == nil {
					if err = pause.until(p.due); err == nil {
						_, err = to.Write(p.text)
					}
				} // else the client is gone: the proxy closes the other side too, and the line ends
			}
		})
		buffer := make([]byte, pieceBytes)
		for {
			n, err := from.Read(buffer)
			if n > 0 {
				line <- piece{due: time.Now().Add(d), text: append([]byte(nil), buffer[:n]...)}
			}
			if err != nil {
				return
			}
		}
	}
}
