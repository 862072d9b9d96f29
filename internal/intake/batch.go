package intake

import "time"

// batch is a group of entries that is stored together. It has one owner at a time, and only the owner may change it: first the
// queue, then the lane that took it. It does not change after done is closed, so each sender can read its own outcome.
type batch struct {
	entries []*Entry
	cost    int           // sum of their Ticket.Cost
	large   int           // the part of cost that is of large tickets
	since   time.Time     // when its first entry came
	unread  bool          // its entries were not read, so only the spool can take it
	sealed  bool          // no more entries may be added
	cause   cause         // why it goes to the spool, if it does
	expired chan struct{} // closed when the time of its oldest entry is up
	timer   *time.Timer   // closes expired

	result result        // what became of its entries; valid once done is closed
	err    error         // why no entry is known to be stored; valid once done is closed
	done   chan struct{} // closed when each entry has its outcome
}

// newBatch returns a batch without entries, whose senders wait for at most timeout.
func newBatch(timeout time.Duration) *batch {
	b := &batch{since: time.Now(), done: make(chan struct{}), expired: make(chan struct{})}
	b.timer = time.AfterFunc(timeout, func() { close(b.expired) })
	return b
}

// succeed answers the senders of a batch that is stored.
func (b *batch) succeed(r result) {
	b.result = r
	b.close()
}

// fail answers the senders of a batch that is not known to be stored.
func (b *batch) fail(err error) {
	b.err = err
	b.close()
}

func (b *batch) close() {
	b.timer.Stop()
	close(b.done)
}

// outcome returns what became of an entry. It may be called once done is closed.
func (b *batch) outcome(entry int) (Outcome, error) {
	if b.err != nil {
		return Outcome{}, b.err
	}
	return b.result.Outcomes[entry], b.result.refusal(entry)
}

// result is what became of the entries of a batch.
type result struct {
	Saved
	refused []error // by entry, why the store does not take it in any form; nil when it took all
}

// refusal returns why the store does not take an entry in any form; nil when it took it.
func (r *result) refusal(entry int) error {
	if r.refused == nil {
		return nil
	}
	return r.refused[entry]
}

// queued is an entry that waits.
type queued struct {
	batch *batch
	entry int              // its place in the batch
	late  <-chan time.Time // set for an entry that waited before it was in the batch: its own timer
	turn  turn             // ends when its sender is answered
}

// await waits until the entry's batch is done. It returns false if the time of the entry is up before that. Each batch has a
// timer; when it expires its senders are answered, even if a disk hangs.
func (q *queued) await() bool {
	if q.late == nil { // nearly always; each further case of a select costs time
		select {
		case <-q.batch.done:
			return true
		case <-q.batch.expired:
			return false
		}
	}
	select {
	case <-q.batch.done:
		return true
	case <-q.batch.expired:
	case <-q.late:
	}
	return false
}
