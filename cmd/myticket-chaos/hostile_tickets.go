package main

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// storm sends hostile tickets, at most atOnce at the same time, and returns when all are answered.
func (g *siege) storm(ctx context.Context, atOnce int, bodies [][]byte) {
	due := make(chan []byte, len(bodies))
	for _, body := range bodies {
		due <- body
	}
	close(due)
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for body := range due {
				if ctx.Err() != nil {
					return
				}
				n := g.others.begin(body, false)
				a, err := post(context.WithoutCancel(ctx), g.client, g.server.http, delivery{source: "mallory", body: body})
				if err != nil {
					a = answer{}
				}
				g.others.end(n, a)
			}
		})
	}
	group.Wait()
}

// wides makes wide tickets of several kinds.
func (g *siege) wides(each int) [][]byte {
	var bodies [][]byte
	for range each {
		bodies = append(bodies, g.maker.wide("n"), g.maker.wide("\x01"), g.maker.wide("😀"), g.maker.wide("é"))
	}
	return bodies
}

func wideTickets(ctx context.Context, g *siege) error {
	g.storm(ctx, 1, g.wides(1))
	g.storm(ctx, 8, g.wides(g.times(4, 2)))
	return nil
}

// wideSpooled starts the server while wide tickets are in its spool.
func wideSpooled(ctx context.Context, g *siege) error {
	if err := g.database.Kill(); err != nil {
		return err
	}
	if err := g.awaitLoad(ctx, time.Now(), http.StatusAccepted, 1); err != nil {
		return err
	}
	g.storm(ctx, 4, g.wides(g.times(4, 2)))
	if err := errors.Join(g.restart(ctx), g.database.Restart(ctx)); err != nil {
		return err
	}
	return g.awaitLoad(ctx, time.Now(), http.StatusOK, 1)
}

// widePaused sends wide tickets while Postgres does not answer.
func widePaused(ctx context.Context, g *siege) error {
	if err := g.database.Pause(); err != nil {
		return err
	}
	g.storm(ctx, 16, g.wides(g.times(8, 4)))
	if err := g.database.Resume(); err != nil {
		return err
	}
	return g.awaitLoad(ctx, time.Now(), http.StatusOK, 1)
}

// manyLines sends tickets that name one product very often, and tickets that name very many.
func manyLines(ctx context.Context, g *siege) error {
	var same, distinct [][]byte
	for range g.times(48, 24) {
		same = append(same, g.maker.same())
	}
	for range 40 {
		distinct = append(distinct, g.maker.distinct(hostileSize))
	}
	for i := range g.times(40, 20) { // shorter ones, so that not all of them are refused as too long
		distinct = append(distinct, g.maker.distinct(1000+i*250))
	}
	g.storm(ctx, len(same), same)
	g.storm(ctx, len(distinct), distinct)
	return nil
}

// newProducts floods the product base: 20 MiB in tickets of the largest size, and as much in short ones.
func newProducts(ctx context.Context, g *siege) error {
	var long, short [][]byte
	for range g.times(20, 5) {
		long = append(long, g.maker.flood(hostileSize))
	}
	for range g.times(400, 50) {
		short = append(short, g.maker.flood(2000))
	}
	g.storm(ctx, 8, long)
	g.storm(ctx, 8, short)
	return nil
}

// Markers of tickets that Postgres stores slowly.
const (
	slowAlways = "slow-always"
	slowRead   = "slow-when-read"
)

// slowInserts runs before anything is sent, because creating a trigger under load causes a deadlock.
const slowInserts = `
CREATE TABLE slowness AS SELECT true AS still;
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT still FROM slowness) AND (NEW.status <> 'TO_TREAT' OR position('` + slowAlways + `'::bytea IN NEW.body) > 0) THEN
		PERFORM pg_sleep(300);
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER slow BEFORE INSERT ON tickets FOR EACH ROW
	WHEN (length(NEW.body) < 200 AND position('slow-'::bytea IN NEW.body) > 0) EXECUTE FUNCTION slow()`

// slowHead sends a ticket whose INSERT takes longer than any limit, and one whose INSERT does so unless it is stored unread. The
// tickets that others send meanwhile must be stored.
func slowHead(ctx context.Context, g *siege) error {
	for _, marker := range []string{slowAlways, slowRead} {
		body := []byte(g.maker.head() + "Note: " + marker + "\n\nproduct,product_id,price\nx," + hostileProduct + ",1")
		n := g.others.begin(body, false)
		a, err := post(context.WithoutCancel(ctx), g.client, g.server.http, delivery{source: "mallory", body: body})
		if err != nil {
			a = answer{}
		}
		g.others.end(n, a)
	}
	g.slow = 1
	// Tickets of others follow the slow ones in the spool, and must be stored. A slow ticket alone does not bring them there:
	// whether one comes while the server looks whether Postgres is well is luck.
	if err := g.database.Pause(); err != nil {
		return err
	}
	err := g.awaitLoad(ctx, time.Now(), http.StatusAccepted, len(g.senders))
	if err := errors.Join(err, g.database.Resume()); err != nil {
		return err
	}
	// New ones must be stored at once again, because Postgres is well.
	return g.awaitLoad(ctx, time.Now(), http.StatusOK, 100)
}
