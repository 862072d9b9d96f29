package postgres

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/events"
	"myticket/internal/ticket"
)

var (
	// ErrSubscriptionExists means that there is a subscription of the same name.
	ErrSubscriptionExists = errors.New("there is a subscription of this name already; nothing was changed")

	// ErrNoSubscription means that there is no subscription of this name.
	ErrNoSubscription = errors.New("there is no such subscription; nothing was changed")
)

// subscriptionReader is the name under which a subscription's place in the outbox is kept.
func subscriptionReader(name string) string { return subscriptionPrefix + name }

const subscriptionPrefix = `subscription/`

// insertSubscription also tells of a subscription whose name is taken.
const insertSubscription = `
INSERT INTO subscriptions (name, target, settings, filter, body, declared) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (name) DO NOTHING`

// beginReader begins after all transactions that have ended by now, and before all that are under way. So no ticket is missed
// that is stored after it, but some may be delivered that were stored shortly before.
const beginReader = `
INSERT INTO outbox_readers (name, system_identifier, xid, at)
SELECT $1, system_identifier, (pg_snapshot_xmin(pg_current_snapshot())::text::numeric - 1)::text::xid8, now()
FROM pg_control_system()
ON CONFLICT (name) DO UPDATE
SET system_identifier = excluded.system_identifier, xid = excluded.xid, own_xid = NULL, at = excluded.at,
    holder = NULL, held_until = '-infinity'`

// onSubscription makes a change of a subscription with its row in the audit. The change returns ErrNoSubscription if there is no
// such one. It returns what the audit says of it; nil if it changed nothing.
func (s *Store) onSubscription(
	ctx context.Context, doing string, by Person, action, name string, change func(pgx.Tx) (details map[string]any, err error),
) error {
	err := s.on(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			details, err := change(tx)
			if err != nil || details == nil {
				return err
			}
			return audit(ctx, tx, AuditEntry{
				Who: by.Who, Why: by.Why, Action: action, Filter: map[string]any{"subscription": name}, Details: details,
			})
		})
	})
	if errors.Is(err, ErrSubscriptionExists) || errors.Is(err, ErrNoSubscription) {
		return fmt.Errorf("subscription %s: %w", name, err)
	}
	return explain(doing, err)
}

// CreateSubscription adds a subscription, which gets events about what is stored and changed from now on. It returns
// ErrSubscriptionExists, or what is wrong with it.
func (s *Store) CreateSubscription(ctx context.Context, by Person, sub events.Subscription) error {
	if err := sub.Validate(); err != nil {
		return err
	}
	return s.onSubscription(ctx, "create a subscription", by, ActionSubscribe, sub.Name, func(tx pgx.Tx) (map[string]any, error) {
		if err := createSubscription(ctx, tx, sub, false); err != nil {
			return nil, err
		}
		return described(sub), nil
	})
}

func createSubscription(ctx context.Context, tx pgx.Tx, sub events.Subscription, declared bool) error {
	tag, err := tx.Exec(ctx, insertSubscription, sub.Name, sub.Target, sub.Settings, sub.Filter, sub.Body, declared)
	switch {
	case err != nil:
		return err
	case tag.RowsAffected() == 0:
		return ErrSubscriptionExists
	}
	_, err = tx.Exec(ctx, beginReader, subscriptionReader(sub.Name))
	return err
}

// described is what the audit says of a subscription that was made or changed. Secrets are references.
func described(sub events.Subscription) map[string]any {
	return map[string]any{"target": sub.Target, "settings": sub.Settings, "filter": sub.Filter, "body": sub.Body}
}

// selectSubscriptions counts the tickets of no more than 10,000 batches for each, and its dead letters.
const selectSubscriptions = `
SELECT s.name, s.target, s.settings, s.filter, s.body, s.declared, s.paused_at, s.paused_why, s.delivered, s.delivered_at,
       s.failing_since, s.failure, s.replay_from, s.replay_until, s.replay_after,
       (SELECT count(*) FROM dead_letters d WHERE d.subscription = s.name), w.oldest, w.tickets
FROM subscriptions s CROSS JOIN LATERAL (
    SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 AS oldest,
           coalesce(sum(octet_length(tickets)) / 16, 0)::int8 AS tickets
    FROM (SELECT o.at, o.tickets FROM outbox o
          WHERE o.xid > coalesce((SELECT ` + ownPlace + ` FROM outbox_readers r
                                  WHERE r.name = '` + subscriptionPrefix + `' || s.name), '0')
          ORDER BY o.xid LIMIT 10000) unread) w
ORDER BY s.name`

