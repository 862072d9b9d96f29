package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/events"
	"myticket/internal/intake"
	"myticket/internal/lab"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// eventsTrial is a scenario of events while it is played: a server, a process that sends events, and the broker that takes them.
type eventsTrial struct {
	*trial

	server, sender *server
	broker         *broker
	store          *postgres.Store
}

const (
	eventsSub         = "platform" // the name of the subscription
	eventsConnections = 20         // of the tills

	// lateEvents is from which age on waiting events are a backlog.
	lateEvents = 3 * time.Second

	// aroundFault is how long before a fault and after its end an event may be sent twice: what was under way when the broker was
	// killed, and what it stored without an answer.
	aroundFault = 15 * time.Second

	// mostHeldUp is how long after its ticket a new event may come while others are replayed.
	mostHeldUp = 10 * time.Second
)

// targetAway demands that a broker that is away for long touches no intake, and gets every event once it is back.
func targetAway(ctx context.Context, t *trial) error {
	e, err := newEventsTrial(ctx, t)
	if err != nil {
		return err
	}
	if err := e.subscribe(ctx); err != nil {
		return err
	}
	begin := time.Now()
	stop := e.load(ctx)
	defer stop()
	lab.Pause(ctx, t.span(time.Minute, 2*time.Second))
	killed := time.Now()
	e.broker.kill()
	lab.Pause(ctx, t.span(t.config.away, 5*time.Second))
	if err := e.broker.start(ctx); err != nil {
		return err
	}
	back := time.Now()
	backlog, err := e.state(ctx)
	if err != nil {
		return err
	}
	if err := e.awaitNear(ctx); err != nil {
		return err
	}
	drained := time.Now()
	lab.Pause(ctx, warmUp)
	stop()
	t.ended = time.Now()
	t.notef("the broker was away for %.0f s, and then the oldest of the events that waited was from %.0f s before; %.1f s after it "+
		"was back none was older than %s",
		back.Sub(killed).Seconds(), backlog.Behind.Seconds(), drained.Sub(back).Seconds(), lateEvents)
	e.noteAnswers("before", begin, killed)
	e.noteAnswers("while the broker was away", killed, back)
	e.noteAnswers("while the backlog was sent", back, drained)
	told, err := e.finish(ctx)
	if err != nil {
		return err
	}
	twice, apart := 0, 0
	for _, at := range told.again {
		twice++
		if at.Before(killed.Add(-aroundFault)) || at.After(back.Add(aroundFault)) {
			apart++
		}
	}
	if apart > 0 {
		t.failf("%d events were sent twice more than %s before the broker was killed or after it was back", apart, aroundFault)
	}
	t.notef("%d events, %d of them twice, all of these around the kill", len(told.first), twice)
	return nil
}

// replayed demands that a day of tickets is told again, and that new events do not wait for that.
func replayed(ctx context.Context, t *trial) error {
	e, err := newEventsTrial(ctx, t)
	if err != nil {
		return err
	}
	day := span{from: time.Now().Add(-24 * time.Hour), to: time.Now().Add(-time.Minute)}
	old, err := e.storeDay(ctx, day, t.times(t.config.replayed, 3000))
	if err != nil {
		return err
	}
	if err := e.subscribe(ctx); err != nil {
		return err
	}
	begin := time.Now()
	stop := e.load(ctx)
	defer stop()
	lab.Pause(ctx, t.span(time.Minute, 2*time.Second))
	start := time.Now()
	if _, err := t.output(ctx, t.program, "subscriptions", "replay", eventsSub, "--from", day.from.Format(time.RFC3339),
		"--to", day.to.Format(time.RFC3339)); err != nil {
		return err
	}
	if err := e.await(ctx, "the replay", func(s events.SubscriptionState) error {
		if s.Replay != nil {
			return errors.New("it is under way")
		}
		return nil
	}); err != nil {
		return err
	}
	over := time.Now()
	stop()
	t.ended = time.Now()
	took := over.Sub(start)
	t.notef("%d tickets of a day were replayed in %.1f s (%.0f tickets/s)",
		len(old), took.Seconds(), float64(len(old))/took.Seconds())
	e.noteAnswers("before the replay", begin, start)
	e.noteAnswers("during the replay", start, over)
	told, err := e.finish(ctx)
	if err != nil {
		return err
	}
	missing := 0
	for _, id := range old {
		if _, ok := told.first[id.String()+".1"]; !ok {
			missing++
		}
	}
	if missing > 0 {
		t.failf("%d of %d tickets were not replayed", missing, len(old))
	}
	e.noteDelays("before the replay", told, begin, start)
	if longest := e.noteDelays("during the replay", told, start, over); longest > mostHeldUp {
		t.failf("a new event came %s after its ticket while others were replayed, and %s are allowed", longest, mostHeldUp)
	}
	return nil
}

