package events

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
)

// SenderConfig configures a Sender. The zero value of a field means its default.
type SenderConfig struct {
	// Store is the database. Required.
	Store Store

	// Open opens the target of a subscription, as soon as this process sends to it, and again when the subscription was changed. An
	// error is shown as the subscription's failure, and it is tried again. Required.
	Open func(ctx context.Context, sub Subscription) (Target, error)

	// Registry gets the metrics. Defaults to none.
	Registry prometheus.Registerer

	// Logger defaults to slog.Default.
	Logger *slog.Logger

	// Look is how often it looks for subscriptions. Defaults to 1 s.
	Look time.Duration

	// Poll is how soon it looks for events after there were none, and after five times as long at the latest. Defaults to 200 ms.
	Poll time.Duration

	// Count is how often it counts what waits, for the metrics. Defaults to 10 s.
	Count time.Duration

	// FirstPause is about the pause after a target failed. It doubles each time, up to LongestPause. While the target takes other
	// events, it is no longer than a tenth of that. They default to 500 ms and 1 min.
	FirstPause, LongestPause time.Duration

	// Attempts is how often an event is sent that a target does not take while it takes others. Defaults to 10.
	Attempts int

	// GiveWay is the age of waiting events up to which sending gives way to the storing of tickets: see giveWay. A negative one
	// means never. Defaults to 10 s.
	GiveWay time.Duration

	// Grace is how long events that are being sent have when Run ends. Defaults to 5 s.
	Grace time.Duration
}

// Sender sends events to the targets of all subscriptions, while Run runs. Several processes may have one each: they share the
// subscriptions. One that is killed is followed by another after Lease.
type Sender struct {
	config  SenderConfig
	metrics metrics
	reports failures
	me      uuid.UUID // this process

	workers map[string]*worker   // by subscription
	pauses  map[string]time.Time // until when a subscription that failed is left alone
	held    heldBack
}

// NewSender returns a Sender.
func NewSender(config SenderConfig) *Sender {
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	for _, d := range []struct {
		is     *time.Duration
		likely time.Duration
	}{
		{&config.Look, time.Second}, {&config.Poll, 200 * time.Millisecond}, {&config.Count, 10 * time.Second},
		{&config.FirstPause, 500 * time.Millisecond}, {&config.LongestPause, time.Minute}, {&config.Grace, 5 * time.Second},
		{&config.GiveWay, 10 * time.Second},
	} {
		if *d.is == 0 {
			*d.is = d.likely
		}
	}
	if config.Attempts == 0 {
		config.Attempts = 10
	}
	return &Sender{
		config: config, metrics: newMetrics(config.Registry), me: uuid.New(),
		reports: failures{logger: config.Logger, failed: map[string]bool{}},
		workers: map[string]*worker{}, pauses: map[string]time.Time{},
	}
}

const (
	storeTimeout = 5 * time.Second  // of a short question
	countTimeout = 30 * time.Second // of counting what waits
	reopenPause  = 5 * time.Second  // before a subscription is taken again after it failed
)

// Run sends until ctx ends. Events that are being sent then have SenderConfig.Grace. What was delivered is noted, and other
// processes may go on at once.
func (s *Sender) Run(ctx context.Context) {
	var beside sync.WaitGroup
	beside.Go(func() { s.count(ctx) })
	failed := false
	for ctx.Err() == nil {
		err := s.look(ctx)
		if err != nil && ctx.Err() == nil && !failed {
			s.config.Logger.Warn("the subscriptions cannot be read, so no new ones are taken up; no event is lost, and it is tried again",
				"error", err)
		}
		failed = err != nil
		wait(ctx, s.config.Look)
	}
	for _, w := range s.workers {
		w.stop()
	}
	for _, w := range s.workers {
		<-w.ended
	}
	beside.Wait()
}

// yieldFactor is how long sending pauses after a chunk, as a multiple of the time that the chunk took, while events are new.
// yieldMost bounds the pause, and every yieldLook it is looked whether the burst is over. There is none after a chunk of fewer
// tickets than yieldTickets, because the next one is larger, which costs less for each event. Nor is there after one that took
// longer than yieldSlow for each ticket: the target is so slow that the pause would spare nobody, and only lose its time.
const (
	yieldFactor  = 39
	yieldMost    = 3 * time.Second
	yieldLook    = 250 * time.Millisecond
	yieldTickets = 64
	yieldSlow    = 10 * time.Millisecond
)

