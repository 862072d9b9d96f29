package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// load is traffic on one server: as many connections as concurrency, each sending its next ticket when the last one is
// answered, or at a fixed rate over all of them.
type load struct {
	addr        string
	concurrency int
	rate        float64 // requests a second over all connections; 0 for as fast as it goes
	warmUp      time.Duration
	duration    time.Duration
	count       int  // tickets in all, instead of warmUp and duration; 0 for no such limit
	mayBeKept   bool // 202 is a right answer, too: the ticket is in the spool
	tickets     *tickets
}

// result is what a load measured after its warm-up.
type result struct {
	acked     int           // tickets that were answered with 200 (or 202, if it may be), warm-up included
	perSecond float64       //
	p50, p99  time.Duration // of the time from a request to its answer
}

// run sends the traffic. A wrong answer is an error: a benchmark of refusals measures nothing.
func (l load) run(ctx context.Context) (result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.tickets.make()
	start := time.Now()
	from, until := start.Add(l.warmUp), start.Add(l.warmUp+l.duration)
	if l.count > 0 {
		from, until = start, start.Add(longestCount)
	}
	workers := make([]worker, l.concurrency)
	errs := make(chan error, l.concurrency)
	var group sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		*w = worker{load: l, number: i, from: from, until: until}
		group.Go(func() {
			if err := w.run(ctx); err != nil {
				errs <- err
				cancel()
			}
		})
	}
	group.Wait()
	took := l.duration
	if l.count > 0 {
		took = time.Since(start)
	}
	select {
	case err := <-errs:
		return result{}, err
	default:
	}
	var all []time.Duration
	var r result
	answered := 0
	for i := range workers {
		all = append(all, workers[i].latencies...)
		r.acked += workers[i].acked
		answered += workers[i].answered
	}
	if answered == 0 || len(all) == 0 {
		return result{}, fmt.Errorf("no ticket was answered within %s", took)
	}
	if r.acked < l.count {
		return result{}, fmt.Errorf("only %d of %d tickets were answered within %s", r.acked, l.count, longestCount)
	}
	slices.Sort(all)
	r.perSecond = float64(answered) / took.Seconds()
	r.p50, r.p99 = all[len(all)/2], all[len(all)*99/100]
	return r, nil
}

// longestCount bounds the time of a load that has a count.
const longestCount = 10 * time.Minute

type worker struct {
	load        load
	number      int
	from, until time.Time
	latencies   []time.Duration // of the tickets sent in that time
	answered    int             // tickets answered in that time
	acked       int
}

func (w *worker) run(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.load.addr)
	if err != nil {
		return fmt.Errorf("connect to the server: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	answers := bufio.NewReaderSize(conn, 4096)
	var pause time.Duration
	next := time.Now()
	if w.load.rate > 0 {
		pause = time.Duration(float64(w.load.concurrency) / w.load.rate * float64(time.Second))
		next = next.Add(pause * time.Duration(w.number) / time.Duration(w.load.concurrency))
	}
	var request []byte
	for i := w.number; w.load.count == 0 || i < w.load.count; i += w.load.concurrency {
		if pause > 0 {
			time.Sleep(time.Until(next))
			next = next.Add(pause)
		}
		request = w.load.tickets.appendRequest(request[:0], i)
		sent := time.Now()
		if !sent.Before(w.until) {
			return nil
		}
		if _, err := conn.Write(request); err != nil {
			return fmt.Errorf("send a ticket: %w", err)
		}
		if err := readOK(answers, w.load.mayBeKept); err != nil {
			return err
		}
		w.acked++
		now := time.Now()
		if !now.Before(w.from) && now.Before(w.until) {
			w.answered++
		}
		if !sent.Before(w.from) {
			w.latencies = append(w.latencies, now.Sub(sent))
		}
	}
	return nil
}

// readOK reads one answer, which must be 200 (or 202, if it may be) with a Content-Length. net/http's client would cost as much
// as the server.
func readOK(r *bufio.Reader, mayBeKept bool) error {
	status, err := r.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	kept := mayBeKept && bytes.HasPrefix(status, []byte("HTTP/1.1 202 "))
	if !kept && !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("the server answered %q", bytes.TrimSpace(status))
	}
	length := -1
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		// Some servers write the names of headers in small letters.
		const name = "Content-Length: "
		if len(line) > len(name) && bytes.EqualFold(line[:len(name)], []byte(name)) {
			if length, err = strconv.Atoi(string(line[len(name):])); err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
		}
	}
	if length < 0 {
		return errors.New("read the answer: it has no Content-Length")
	}
	_, err = r.Discard(length)
	return err
}
