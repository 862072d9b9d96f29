package events_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

var errAway = errors.New("connection refused")

func TestSender_SendsWhatIsStored_InItsOrder_AndNotesIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	before := b.orders(t, "0")
	b.awaitVisible(t)
	b.subscribe(t, "erp", func(s *events.Subscription) { s.Body = true })
	ids := b.orders(t, "1", "2", "3")
	stop := b.run(t, b.config(t))
	ids = append(ids, b.orders(t, "4")...)
	await(t, "all events", func() bool { return b.sink.has("erp", ids...) && b.state(t, "erp").Delivered == 4 })
	stop()
	var got []string
	for _, e := range b.sink.of("erp") {
		got = append(got, e.ID)
	}
	assert.Equal(t, ids, got, "and not %s", before)
	var data struct {
		Type string `json:"type"`
		Data struct {
			OrderNumber string `json:"order_number"`
			Body        []byte `json:"body_base64"`
			Lines       []struct {
				ProductID string `json:"product_id"`
			} `json:"lines"`
		} `json:"data"`
	}
	require.NoError(t, json.Unmarshal(b.sink.of("erp")[3].JSON, &data))
	assert.Equal(t, events.TicketTreated, data.Type)
	assert.Equal(t, "4", data.Data.OrderNumber)
	assert.Equal(t, "a", data.Data.Lines[0].ProductID)
	assert.Equal(t, body("4", "Café,a,2"), string(data.Data.Body))
	is := b.state(t, "erp")
	assert.NotNil(t, is.DeliveredAt)
	assert.Zero(t, is.Waiting)
	assert.Zero(t, is.Behind)
	assert.True(t, one[bool](t, b, `SELECT held_until < now() FROM outbox_readers`), "another process may go on at once")
}

// inOrder checks that a subscription got the events about all tickets, each key's first in the order of the outbox.
func inOrder(t *testing.T, b *testBundle, sub string) {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `
		SELECT t.source, t.id::text || '.' || t.version
		FROM (SELECT xid, encode(substr(tickets, 16 * n + 1, 16), 'hex')::uuid AS id, n
		      FROM outbox, generate_series(0, octet_length(tickets) / 16 - 1) n) o
		JOIN tickets t USING (id) ORDER BY o.xid, o.n`)
	require.NoError(t, err)
	want := map[string][]string{}
	for rows.Next() {
		var source, id string
		require.NoError(t, rows.Scan(&source, &id))
		want[source] = append(want[source], id)
	}
	require.NoError(t, rows.Err())
	got, seen := map[string][]string{}, map[string]bool{}
	for _, e := range b.sink.of(sub) {
		if !seen[e.ID] {
			seen[e.ID] = true
			got[e.Key] = append(got[e.Key], e.ID)
		}
	}
	require.Equal(t, want, got, sub)
}

func TestSender_ProcessesThatAreKilledAtAnyMoment_LoseNothing_AndKeepTheOrderOfAKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subs := []string{"one", "two", "three"}
	for _, name := range subs {
		b.subscribe(t, name, onlyTickets)
	}
	b.sink.failing(func(string, events.Event) error {
		if rand.N(200) == 0 {
			return errAway
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	var processes sync.WaitGroup
	for range 3 {
		processes.Go(func() {
			for ctx.Err() == nil {
				config, store := b.config(t), &killable{Store: b.store}
				config.Store, config.Grace, config.Registry = store, time.Millisecond, prometheus.NewRegistry()
				life, kill := context.WithCancel(ctx)
				done := make(chan struct{})
				go func() { defer close(done); events.NewSender(config).Run(life) }()
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(rand.N(150)) * time.Millisecond):
				}
				store.dead.Store(rand.N(3) > 0 && ctx.Err() == nil)
				kill()
				<-done
				// As if Lease had passed.
				_, _ = b.pool.Exec(context.WithoutCancel(ctx), `UPDATE outbox_readers SET held_until = '-infinity' WHERE held_until < now() + interval '9 seconds'`)
			}
		})
	}
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for i := range 60 {
				entries := make([]*intake.Entry, 1+rand.N(20))
				for j := range entries {
					entries[j] = entry(t, fmt.Sprintf("till-%d", rand.N(4)), body(fmt.Sprintf("%d-%d-%d", w, i, j), "Café,a,2"))
				}
				_, err := b.store.Save(t.Context(), intake.Batch{Entries: entries})
				if !assert.NoError(t, err) { //nolint:testifylint // require may not be called here
					return
				}
				time.Sleep(time.Duration(rand.N(20)) * time.Millisecond)
			}
		})
	}
	writers.Wait()
	cancel()
	processes.Wait()
	b.exec(t, `UPDATE outbox_readers SET held_until = '-infinity'`)
	b.sink.failing(nil)
	b.run(t, b.config(t))
	for _, name := range subs {
		await(t, "the rest of "+name, func() bool { return b.state(t, name).Waiting == 0 })
		inOrder(t, b, name)
		assert.Zero(t, b.state(t, name).DeadLetters)
	}
}

