package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// worker sends the events of one subscription. One goroutine reads the next chunk while another one sends the present one.
type worker struct {
	sender *Sender
	sub    Subscribed
	stop   context.CancelFunc // has it end after what is being sent
	ended  chan struct{}
	pause  time.Duration // before the subscription is taken again; valid after ended

	reader Reader
	target Target
	logger *slog.Logger
	chunks chan Chunk   // that were read
	most   atomic.Int64 // tickets that the next chunk is about at most: see pace

	// Only send and what it calls use these.
	flying  []*flight // chunks that are being sent, in the order of Next
	waiting []*item   // events of these chunks that the target does not have yet, in their order
	back    *backoff.ExponentialBackOff
	single  time.Duration // that the last chunk of a single event took
	probing bool          // the target failed, so only one event is sent
	others  bool          // it took other events since then
}

// flight is a chunk that is being sent.
type flight struct {
	chunk    Chunk
	left     int // events that are neither delivered nor dead
	delivery Delivery
}

// item is an event that is being sent.
type item struct {
	event    *Event
	of       *flight
	attempts int // that failed
	err      error
}

const (
	keepInterval  = Lease / 4
	keepAgain     = 200 * time.Millisecond
	keepMargin    = 2 * time.Second // nothing is sent in the last seconds of a lease that could not be kept
	maxRetryAfter = time.Hour
	slowestPoll   = 5 // of SenderConfig.Poll, while nothing comes

	// While events do not go through, others are looked for behind them: in so many chunks, of which those with events have so many
	// bytes, for so long, and for so long in one chunk.
	maxPassed = 10_000
	passBytes = 2 << 20
	passFor   = 10 * time.Second
	passWait  = time.Second

	// A chunk that takes longer than slowChunk is followed by smaller ones. With a target that takes long for a single event it is
	// slowSingles times as long, up to slowestChunk: it may take others at the same time, and then smaller chunks would only make it
	// slower. A chunk that took less than half of that may be followed by one that is twice as large, or four times after a much
	// faster one.
	slowChunk, slowestChunk = 5 * time.Second, 30 * time.Second
	slowSingles             = 3

	// burstRate is how many tickets are stored a second, at least, for sending to give way to them. Fewer are far from what two
	// cores take (docs/benchmarks.md).
	burstRate = 1000
)

// startWorker starts a worker, which ends when ctx does.
func (s *Sender) startWorker(ctx context.Context, sub Subscribed) *worker {
	ctx, stop := context.WithCancel(ctx)
	back := backoff.NewExponentialBackOff()
	back.InitialInterval, back.MaxInterval, back.Multiplier = s.config.FirstPause, s.config.LongestPause, 2
	back.Reset()
	w := &worker{
		sender: s, sub: sub, stop: stop, ended: make(chan struct{}), chunks: make(chan Chunk), back: back,
		logger: s.config.Logger.With("subscription", sub.Name),
	}
	w.most.Store(1)
	go func() {
		defer close(w.ended)
		defer stop()
		w.run(ctx)
	}()
	return w
}

// run works until ctx ends, the lease is lost, or something fails.
func (w *worker) run(ctx context.Context) {
	w.reader = w.sender.config.Store.EventReader(w.sub, w.sender.me)
	kept := time.Now()
	mine, err := w.reader.Take(ctx)
	if err != nil {
		w.fail(ctx, "a subscription cannot be taken; no event is lost, and it is tried again", err)
	}
	if !mine {
		return
	}
	defer w.leave(ctx)

	// What is being sent goes on for a while after ctx ends, but not after the lease is lost.
	sending, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errStopped)
	graceful := context.AfterFunc(ctx, func() {
		wait(sending, w.sender.config.Grace)
		cancel(errStopped)
	})
	defer graceful()
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel(errStopped)
	beside.Go(func() { w.keep(sending, kept, cancel) })
	if w.target, err = w.sender.config.Open(sending, w.sub.Subscription); err != nil {
		w.notOpened(ctx, err)
		return
	}
	defer w.target.Close()
	reading, stopReading := context.WithCancel(sending)
	beside.Go(func() {
		if err := w.read(reading); err != nil {
			cancel(err)
		}
	})
	defer stopReading()
	err = w.send(ctx, sending)
	if cause := context.Cause(sending); cause != nil && !errors.Is(cause, errStopped) {
		err = cause
	}
	switch {
	case err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled):
	case errors.Is(err, ErrLost):
		w.logger.Debug("another process sends the events of this subscription, or it was changed or deleted")
	case errors.Is(err, ErrGone) || errors.Is(err, ErrTooManyDeadLetters):
		w.giveUp(ctx, err)
	default:
		if ctx.Err() == nil {
			w.note(ctx, errors.New(NotRead+err.Error()))
		}
		w.fail(ctx, "the events of a subscription cannot be read or noted; none is lost, and it is tried again", err)
	}
}

