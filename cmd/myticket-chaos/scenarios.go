package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"myticket/internal/lab"
)

// scenario is one way in which things break.
type scenario struct {
	name, fault string
	// play breaks things under load. When it returns, nothing is broken any more and nothing is sent.
	play func(ctx context.Context, t *trial) error
}

var scenarios = []scenario{
	{"server-killed", "the server is killed (SIGKILL) again and again, every second time with Postgres away", serverKilled},
	{"postgres-killed", "Postgres is killed (SIGKILL) and started again, then away for a while", postgresKilled},
	{"postgres-paused", "Postgres is frozen: connections stay open, and get no answer", postgresPaused},
	{"commit-answer-lost", "the connection breaks between a commit and its answer, several times a second", commitAnswerLost},
	{"rolled", "two servers are stopped (SIGTERM) and started in turn; tills try the other one, with a key", rolled},
	{"burst", "20 times as many tickets as a slow Postgres can take, from 2000 connections", burst},
	{"disk-full", "Postgres is away until the disk of the spool is full; twice", diskFull},
	{"slow-clients", "50 clients send a byte a second, 50 never read an answer", slowClients},
	{
		"standby-missing", "the synchronous standby is missing at each step in turn, then the primary dies and it is promoted",
		standbyMissing,
	},
	{"clock", "the server's clock is two days ahead, is corrected, is two days behind, and is corrected", wrongClock},
	{
		"hostile", "hostile tickets and connections of every kind, a server that may take 1 GiB, honest senders at the same time",
		hostile,
	},
	{
		"upgrade", "the schema is migrated, two servers are replaced by the new version, by the old one, and by the new one again",
		upgraded,
	},
	{
		"target-away", "the broker that takes events is killed (SIGKILL), stays away, and comes back, under a steady load",
		targetAway,
	},
	{"replay", "a day of tickets is sent to a broker again, under a steady load", replayed},
	{"steady", "nothing breaks: memory, goroutines and files of the server stay as they are", steady},
}

func names() []string {
	all := make([]string, len(scenarios))
	for i, s := range scenarios {
		all[i] = s.name
	}
	return all
}

const (
	manyTills = 20
	fewTills  = 5                      // where the load does not matter
	warmUp    = 500 * time.Millisecond // of load, before something breaks and after it is repaired
)

// between returns a random moment.
func between(least, most time.Duration) time.Duration { return least + rand.N(most-least) }

func serverKilled(ctx context.Context, t *trial) error {
	s, err := t.startServer(ctx, t.url)
	if err != nil {
		return err
	}
	l := t.tills(ctx, manyTills, s.http)
	defer l.stop()
	for round := range t.times(20, 4) {
		postgresAway := round%2 == 1
		lab.Pause(ctx, between(100*time.Millisecond, t.span(2*time.Second, 600*time.Millisecond)))
		if postgresAway { // so that the kill comes while the spool is written
			if err := t.database.Kill(); err != nil {
				return err
			}
			answer := http.StatusAccepted
			if t.config.selfCheck {
				answer = http.StatusOK // that server always answers so
			}
			if err := t.awaitLoad(ctx, time.Now(), answer, 1); err != nil {
				return err
			}
			lab.Pause(ctx, rand.N(t.span(2*time.Second, 300*time.Millisecond)))
		}
		s.kill()
		if postgresAway {
			if err := t.database.Restart(ctx); err != nil {
				return err
			}
		}
		if err := s.start(ctx); err != nil {
			return err
		}
	}
	lab.Pause(ctx, warmUp)
	l.stop()
	t.ended = time.Now()
	return nil
}