func newEventsTrial(ctx context.Context, t *trial) (*eventsTrial, error) {
	e := &eventsTrial{trial: t}
	var err error
	if e.broker, err = newBroker(ctx, t.spool+"-broker"); err != nil {
		return nil, err
	}
	t.onEnd(func() error { e.broker.kill(); return nil })
	if err := e.broker.start(ctx); err != nil {
		return nil, err
	}
	if err := e.broker.makeStream(ctx); err != nil {
		return nil, err
	}
	if e.server, err = t.startServer(ctx, t.url); err != nil {
		return nil, err
	}
	e.store, err = postgres.Open(ctx, postgres.Config{URL: t.url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	t.onEnd(func() error { e.store.Close(); return nil })
	e.sender = &server{program: t.program}
	if e.sender.admin, err = lab.FreeAddr(ctx); err != nil {
		return nil, err
	}
	e.sender.args = []string{"events", "--admin-addr", e.sender.admin, "--database-url", t.url}
	t.onEnd(func() error { e.sender.kill(); return nil })
	if err := e.sender.start(ctx); err != nil {
		return nil, err
	}
	return e, e.sender.awaitReady(ctx)
}

func (e *eventsTrial) subscribe(ctx context.Context) error {
	_, err := e.output(ctx, e.program, "subscriptions", "create", eventsSub, e.broker.target())
	return err
}

// load sends tickets at a steady rate until stop is called.
func (e *eventsTrial) load(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.paced(ctx, e.server.http, float64(e.times(e.config.rate, 100)), eventsConnections, 24*time.Hour, make(chan struct{}))
	}()
	return func() { cancel(); <-done }
}

// storeDay stores n tickets whose times are spread over a time, and which the check leaves out. It returns their ids.
func (e *eventsTrial) storeDay(ctx context.Context, day span, n int) (ids []uuid.UUID, err error) {
	const batch = 1000
	for at := day.from; at.Before(day.to.Add(24 * time.Hour)); at = at.Add(24 * time.Hour) {
		if _, err := e.store.EnsurePartitions(ctx, postgres.Day, 1, at); err != nil {
			return nil, err
		}
	}
	at := day.from
	made := ticket.IDs{Now: func() time.Time { return at }}
	for len(ids) < n {
		entries := make([]*intake.Entry, 0, batch)
		for range min(batch, n-len(ids)) {
			at = day.from.Add(day.length() / time.Duration(n) * time.Duration(len(ids)))
			entry := &intake.Entry{Ticket: ticket.Ticket{Source: oddSource, ContentType: "text/plain", Status: ticket.Treated}}
			if entry.Ticket.ID, entry.Ticket.ReceivedAt, err = made.New(); err != nil {
				return nil, err
			}
			entry.Ticket.Body = fmt.Appendf(nil, "Order: day-%d\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\nTea,%sday,1.50",
				len(ids), hostileProduct)
			entry.Ticket.Order, entry.Ticket.Problems = ticket.Parse(entry.Ticket.Body)
			ids, entries = append(ids, entry.Ticket.ID), append(entries, entry)
		}
		if _, err := e.store.Save(ctx, intake.Batch{Entries: entries, Drained: true}); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (e *eventsTrial) state(ctx context.Context) (events.SubscriptionState, error) {
	subs, err := e.store.Subscriptions(ctx)
	if err != nil {
		return events.SubscriptionState{}, err
	}
	i := slices.IndexFunc(subs, func(s events.SubscriptionState) bool { return s.Name == eventsSub })
	if i < 0 {
		return events.SubscriptionState{}, errors.New("the subscription is not there")
	}
	return subs[i], nil
}

// await waits for a state of the subscription.
func (e *eventsTrial) await(ctx context.Context, what string, is func(events.SubscriptionState) error) error {
	err := lab.Await(ctx, e.span(30*time.Minute, time.Minute), what, func(ctx context.Context) error {
		state, err := e.state(ctx)
		if err == nil {
			err = is(state)
		}
		return err
	})
	if err != nil {
		err = errors.Join(err, e.sender.why())
	}
	return err
}

// awaitNear waits until the backlog is sent.
func (e *eventsTrial) awaitNear(ctx context.Context) error {
	return e.await(ctx, "the backlog to be sent", func(s events.SubscriptionState) error {
		if s.Behind > lateEvents {
			return fmt.Errorf("it is %s behind", s.Behind)
		}
		return nil
	})
}

// noteAnswers notes how long answers took, and demands that each ticket was stored.
func (e *eventsTrial) noteAnswers(when string, from, to time.Time) {
	answers := e.ledger.between(from, to)
	took, refused := make([]time.Duration, 0, len(answers)), 0
	for i := range answers {
		took = append(took, answers[i].took)
		if answers[i].status != 200 {
			refused++
		}
	}
	if refused > 0 {
		e.failf("%s: %d tickets were not stored at once", when, refused)
	}
	e.notef("%s: %.0f tickets/s, answered in %s", when, float64(len(took))/to.Sub(from).Seconds(), percentiles(took))
}

// noteDelays notes how long after their tickets events came, and returns the longest time.
func (e *eventsTrial) noteDelays(when string, told told, from, to time.Time) (longest time.Duration) {
	var delays []time.Duration
	for id, at := range told.first {
		name, version, _ := strings.Cut(id, ".")
		parsed, err := uuid.Parse(name)
		if err != nil || version != "1" {
			continue
		}
		if stored := ticket.IDTime(parsed); stored.After(from) && stored.Before(to) {
			delays = append(delays, at.Sub(stored))
			longest = max(longest, at.Sub(stored))
		}
	}
	e.notef("%s: events of %d new tickets, %s after them", when, len(delays), percentiles(delays))
	return longest
}

// percentiles are some of them as a text.
func percentiles(all []time.Duration) string {
	if len(all) == 0 {
		return "no time"
	}
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f ms (median), %.1f ms (p99), %.1f ms (longest)",
		ms(all[len(all)/2]), ms(all[len(all)*99/100]), ms(all[len(all)-1]))
}

// finish waits until everything is delivered, ends the process that sends, and demands that each ticket and each product was told
// as it is.
func (e *eventsTrial) finish(ctx context.Context) (told, error) {
	err := e.await(ctx, "the last events", func(s events.SubscriptionState) error {
		if s.Waiting > 0 || s.DeadLetters > 0 {
			return fmt.Errorf("%d tickets wait, and %d events are dead letters", s.Waiting, s.DeadLetters)
		}
		return nil
	})
	if err != nil {
		return told{}, err
	}
	if err := e.sender.stop(); err != nil {
		e.failf("%s", err)
	}
	told, err := e.broker.told(ctx)
	if err != nil {
		return told, err
	}
	return told, errors.Join(
		e.demandTold(ctx, told, "tickets", `SELECT id || '.' || version FROM tickets WHERE source <> '`+oddSource+`'`),
		e.demandTold(ctx, told, "products",
			`SELECT ticket_id || '.' || product_id FROM products WHERE NOT starts_with(product_id, '`+hostileProduct+`')`),
	)
}

// demandTold demands that events of all ids came that a query returns.
func (e *eventsTrial) demandTold(ctx context.Context, told told, what, query string) error {
	conn, err := pgx.Connect(ctx, e.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	missing, such := 0, ""
	for _, id := range ids {
		if _, ok := told.first[id]; !ok {
			missing, such = missing+1, id
		}
	}
	if missing > 0 {
		e.failf("LOST: %d of %d %s have no event that says what they are, such as %s", missing, len(ids), what, such)
	}
	if len(ids) == 0 {
		e.failf("there are no %s, so this shows nothing", what)
	}
	return nil
}
