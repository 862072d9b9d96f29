package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"time"

	"myticket/internal/devdb"
	"myticket/internal/lab"
	"myticket/internal/postgres"
)

// cluster is a primary, and a standby that each of its commits waits for.
type cluster struct {
	*trial

	name             string // of the database
	primary, standby *devdb.Server
	proxy            *proxy
	server           *server
}

// standbyMissing plays failovers. A commit that waits for the standby and is given up is committed on the primary alone. What is
// done again after that must wait for the standby as well. Otherwise the ticket is lost with the primary.
func standbyMissing(ctx context.Context, t *trial) error {
	c, err := newCluster(ctx, t)
	if err != nil {
		return err
	}
	rounds := []struct {
		name string
		play func(context.Context, *cluster) error
	}{
		{"before the tickets come, and when the server is started again", missingAtRestart},
		{"while backends are terminated", missingWhileTerminated},
		{"while the spool is drained", missingAtDrain},
		{"while tickets are treated", missingAtTreatment},
		{"and it comes back", missingAndBack},
	}
	if t.config.selfCheck {
		rounds = rounds[:1]
	}
	for i, round := range rounds {
		if i > 0 {
			if err := c.nextStandby(ctx); err != nil {
				return fmt.Errorf("the standby is missing %s: %w", round.name, err)
			}
		}
		l := t.tills(ctx, fewTills, c.server.http)
		err := c.playRound(ctx, round.play)
		l.stop()
		if err != nil {
			return fmt.Errorf("the standby is missing %s: %w", round.name, errors.Join(err, c.server.why()))
		}
	}
	t.ended = time.Now()
	t.notef("%d failovers", len(rounds))
	return nil
}

func newCluster(ctx context.Context, t *trial) (*cluster, error) {
	primary, err := devdb.Start(ctx, devdb.Config{Settings: devdb.Replicated(), Progress: t.progress, Log: &t.crashes})
	if err != nil {
		return nil, err
	}
	c := &cluster{trial: t, name: path.Base(t.spool), primary: primary}
	c.stopAtEnd(ctx, primary)
	if err := primary.CreateDatabase(ctx, c.name); err != nil {
		return nil, err
	}
	t.url = primary.URL(c.name)
	if err := postgres.MigrateUp(ctx, t.url); err != nil {
		return nil, err
	}
	if err := c.nextStandby(ctx); err != nil {
		return nil, err
	}
	p, url, err := t.newProxy(ctx)
	if err != nil {
		return nil, err
	}
	c.proxy = p
	// Short limits, so that much is tried again during a round.
	c.server, err = t.startServer(ctx, url, "--database-timeout=500ms", "--overflow-wait=500ms")
	return c, err
}

func (c *cluster) stopAtEnd(ctx context.Context, s *devdb.Server) {
	c.onEnd(func() error { return s.Stop(context.WithoutCancel(ctx)) })
}

// nextStandby gives the primary a new standby.
func (c *cluster) nextStandby(ctx context.Context) (err error) {
	if c.standby, err = c.primary.StartStandby(ctx); err != nil {
		return err
	}
	c.stopAtEnd(ctx, c.standby)
	return c.primary.RequireStandby(ctx, !c.config.selfCheck)
}

// playRound plays what happens while the standby is missing, then lets the standby take over.
func (c *cluster) playRound(ctx context.Context, play func(context.Context, *cluster) error) error {
	if err := c.awaitLoad(ctx, time.Now(), http.StatusOK, 20); err != nil {
		return err
	}
	if err := play(ctx, c); err != nil {
		return err
	}
	return c.failOver(ctx)
}

// failOver kills the primary for good and promotes the standby, which the server then talks to.
func (c *cluster) failOver(ctx context.Context) error {
	if err := c.primary.Kill(); err != nil {
		return err
	}
	if c.standby.PID() == 0 {
		if err := c.standby.Restart(ctx); err != nil {
			return err
		}
	}
	if err := c.standby.Promote(ctx); err != nil {
		return err
	}
	c.primary, c.standby = c.standby, nil
	c.url = c.primary.URL(c.name)
	if err := c.proxy.point(c.url); err != nil {
		return err
	}
	return c.awaitLoad(ctx, time.Now(), http.StatusOK, 20)
}