func TestSender_OfAProcessThatWasKilled_AnotherTakesItsSubscriptionsAfterTheLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	config, store := b.config(t), &killable{Store: b.store}
	config.Store = store
	kill := b.run(t, config)
	ids := b.orders(t, "1")
	await(t, "the first process sends", func() bool { return b.sink.has("erp", ids...) })
	store.dead.Store(true)
	kill()
	ids = b.orders(t, "2")
	b.run(t, b.config(t))
	await(t, "the second process sends", func() bool { return b.sink.has("erp", ids...) })
}

func TestSender_WhileATargetIsAway_SendsOneEventAsAProbe_AndAllWhenItIsBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	b.subscribe(t, "other", onlyTickets)
	b.sink.failing(func(sub string, _ events.Event) error {
		if sub == "erp" {
			return errAway
		}
		return nil
	})
	config := b.config(t)
	b.run(t, config)
	ids := b.save(t, entry(t, "till-1", body("1", "Café,a,2")), entry(t, "till-2", body("2", "Café,a,2")), entry(t, "till-3", body("3", "Café,a,2")))
	await(t, "it is tried often", func() bool { return b.sink.triesOf(ids[0]) > 20 })
	await(t, "the other subscription is not affected", func() bool { return b.sink.has("other", ids...) })
	is := b.state(t, "erp")
	assert.NotNil(t, is.FailingSince)
	assert.Equal(t, "connection refused", is.Failure)
	assert.Zero(t, is.DeadLetters)
	assert.Less(t, b.sink.triesOf(ids[2]), b.sink.triesOf(ids[0])/2, "one event is the probe")
	b.sink.failing(nil)
	await(t, "all events", func() bool { return b.sink.has("erp", ids...) })
	await(t, "it works", func() bool { return b.state(t, "erp").FailingSince == nil })
	inOrder(t, b, "erp")
	assert.Zero(t, b.state(t, "erp").DeadLetters, "an outage makes no dead letter")
}

