package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"myticket/internal/lab"
)

// diskFull keeps Postgres away until the disk of the spool is full.
func diskFull(ctx context.Context, t *trial) error {
	const (
		size     = 4 << 20
		padding  = 4 << 10 // so that the disk is full soon
		refusals = 100
		tills    = 50
	)
	if err := mountSmall(t.spool, size); err != nil {
		if os.Getenv("CI") == "true" {
			return err
		}
		t.result.skipped = err.Error()
		return nil
	}
	t.onEnd(func() error { return unmount(t.spool) })
	t.maker.padding = padding
	s, err := t.startServer(ctx, t.url)
	if err != nil {
		return err
	}
	l := t.tills(ctx, tills, s.http)
	defer l.stop()
	lab.Pause(ctx, warmUp)

	// First the tickets themselves fill the disk.
	if err := t.database.Kill(); err != nil {
		return err
	}
	if err := t.awaitLoad(ctx, time.Now(), http.StatusAccepted, 1); err != nil {
		return err
	}
	if err := t.awaitLoad(ctx, time.Now(), http.StatusServiceUnavailable, refusals); err != nil {
		return err
	}
	if err := t.database.Restart(ctx); err != nil {
		return err
	}
	if err := t.awaitLoad(ctx, time.Now(), http.StatusOK, refusals); err != nil {
		return err
	}

	l.stop()
	if err := t.drain(ctx); err != nil {
		return err
	}

	// Then another file fills it, and is removed again.
	l = t.tills(ctx, tills, s.http)
	defer l.stop()
	if err := t.database.Kill(); err != nil {
		return err
	}
	if err := t.awaitLoad(ctx, time.Now(), http.StatusAccepted, 1); err != nil {
		return err
	}
	ballast := filepath.Join(t.spool, "ballast")
	if err := fill(ballast); err != nil {
		return err
	}
	if err := t.awaitLoad(ctx, time.Now(), http.StatusServiceUnavailable, refusals); err != nil {
		return err
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	// At least one ticket must fit, whatever was written meanwhile.
	if err := t.awaitLoad(ctx, time.Now(), http.StatusAccepted, 1); err != nil {
		return err
	}
	if err := t.database.Restart(ctx); err != nil {
		return err
	}
	lab.Pause(ctx, warmUp)
	l.stop()
	t.ended = time.Now()
	return nil
}

// awaitLoad waits until count of the tickets that the tills sent after from were answered with the status.
func (t *trial) awaitLoad(ctx context.Context, from time.Time, status, count int) error {
	what := fmt.Sprintf("%d answers %d", count, status)
	err := lab.Await(ctx, t.span(time.Minute, 20*time.Second), what, func(context.Context) error {
		if n := t.ledger.since(from, int16(status)); n < count {
			return fmt.Errorf("there were %d", n)
		}
		return nil
	})
	if err != nil {
		for _, s := range t.servers {
			err = errors.Join(err, s.why())
		}
	}
	return err
}

// fill writes a file until the disk is full.
func fill(name string) error {
	file, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	defer file.Close()
	for block := make([]byte, 4<<10); err == nil; {
		_, err = file.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}
	return nil
}

// slowClients demands that clients which hold connections and buffers do not affect the tills.
func slowClients(ctx context.Context, t *trial) error {
	const each = 50
	s, err := t.startServer(ctx, t.url)
	if err != nil {
		return err
	}
	slow, stop := context.WithTimeout(ctx, t.span(10*time.Second, 3*time.Second))
	defer stop()
	var group sync.WaitGroup
	for i := range each {
		group.Go(func() { t.sendSlowly(slow, s.http, i) })
		group.Go(func() { t.neverRead(slow, s.http) })
	}
	// The normal tills have a ledger of their own, because more is demanded for them.
	normal := *t
	normal.ledger = newLedger()
	l := normal.tills(ctx, manyTills, s.http)
	defer l.stop()
	<-slow.Done()
	group.Wait()
	l.stop()
	t.ended = time.Now()
	others := 0
	for i := range normal.ledger.tickets {
		if !normal.ledger.tickets[i].acknowledged() {
			others++
		}
	}
	if others > 0 {
		t.failf("%d of %d tickets of normal tills were not stored although Postgres was well", others, len(normal.ledger.tickets))
	}
	t.inTime(normal.ledger.tickets)
	t.notef("the other clients sent %d tickets without reading an answer", len(t.ledger.tickets))
	t.ledger.tickets = append(t.ledger.tickets, normal.ledger.tickets...)
	return nil
}

// sendSlowly sends requests a byte a second, again and again, until ctx ends. Every second client sends the head at once.
// No request is ever complete, so none is in the ledger: if it were stored, that would be an error.
func (t *trial) sendSlowly(ctx context.Context, addr string, client int) {
	for ctx.Err() == nil {
		request := rawRequest(t.maker.next())
		at := 0
		if client%2 == 0 {
			at = bytes.Index(request, []byte("\r\n\r\n")) + len("\r\n\r\n")
		}
		withConn(ctx, addr, func(conn net.Conn) {
			if _, err := conn.Write(request[:at]); err != nil {
				return
			}
			for ; at < len(request)-1; at++ {
				if _, err := conn.Write(request[at : at+1]); err != nil {
					return // the server closed it
				}
				if lab.Pause(ctx, time.Second); ctx.Err() != nil {
					return
				}
			}
		})
		lab.Pause(ctx, 100*time.Millisecond)
	}
}

// neverRead sends whole requests one after the other and reads no answer, until ctx ends.
func (t *trial) neverRead(ctx context.Context, addr string) {
	const first, then = 200, 20 // requests, at once and each second
	for ctx.Err() == nil {
		withConn(ctx, addr, func(conn net.Conn) {
			// A small buffer for answers, so that the server cannot send them.
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetReadBuffer(1)
			}
			for count := first; ; count = then {
				var requests []byte
				for range count {
					body := t.maker.next()
					t.ledger.begin(body, false)
					requests = append(requests, rawRequest(body)...)
				}
				if _, err := conn.Write(requests); err != nil {
					return
				}
				if lab.Pause(ctx, time.Second); ctx.Err() != nil {
					return
				}
			}
		})
		lab.Pause(ctx, time.Second)
	}
}

