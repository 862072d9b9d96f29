package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/postgres"
)

// subscription is one that gets all events.
func subscription(name string) events.Subscription {
	return events.Subscription{Name: name, Target: "https://shop.example/events"}
}

func subscriptionState(t *testing.T, b *testBundle, name string) events.SubscriptionState {
	t.Helper()
	subs, err := b.store.Subscriptions(t.Context())
	require.NoError(t, err)
	for _, sub := range subs {
		if sub.Name == name {
			return sub
		}
	}
	require.FailNow(t, "no such subscription", name)
	return events.SubscriptionState{}
}

// auditActions returns the actions of the audit, the oldest first.
func auditActions(t *testing.T, b *testBundle) []string {
	t.Helper()
	return one[[]string](t, b, `SELECT coalesce(array_agg(action ORDER BY id), '{}') FROM audit`)
}

func TestSubscriptions_AreMadePausedResumedReplayedAndDeleted_WithTheirRowsInTheAudit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := subscription("erp")
	sub.Settings = events.Settings{Secret: "file:/etc/secret", Options: map[string]string{"timeout": "5s"}}
	sub.Filter = events.Filter{Types: []string{events.TicketTreated}, Sources: []string{"till-7"}}
	sub.Body = true
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
	require.ErrorIs(t, b.store.CreateSubscription(t.Context(), tester, sub), postgres.ErrSubscriptionExists)
	is := subscriptionState(t, b, "erp")
	assert.Equal(t, events.SubscriptionState{Subscription: sub}, is)

	save(t, b, entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,2")))
	is = subscriptionState(t, b, "erp")
	assert.Equal(t, 2, is.Waiting)
	assert.Positive(t, is.Behind)

	require.NoError(t, b.store.PauseSubscription(t.Context(), postgres.Person{Who: "kim", Why: "the ERP moves"}, "erp"))
	require.NoError(t, b.store.PauseSubscription(t.Context(), tester, "erp"))
	is = subscriptionState(t, b, "erp")
	assert.NotNil(t, is.Paused)
	assert.Equal(t, "paused by kim: the ERP moves", is.PausedWhy)
	require.NoError(t, b.store.ResumeSubscription(t.Context(), tester, "erp"))
	require.NoError(t, b.store.ResumeSubscription(t.Context(), tester, "erp"))
	assert.Nil(t, subscriptionState(t, b, "erp").Paused)

	from := time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond)
	require.NoError(t, b.store.ReplaySubscription(t.Context(), tester, "erp", from, time.Now().Add(time.Hour)))
	is = subscriptionState(t, b, "erp")
	require.NotNil(t, is.Replay)
	assert.Equal(t, from, is.Replay.From)
	assert.WithinDuration(t, time.Now(), is.Replay.Until, 10*time.Second, "it ends now")
	require.Error(t, b.store.ReplaySubscription(t.Context(), tester, "erp", from, from))

	require.NoError(t, b.store.DeleteSubscription(t.Context(), tester, "erp"))
	subs, err := b.store.Subscriptions(t.Context())
	require.NoError(t, err)
	assert.Empty(t, subs)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM outbox_readers`))
	assert.Equal(t, []string{
		"subscriptions.create", "subscriptions.pause", "subscriptions.resume", "subscriptions.replay", "subscriptions.delete",
	}, auditActions(t, b))
}

func TestSubscriptions_OfANameThatThereIsNot_AreAnError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.ErrorIs(t, b.store.PauseSubscription(t.Context(), tester, "none"), postgres.ErrNoSubscription)
	require.ErrorIs(t, b.store.ResumeSubscription(t.Context(), tester, "none"), postgres.ErrNoSubscription)
	require.ErrorIs(t, b.store.DeleteSubscription(t.Context(), tester, "none"), postgres.ErrNoSubscription)
	require.ErrorIs(t, b.store.ReplaySubscription(t.Context(), tester, "none", time.Now().Add(-time.Hour), time.Now()), postgres.ErrNoSubscription)
	_, err := b.store.DeadLetters(t.Context(), "none", 0, 10)
	require.ErrorIs(t, err, postgres.ErrNoSubscription)
	_, err = b.store.ReplayDeadLetters(t.Context(), tester, "none", nil)
	require.ErrorIs(t, err, postgres.ErrNoSubscription)
	_, err = b.store.DeleteDeadLetters(t.Context(), tester, "none", nil)
	require.ErrorIs(t, err, postgres.ErrNoSubscription)
	assert.Empty(t, auditActions(t, b))
}

func TestDeadLetters_AreListedSentAgainAndDeleted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, subscription("erp")))
	exec(t, b, `INSERT INTO dead_letters (subscription, event, type, ticket_id, product_id, attempts, reason)
		SELECT 'erp', 'e' || n, 'ticket.treated', gen_random_uuid(), NULL, 1, 'no' FROM generate_series(1, 5) n`)
	letters, err := b.store.DeadLetters(t.Context(), "erp", 0, 2)
	require.NoError(t, err)
	require.Len(t, letters, 2)
	more, err := b.store.DeadLetters(t.Context(), "erp", letters[1].ID, 10)
	require.NoError(t, err)
	require.Len(t, more, 3)
	assert.Equal(t, "e3", more[0].Event)
	assert.Equal(t, 5, subscriptionState(t, b, "erp").DeadLetters)

	n, err := b.store.ReplayDeadLetters(t.Context(), tester, "erp", []int64{letters[0].ID, 99})
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	n, err = b.store.DeleteDeadLetters(t.Context(), tester, "erp", []int64{letters[1].ID})
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	n, err = b.store.ReplayDeadLetters(t.Context(), tester, "erp", nil)
	require.NoError(t, err)
	assert.Equal(t, 4, n)
	assert.Equal(t, []string{"subscriptions.create", "dead_letters.replay", "dead_letters.delete", "dead_letters.replay"}, auditActions(t, b))
	require.NoError(t, b.store.DeleteSubscription(t.Context(), tester, "erp"))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM dead_letters`))
}