func TestSender_AnEventThatATargetNeverTakes_IsADeadLetter_AndIsSentAgainOnDemand(t *testing.T) {
	t.Parallel()
	for name, why := range map[string]error{
		"rejected":        fmt.Errorf("it is too large: %w", events.ErrRejected),
		"refused so far":  errors.New("500 Internal Server Error"),
		"among many keys": errors.New("500 Internal Server Error"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.subscribe(t, "erp", onlyTickets)
			source := func(i int) string {
				if name == "among many keys" {
					return fmt.Sprintf("till-%d", i%3)
				}
				return "till"
			}
			var poison string
			var entries []*intake.Entry
			for i := range 10 {
				entries = append(entries, entry(t, source(i), body(fmt.Sprint(i+1), "Café,a,2")))
			}
			poison = entries[4].Ticket.ID.String() + ".1"
			b.sink.failing(func(_ string, e events.Event) error {
				if e.ID == poison {
					return why
				}
				return nil
			})
			ids := b.save(t, entries...)
			config := b.config(t)
			b.run(t, config)
			others := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == poison })
			await(t, "the others", func() bool { return b.sink.has("erp", others...) && b.state(t, "erp").Waiting == 0 })
			letters, err := b.store.DeadLetters(t.Context(), "erp", 0, 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			assert.Equal(t, poison, letters[0].Event)
			assert.Equal(t, entries[4].Ticket.ID, letters[0].Ticket)
			assert.Equal(t, why.Error(), letters[0].Reason)
			if name == "rejected" {
				assert.Equal(t, 1, letters[0].Attempts)
			} else {
				assert.Greater(t, letters[0].Attempts, config.Attempts)
			}
			assert.Nil(t, b.state(t, "erp").FailingSince)

			tries := b.sink.triesOf(poison)
			n, err := b.store.ReplayDeadLetters(t.Context(), tester, "erp", nil)
			require.NoError(t, err)
			require.Equal(t, 1, n)
			if name == "rejected" {
				await(t, "it is refused again", func() bool {
					letters, err = b.store.DeadLetters(t.Context(), "erp", 0, 10)
					return err == nil && len(letters) == 1 && letters[0].Attempts > 0
				})
				require.Greater(t, b.sink.triesOf(poison), tries)
				b.sink.failing(nil)
				_, err = b.store.ReplayDeadLetters(t.Context(), tester, "erp", []int64{letters[0].ID})
				require.NoError(t, err)
			}
			b.sink.failing(nil)
			await(t, "it is delivered", func() bool { return b.sink.has("erp", poison) && b.state(t, "erp").DeadLetters == 0 })
		})
	}
}

// TestSender_AnEventThatFailsAlone: nothing says whether the target takes others, so it is no dead letter until there is another.
func TestSender_AnEventThatFailsAlone_WaitsForAnotherBeforeItIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	ids := b.orders(t, "1")
	b.sink.failing(func(_ string, e events.Event) error {
		if e.ID == ids[0] {
			return errors.New("no")
		}
		return nil
	})
	b.run(t, b.config(t))
	await(t, "it is tried often", func() bool { return b.sink.triesOf(ids[0]) > 10 })
	require.Zero(t, b.state(t, "erp").DeadLetters)
	other := b.orders(t, "2")
	await(t, "the other one", func() bool { return b.sink.has("erp", other...) && b.state(t, "erp").Waiting == 0 })
	assert.Equal(t, 1, b.state(t, "erp").DeadLetters)
}

func TestSender_EventsThatATargetNeverTakes_OfSeveralSources_AreDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	var bad, good []string
	var batch []*intake.Entry
	for i := range 9 {
		e := entry(t, fmt.Sprintf("shop-%d", i%3), body(fmt.Sprint(i), "Café,a,2"))
		batch = append(batch, e)
		if id := e.Ticket.ID.String() + ".1"; i < 6 {
			bad = append(bad, id)
		} else {
			good = append(good, id)
		}
	}
	b.save(t, batch...)
	b.sink.failing(func(_ string, e events.Event) error {
		if slices.Contains(bad, e.ID) {
			return errors.New("500")
		}
		return nil
	})
	b.run(t, b.config(t))
	await(t, "the others", func() bool {
		good = append(good, b.orders(t, "10")...)
		time.Sleep(100 * time.Millisecond)
		return b.sink.has("erp", good...) && b.state(t, "erp").Waiting == 0
	})
	assert.Equal(t, len(bad), b.state(t, "erp").DeadLetters)
}

func TestSender_AnEventThatFailsAlone_PassesByManyThatTheFilterLeavesOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets, func(sub *events.Subscription) { sub.Filter.Sources = []string{"shop-1"} })
	bad := b.save(t, entry(t, "shop-1", body("1", "Café,a,2")))
	for range 20 {
		var batch []*intake.Entry
		for n := range 1000 {
			batch = append(batch, entry(t, "shop-2", body(fmt.Sprint(n), "Café,a,2")))
		}
		b.save(t, batch...)
	}
	good := b.save(t, entry(t, "shop-1", body("2", "Café,a,2")))
	b.sink.failing(func(_ string, e events.Event) error {
		if e.ID == bad[0] {
			return errors.New("500")
		}
		return nil
	})
	config := b.config(t)
	config.LongestPause = time.Second
	b.run(t, config)
	await(t, "it is tried often", func() bool { return b.sink.triesOf(bad[0]) > 3 })
	require.Eventually(t, func() bool { return b.sink.has("erp", good...) }, 4*time.Second, 10*time.Millisecond)
}

