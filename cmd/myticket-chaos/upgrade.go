package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"sync"
	"time"

	"myticket/internal/lab"
	"myticket/internal/postgres"
)

// upgradeTrial is the scenario upgrade while it is played: two servers, of which each is of one version or the other.
type upgradeTrial struct {
	*trial

	tills  []*upgradeTill
	phases []phase
}

// upgradeTill is one honest sender. It sends to the two servers in turn, as through a load balancer.
type upgradeTill struct {
	keyed    bool // its tickets have keys, and it repeats what is refused
	foreign  bool // it is of the source that writes its tickets in its own way
	at       int  // the next server
	attempts []attempt
}

// refuseSome has Postgres refuse some tickets as they were read. They are stored unread, and treated a moment later by a server
// of either version.
const refuseSome = `
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON tickets FOR EACH ROW
    WHEN (NEW.status = 'TREATED' AND NEW.order_number LIKE '%555') EXECUTE FUNCTION refuse()`

// noteProgram has the database note which program stored a ticket, and which one treated it later. A server says in its sessions
// which one it is (noted).
const noteProgram = `
ALTER TABLE tickets ADD COLUMN stored_by text DEFAULT current_setting('chaos.program', true), ADD COLUMN treated_by text;
CREATE FUNCTION note_program() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.treated_by := current_setting('chaos.program', true); RETURN NEW; END $$;
CREATE TRIGGER note_program BEFORE UPDATE ON tickets FOR EACH ROW
    WHEN (OLD.status = 'TO_TREAT' AND NEW.status <> 'TO_TREAT') EXECUTE FUNCTION note_program()`

const (
	beforeNoted = "before"
	newNoted    = "new"
)

// noted is the environment of a server's program for noteProgram.
func noted(program string) []string { return []string{"PGOPTIONS=-c chaos.program=" + program} }