// notOpened notes that the target cannot be opened.
func (w *worker) notOpened(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	w.sender.metrics.failures.WithLabelValues(w.sub.Name).Inc()
	w.note(ctx, errors.New(NotOpened+err.Error()))
	w.fail(ctx, "a target cannot be opened, so no events are sent to it; no event is lost, and it is tried again", err)
}

// fail tells why the worker ends before its time.
func (w *worker) fail(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	w.pause = reopenPause
	w.sender.reports.failing(w.sub.Name, what, err)
}

// leave lets another process follow at once.
func (w *worker) leave(ctx context.Context) {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := w.reader.Leave(short); err != nil {
		w.logger.Debug("another process takes the subscription only after some seconds", "error", err)
	}
}

// giveUp pauses the subscription.
func (w *worker) giveUp(ctx context.Context, why error) {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	w.logger.Error("a subscription is paused; its events are kept for it until it is resumed or deleted", "error", why)
	if err := w.sender.config.Store.PauseSending(short, w.sub.Name, why.Error()); err != nil {
		w.fail(ctx, "a subscription cannot be paused; it is tried again", err)
	}
}

// note has the failure shown.
func (w *worker) note(ctx context.Context, why error) {
	short, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := w.reader.Failing(short, why.Error()); err != nil {
		w.logger.Debug("the failure of a target is not shown", "error", err)
	}
}

// keep keeps a lease, which was kept at a time, until ctx ends. It ends ctx if the lease is lost, or may be soon.
func (w *worker) keep(ctx context.Context, kept time.Time, lost context.CancelCauseFunc) {
	for pause := keepInterval; ; {
		wait(ctx, pause)
		start := time.Now()
		short, cancel := context.WithDeadline(ctx, kept.Add(Lease-keepMargin))
		mine, err := w.reader.Keep(short)
		late := short.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && mine:
			kept, pause = start, keepInterval
		case err == nil:
			lost(ErrLost)
			return
		case late:
			lost(fmt.Errorf("the turn for the subscription could not be kept: %w", err))
			return
		default:
			pause = keepAgain
		}
	}
}

// read reads chunks until ctx ends.
func (w *worker) read(ctx context.Context) error {
	pause := w.sender.config.Poll
	for begun := false; ; begun = true {
		chunk, err := w.reader.Next(ctx, int(w.most.Load()))
		if err == nil && !begun {
			err = w.reader.Begun(ctx)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // its end is no failure
		}
		if err != nil {
			return err
		}
		if chunk.Place == nil {
			wait(ctx, pause)
			pause = min(2*pause, slowestPoll*w.sender.config.Poll)
			continue
		}
		pause = w.sender.config.Poll
		select {
		case <-ctx.Done():
			return nil
		case w.chunks <- chunk:
		}
	}
}

// send sends what is read, until ctx ends.
func (w *worker) send(ctx, sending context.Context) error {
	for !over(ctx) {
		var chunk Chunk
		select {
		case <-ctx.Done():
			return nil
		case <-sending.Done():
			return context.Cause(sending)
		case chunk = <-w.chunks:
		}
		start := time.Now()
		w.take(chunk)
		if err := w.deliver(ctx, sending); err != nil {
			return err
		}
		took := time.Since(start)
		w.pace(&chunk, took)
		w.yield(ctx, w.sender.giveWay(chunk, chunk.Took+took))
	}
	return nil
}

// yield pauses for a time, or until no burst of tickets is being stored.
func (w *worker) yield(ctx context.Context, pause time.Duration) {
	end := time.Now().Add(pause)
	for left := pause; left > 0 && !over(ctx); left = time.Until(end) {
		short, cancel := context.WithTimeout(ctx, storeTimeout)
		rate, err := w.reader.Storing(short)
		cancel()
		if err == nil && rate < burstRate {
			return
		}
		wait(ctx, min(left, yieldLook))
	}
}

