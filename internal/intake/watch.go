package intake

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// storeAway notes that the store takes no tickets. Until watchStore finds that it does, deliveries go to the spool at once, or
// are refused at once if there is no spool. Otherwise each would wait for its timeout.
func (in *Intake) storeAway(err error) {
	if !in.queue.storeAway() {
		return
	}
	in.gone <- struct{}{} // never blocks: only the caller that finds the store gone comes here
	if in.config.Spool != nil {
		in.config.Logger.Warn("the database does not take tickets; they are kept in the spool and answered 202", "error", err)
		return
	}
	in.config.Logger.Error("the database does not take tickets; senders are asked to send again (503)", "error", err)
}

// newBackOff returns waits that grow from 0.1 s to 1.5 s, with jitter, so that the servers do not all return to a database at
// the same moment.
func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 1500*time.Millisecond
	return b
}

// watchStore finds out when a store that was away is back. It does nothing else, and never waits for the disk of the spool.
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

// probe asks the store whether it takes tickets again. If it does, deliveries go to it from now on. The probe uses no waiting
// ticket, because a ticket that the store never takes would make it look away for ever.
func (in *Intake) probe() bool {
	if in.ping(context.Background()) != nil {
		return false
	}
	since := in.queue.storeBack()
	in.config.Logger.Info("the database takes tickets again", "away", time.Since(since).Round(time.Millisecond).String())
	return true
}