func TestSender_RetryAfter_IsObeyed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	var times []time.Time
	b.sink.failing(func(string, events.Event) error { // called with the sink locked
		if times = append(times, time.Now()); len(times) == 1 {
			return &events.RetryAfter{After: 400 * time.Millisecond, Err: errors.New("429")}
		}
		return nil
	})
	ids := b.orders(t, "1")
	b.run(t, b.config(t))
	await(t, "the event", func() bool { return b.sink.has("erp", ids...) })
	assert.GreaterOrEqual(t, times[1].Sub(times[0]), 400*time.Millisecond)
}

func TestSender_ATargetThatWantsNoMore_PausesItsSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	b.sink.failing(func(string, events.Event) error { return fmt.Errorf("410 Gone: %w", events.ErrGone) })
	ids := b.orders(t, "1")
	b.run(t, b.config(t))
	await(t, "it is paused", func() bool { return b.state(t, "erp").Paused != nil })
	assert.Contains(t, b.state(t, "erp").PausedWhy, "410 Gone")
	b.sink.failing(nil)
	require.NoError(t, b.store.ResumeSubscription(t.Context(), tester, "erp"))
	await(t, "it goes on where it was", func() bool { return b.sink.has("erp", ids...) })
}

func TestSender_WithTooManyDeadLetters_PausesTheSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	b.exec(t, `INSERT INTO dead_letters (subscription, event, type, ticket_id, attempts, reason)
		SELECT 'erp', 'e' || n, 'ticket.treated', gen_random_uuid(), 1, 'no' FROM generate_series(1, $1) n`, events.MaxDeadLetters)
	b.sink.failing(func(string, events.Event) error { return events.ErrRejected })
	ids := b.orders(t, "1")
	b.run(t, b.config(t))
	await(t, "it is paused", func() bool { return b.state(t, "erp").Paused != nil })
	is := b.state(t, "erp")
	assert.Contains(t, is.PausedWhy, "as many dead letters as are kept")
	assert.Equal(t, events.MaxDeadLetters, is.DeadLetters)
	b.sink.failing(nil)
	require.NoError(t, b.store.ResumeSubscription(t.Context(), tester, "erp"))
	await(t, "the event is not lost", func() bool { return b.sink.has("erp", ids...) })
}

func TestSender_PauseResumeDelete_WhileItSends(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	b.subscribe(t, "gone", onlyTickets)
	config := b.config(t)
	registry := prometheus.NewRegistry()
	config.Registry = registry
	b.run(t, config)
	first := b.orders(t, "1")
	await(t, "both send", func() bool { return b.sink.has("erp", first...) && b.sink.has("gone", first...) })
	require.NoError(t, b.store.PauseSubscription(t.Context(), tester, "erp"))
	require.NoError(t, b.store.DeleteSubscription(t.Context(), tester, "gone"))
	await(t, "both are left", func() bool {
		return one[bool](t, b, `SELECT count(*) FILTER (WHERE held_until > now()) = 0 FROM outbox_readers`)
	})
	second := b.orders(t, "2")
	time.Sleep(200 * time.Millisecond)
	assert.Len(t, b.sink.of("erp"), 1)
	assert.Equal(t, 1, b.state(t, "erp").Waiting)
	require.NoError(t, b.store.ResumeSubscription(t.Context(), tester, "erp"))
	await(t, "it goes on", func() bool { return b.sink.has("erp", second...) })
	assert.Len(t, b.sink.of("gone"), 1)
	await(t, "the series of the deleted one go", func() bool {
		n, err := testutil.GatherAndCount(registry, "myticket_events_lag_seconds")
		return err == nil && n == 1
	})
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	assert.Empty(t, problems)
}

