package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"myticket/internal/lab"
	"myticket/internal/ticket"
)

// clockFault is by how much the server's clock is wrong: more than the partitions that are made ahead.
const clockFault = 50 * time.Hour

// watch is the clock of a server, as the build tag chaosclock has it.
type watch struct {
	*trial

	file    string
	server  *server
	faults  []clockSpan
	treated int // tickets that a server was killed for, and another one has treated
}

// clockSpan is a time in which the clock was wrong by the same amount.
type clockSpan struct {
	span
	wrong time.Duration
}

// wrongClock demands that tickets are stored and found, that their ids follow the clock as soon as it is right, and that
// nothing that was done with a wrong clock stays behind: no claim, no key, no ticket outside of its partition.
func wrongClock(ctx context.Context, t *trial) error {
	w := &watch{trial: t, file: t.spool + "-clock"}
	if err := w.set(0); err != nil {
		return err
	}
	if err := t.exec(ctx, poisonTable); err != nil {
		return err
	}
	s, err := t.newServer(ctx, t.url, "--partitions-ahead=1", "--treat-lease=2s")
	if err != nil {
		return err
	}
	w.server = s
	s.program, s.environ = filepath.Join(t.dir, "myticket-chaosclock"), []string{"CHAOS_CLOCK=" + w.file}
	if err := errors.Join(build(ctx, s.program, "chaosclock"), s.start(ctx), s.awaitReady(ctx)); err != nil {
		return err
	}
	l := t.tills(ctx, fewTills, s.http)
	defer l.stop()
	key := 0
	for _, wrong := range []time.Duration{0, clockFault, 0, -clockFault, 0} {
		if err := w.turn(ctx, wrong); err != nil {
			return err
		}
		if err := w.keys(ctx, &key); err != nil {
			return err
		}
		if wrong == 0 {
			continue
		}
		if err := w.killWhileTreating(ctx); err != nil {
			return fmt.Errorf("with a clock that is wrong by %s: %w", wrong, err)
		}
	}
	// Ahead by a time that the scenario can wait for. After it, the tickets with the right time must count again.
	if err := w.turn(ctx, 5*time.Second); err != nil {
		return err
	}
	if err := w.turn(ctx, 0); err != nil {
		return err
	}
	lab.Pause(ctx, 6*time.Second)
	l.stop()
	t.ended = time.Now()
	w.idsFollow()
	// A server looks for tickets outside of their partitions when it starts, and each minute.
	s.kill()
	strays := func() error {
		return w.awaitNone(ctx, "tickets outside of their partitions", `SELECT count(*) FROM tickets_default`)
	}
	if err := errors.Join(s.start(ctx), s.awaitReady(ctx), strays()); err != nil {
		return err
	}
	return errors.Join(
		w.awaitNone(ctx, "tickets that are not treated", `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`),
		w.findEach(ctx))
}

// set makes the clock wrong. It replaces the file at once, because the server may read it at any moment.
func (w *watch) set(wrong time.Duration) error {
	if err := os.WriteFile(w.file+".new", []byte(wrong.String()), 0o600); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return os.Rename(w.file+".new", w.file)
}

// turn makes the clock wrong, and waits until tickets have come with it.
func (w *watch) turn(ctx context.Context, wrong time.Duration) error {
	if n := len(w.faults); n > 0 {
		w.faults[n-1].to = time.Now() // before the clock changes: a ticket that comes at that moment has either time
	}
	if err := w.set(wrong); err != nil {
		return err
	}
	from := time.Now()
	w.faults = append(w.faults, clockSpan{span{from: from, to: from.Add(24 * time.Hour)}, wrong})
	lab.Pause(ctx, w.span(2*time.Second, time.Second))
	return w.awaitLoad(ctx, from, http.StatusOK, 100)
}

// keys demands that a delivery which is sent again is a duplicate, whatever the clock was then and is now.
func (w *watch) keys(ctx context.Context, key *int) error {
	client := newClient(1)
	defer client.CloseIdleConnections()
	*key++
	for n := 1; n <= *key; n++ { // all that were sent before, and a new one
		d := delivery{source: "keyed", key: fmt.Sprint(n), body: fmt.Appendf(nil, "keyed %s %d", w.maker.run, n)}
		a, err := post(ctx, client, w.server.http, d)
		if err != nil {
			return fmt.Errorf("send a ticket with a key: %w", err)
		}
		hash := sha256.Sum256(d.body)
		known := slices.IndexFunc(w.others.tickets, func(s sent) bool { return s.body == hash })
		switch {
		case known < 0:
			w.others.end(w.others.begin(d.body, true), a)
		case w.others.tickets[known].id != a.id:
			w.failf("a delivery with a key was stored as %s, and when it was sent again with another clock, as %s",
				w.others.tickets[known].id, a.id)
		}
	}
	return nil
}