// giveWay returns the pause after a chunk that took some time. If more events wait, many tickets are being stored, and Postgres
// and the machine are busy with them. So at first sending takes a fortieth of the time, which leaves a burst nearly undisturbed,
// and more the older the events are; once they are as old as SenderConfig.GiveWay, it takes what it needs. The pause ends then.
func (s *Sender) giveWay(chunk Chunk, took time.Duration) time.Duration {
	if !chunk.More || chunk.Tickets < yieldTickets || took > time.Duration(chunk.Tickets)*yieldSlow || s.config.GiveWay <= 0 {
		return 0
	}
	fresh := 1 - chunk.Age.Seconds()/s.config.GiveWay.Seconds()
	return min(time.Duration(max(fresh, 0)*yieldFactor*float64(took)), yieldMost, max(s.config.GiveWay-chunk.Age, 0))
}

// wait waits, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// look starts a worker for each subscription that no process sends the events of, and ends those of subscriptions that were
// paused, changed or deleted.
func (s *Sender) look(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	subs, err := s.config.Store.Subscribed(short, s.me)
	if err != nil {
		return err
	}
	there := make(map[string]Subscribed, len(subs))
	var free []Subscribed
	for _, sub := range subs {
		there[sub.Name] = sub
		if _, working := s.workers[sub.Name]; !working && sub.Free && !sub.Paused && time.Now().After(s.pauses[sub.Name]) {
			free = append(free, sub)
		}
	}
	for name, w := range s.workers {
		sub, ok := there[name]
		if !ok || sub.Paused || !sub.ChangedAt.Equal(w.sub.ChangedAt) {
			w.stop()
		}
		select {
		case <-w.ended:
			delete(s.workers, name)
			s.pauses[name] = time.Now().Add(w.pause)
		default:
		}
	}
	for name := range s.pauses {
		if _, ok := there[name]; !ok {
			delete(s.pauses, name)
			s.reports.forget(name)
		}
	}
	// Only half of them at once, so that processes that start together share them.
	for _, sub := range free[:(len(free)+1)/2] {
		s.workers[sub.Name] = s.startWorker(ctx, sub)
	}
	return nil
}

// count counts what waits, for the metrics.
func (s *Sender) count(ctx context.Context) {
	failed := false
	for ctx.Err() == nil {
		err := s.countOnce(ctx)
		if err != nil && ctx.Err() == nil && !failed {
			s.config.Logger.Warn("what waits for subscriptions could not be counted, so their metrics are left out; it is tried again",
				"error", err)
		}
		failed = err != nil
		wait(ctx, s.config.Count)
	}
}

func (s *Sender) countOnce(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	subs, err := s.config.Store.Subscriptions(limited)
	if err != nil {
		s.metrics.forget()
		return err
	}
	s.metrics.show(subs)
	oldest, next, err := s.config.Store.Running(limited)
	if err != nil {
		s.metrics.held.Reset()
		return err
	}
	s.metrics.held.WithLabelValues().Set(s.held.since(oldest, next, time.Now()).Seconds())
	return nil
}

// heldBack measures how long the oldest transaction has been under way, by when it was seen first. Who asks Postgres instead
// needs the right to see all sessions, and does not see prepared transactions. Only one goroutine may use it.
type heldBack struct {
	oldest uint64
	seen   time.Time
}

func (h *heldBack) since(oldest, next uint64, now time.Time) time.Duration {
	if oldest != h.oldest || oldest == next {
		h.oldest, h.seen = oldest, now
	}
	return now.Sub(h.seen)
}

// failures logs the beginning and the end of each failure once.
type failures struct {
	logger *slog.Logger

	mu     sync.Mutex
	failed map[string]bool // by subscription; guarded by mu
}

func (f *failures) failing(subscription, what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.failed[subscription] {
		f.logger.Warn(what, "subscription", subscription, "error", err)
	}
	f.failed[subscription] = true
}

func (f *failures) works(subscription string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed[subscription] {
		f.logger.Info("the target takes events again", "subscription", subscription)
	}
	delete(f.failed, subscription)
}

func (f *failures) forget(subscription string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.failed, subscription)
}

var errStopped = errors.New("stopped")