// pace sets how many tickets the next chunk is about. How far the subscription has come is noted once per chunk, so a process
// that is stopped or killed repeats what it sent of a chunk. With a slow target a chunk is thus a few events, or one. It begins
// with one, so that a process that never lives long delivers some.
func (w *worker) pace(chunk *Chunk, took time.Duration) {
	if len(chunk.Events) == 1 {
		w.single = took
	}
	slow := min(max(slowChunk, slowSingles*w.single), slowestChunk)
	most, tickets := w.most.Load(), int64(chunk.Tickets)
	switch {
	case took > slow:
		fit := int64(float64(tickets) * slow.Seconds() / took.Seconds())
		w.most.Store(max(min(most, fit), 1))
	case took < slow/8 && chunk.Full:
		w.most.Store(min(max(most, 4*tickets), ChunkTickets)) // this one may be smaller than most, because it was read before
	case took < slow/2 && chunk.Full:
		w.most.Store(min(max(most, 2*tickets), ChunkTickets))
	}
}

// over reports whether ctx has ended.
func over(ctx context.Context) bool { return ctx.Err() != nil }

// take adds a chunk to those that are being sent.
func (w *worker) take(chunk Chunk) {
	if chunk.Missing > 0 {
		w.sender.metrics.missing.WithLabelValues(w.sub.Name).Add(float64(chunk.Missing))
	}
	f := &flight{chunk: chunk, left: len(chunk.Events)}
	w.flying = append(w.flying, f)
	for i := range chunk.Events {
		w.waiting = append(w.waiting, &item{event: &chunk.Events[i], of: f})
	}
}

// deliver sends events until none of the chunks waits, or ctx ends.
func (w *worker) deliver(ctx, sending context.Context) error {
	for {
		if err := w.land(ctx); err != nil {
			return err
		}
		if len(w.waiting) == 0 || over(ctx) {
			return nil
		}
		some := w.waiting
		if w.probing {
			some = some[:1]
		}
		pause, err := w.round(sending, some)
		if err != nil {
			return err
		}
		if pause == 0 {
			continue
		}
		if err := w.land(ctx); err != nil {
			return err
		}
		if failed := w.first(); failed != nil {
			w.note(sending, failed.err)
		}
		select {
		case <-ctx.Done():
		case <-sending.Done():
			return context.Cause(sending)
		case <-time.After(pause):
		}
	}
}

// land notes the chunks that are delivered, in their order. It does so also after ctx has ended.
func (w *worker) land(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	for len(w.flying) > 0 && w.flying[0].left == 0 {
		f := w.flying[0]
		if err := w.reader.Done(ctx, f.chunk, f.delivery); err != nil {
			return err
		}
		w.sender.metrics.sent.WithLabelValues(w.sub.Name).Add(float64(f.delivery.Delivered))
		w.sender.metrics.rejected.WithLabelValues(w.sub.Name).Add(float64(len(f.delivery.Dead)))
		w.flying = w.flying[1:]
	}
	return nil
}

// round sends some of the waiting events once. It returns how long to pause; 0 if all is well.
func (w *worker) round(ctx context.Context, some []*item) (time.Duration, error) {
	took, err := w.attempt(ctx, some)
	if err != nil {
		return 0, err
	}
	first := w.first()
	if took == len(some) {
		w.works()
		return 0, nil
	}
	w.others = w.others || took > 0
	w.sender.metrics.failures.WithLabelValues(w.sub.Name).Inc()
	w.sender.reports.failing(w.sub.Name, "a target does not take events; none is lost, and it is tried again", first.err)
	w.probing = true
	if first.attempts >= w.sender.config.Attempts {
		if err := w.tryOther(ctx, first); err != nil {
			return 0, err
		}
		if !w.probing {
			return 0, nil
		}
		w.others = false
	}
	pause := w.back.NextBackOff()
	if w.others {
		pause = min(pause, max(w.sender.config.LongestPause/10, w.sender.config.FirstPause))
	}
	if after, ok := errors.AsType[*RetryAfter](first.err); ok {
		pause = max(pause, min(after.After, maxRetryAfter))
	}
	return max(pause, time.Millisecond), nil
}

// works ends a failure.
func (w *worker) works() {
	w.probing, w.others = false, false
	w.back.Reset()
	w.sender.reports.works(w.sub.Name)
}

// first returns the first waiting event that was sent and failed, or nil.
func (w *worker) first() *item {
	for _, i := range w.waiting {
		if i.attempts > 0 {
			return i
		}
	}
	return nil
}