func TestSender_ASubscriptionThatChanged_IsOpenedAnew(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := events.Subscription{Name: "erp", Target: "https://one.example/"}
	_, err := b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{sub})
	require.NoError(t, err)
	config := b.config(t)
	config.Open = func(_ context.Context, sub events.Subscription) (events.Target, error) {
		return fakeTarget{b.sink, sub.Target}, nil
	}
	b.run(t, config)
	first := b.orders(t, "1")
	await(t, "the first target", func() bool { return b.sink.has("https://one.example/", first...) })
	sub.Target = "https://two.example/"
	_, err = b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{sub})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		b.orders(t, "2")
		return len(b.sink.of("https://two.example/")) > 0
	}, 30*time.Second, 50*time.Millisecond)
}

func TestSender_ATargetThatCannotBeOpened_FailsVisibly_AndIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	config := b.config(t)
	opened := 0 // only the worker of the one subscription opens
	config.Open = func(_ context.Context, sub events.Subscription) (events.Target, error) {
		if opened++; opened == 1 {
			return nil, errors.New("the secret is not there")
		}
		return fakeTarget{b.sink, sub.Name}, nil
	}
	b.run(t, config)
	await(t, "it fails", func() bool { return b.state(t, "erp").FailingSince != nil })
	assert.Equal(t, events.NotOpened+"the secret is not there", b.state(t, "erp").Failure)
	await(t, "it works, without an event", func() bool { return b.state(t, "erp").FailingSince == nil })
	ids := b.orders(t, "1")
	await(t, "the event", func() bool { return b.sink.has("erp", ids...) })
}

func TestSender_ATicketThatCannotBeReadYet_IsShown_AndReadLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	ids := b.orders(t, "1")
	b.exec(t, `UPDATE tickets SET dialect = 77`) // as a newer program would
	b.run(t, b.config(t))
	await(t, "it is shown", func() bool { return strings.Contains(b.state(t, "erp").Failure, "version 77 of the dialects") })
	assert.NotNil(t, b.state(t, "erp").FailingSince)
	b.exec(t, `UPDATE tickets SET dialect = 0`)
	await(t, "the event", func() bool { return b.sink.has("erp", ids...) })
	await(t, "it is taken back", func() bool { return b.state(t, "erp").Failure == "" })
}

func TestSender_Replay_SendsATimeAgain_WithNewEventsBetween(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := time.Now().UTC().Add(-2 * time.Hour).Truncate(time.Millisecond)
	var entries []*intake.Entry
	for i := range 3000 {
		entries = append(entries, entryAt(t, start.Add(time.Duration(i)*time.Second), body(fmt.Sprint(i+1), "Café,a,2")))
	}
	ids := b.save(t, entries...)
	b.awaitVisible(t)
	b.subscribe(t, "erp", onlyTickets)
	require.NoError(t, b.store.ReplaySubscription(t.Context(), tester, "erp", start.Add(100*time.Second), start.Add(2900*time.Second)))
	var between []string
	b.sink.failing(func(_ string, e events.Event) error { // called with the sink locked
		if e.ID == ids[200] && between == nil {
			between = b.orders(t, "live")
			b.awaitVisible(t)
		}
		return nil
	})
	b.run(t, b.config(t))
	await(t, "the replay", func() bool { return b.sink.has("erp", ids[100:2900]...) && b.state(t, "erp").Replay == nil })
	await(t, "the new event", func() bool { return b.sink.has("erp", between...) })
	got := b.sink.of("erp")
	assert.Len(t, got, 2801)
	live := slices.IndexFunc(got, func(e events.Event) bool { return e.ID == between[0] })
	assert.Less(t, live, 2800, "it does not wait for the end of the replay")
	replayed := slices.Delete(slices.Clone(got), live, live+1)
	assert.True(t, slices.IsSortedFunc(replayed, func(a, b events.Event) int { return strings.Compare(a.ID, b.ID) }))
	assert.Equal(t, int64(2801), b.state(t, "erp").Delivered)
}