// Subscriptions returns all subscriptions in the order of their names, and how far each has come.
func (s *Store) Subscriptions(ctx context.Context) ([]events.SubscriptionState, error) {
	var subs []events.SubscriptionState
	err := s.steady(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, selectSubscriptions)
		if err != nil {
			return err
		}
		subs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (sub events.SubscriptionState, err error) {
			var from, until *time.Time
			var after *uuid.UUID
			var oldest float64
			err = row.Scan(&sub.Name, &sub.Target, &sub.Settings, &sub.Filter, &sub.Body, &sub.Declared, &sub.Paused, &sub.PausedWhy,
				&sub.Delivered, &sub.DeliveredAt, &sub.FailingSince, &sub.Failure, &from, &until, &after, &sub.DeadLetters,
				&oldest, &sub.Waiting)
			sub.Behind = seconds(max(oldest, 0))
			if from != nil && until != nil {
				sub.Replay = &events.Replay{From: from.UTC(), Until: until.UTC()}
				if after != nil {
					sub.Replay.At = new(ticket.IDTime(*after))
				}
			}
			for _, at := range []**time.Time{&sub.Paused, &sub.DeliveredAt, &sub.FailingSince} {
				if *at != nil {
					*at = new((*at).UTC())
				}
			}
			return sub, err
		})
		return err
	})
	return subs, explain("list the subscriptions", err)
}

// subscriptionThere returns ErrNoSubscription if there is no such subscription. It locks the one that is there.
func subscriptionThere(ctx context.Context, tx pgx.Tx, name string) error {
	tag, err := tx.Exec(ctx, `SELECT FROM subscriptions WHERE name = $1 FOR UPDATE`, name)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrNoSubscription
	}
	return err
}

const pauseSubscription = `
UPDATE subscriptions SET paused_at = now(), paused_why = $2 WHERE name = $1 AND paused_at IS NULL`

// PauseSubscription stops the delivery of events. They are kept for the subscription, and so is the outbox with them. It changes
// nothing if the subscription is paused. It returns ErrNoSubscription if there is none.
func (s *Store) PauseSubscription(ctx context.Context, by Person, name string) error {
	why := "paused by " + ticket.CleanText(by.Who, MaxWho)
	if by.Why != "" {
		why += ": " + ticket.CleanText(by.Why, MaxReason)
	}
	return s.pauseSubscription(ctx, by, name, why)
}

func (s *Store) pauseSubscription(ctx context.Context, by Person, name, why string) error {
	return s.onSubscription(ctx, "pause a subscription", by, ActionPause, name, func(tx pgx.Tx) (map[string]any, error) {
		if err := subscriptionThere(ctx, tx, name); err != nil {
			return nil, err
		}
		tag, err := tx.Exec(ctx, pauseSubscription, name, why)
		if err != nil || tag.RowsAffected() == 0 {
			return nil, err
		}
		return map[string]any{"why": why}, nil
	})
}

const resumeSubscription = `
UPDATE subscriptions SET paused_at = NULL, paused_why = '', failing_since = NULL, failure = ''
WHERE name = $1 AND paused_at IS NOT NULL`

// ResumeSubscription has a paused subscription go on where it was. It changes nothing if it is not paused. It returns
// ErrNoSubscription if there is none.
func (s *Store) ResumeSubscription(ctx context.Context, by Person, name string) error {
	return s.onSubscription(ctx, "resume a subscription", by, ActionResume, name, func(tx pgx.Tx) (map[string]any, error) {
		if err := subscriptionThere(ctx, tx, name); err != nil {
			return nil, err
		}
		tag, err := tx.Exec(ctx, resumeSubscription, name)
		if err != nil || tag.RowsAffected() == 0 {
			return nil, err
		}
		return map[string]any{}, nil
	})
}

// DeleteSubscription deletes a subscription with its place and its dead letters. It returns ErrNoSubscription if there is none.
func (s *Store) DeleteSubscription(ctx context.Context, by Person, name string) error {
	return s.onSubscription(ctx, "delete a subscription", by, ActionUnsubscribe, name, func(tx pgx.Tx) (map[string]any, error) {
		// The place first, as a step does, so that the two cannot deadlock.
		if _, err := tx.Exec(ctx, `DELETE FROM outbox_readers WHERE name = $1`, subscriptionReader(name)); err != nil {
			return nil, err
		}
		var sub events.Subscription
		err := tx.QueryRow(ctx, `DELETE FROM subscriptions WHERE name = $1 RETURNING target, settings, filter, body`, name).
			Scan(&sub.Target, &sub.Settings, &sub.Filter, &sub.Body)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, ErrNoSubscription
		}
		return described(sub), err
	})
}

const replaySubscription = `
UPDATE subscriptions SET replay_from = $2, replay_until = least($3, now()), replay_after = NULL
WHERE name = $1 AND $2 < least($3, now())`

