package main

import (
	"context"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// databaseProxy is between a program and Postgres, and fails as a network does.
type databaseProxy struct {
	mu     sync.Mutex
	isCut  bool
	open   []net.Conn    // every one that was made
	silent chan struct{} // closed for the connections that were made before
}

// newDatabaseProxy starts a proxy, and returns the URL that leads through it.
func newDatabaseProxy(t *testing.T, databaseURL string) (p *databaseProxy, url string) {
	t.Helper()
	p = &databaseProxy{silent: make(chan struct{})}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	backend, url := swapHost(t, databaseURL, listener.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	var pipes sync.WaitGroup
	t.Cleanup(func() { cancel(); _ = listener.Close(); pipes.Wait() })
	pipes.Go(func() {
		for {
			front, err := listener.Accept()
			if err != nil {
				return
			}
			if silent := p.take(front); silent != nil {
				pipes.Go(func() { pipe(ctx, front, backend, silent) })
			}
		}
	})
	return p, url
}

// take takes a connection, and returns what is closed when it falls silent. While the network is cut, it closes the connection and
// returns nil.
func (p *databaseProxy) take(front net.Conn) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isCut {
		_ = front.Close()
		return nil
	}
	p.open = append(p.open, front)
	return p.silent
}

// cut breaks all connections, and lets no new one be made until mend.
func (p *databaseProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = true
	for _, conn := range p.open {
		_ = conn.Close()
	}
	p.open = nil
}

func (p *databaseProxy) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = false
}

// fallSilent stops passing data on every open connection, as a firewall does that has forgotten them. Neither side is told.
func (p *databaseProxy) fallSilent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.silent)
	p.silent = make(chan struct{})
}

func swapHost(t *testing.T, databaseURL, host string) (before, after string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	before, u.Host = u.Host, host
	return before, u.String()
}

func pipe(ctx context.Context, front net.Conn, backend string, silent <-chan struct{}) {
	defer front.Close()
	back, err := (&net.Dialer{}).DialContext(ctx, "tcp", backend)
	if err != nil {
		return
	}
	defer back.Close()
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		defer func() { done <- struct{}{} }()
		buffer := make([]byte, 64<<10)
		for {
			n, err := from.Read(buffer)
			select {
			case <-silent:
				<-ctx.Done() // what came is lost, and neither side is told
				return
			default:
			}
			if n > 0 {
				if _, err := to.Write(buffer[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	go pass(back, front)
	go pass(front, back)
	select {
	case <-done:
	case <-ctx.Done():
	}
}