// Postgres refuses to store poison as it was read, so it is stored unread and claimed, and then treated so slowly that the
// server can be killed meanwhile.
const poisonTable = `
ALTER TABLE tickets ADD CONSTRAINT no_poison CHECK (order_number <> 'POISON');
CREATE TABLE poison AS SELECT true AS slow;
CREATE FUNCTION slow_poison() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT slow FROM poison) THEN
		PERFORM pg_sleep(30);
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER slow_poison BEFORE UPDATE ON tickets FOR EACH ROW WHEN (OLD.source = 'poison') EXECUTE FUNCTION slow_poison()`

const (
	poisonUnread  = `SELECT count(*) FROM tickets WHERE source = 'poison' AND status = 'TO_TREAT'`
	poisonTreated = `SELECT count(*) FROM tickets WHERE source = 'poison' AND status <> 'TO_TREAT'`
	poisonQuick   = `UPDATE poison SET slow = false`
	poisonSlow    = `UPDATE poison SET slow = true`
)

// killWhileTreating demands that a claim of a server that died ends after its lease, not when its clock says so.
func (w *watch) killWhileTreating(ctx context.Context) error {
	body := fmt.Appendf(nil, "Order: POISON\nVAT: 0\nTotal: 1\nNote: %s %d\n\nproduct,product_id,price\nx,%s,1",
		w.maker.run, len(w.faults), hostileProduct)
	n := w.others.begin(body, false)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		client := newClient(1)
		defer client.CloseIdleConnections()
		a, err := post(ctx, client, w.server.http, delivery{source: "poison", body: body})
		if err != nil {
			a = answer{}
		}
		w.others.end(n, a)
	}()
	err := lab.Await(ctx, 30*time.Second, "a ticket to be stored unread", func(ctx context.Context) error {
		unread, err := w.countRows(ctx, poisonUnread)
		if err == nil && unread == 0 {
			err = errors.New("there is none")
		}
		return err
	})
	w.server.kill()
	<-gone
	if err != nil {
		return err
	}
	if err := errors.Join(w.exec(ctx, poisonQuick), w.server.start(ctx)); err != nil {
		return err
	}
	// Its transaction may still sleep in Postgres, or be about to, and holds the row.
	const end = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE wait_event = 'PgSleep' AND datname = current_database()`
	w.treated++
	err = lab.Await(ctx, 20*time.Second, "the claim of a dead server to end", func(ctx context.Context) error {
		// That none is unread says nothing: no query finds a ticket while strays are moved into their partitions.
		treated, err := w.countRows(ctx, poisonTreated)
		if err == nil && treated < w.treated {
			err = errors.Join(errors.New("it has not"), w.exec(ctx, end))
		}
		return err
	})
	return errors.Join(err, w.exec(ctx, poisonSlow))
}

// idsFollow demands that each ticket has the time that the clock had when it came.
func (w *watch) idsFollow() {
	const tolerance = 10 * time.Second // from sending to being given an id, and for a clock that goes back by less than a second
	for i := range w.ledger.tickets {
		s := &w.ledger.tickets[i]
		at := w.ledger.start.Add(s.at)
		n := slices.IndexFunc(w.faults, func(f clockSpan) bool { return !at.Before(f.from) && at.Add(s.took).Before(f.to) })
		if n < 0 || !s.acknowledged() {
			continue
		}
		if off := ticket.IDTime(s.id).Sub(at.Add(w.faults[n].wrong)); off.Abs() > tolerance {
			w.failf("a ticket that was sent while the clock was wrong by %s has an id whose time is another one by %s: %s",
				w.faults[n].wrong, off, s.id)
			return
		}
	}
}

func (w *watch) awaitNone(ctx context.Context, what, sql string) error {
	return lab.Await(ctx, 45*time.Second, "no "+what, func(ctx context.Context) error {
		n, err := w.countRows(ctx, sql)
		if err == nil && n > 0 {
			err = fmt.Errorf("there are %d", n)
		}
		return err
	})
}

// findEach demands that a ticket of each time is found by its id.
func (w *watch) findEach(ctx context.Context) error {
	for _, f := range w.faults {
		n := slices.IndexFunc(w.ledger.tickets, func(s sent) bool {
			at := w.ledger.start.Add(s.at)
			return s.acknowledged() && at.After(f.from) && at.Add(s.took).Before(f.to)
		})
		if n < 0 {
			return fmt.Errorf("no ticket was sent while the clock was wrong by %s", f.wrong)
		}
		s := w.ledger.tickets[n]
		show := exec.CommandContext(ctx, w.program, "tickets", "show", "--raw", "--database-url", w.url, s.id.String())
		found, err := show.Output()
		if err != nil || sha256.Sum256(found) != s.body {
			w.failf("the ticket %s, sent while the clock was wrong by %s, is not found: %v", s.id, f.wrong, err)
		}
	}
	return nil
}