// ReplaySubscription has the events about all tickets delivered again that were received from a time on, and before another one,
// which is now at the latest. It takes the place of a replay that is under way. New events are delivered meanwhile. It returns
// ErrNoSubscription if there is no such subscription.
func (s *Store) ReplaySubscription(ctx context.Context, by Person, name string, from, until time.Time) error {
	empty := false
	err := s.onSubscription(ctx, "replay events", by, ActionReplay, name, func(tx pgx.Tx) (map[string]any, error) {
		if err := subscriptionThere(ctx, tx, name); err != nil {
			return nil, err
		}
		tag, err := tx.Exec(ctx, replaySubscription, name, from, until)
		if empty = err == nil && tag.RowsAffected() == 0; err != nil || empty {
			return nil, err
		}
		return map[string]any{"from": from.UTC(), "until": until.UTC()}, nil
	})
	if err == nil && empty {
		return fmt.Errorf("subscription %s: no ticket was received from %s on and before %s, or now; nothing is replayed",
			name, from.UTC().Format(time.RFC3339), until.UTC().Format(time.RFC3339))
	}
	return err
}

// DeclaredChanges are the names of subscriptions that DeclareSubscriptions changed.
type DeclaredChanges struct {
	Created, Changed, Resumed []string
	Paused                    []string // they are not declared any more
}

// notDeclared is why a subscription is paused that is not declared any more.
const notDeclared = "it is not in the file of subscriptions any more"

// declaredSubscription is one that is there.
type declaredSubscription struct {
	events.Subscription
	declared, paused bool
	why              string
}

const selectDeclared = `
SELECT name, target, settings, filter, body, declared, paused_at IS NOT NULL, paused_why FROM subscriptions ORDER BY name`

// changeSubscription also has its senders open the target anew.
const changeSubscription = `
UPDATE subscriptions SET target = $2, settings = $3, filter = $4, body = $5, changed_at = now() WHERE name = $1`

// DeclareSubscriptions makes subscriptions what a file says: it creates and changes those that are in it, and pauses those that
// were in it and are not any more. It never deletes one, because its place would be lost. It resumes those that it paused.
// Subscriptions of people are left alone: one of the same name is an error, and the others are declared all the same.
func (s *Store) DeclareSubscriptions(ctx context.Context, by Person, subs []events.Subscription) (DeclaredChanges, error) {
	wanted := make(map[string]events.Subscription, len(subs))
	for i := range subs {
		if err := subs[i].Validate(); err != nil {
			return DeclaredChanges{}, err
		}
		if _, twice := wanted[subs[i].Name]; twice {
			return DeclaredChanges{}, fmt.Errorf("subscription %s is declared twice; nothing was changed", subs[i].Name)
		}
		wanted[subs[i].Name] = subs[i]
	}
	var changes DeclaredChanges
	var foreign error
	err := s.on(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			d := declaration{tx: tx, by: by}
			foreign = nil
			if err := d.load(ctx); err != nil {
				return err
			}
			for i := range subs {
				if is, ok := d.there[subs[i].Name]; ok && !is.declared {
					foreign = errors.Join(foreign, fmt.Errorf("subscription %s: a person made it, so the file does not change it: "+
						"delete it, or give that of the file another name", subs[i].Name))
					continue
				}
				if err := d.declare(ctx, subs[i]); err != nil {
					return err
				}
			}
			err := d.pauseOthers(ctx, wanted)
			changes = d.changes
			return err
		})
	})
	if err != nil {
		return DeclaredChanges{}, explain("declare subscriptions", err)
	}
	return changes, foreign
}

// declaration is one transaction of DeclareSubscriptions.
type declaration struct {
	tx      pgx.Tx
	by      Person
	there   map[string]declaredSubscription
	names   []string // of those that are there, in their order
	changes DeclaredChanges
}

func (d *declaration) load(ctx context.Context) error {
	// Only one process declares at a time.
	if _, err := d.tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'; LOCK TABLE subscriptions IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		return err
	}
	rows, err := d.tx.Query(ctx, selectDeclared)
	if err != nil {
		return err
	}
	d.there = map[string]declaredSubscription{}
	var is declaredSubscription
	for rows.Next() {
		is = declaredSubscription{}
		err := rows.Scan(&is.Name, &is.Target, &is.Settings, &is.Filter, &is.Body, &is.declared, &is.paused, &is.why)
		if err != nil {
			rows.Close()
			return err
		}
		d.there[is.Name], d.names = is, append(d.names, is.Name)
	}
	return rows.Err()
}

