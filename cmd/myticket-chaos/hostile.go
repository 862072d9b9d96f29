package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"myticket/internal/lab"
)

const (
	// containerMemory is the limit of the chart's values (resources.limits.memory).
	containerMemory = 1 << 30
	// backendMemory is what one process of Postgres may take for itself, without what they share.
	backendMemory = 512 << 20
	// tooLittleMemory is a limit that a server exceeds as soon as it has work to do, if it does not know of the limit. One that has
	// nothing to do takes up to 66 MiB, of which 13 are its own and the rest is the program's file.
	tooLittleMemory = 96 << 20
	tooMuchMemory   = "the server took more memory than it may"
	// drainedWithin is how long it may take until everything that was spooled or unread is stored and read.
	drainedWithin = time.Minute
	// mostStarts is how often a server that was killed for its memory is started again.
	mostStarts = 3
)

// siege is the scenario hostile while it is played.
type siege struct {
	*trial

	server  *server
	maker   *hostileMaker
	client  *http.Client // of the hostile senders
	begin   time.Time
	starts  int
	phases  []phase
	senders []*honestSender
	outages []span  // that the trial made
	slow    float64 // tickets that the spool may keep while Postgres is slow with them
}

// phase is a step of the siege. Honest tickets are sent all the time.
type phase struct {
	name string
	from time.Time
}

// hostile plays everything that one sender can do to harm the others.
func hostile(ctx context.Context, t *trial) error {
	memory, steps := int64(containerMemory), siegeSteps
	if t.config.selfCheck {
		memory, steps = tooLittleMemory, []siegeStep{{"many lines", manyLines}}
	}
	g, err := newSiege(ctx, t, memory)
	if err != nil {
		return err
	}
	stopHonest := g.startHonest(ctx)
	defer stopHonest()
	for _, step := range steps {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.enter(step.name)
		err := g.step(ctx, step.play)
		if err == nil {
			lab.Pause(ctx, warmUp)
			err = g.revive(ctx)
		}
		if err != nil { // what it cost up to here is still worth knowing
			g.failf("%s: %s", step.name, err)
			break
		}
	}
	g.enter("afterwards")
	stopHonest()
	return g.finish(ctx)
}

// siegeStep is one kind of attack.
type siegeStep struct {
	name string
	play func(context.Context, *siege) error
}

var siegeSteps = []siegeStep{
	{"wide tickets", wideTickets},
	{"wide tickets in the spool", wideSpooled},
	{"wide tickets while Postgres is frozen", widePaused},
	{"many lines", manyLines},
	{"new products", newProducts},
	{"a slow head of the spool", slowHead},
	{"connections that stall", stalledConnections},
	{"idle connections", idleConnections},
	{"odd framing", oddFraming},
}

func newSiege(ctx context.Context, t *trial, memory int64) (*siege, error) {
	sources := filepath.Join(t.dir, "sources.json")
	entries := fmt.Sprintf(`{%q: {"bearer_tokens": [%q]}, "*": {}}`, honestSource, honestToken)
	if err := os.WriteFile(sources, []byte(entries), 0o600); err != nil {
		return nil, fmt.Errorf("write the sources: %w", err)
	}
	if err := t.exec(ctx, slowInserts); err != nil {
		return nil, err
	}
	s, err := t.newServer(ctx, t.url, "--sources-file", sources)
	if err != nil {
		return nil, err
	}
	s.memory = &memoryLimit{bytes: memory, told: containerMemory}
	if err := errors.Join(s.start(ctx), s.awaitReady(ctx)); err != nil {
		return nil, err
	}
	g := &siege{trial: t, server: s, maker: newHostileMaker(), client: newClient(64), begin: time.Now()}
	t.onEnd(func() error { g.client.CloseIdleConnections(); return nil })
	g.watchBackends(ctx)
	return g, nil
}

func (g *siege) enter(name string) { g.phases = append(g.phases, phase{name, time.Now()}) }

// during returns the name of the phase at a moment.
func (g *siege) during(at time.Time) string { return during(g.phases, at) }

func during(phases []phase, at time.Time) string {
	name := "before the first step"
	for _, p := range phases {
		if !p.from.After(at) {
			name = p.name
		}
	}
	return name
}