func TestDeclareSubscriptions_CreatesChangesAndPauses_ButNeverDeletes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mine := subscription("mine")
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, mine))
	erp, loyalty := subscription("erp"), subscription("loyalty")
	changes, err := b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{erp, loyalty})
	require.NoError(t, err)
	assert.Equal(t, postgres.DeclaredChanges{Created: []string{"erp", "loyalty"}}, changes)
	assert.True(t, subscriptionState(t, b, "erp").Declared)

	erp.Filter.Types = []string{} // the same as none
	changes, err = b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{erp, loyalty})
	require.NoError(t, err)
	assert.Equal(t, postgres.DeclaredChanges{}, changes)

	erp.Target = "nats://nats.example:4222/tickets"
	changes, err = b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{erp})
	require.NoError(t, err)
	assert.Equal(t, postgres.DeclaredChanges{Changed: []string{"erp"}, Paused: []string{"loyalty"}}, changes)
	assert.Equal(t, erp.Target, subscriptionState(t, b, "erp").Target)
	assert.NotNil(t, subscriptionState(t, b, "loyalty").Paused)

	changes, err = b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{erp, loyalty, mine})
	require.ErrorContains(t, err, "subscription mine: a person made it")
	assert.Equal(t, postgres.DeclaredChanges{Resumed: []string{"loyalty"}}, changes, "the others are declared all the same")
	assert.Nil(t, subscriptionState(t, b, "loyalty").Paused)

	// What a person paused stays paused.
	require.NoError(t, b.store.PauseSubscription(t.Context(), tester, "erp"))
	_, err = b.store.DeclareSubscriptions(t.Context(), tester, nil)
	require.NoError(t, err)
	_, err = b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{erp})
	require.NoError(t, err)
	assert.NotNil(t, subscriptionState(t, b, "erp").Paused)
	assert.Nil(t, subscriptionState(t, b, "mine").Paused)
	_, err = b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{erp, erp})
	require.ErrorContains(t, err, "twice")
}

func TestDeclareSubscriptions_TheLargestFilterThatIsValid_IsStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := subscription("large")
	for i := range 1000 {
		sub.Filter.Sources = append(sub.Filter.Sources, fmt.Sprintf("%063d", i))
	}
	sub.Settings.Options = map[string]string{}
	for i := range 50 {
		sub.Settings.Options[fmt.Sprintf("%02d", i)] = strings.Repeat(`"`, 998)
	}
	_, err := b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{subscription("a"), sub})
	require.NoError(t, err)
}

func TestCreateSubscription_WithWhatTheDatabaseCannotStore_SaysSo(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*events.Subscription){
		func(sub *events.Subscription) { sub.Target += "\xff" },
		func(sub *events.Subscription) { sub.Settings.Secret = "file:/a\x00b" },
		func(sub *events.Subscription) { sub.Settings.Options = map[string]string{"a": "x\x00y"} },
	} {
		sub := subscription("erp")
		change(&sub)
		require.ErrorContains(t, sub.Validate(), "not printable")
	}
}