func postgresKilled(ctx context.Context, t *trial) error {
	s, err := t.startServer(ctx, t.url)
	if err != nil {
		return err
	}
	l := t.tills(ctx, manyTills, s.http)
	defer l.stop()
	for range t.times(3, 1) {
		lab.Pause(ctx, between(100*time.Millisecond, t.span(2*time.Second, 600*time.Millisecond)))
		if err := errors.Join(t.database.Kill(), t.database.Restart(ctx)); err != nil {
			return err
		}
	}
	lab.Pause(ctx, warmUp)
	if err := t.database.Kill(); err != nil {
		return err
	}
	if err := t.awaitAway(ctx, s); err != nil {
		return err
	}
	noticed := time.Now()
	lab.Pause(ctx, t.span(30*time.Second, 3*time.Second))
	back := time.Now()
	if err := t.database.Restart(ctx); err != nil {
		return err
	}
	lab.Pause(ctx, warmUp)
	l.stop()
	t.ended = time.Now()
	t.inTime(t.ledger.tickets)
	t.spooled(t.ledger.between(noticed, back))
	return nil
}

// awaitAway waits until the server knows that Postgres is away, for as long as a sender would wait for an answer.
func (t *trial) awaitAway(ctx context.Context, s *server) error {
	return lab.Await(ctx, deadline, "the server to notice that Postgres is away", func(ctx context.Context) error {
		m, err := s.metrics(ctx, "myticket_intake_database_away")
		if err == nil && m[0] == 0 {
			err = errors.New("it has not")
		}
		return err
	})
}

// spooled demands that all these tickets were answered with 202, because Postgres was away.
func (t *trial) spooled(tickets []sent) {
	if len(tickets) == 0 {
		t.failf("nothing was answered while Postgres was away")
	}
	others := map[int16]int{}
	for _, s := range tickets {
		if s.status != http.StatusAccepted {
			others[s.status]++
		}
	}
	for status, n := range others {
		t.failf("while Postgres was known to be away, %d of %d tickets were answered with %d instead of 202 (0 is no answer)",
			n, len(tickets), status)
	}
}

func postgresPaused(ctx context.Context, t *trial) error {
	s, err := t.startServer(ctx, t.url)
	if err != nil {
		return err
	}
	l := t.tills(ctx, manyTills, s.http)
	defer l.stop()
	lab.Pause(ctx, warmUp)
	if err := t.database.Pause(); err != nil {
		return err
	}
	lab.Pause(ctx, t.span(10*time.Second, 5*time.Second))
	if err := t.database.Resume(); err != nil {
		return err
	}
	lab.Pause(ctx, warmUp)
	l.stop()
	t.ended = time.Now()
	t.inTime(t.ledger.tickets)
	return nil
}

// inTime demands that none of these tickets took longer than it may.
func (t *trial) inTime(tickets []sent) {
	late := 0
	var longest time.Duration
	for i := range tickets {
		if took := tickets[i].took; took > deadline {
			late++
			longest = max(longest, took)
		}
	}
	if late > 0 {
		t.failf("%d requests took longer than %s, up to %s", late, deadline, longest)
	}
}

func commitAnswerLost(ctx context.Context, t *trial) error {
	const every, enough = 200 * time.Millisecond, 5
	p, url, err := t.newProxy(ctx)
	if err != nil {
		return err
	}
	s, err := t.startServer(ctx, url)
	if err != nil {
		return err
	}
	l := t.tills(ctx, manyTills, s.http)
	defer l.stop()
	end := time.Now().Add(t.span(10*time.Second, 3*time.Second))
	for time.Now().Before(end) && ctx.Err() == nil {
		p.armed.Store(true)
		lab.Pause(ctx, every)
	}
	p.armed.Store(false)
	lab.Pause(ctx, warmUp)
	l.stop()
	t.ended = time.Now()
	t.inTime(t.ledger.tickets)
	dropped := p.dropped.Load()
	t.notef("%d answers to commits were lost", dropped)
	if dropped < enough {
		t.failf("only %d answers to commits were lost, which proves nothing: at least %d must be", dropped, enough)
	}
	return nil
}