func TestSender_AReplayThatIsOrderedAnew_TakesThePlaceOfTheOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := time.Now().UTC().Add(-2 * time.Hour).Truncate(time.Millisecond)
	b.subscribe(t, "erp", onlyTickets)
	ids := b.save(t, entryAt(t, start, body("1", "Café,a,2")), entryAt(t, start.Add(time.Minute), body("2", "Café,a,2")))
	b.run(t, b.config(t))
	await(t, "the events", func() bool { return b.sink.has("erp", ids...) })
	for i := range 3 { // the same time again and again
		require.NoError(t, b.store.ReplaySubscription(t.Context(), tester, "erp", start, start.Add(time.Second)))
		await(t, "the replay", func() bool { return b.state(t, "erp").Replay == nil })
		assert.Equal(t, i+2, b.sink.triesOf(ids[0]))
	}
	assert.Equal(t, 1, b.sink.triesOf(ids[1]))
}

func TestSender_Filters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	store := open(t, b.url, postgres.Sources{Tests: map[string]bool{"test": true}})
	for name, filter := range map[string]events.Filter{
		"all": {}, "errors": {Types: []string{events.TicketError}}, "till-2": {Sources: []string{"till-2"}},
		"treated":  {Statuses: []string{"TREATED"}, Types: []string{events.TicketTreated, events.TicketError}},
		"test":     {Sources: []string{"test"}, Types: []string{events.TicketTreated}},
		"products": {Types: []string{events.ProductChanged}, Statuses: []string{"ERROR"}},
	} {
		b.subscribe(t, name, func(s *events.Subscription) { s.Filter = filter })
	}
	config := b.config(t)
	config.Store = store
	b.run(t, config)
	b.store = store
	b.save(t, entry(t, "till-1", body("1", "Café,a,2")), entry(t, "till-2", body("2", "Tee,b,1")), entry(t, "till-1", "unreadable"),
		entry(t, "test", body("3", "Café,a,2")))
	await(t, "all are done", func() bool {
		subs, err := b.store.Subscriptions(t.Context())
		require.NoError(t, err)
		return !slices.ContainsFunc(subs, func(s events.SubscriptionState) bool { return s.Waiting > 0 })
	})
	got := func(name string) (kinds []string) {
		for _, e := range b.sink.of(name) {
			kinds = append(kinds, e.Key+" "+e.Type+" "+e.Product)
		}
		slices.Sort(kinds)
		return kinds
	}
	assert.Equal(t, []string{
		"till-1 product.changed a", "till-1 ticket.error ", "till-1 ticket.treated ", "till-2 product.changed b", "till-2 ticket.treated ",
	}, slices.DeleteFunc(got("all"), func(s string) bool { return strings.HasPrefix(s, "test ") }))
	assert.Equal(t, []string{"till-1 ticket.error "}, got("errors"))
	assert.Equal(t, []string{"till-2 product.changed b", "till-2 ticket.treated "}, got("till-2"))
	assert.Equal(t, []string{"till-1 ticket.treated ", "till-2 ticket.treated "}, got("treated"))
	assert.Equal(t, []string{"test ticket.treated "}, got("test"))
	assert.Len(t, got("products"), 2)
}

func TestSender_TicketsWithOldIDs_ArriveLikeOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	b.run(t, b.config(t))
	ids := b.orders(t, "1")
	await(t, "a new one", func() bool { return b.sink.has("erp", ids...) })
	ids = b.save(t, entryAt(t, time.Now().Add(-72*time.Hour), body("2", "Café,a,2"))) // it was in a spool
	await(t, "an old one", func() bool { return b.sink.has("erp", ids...) })
}

