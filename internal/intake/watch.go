package intake

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// storeAway sends deliveries to the spool at once from now on, or refuses them where there is none, instead of letting
// each wait for its timeout, until watchStore finds that the store takes tickets again.
func (in *Intake) storeAway(err error) {
	if !in.queue.storeAway() {
		return
	}
	in.gone <- struct{}{} // nobody else can: the store was there
	if in.config.Spool != nil {
		in.config.Logger.Error("the database does not take tickets; they are kept in the spool and answered 202", "error", err)
		return
	}
	in.config.Logger.Error("the database does not take tickets; senders are asked to send again (503)", "error", err)
}

// newBackOff waits a moment at first and a second or two in the end, each server another time: a database that comes back
// must not be greeted by all at once.
func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 1500*time.Millisecond
	return b
}

// watchStore finds out when a store that is away is back. It does nothing else, and never waits for the disk of the spool.
func (in *Intake) watchStore() {
	for {
		select {
		case <-in.stopping:
			return
		case <-in.gone:
		}
		wait := newBackOff()
		for back := false; !back; {
			select {
			case <-in.stopping:
				return
			case <-time.After(wait.NextBackOff()):
			}
			back = in.probe()
		}
	}
}

// probe asks a store that is away whether it takes tickets again, and has deliveries go to it if so. It depends on none of
// them: one that the store never takes would keep it away for good.
func (in *Intake) probe() bool {
	if in.ping(context.Background()) != nil {
		return false
	}
	since := in.queue.storeBack()
	in.config.Logger.Info("the database takes tickets again", "away", time.Since(since).Round(time.Millisecond).String())
	return true
}