func rawRequest(body []byte) []byte {
	return fmt.Appendf(nil, "POST /ticket HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// withConn calls use with a connection, which breaks when ctx ends. If it cannot connect, it does nothing.
func withConn(ctx context.Context, addr string, use func(net.Conn)) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	use(conn)
}

// steady demands that a server under constant load does not accumulate memory, goroutines or files.
func steady(ctx context.Context, t *trial) error {
	const rate, connections, samples = 500, 50, 60
	s, err := t.startServer(ctx, t.url)
	if err != nil {
		return err
	}
	d := t.span(t.config.steady, 5*time.Second)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	measuring, enough := context.WithCancel(ctx)
	defer enough()
	var taken [3][]float64 // for each of the metrics below
	var group sync.WaitGroup
	opened := make(chan struct{})
	group.Go(func() {
		<-opened // each connection is a goroutine and a file of the server
		for measuring.Err() == nil {
			m, err := s.metrics(ctx, "go_goroutines", "process_open_fds", "process_resident_memory_bytes")
			if err != nil {
				cancel(err)
				return
			}
			for i, value := range m {
				taken[i] = append(taken[i], value)
			}
			lab.Pause(measuring, d/samples)
		}
	})
	reached := t.paced(ctx, s.http, rate, connections, d, opened)
	enough()
	group.Wait()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("measure the server: %w", err)
	}
	t.ended = time.Now()
	for i, what := range []struct {
		name  string
		slack float64
		unit  float64
	}{
		{"goroutines", 20, 1},
		{"open files", 20, 1},
		{"MiB of memory", 64, 1 << 20},
	} {
		third := max(len(taken[i])/3, 1)
		first, last := median(taken[i][:third])/what.unit, median(taken[i][len(taken[i])-third:])/what.unit
		if last > 1.2*first+what.slack {
			t.failf("%s rise under constant load: from %.0f to %.0f", what.name, first, last)
		}
		t.notef("%s: %.0f in the first third, %.0f in the last", what.name, first, last)
	}
	t.notef("%.0f tickets/s over %s", reached, d)
	refused := 0
	for i := range t.ledger.tickets {
		if !t.ledger.tickets[i].acknowledged() {
			refused++
		}
	}
	if refused > 0 {
		t.failf("%d of %d tickets were not acknowledged although nothing was broken", refused, len(t.ledger.tickets))
	}
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
