package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"myticket/internal/lab"
)

const (
	// retriedOrder is what the tickets that are sent back call their order number. Only a dialect knows it.
	retriedOrder = "Commande"
	// retriedSlices bounds the slices that are measured while servers read what was sent back, because that may take long.
	retriedSlices = 30
)

// retried sends a share of the floor's rate, and prints how long answers take without and beside a retry of many tickets: while
// they are sent back, and while the server reads them.
func (b *bench) retried(ctx context.Context) (err error) {
	live := newTickets(sustainLines, b.settings.products)
	floor, err := b.floorRate(ctx, live)
	if err != nil {
		return err
	}
	db, server, err := b.fresh(ctx, live.products)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if err := b.storeRetried(ctx, db, server); err != nil {
		return err
	}
	l := b.slice(sustainConcurrency, live)
	l.addr, l.rate = server.addr, b.settings.share*floor
	fmt.Fprintf(b.out, "%s at a steady rate, %.2f of the floor's %.0f/s, over %d connections, in slices of %s, beside a retry of "+
		"%d tickets of as many lines.\n\n", live.name, b.settings.share, floor, sustainConcurrency, l.duration, b.settings.retried)
	fmt.Fprint(b.out, "| | slices | asked/s | answered/s | p50 | p99 | p99 of the slowest slice |\n|--|--:|--:|--:|--:|--:|--:|\n")

	acked := b.settings.retried
	slicesOf := func(name string, more func(n int) (bool, error)) error {
		n, err := b.printSlices(ctx, name, l, more)
		acked += n
		return err
	}
	if err := slicesOf("alone", func(n int) (bool, error) { return n < b.settings.rounds, nil }); err != nil {
		return err
	}
	retry, err := b.startCommand("tickets", "retry", "--status", "ERROR", "--yes", "--database-url", db.url)
	if err != nil {
		return err
	}
	err = slicesOf("beside the retry", func(int) (bool, error) { return !retry.HasExited(), nil })
	if err = errors.Join(err, retry.Wait()); err != nil {
		return err
	}
	unread := func() (int, error) { return db.count(ctx, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`) }
	err = slicesOf("while they are read", func(n int) (bool, error) {
		left, err := unread()
		return left > 0 && n < retriedSlices, err
	})
	if err != nil {
		return err
	}
	start := time.Now()
	err = lab.Await(ctx, catchUpLimit, "the tickets that were sent back", func(context.Context) error {
		left, err := unread()
		if err == nil && left > 0 {
			err = fmt.Errorf("%d are not read", left)
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\nThe last one was read %s after the last slice.\n", time.Since(start).Round(100*time.Millisecond))
	return db.checkStored(ctx, acked)
}

// storeRetried has a server store tickets that it cannot read, and then makes the dialect known that they are written in.
func (b *bench) storeRetried(ctx context.Context, db *database, server *process) (err error) {
	t := newTickets(sustainLines, b.settings.products)
	t.order = retriedOrder
	l := b.slice(sustainConcurrency, t)
	l.addr, l.count = server.addr, b.settings.retried
	if _, err := l.run(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "myticket-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "dialect.yaml")
	if err := os.WriteFile(file, []byte("records:\n  order: ["+retriedOrder+"]\n"), 0o600); err != nil {
		return err
	}
	apply, err := b.startCommand("dialects", "apply", "default", "--file", file, "--yes", "--database-url", db.url)
	if err != nil {
		return err
	}
	return apply.Wait()
}

// startCommand starts a command of the program that is measured.
func (b *bench) startCommand(args ...string) (*lab.Process, error) {
	command := exec.Command(b.settings.server, args...)
	command.Stderr = os.Stderr
	return lab.Start(command, syscall.SIGTERM)
}

// printSlices measures slices as long as there are more after n of them, and prints their medians. It returns how many tickets
// were answered.
func (b *bench) printSlices(ctx context.Context, name string, l load, more func(n int) (bool, error)) (acked int, err error) {
	var rates, p50s, p99s []float64
	for {
		again, err := more(len(rates))
		if err != nil {
			return acked, err
		}
		if !again {
			break
		}
		r, err := l.run(ctx)
		if err != nil {
			return acked, err
		}
		acked += r.acked
		rates, p50s, p99s = append(rates, r.perSecond), append(p50s, float64(r.p50)), append(p99s, float64(r.p99))
	}
	if len(rates) == 0 {
		fmt.Fprintf(b.out, "| %s | 0 | | | | | |\n", name)
		return acked, nil
	}
	round := func(d float64) time.Duration { return time.Duration(d).Round(10 * time.Microsecond) }
	fmt.Fprintf(b.out, "| %s | %d | %.0f | %.0f | %s | %s | %s |\n", name, len(rates), l.rate, median(rates), round(median(p50s)),
		round(median(p99s)), round(slices.Max(p99s)))
	return acked, nil
}
