package intake

import (
	"context"
	"time"
)

// drainPoll is the time between two looks into an empty spool, and the pause after a ticket that failed.
const drainPoll = 100 * time.Millisecond

// drain brings tickets from the spool into the store while deliveries are accepted and the store is there. It runs one
// transaction at a time. While deliveries wait, it pauses after each for as long as that took, so it takes at most half of the
// time of one connection. It pauses nine times as long when deliveries have waited half of Config.OverflowWait. It never stops.
func (in *Intake) drain() {
	wait := newBackOff()
	for {
		pause := drainPoll
		if in.Available() {
			start := time.Now()
			step := in.drainer.step(context.Background())
			switch {
			case step.away:
				in.storeAway(step.err)
			case step.disk:
				pause = wait.NextBackOff()
			case step.err != nil: // one ticket is at fault, and the others do not wait for it
				pause = max(drainPoll, in.drainPause(time.Since(start)))
			case step.done > 0:
				wait.Reset()
				pause = in.drainPause(time.Since(start))
			}
		}
		select {
		case <-in.stopping:
			return
		case <-time.After(pause):
		}
	}
}

func (in *Intake) drainPause(took time.Duration) time.Duration {
	switch waited := in.queue.oldestWait(); {
	case waited > in.config.OverflowWait/2:
		return 9 * took
	case waited > 0:
		return took
	}
	return 0
}

// drainRest is the last drain before a stop. It ends at the first failure, and leaves the rest to the next server.
func (in *Intake) drainRest(ctx context.Context) {
	for ctx.Err() == nil && in.Available() {
		if step := in.drainer.step(ctx); step.err != nil || step.done == 0 {
			break
		}
	}
}

// Drained says what became of the tickets of a spool.
type Drained struct {
	Stored  int // in the store now
	Refused int // refused by the store, even unread: kept in the spool's folder, and tried again when it is next opened
}

// Drain brings all tickets of a spool into a store, for an operator. It steps over tickets that the store does not take, and
// sets them aside after Config.DrainTries tries, so it ends. It returns an error if the store takes no tickets, the disk fails,
// or ctx ends. The rest stays in the spool, and Drain may be called again.
func Drain(ctx context.Context, config Config, store Store) (Drained, error) {
	config.setDefaults()
	d := newDrainer(saver{config, store})
	for ctx.Err() == nil {
		var pause time.Duration
		switch step := d.step(ctx); {
		case step.away || step.disk:
			return d.total, step.err
		case step.err != nil:
			pause = drainPoll
		case step.done > 0:
		case !d.tries():
			return d.total, d.kept
		default:
			pause = d.nextRetry()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return d.total, ctx.Err()
}