// upgraded demands that an upgrade from the version before, the way back, and the way forward again lose and double nothing, and
// that no one looks at. The schema is migrated while servers of the version before serve.
//
// The tickets of one source can be read only in its dialect, which is applied after the upgrade. The version before cannot read
// them, so after the way back they are ERROR until both servers are new again.
func upgraded(ctx context.Context, t *trial) error {
	if t.config.before == "" {
		t.result.skipped = "it needs a binary of the version before: make chaos-upgrade, or -before FILE"
		return nil
	}
	u := &upgradeTrial{trial: t}
	u.maker.seasons = true
	if err := u.installBefore(ctx); err != nil {
		return err
	}
	stop := u.startTills(ctx)
	defer stop()
	lab.Pause(ctx, warmUp)
	u.enter("the migration")
	start := time.Now()
	if err := u.run(ctx, t.program, "migrate", "up"); err != nil {
		return err
	}
	t.notef("the schema was migrated in %.2f s while servers of the version before served", time.Since(start).Seconds())
	lab.Pause(ctx, warmUp)
	for _, way := range []struct {
		name          string
		program       string
		first, second int // the servers, in the order in which they are replaced
	}{
		{"the upgrade", t.program, 0, 1},
		{"the way back", t.config.before, 0, 1},
		{"the upgrade again", t.program, 1, 0},
	} {
		u.enter(way.name)
		if err := u.replace(ctx, way.first, way.program, true); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		// Both versions serve. Servers settle products half a minute after a change.
		lab.Pause(ctx, t.span(45*time.Second, time.Second))
		if err := errors.Join(u.retry(ctx, t.config.before), u.retry(ctx, t.program)); err != nil {
			return err
		}
		if err := u.replace(ctx, way.second, way.program, false); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		lab.Pause(ctx, t.span(10*time.Second, time.Second))
		if err := u.mend(ctx, way.program); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	u.enter("afterwards")
	stop()
	t.ended = time.Now()
	u.judge()
	return u.finish(ctx)
}

// installBefore makes a database with the schema of the version before, and starts two servers of that version.
func (u *upgradeTrial) installBefore(ctx context.Context) error {
	name := fmt.Sprintf("chaos_%d_before", u.trials)
	if err := u.database.CreateDatabase(ctx, name); err != nil {
		return err
	}
	u.url = u.database.URL(name)
	if err := u.run(ctx, u.config.before, "migrate", "up"); err != nil {
		return err
	}
	latest, err := postgres.LatestSchema()
	if err != nil {
		return err
	}
	version, err := u.countRows(ctx, `SELECT version FROM schema_migrations`)
	if err == nil && version >= int(latest) {
		err = fmt.Errorf("%s is not the version before: it has the newest schema", u.config.before)
	}
	if err := errors.Join(err, u.exec(ctx, refuseSome), u.exec(ctx, noteProgram)); err != nil {
		return err
	}
	for range 2 {
		s, err := u.newServer(ctx, u.url, "--shutdown-timeout=2s", "--treat-lease=5s")
		if err != nil {
			return err
		}
		s.program, s.environ = u.config.before, noted(beforeNoted)
		if err := errors.Join(s.start(ctx), s.awaitReady(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// run runs a command of a program of either version to its end, on the database of the trial.
func (u *upgradeTrial) run(ctx context.Context, program string, command ...string) error {
	_, err := u.output(ctx, program, command...)
	return err
}

func (t *trial) output(ctx context.Context, program string, command ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, program, append(command, "--database-url", t.url)...)
	printed, err := c.Output()
	if failed := new(exec.ExitError); errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s", err, failed.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", program, command, err)
	}
	return printed, nil
}

// retry sends all tickets that could not be read back to be treated, as an operator does.
func (u *upgradeTrial) retry(ctx context.Context, program string) error {
	command := []string{"tickets", "retry", "--status", "ERROR"}
	help, err := u.output(ctx, program, "tickets", "retry", "--help")
	if err != nil {
		return err
	}
	if bytes.Contains(help, []byte("--yes")) { // versions without it do not ask
		command = append(command, "--yes")
	}
	return u.run(ctx, program, command...)
}

func (u *upgradeTrial) enter(name string) { u.phases = append(u.phases, phase{name, time.Now()}) }

// replace stops a server and starts another one in its place, with its addresses and its spool. If away is set, Postgres is away
// meanwhile, so that the spool is not empty.
func (u *upgradeTrial) replace(ctx context.Context, n int, program string, away bool) error {
	s := u.servers[n]
	if away {
		if err := u.database.Kill(); err != nil {
			return err
		}
		if err := u.awaitLoad(ctx, time.Now(), http.StatusAccepted, 100); err != nil {
			return err
		}
	}
	if err := s.stop(); err != nil {
		u.failf("%s", err)
	}
	s.program, s.environ = program, noted(newNoted)
	if program == u.config.before {
		s.environ = noted(beforeNoted)
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	if away {
		spooled, err := s.metrics(ctx, "myticket_spool_tickets")
		if err := errors.Join(err, u.database.Restart(ctx)); err != nil {
			return err
		}
		if spooled[0] == 0 {
			u.failf("the spool of a server that was replaced was empty, which proves nothing")
		}
		u.notef("a server took over %.0f tickets in the spool of the other version", spooled[0])
	}
	return s.awaitReady(ctx)
}

// foreignEvery is how many senders there are for each one of the source that writes its tickets in its own way. Its tickets are
// read again, one by one.
const foreignEvery = 5

// startTills starts senders that never stop for long. Every second one gives its tickets a key and repeats what is refused. The
// others do not, because without a key a ticket whose answer was lost would be stored twice.
func (u *upgradeTrial) startTills(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	for i := range manyTills {
		till := &upgradeTill{keyed: i%2 == 0, foreign: i%foreignEvery == 0, at: i / 2 % len(u.servers)}
		u.tills = append(u.tills, till)
		group.Go(func() {
			client := newClient(1)
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				u.send(context.WithoutCancel(ctx), client, till)
				lab.Pause(ctx, 2*tillPause)
			}
		})
	}
	return sync.OnceFunc(func() { cancel(); group.Wait() })
}

// send sends one new ticket.
func (u *upgradeTrial) send(ctx context.Context, client *http.Client, till *upgradeTill) {
	d := delivery{body: u.maker.next()}
	if till.foreign {
		d.source, d.body = foreignSource, inForeignWords(d.body)
	}
	if till.keyed {
		d.key = fmt.Sprintf("%s-%d", u.maker.run, u.maker.keys.Add(1))
	}
	n := u.ledger.begin(d.body, till.keyed)
	for end := time.Now().Add(3 * deadline); ; lab.Pause(ctx, tillPause) {
		from := time.Now()
		a, err := post(ctx, client, u.servers[till.at].http, d)
		if err != nil {
			a = answer{}
		}
		tried := attempt{span{from, time.Now()}, a.status}
		till.attempts = append(till.attempts, tried)
		till.at = (till.at + 1) % len(u.servers)
		if tried.taken() || !till.keyed || time.Now().After(end) {
			u.ledger.end(n, a)
			return
		}
		u.ledger.repeated.Add(1)
	}
}

// judge demands what senders may expect while servers are replaced one after the other.
func (u *upgradeTrial) judge() {
	var longest span
	refusals, late := 0, 0
	for _, till := range u.tills {
		if refused := longestRefusal(till.attempts, nil); refused.length() > longest.length() {
			longest = refused
		}
		for _, a := range till.attempts {
			if !a.taken() {
				refusals++
			}
			if a.length() > deadline {
				late++
			}
		}
	}
	if late > 0 {
		u.failf("%d requests took longer than %s", late, deadline)
	}
	if took := longest.length(); took > mostRefused {
		u.failf("%s: a sender was refused for %s, and %s are allowed",
			during(u.phases, longest.from), took.Round(10*time.Millisecond), mostRefused)
	}
	u.notef("senders were refused %d times, by a server that was being replaced, the longest in a row for %.2f s",
		refusals, longest.length().Seconds())
}
