// Package lab runs and watches real processes on this machine: for the throwaway Postgres, the tests, the benchmark and
// chaos. It is not part of bin/myticket.
package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

const (
	// pollInterval is the time between two looks at a condition.
	pollInterval = 20 * time.Millisecond
	// answerLimit is how long AwaitOK waits. No server takes nearly as long.
	answerLimit = 30 * time.Second
)

// FreePort returns a TCP port of 127.0.0.1 on which nothing listens. No other call gets it as long as this process lives, in no
// process of the same user, so a server can be stopped and started again on its port. A program that does not ask here can take
// it.
//
// The port is below those that systems give to outgoing connections (Linux: from 32768; IANA: from 49152,
// https://www.iana.org/assignments/service-names-port-numbers). While a server is down before its restart, an outgoing
// connection could otherwise take its port. A client that connects to that server could even be given the server's port and
// so connect to itself.
func FreePort(ctx context.Context) (int, error) {
	const from, to, attempts = 15_000, 32_000, 100
	var err error
	for range attempts {
		port := from + rand.N(to-from)
		var reserved bool
		if reserved, err = reserve(port); err != nil {
			return 0, fmt.Errorf("reserve a port: %w", err)
		}
		if !reserved {
			continue
		}
		var listener net.Listener
		if listener, err = new(net.ListenConfig).Listen(ctx, "tcp4", loopback(port)); err == nil {
			return port, listener.Close()
		}
	}
	return 0, errors.Join(fmt.Errorf("no port of 127.0.0.1 was free in %d attempts", attempts), err)
}

// reservations are the locks of this process's ports, which the kernel releases when it ends.
var reservations sync.Map

// reserve reports whether this process now has the lock of a port, and had not before.
func reserve(port int) (bool, error) {
	dir := filepath.Join(os.TempDir(), "myticket-ports-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	lock := flock.New(filepath.Join(dir, strconv.Itoa(port)))
	ok, err := lock.TryLock()
	if ok {
		reservations.Store(port, lock)
	}
	return ok, err
}

// FreeAddr returns 127.0.0.1 with a port of FreePort.
func FreeAddr(ctx context.Context) (string, error) {
	port, err := FreePort(ctx)
	return loopback(port), err
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Pause waits for d, or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Await calls ask again and again until it returns no error, for at most limit. Its own error carries the last one of ask.
func Await(ctx context.Context, limit time.Duration, what string, ask func(context.Context) error) error {
	end := time.Now().Add(limit)
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("waited %s for %s: %w", limit, what, err)
		}
		Pause(ctx, pollInterval)
	}
}

// client opens a connection for each request, so that it holds none of a server that is measured.
var client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Get sends a GET request on a connection of its own.
func Get(ctx context.Context, url string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(request)
}

// AwaitOK waits until the process answers a GET of the URL, such as /readyz, with 200. It gives up after 30 seconds, and as
// soon as the process ends.
func (p *Process) AwaitOK(ctx context.Context, url string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := Await(ctx, answerLimit, "an answer 200 of "+url, func(ctx context.Context) error {
		response, err := Get(ctx, url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
	if err != nil && p.HasExited() {
		return fmt.Errorf("%s ended (%s) before %s answered with 200", p.command.Path, p.command.ProcessState, url)
	}
	return err
}