func (d *declaration) declare(ctx context.Context, sub events.Subscription) error {
	is, ok := d.there[sub.Name]
	if !ok {
		d.changes.Created = append(d.changes.Created, sub.Name)
		if err := createSubscription(ctx, d.tx, sub, true); err != nil {
			return err
		}
		return d.audit(ctx, ActionSubscribe, sub.Name, described(sub))
	}
	if !sameSubscription(is.Subscription, sub) {
		d.changes.Changed = append(d.changes.Changed, sub.Name)
		if _, err := d.tx.Exec(ctx, changeSubscription, sub.Name, sub.Target, sub.Settings, sub.Filter, sub.Body); err != nil {
			return err
		}
		if err := d.audit(ctx, ActionResubscribe, sub.Name, described(sub)); err != nil {
			return err
		}
	}
	if is.paused && is.why == notDeclared {
		d.changes.Resumed = append(d.changes.Resumed, sub.Name)
		if _, err := d.tx.Exec(ctx, resumeSubscription, sub.Name); err != nil {
			return err
		}
		return d.audit(ctx, ActionResume, sub.Name, nil)
	}
	return nil
}

func (d *declaration) pauseOthers(ctx context.Context, wanted map[string]events.Subscription) error {
	for _, name := range d.names {
		is := d.there[name]
		if _, ok := wanted[name]; ok || !is.declared || is.paused {
			continue
		}
		d.changes.Paused = append(d.changes.Paused, name)
		if _, err := d.tx.Exec(ctx, pauseSubscription, name, notDeclared); err != nil {
			return err
		}
		if err := d.audit(ctx, ActionPause, name, map[string]any{"why": notDeclared}); err != nil {
			return err
		}
	}
	return nil
}

func (d *declaration) audit(ctx context.Context, action, name string, details any) error {
	return audit(ctx, d.tx, AuditEntry{
		Who: d.by.Who, Why: d.by.Why, Action: action, Filter: map[string]any{"subscription": name}, Details: details,
	})
}

// sameSubscription reports whether two subscriptions are the same. An empty list is none.
func sameSubscription(a, b events.Subscription) bool {
	for _, sub := range []*events.Subscription{&a, &b} {
		for _, values := range []*[]string{&sub.Filter.Types, &sub.Filter.Sources, &sub.Filter.Statuses} {
			if len(*values) == 0 {
				*values = nil
			}
		}
		if len(sub.Settings.Options) == 0 {
			sub.Settings.Options = nil
		}
	}
	return reflect.DeepEqual(a, b)
}

// DeadLetters returns up to limit dead letters of a subscription, the oldest first. After is the last one of the previous page,
// or 0. It returns ErrNoSubscription if there is no such subscription.
func (s *Store) DeadLetters(ctx context.Context, name string, after int64, limit int) ([]events.DeadLetter, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT d.id, d.event, d.type, d.ticket_id, coalesce(d.product_id, ''), d.at, d.attempts, d.reason
		FROM dead_letters d WHERE d.subscription = $1 AND d.id > $2 ORDER BY d.id LIMIT $3`, name, after, limit)
	if err != nil {
		return nil, explain("list dead letters", err)
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d events.DeadLetter, err error) {
		err = row.Scan(&d.ID, &d.Event, &d.Type, &d.Ticket, &d.Product, &d.At, &d.Attempts, &d.Reason)
		d.At = d.At.UTC()
		return d, err
	})
	if err != nil || len(letters) > 0 {
		return letters, explain("list dead letters", err)
	}
	var there bool
	err = s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM subscriptions WHERE name = $1)`, name).Scan(&there)
	if err == nil && !there {
		return nil, fmt.Errorf("subscription %s: %w", name, ErrNoSubscription)
	}
	return letters, explain("list dead letters", err)
}

// ReplayDeadLetters has the events of dead letters sent again: those with some ids, or all with nil. Each then says what its
// ticket or product is now. It is no dead letter any more once the target has it. It returns how many will be sent.
func (s *Store) ReplayDeadLetters(ctx context.Context, by Person, name string, ids []int64) (n int, err error) {
	return s.changeDeadLetters(ctx, by, ActionReplayDeadLetters, name, ids, `UPDATE dead_letters SET attempts = 0`)
}

// DeleteDeadLetters deletes dead letters: those with some ids, or all with nil. It returns how many.
func (s *Store) DeleteDeadLetters(ctx context.Context, by Person, name string, ids []int64) (n int, err error) {
	return s.changeDeadLetters(ctx, by, ActionDeleteDeadLetters, name, ids, `DELETE FROM dead_letters`)
}

func (s *Store) changeDeadLetters(
	ctx context.Context, by Person, action, name string, ids []int64, change string,
) (n int, err error) {
	err = s.onSubscription(ctx, "change dead letters", by, action, name, func(tx pgx.Tx) (map[string]any, error) {
		if err := subscriptionThere(ctx, tx, name); err != nil {
			return nil, err
		}
		tag, err := tx.Exec(ctx, change+` WHERE subscription = $1 AND ($2::bigint[] IS NULL OR id = ANY ($2))`, name, ids)
		if n = int(tag.RowsAffected()); err != nil || n == 0 {
			return nil, err
		}
		return map[string]any{"events": n}, nil
	})
	return n, err
}