// held is the metric of the transaction that delays events, or -1 if it is not there.
func held(families []*dto.MetricFamily) float64 {
	for _, family := range families {
		if family.GetName() == "myticket_events_snapshot_held_seconds" {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

// neverAnswers is a store that does not say which transactions run.
type neverAnswers struct{ events.Store }

func (neverAnswers) Running(context.Context) (oldest, next uint64, err error) {
	return 0, 0, errors.New("no answer")
}

func TestSender_WhatIsNotKnownOfOpenTransactions_IsNoMetric(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp")
	config := b.config(t)
	registry := prometheus.NewRegistry()
	config.Store, config.Registry = neverAnswers{b.store}, registry
	b.run(t, config)
	await(t, "the other metrics", func() bool {
		families, err := registry.Gather()
		require.NoError(t, err)
		return slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "myticket_events_lag_seconds" }) &&
			held(families) == -1
	})
}

// TestSender_KilledAgainAndAgain: with a target that is so slow that no process lives until it has a thousand events, each process
// still notes some.
func TestSender_KilledAgainAndAgainWithASlowTarget_RepeatsLittle_AndEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	const tickets = 12
	var entries []*intake.Entry
	for i := range tickets {
		entries = append(entries, entry(t, ticket.DefaultSource, body(fmt.Sprint(i), "Café,a,2")))
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, b.save(t, e)...)
	}
	b.awaitVisible(t)
	lives := 0
	for ; !b.sink.has("erp", ids...); lives++ {
		require.Less(t, lives, tickets, "it ends")
		store, sent := &killable{Store: b.store}, 0
		config := b.config(t)
		config.Store, config.Grace = store, time.Millisecond
		ctx, kill := context.WithCancel(t.Context())
		b.sink.failing(func(string, events.Event) error {
			if sent++; sent > 2 { // after the first chunk
				store.dead.Store(true)
				kill()
				return errKilled
			}
			return nil
		})
		ended := make(chan struct{})
		go func() { defer close(ended); events.NewSender(config).Run(ctx) }()
		await(t, "the end of a process, or of the events", func() bool {
			if b.sink.has("erp", ids...) {
				kill()
			}
			return ctx.Err() != nil
		})
		<-ended
		b.exec(t, `UPDATE outbox_readers SET held_until = '-infinity'`)
	}
	assert.Greater(t, lives, 1)
	assert.Less(t, len(b.sink.of("erp")), 2*tickets)
}

func TestSender_ATransactionThatIsOpenForLong_DelaysEvents_AndLosesNone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	config := b.config(t)
	registry := prometheus.NewRegistry()
	config.Registry = registry
	b.run(t, config)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `SELECT pg_current_xact_id()`)
	require.NoError(t, err)
	ids := b.orders(t, "1", "2")
	time.Sleep(500 * time.Millisecond)
	assert.Empty(t, b.sink.of("erp"))
	assert.Equal(t, 2, b.state(t, "erp").Waiting)
	families, err := registry.Gather()
	require.NoError(t, err)
	assert.Positive(t, held(families))
	require.NoError(t, tx.Commit(t.Context()))
	await(t, "the events", func() bool { return b.sink.has("erp", ids...) })
}

func TestSender_ChangesOfTickets_AreTold_AsWhatTheTicketIsNow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	b.run(t, b.config(t))
	bad := entry(t, "default", "unreadable")
	id := bad.Ticket.ID
	b.save(t, bad)
	expect := func(version int, kind string) {
		t.Helper()
		await(t, fmt.Sprint(kind, " ", version), func() bool {
			return slices.ContainsFunc(b.sink.of("erp"), func(e events.Event) bool {
				return e.ID == fmt.Sprintf("%s.%d", id, version) && e.Type == kind
			})
		})
	}
	expect(1, events.TicketError)
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Dismiss, id))
	expect(2, events.TicketDismissed)
	_, err := b.store.ChangeTickets(t.Context(), tester, postgres.Reopen, postgres.Bulk{Filter: postgres.TicketFilter{Statuses: []ticket.Status{ticket.Dismissed}}})
	require.NoError(t, err)
	expect(3, events.TicketError)
	require.NoError(t, b.store.CorrectTicket(t.Context(), tester, id, postgres.NewText{Text: []byte(body("7", "Café,a,2"))}))
	expect(4, events.TicketToTreat)
	claims, err := b.store.Claim(t.Context(), 10, time.Minute)
	require.NoError(t, err)
	require.Len(t, claims, 1)
	claims[0].Ticket.Order, claims[0].Ticket.Problems = ticket.Parse(claims[0].Ticket.Body)
	claims[0].Ticket.Status = ticket.Treated
	_, _, err = b.store.Finish(t.Context(), claims[0])
	require.NoError(t, err)
	expect(5, events.TicketTreated)
	got := b.sink.of("erp")
	assert.Contains(t, string(got[len(got)-1].JSON), `"corrected":true`)
	assert.Contains(t, string(got[len(got)-1].JSON), `"order_number":"7"`)
}