// attempt sends some of the waiting events once, and returns how many of them wait no longer.
func (w *worker) attempt(ctx context.Context, some []*item) (took int, err error) {
	batch := make([]Event, len(some))
	for i := range some {
		batch[i] = *some[i].event
	}
	errs := w.target.Send(ctx, batch)
	if len(errs) != len(batch) {
		return 0, fmt.Errorf("the target answered for %d of %d events", len(errs), len(batch))
	}
	var gone error
	for i, it := range some {
		switch failed := errs[i]; {
		case failed == nil:
			it.of.left--
			it.of.delivery.Delivered++
			it.of, took = nil, took+1
		case errors.Is(failed, ErrRejected):
			it.attempts++
			w.bury(it, failed)
			took++
		case errors.Is(failed, ErrGone):
			gone = failed
		case errors.Is(failed, ErrNotSent):
		default:
			it.attempts++
			it.err = failed
		}
	}
	w.waiting = remaining(w.waiting)
	if gone != nil {
		return took, gone
	}
	if cause := context.Cause(ctx); cause != nil && len(w.waiting) > 0 {
		return took, cause
	}
	if took < len(some) && w.first() == nil {
		return took, errors.New("the target did not send events, and did not say why")
	}
	return took, nil
}

// remaining returns the events that still belong to a chunk that is being sent.
func remaining(waiting []*item) []*item {
	left := make([]*item, 0, len(waiting))
	for _, it := range waiting {
		if it.of != nil {
			left = append(left, it)
		}
	}
	return left
}

// bury makes an event a dead letter.
func (w *worker) bury(it *item, why error) {
	e := it.event
	w.logger.Warn("a target refuses an event, which is a dead letter now; the ticket itself is stored",
		"event", e.ID, "ticket", e.Ticket, "attempts", it.attempts, "error", why)
	it.of.left--
	it.of.delivery.Dead = append(it.of.delivery.Dead, DeadLetter{
		Event: e.ID, Type: e.Type, Ticket: e.Ticket, Product: e.Product, Attempts: it.attempts, Reason: why.Error(),
	})
	it.of = nil
}

// tryOther finds out whether the target takes other events than one that failed often. If so, that one is sent a last time, and
// then is a dead letter. It is behind another event of its key then, which cannot be avoided if there is only one key.
func (w *worker) tryOther(ctx context.Context, failed *item) error {
	other := w.other(ctx, failed)
	if other == nil {
		return nil
	}
	took, err := w.attempt(ctx, []*item{other})
	if err != nil || took == 0 {
		return err
	}
	if took, err = w.attempt(ctx, []*item{failed}); err != nil {
		return err
	}
	if took == 0 {
		w.bury(failed, failed.err)
		w.waiting = remaining(w.waiting)
	}
	w.works()
	return nil
}

// other returns another waiting event than one that failed, or nil. An event that was not tried comes first, because there may be
// more events that the target never takes. To find one it takes further chunks that were read, and waits only for those behind a
// chunk without events.
func (w *worker) other(ctx context.Context, failed *item) *item {
	enough := time.After(passFor)
	for patience := time.Duration(0); ; patience = passWait {
		other := w.leastTried(failed)
		if other != nil && other.attempts == 0 || len(w.flying) >= maxPassed || len(w.waiting) > 1 && w.waitingBytes() > passBytes {
			return other
		}
		select {
		case chunk := <-w.chunks:
			w.pass(chunk)
			continue
		default:
		}
		if patience == 0 {
			return other
		}
		select {
		case chunk := <-w.chunks:
			w.pass(chunk)
		case <-ctx.Done():
			return other
		case <-enough:
			return other
		case <-time.After(patience):
			return other
		}
	}
}

// pass takes a chunk while another event is looked for. If it has none, the next one is larger, so that many tickets that the
// filter leaves out are passed soon.
func (w *worker) pass(chunk Chunk) {
	w.take(chunk)
	if len(chunk.Events) == 0 {
		w.pace(&chunk, 0)
	}
}

// leastTried returns the event that failed least often of the first ones of each key, if possible not of the key of one that
// failed. What failed as often as an event may before it is a dead letter is left out, so what is behind it counts.
func (w *worker) leastTried(failed *item) (least *item) {
	seen := map[string]bool{}
	better := func(it *item) bool {
		return least == nil || it.attempts < least.attempts ||
			it.attempts == least.attempts && least.event.Key == failed.event.Key
	}
	for _, it := range w.waiting {
		if it == failed || it.attempts >= w.sender.config.Attempts || seen[it.event.Key] {
			continue
		}
		if seen[it.event.Key] = true; better(it) {
			least = it
		}
	}
	return least
}

func (w *worker) waitingBytes() (n int) {
	for _, it := range w.waiting {
		n += len(it.event.JSON)
	}
	return n
}