func rolled(ctx context.Context, t *trial) error {
	const patience, betweenTries = 10 * time.Second, 50 * time.Millisecond
	var servers []*server
	for range 2 {
		s, err := t.startServer(ctx, t.url, "--shutdown-delay=500ms")
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	addrs := []string{servers[0].http, servers[1].http}
	l := t.start(ctx, manyTills, func(ctx context.Context, client *http.Client, till int) {
		t.sendUntilKept(context.WithoutCancel(ctx), client, addrs, till, patience, betweenTries)
	})
	defer l.stop()
	lab.Pause(ctx, warmUp)
	for range t.times(3, 1) {
		for _, s := range servers {
			if err := s.stop(); err != nil {
				t.failf("%s", err)
			}
			if err := errors.Join(s.start(ctx), s.awaitReady(ctx)); err != nil {
				return err
			}
			lab.Pause(ctx, warmUp)
		}
	}
	l.stop()
	t.ended = time.Now()
	given := 0
	for i := range t.ledger.tickets {
		if s := &t.ledger.tickets[i]; !s.acknowledged() {
			given++
		}
	}
	if given > 0 {
		t.failf("%d tickets were not acknowledged by either server within %s", given, patience)
	}
	t.notef("%d requests had to be sent again, to the other server", t.ledger.repeated.Load())
	return nil
}

// sendUntilKept sends one new ticket with a key to each address in turn, until a server acknowledges it.
func (t *trial) sendUntilKept(
	ctx context.Context, client *http.Client, addrs []string, first int, patience, gap time.Duration,
) {
	body := t.maker.next()
	key := fmt.Sprintf("%s-%d", t.maker.run, t.maker.keys.Add(1))
	n := t.ledger.begin(body, true)
	end := time.Now().Add(patience)
	for try := first; ; try++ {
		a, err := post(ctx, client, addrs[try%len(addrs)], delivery{body: body, key: key})
		again := err != nil || a.status == http.StatusServiceUnavailable
		if !again || time.Now().After(end) {
			t.ledger.end(n, a)
			return
		}
		t.ledger.repeated.Add(1)
		lab.Pause(ctx, gap)
	}
}

func burst(ctx context.Context, t *trial) error {
	const (
		latency     = 100 * time.Millisecond
		times       = 20
		most        = 10_000.0 // tickets a second
		connections = 2000
		mostMemory  = 512 // MiB
	)
	p, url, err := t.newProxy(ctx)
	if err != nil {
		return err
	}
	s, err := t.startServer(ctx, url, "--batch-tickets=8", "--overflow-wait=100ms", "--max-connections-per-peer=0")
	if err != nil {
		return err
	}
	p.latency.Store(int64(latency))
	measured := t.span(3*time.Second, 1500*time.Millisecond)
	start := time.Now()
	t.busy(ctx, s.http, 100, measured)
	sustainable := float64(t.ledger.since(start, http.StatusOK)) / measured.Seconds()
	if sustainable < 1 {
		return fmt.Errorf("not a single ticket was stored in %s, so there is nothing to multiply", measured)
	}
	rate := min(times*sustainable, most)
	start = time.Now()
	reached := t.openLoop(ctx, s.http, rate, connections, t.span(10*time.Second, 3*time.Second))
	ended := time.Now()
	p.latency.Store(0)
	t.ended = ended
	burst := t.ledger.between(start, ended)
	t.inTime(burst)
	unanswered := 0
	for i := range burst {
		if burst[i].status == 0 {
			unanswered++
		}
	}
	if unanswered > 0 {
		t.failf("%d requests of the burst had no answer", unanswered)
	}
	memory, err := s.peakMemory()
	if err != nil {
		return err
	}
	if memory > mostMemory {
		t.failf("the server took up to %d MiB of memory, and %d are allowed", memory, mostMemory)
	}
	t.notef("Postgres could take %.0f tickets/s; the target was %.0f/s, and %.0f/s were sent; peak memory %d MiB",
		sustainable, rate, reached, memory)
	return nil
}