func TestSender_ProductsThatChange_AreTold_AlsoWhenTheyAreSettled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", func(s *events.Subscription) { s.Filter.Types = []string{events.ProductChanged} })
	b.run(t, b.config(t))
	prices := func() (prices []string) {
		for _, e := range b.sink.of("erp") {
			var event struct {
				Data struct {
					Price string `json:"price"`
				} `json:"data"`
			}
			require.NoError(t, json.Unmarshal(e.JSON, &event))
			prices = append(prices, event.Data.Price)
		}
		return prices
	}
	now := time.Now()
	wrong := entryAt(t, now.Add(-10*time.Minute), body("2", "x,a,9"))
	b.save(t, entryAt(t, now.Add(-20*time.Minute), body("1", "x,a,1")))
	await(t, "a new product", func() bool { return slices.Equal(prices(), []string{"1"}) })
	b.save(t, wrong)
	await(t, "a new price", func() bool { return slices.Equal(prices(), []string{"1", "9"}) })
	b.save(t, entryAt(t, now.Add(-9*time.Minute), body("3", "x,a,9")))
	settle := func() {
		for n, err := b.store.SettleProducts(t.Context(), 0, 100); n > 0; n, err = b.store.SettleProducts(t.Context(), 0, 100) {
			require.NoError(t, err)
		}
	}
	settle()
	// The ticket with the price was wrong. What the others say counts.
	require.NoError(t, b.store.CorrectTicket(t.Context(), tester, wrong.Ticket.ID, postgres.NewText{Text: []byte(body("2", "x,b,9"))}))
	settle()
	await(t, "what counts after the correction", func() bool { return len(prices()) >= 3 })
	assert.Equal(t, []string{"1", "9", "9"}, prices())
	assert.Len(t, slices.CompactFunc(b.sink.of("erp"), func(a, b events.Event) bool { return a.ID == b.ID }), 3)

	// A ticket that was late by less than a minute is only noticed when the product is settled.
	b.exec(t, `UPDATE products SET name = 'wrong', unsettled_from = now() - interval '1 hour', named_until = NULL, ticket_id = $1, changed_at = $2 WHERE product_id = 'a'`,
		wrong.Ticket.ID, wrong.Ticket.ReceivedAt)
	settle()
	await(t, "what settling finds", func() bool { return len(prices()) >= 4 })
}

func TestSender_TicketsThatAreGone_AreCounted_AndHoldUpNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	gone := entry(t, "default", body("1", "Café,a,2"))
	b.save(t, gone)
	b.exec(t, `DELETE FROM tickets`)
	ids := b.orders(t, "2")
	config := b.config(t)
	registry := prometheus.NewRegistry()
	config.Registry = registry
	b.run(t, config)
	await(t, "the other", func() bool { return b.sink.has("erp", ids...) })
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP myticket_events_missing_tickets_total Tickets without an event, because they were dropped or set aside before it was sent, or cannot be read. Those that were set aside have one later.
# TYPE myticket_events_missing_tickets_total counter
myticket_events_missing_tickets_total{subscription="erp"} 1
`), "myticket_events_missing_tickets_total"))
}

// TestSender_BatchesLargerThanAChunk: the rows of one transaction are not split, so none of them is lost if the sender ends there.
func TestSender_BatchesLargerThanAChunk_AreDelivered_WhereverTheSenderEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "erp", onlyTickets)
	var entries []*intake.Entry
	for i := range 2500 {
		entries = append(entries, entry(t, "default", body(fmt.Sprint(i+1), "Café,a,2")))
	}
	ids := b.save(t, entries...)
	b.sink.failing(func(_ string, e events.Event) error {
		if e.ID == ids[1500] {
			return errAway
		}
		return nil
	})
	config := b.config(t)
	config.Attempts = math.MaxInt // no dead letter
	stop := b.run(t, config)
	await(t, "the first chunk", func() bool { return b.sink.has("erp", ids[1499]) })
	stop()
	b.sink.failing(nil)
	b.run(t, b.config(t))
	await(t, "all", func() bool { return b.sink.has("erp", ids...) && b.state(t, "erp").Waiting == 0 })
	inOrder(t, b, "erp")
}