// loseStandby returns when tickets are spooled because the standby is missing.
func (c *cluster) loseStandby(ctx context.Context) error {
	if err := c.standby.Kill(); err != nil {
		return err
	}
	status := http.StatusAccepted
	if c.config.selfCheck {
		status = http.StatusOK
	}
	return c.awaitLoad(ctx, time.Now(), status, 100)
}

// tryAgain gives the server time to try several times what waits for the standby. It terminates the connections on which
// it waits, if terminate is true.
func (c *cluster) tryAgain(ctx context.Context, terminate bool) error {
	for end := time.Now().Add(c.span(4*time.Second, 2*time.Second)); time.Now().Before(end); lab.Pause(ctx, 100*time.Millisecond) {
		if !terminate {
			continue
		}
		err := c.exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// missingAtRestart is the shortest way to lose a ticket. The server gave up its commit on the primary and spooled the ticket. The
// next server finds it in the primary, and the standby does not have it.
func missingAtRestart(ctx context.Context, c *cluster) error {
	if err := c.loseStandby(ctx); err != nil {
		return err
	}
	c.server.kill()
	if err := c.server.start(ctx); err != nil {
		return err
	}
	return c.tryAgain(ctx, false)
}

// missingWhileTerminated terminates the connections whose commits wait, as an operator may. That ends the wait of such a commit.
func missingWhileTerminated(ctx context.Context, c *cluster) error {
	if err := c.standby.Kill(); err != nil {
		return err
	}
	if err := c.tryAgain(ctx, true); err != nil {
		return err
	}
	return c.awaitLoad(ctx, time.Now(), http.StatusAccepted, 1)
}

// missingAtDrain fills the spool while the primary is away, and then lets it come back without the standby.
func missingAtDrain(ctx context.Context, c *cluster) error {
	if err := c.primary.Kill(); err != nil {
		return err
	}
	if err := c.awaitLoad(ctx, time.Now(), http.StatusAccepted, 100); err != nil {
		return err
	}
	if err := errors.Join(c.standby.Kill(), c.primary.Restart(ctx)); err != nil {
		return err
	}
	if err := c.tryAgain(ctx, false); err != nil {
		return err
	}
	return c.tryAgain(ctx, true)
}

// missingAtTreatment has tickets treated again while the standby does not hear of it.
func missingAtTreatment(ctx context.Context, c *cluster) error {
	const toTreat = 200
	sendBack := fmt.Sprintf(`UPDATE tickets SET status = 'TO_TREAT', attempts = 0, next_attempt_at = 'infinity'
		WHERE id IN (SELECT id FROM tickets WHERE status = 'TREATED' ORDER BY received_at DESC LIMIT %d)`, toTreat)
	if err := c.exec(ctx, sendBack); err != nil {
		return err
	}
	if err := c.loseStandby(ctx); err != nil {
		return err
	}
	const due = `SET synchronous_commit = local; UPDATE tickets SET next_attempt_at = now() WHERE status = 'TO_TREAT'`
	if err := c.exec(ctx, due); err != nil {
		return err
	}
	if err := errors.Join(c.tryAgain(ctx, false), c.tryAgain(ctx, true), c.failOver(ctx), c.exec(ctx, due)); err != nil {
		return err
	}
	err := lab.Await(ctx, time.Minute, "all tickets to be treated", func(ctx context.Context) error {
		waiting, err := c.countRows(ctx, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("%d are not", waiting)
		}
		return err
	})
	return errors.Join(err, c.nextStandby(ctx))
}

// missingAndBack lets the standby come back before the primary dies, so that it gets what it missed.
func missingAndBack(ctx context.Context, c *cluster) error {
	if err := c.loseStandby(ctx); err != nil {
		return err
	}
	if err := errors.Join(c.tryAgain(ctx, false), c.standby.Restart(ctx)); err != nil {
		return err
	}
	return c.awaitLoad(ctx, time.Now(), http.StatusOK, 20)
}