// step plays a step. It ends when the server is killed for its memory, because what the step waits for cannot come any more.
func (g *siege) step(ctx context.Context, play func(context.Context, *siege) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	killed := g.server.memory.killed.Load()
	go func() {
		for ctx.Err() == nil && g.server.memory.killed.Load() == killed {
			lab.Pause(ctx, memoryPoll)
		}
		cancel()
	}()
	if err := play(ctx, g); err != nil && g.server.memory.killed.Load() == killed {
		return err
	}
	return nil
}

// revive starts the server again if it has ended, as Kubernetes does. That it has ended is a failure.
func (g *siege) revive(ctx context.Context) error {
	if err := g.databaseUp(ctx); err != nil {
		return err
	}
	for g.server.hasExited() {
		why := fmt.Errorf("the server ended by itself: %w", g.server.why())
		if g.server.memory.killed.Load() > 0 {
			why = fmt.Errorf("%s, %d MiB, and was killed", tooMuchMemory, g.server.memory.bytes>>20)
		}
		g.failf("%s: %s", g.phases[len(g.phases)-1].name, why)
		if g.starts++; g.starts > mostStarts {
			return errors.New("the server was started again too often")
		}
		if err := g.server.start(ctx); err != nil && !g.server.hasExited() {
			return err
		}
		lab.Pause(ctx, time.Second) // what is in its spool may kill it at once
	}
	return nil
}

// restart kills the server and starts it again. The time in between is an outage that the trial made.
func (g *siege) restart(ctx context.Context) error {
	from := time.Now()
	g.server.kill()
	err := g.server.start(context.WithoutCancel(ctx)) // it outlives the step
	g.outages = append(g.outages, span{from, time.Now()})
	return err
}

// finish demands that everything is stored and read in time, and judges what the honest senders saw.
func (g *siege) finish(ctx context.Context) error {
	g.ended = time.Now()
	const what = "the spool to become empty, except for what Postgres is slow with"
	err := lab.Await(ctx, 2*drainedWithin, what, func(ctx context.Context) error {
		m, err := g.server.metrics(ctx, "myticket_spool_tickets")
		if err == nil && m[0] > g.slow {
			err = fmt.Errorf("%.0f tickets are in it", m[0])
		}
		return err
	})
	if err != nil {
		g.failf("%s", errors.Join(err, g.server.why()))
	}
	if err := g.awaitRead(ctx); err != nil {
		return err
	}
	took := time.Since(g.ended)
	g.result.drained = took
	if took > drainedWithin {
		g.failf("everything was stored and read %s after the end, and %s are allowed", took.Round(time.Second), drainedWithin)
	}
	g.judgeHonest()
	statuses := map[int16]int{}
	for i := range g.others.tickets {
		statuses[g.others.tickets[i].status]++
	}
	g.notef("hostile tickets: %d, answered with %s", len(g.others.tickets), counts(statuses))
	g.notef("the server took up to %d MiB of memory, of %d", g.server.memory.peak.Load()>>20, g.server.memory.bytes>>20)
	return g.mend(ctx)
}

// mend makes Postgres quick with every ticket again. What was stepped over meanwhile is tried again at the next start at the
// latest, and is then stored.
func (g *siege) mend(ctx context.Context) error {
	if g.slow > 0 {
		m, err := g.server.metrics(ctx, "myticket_spool_stepped_over_total")
		if err != nil {
			return err
		}
		if m[0] == 0 {
			g.failf("no metric shows the ticket that Postgres is slow with: myticket_spool_stepped_over_total is 0")
		}
	}
	if err := errors.Join(g.exec(ctx, `UPDATE slowness SET still = false`), g.restart(ctx)); err != nil {
		return err
	}
	return g.server.awaitReady(ctx)
}

// counts says how often each answer came.
func counts(statuses map[int16]int) string {
	var parts []string
	for status, n := range statuses {
		parts = append(parts, fmt.Sprintf("%d (%d times)", status, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// awaitRead waits until all tickets of honest senders have been read.
func (g *siege) awaitRead(ctx context.Context) error {
	return lab.Await(ctx, 2*drainedWithin, "every honest ticket to be read", func(ctx context.Context) error {
		unread, err := g.countRows(ctx, `SELECT count(*) FROM tickets WHERE source = $1 AND status = 'TO_TREAT'`, honestSource)
		if err == nil && unread > 0 {
			err = fmt.Errorf("%d are not", unread)
		}
		return err
	})
}
