package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// withdrawProducts marks products that a ticket named whose text is replaced. A product that changed later does not have its name
// and price from that ticket. But if it is withdrawn already, a server may be about to give it those of that ticket.
//
// From then on no server remembers the product, and each ticket that names it updates last_seen_at, because that is before
// first_seen_at. named_until has what last_seen_at said: the last ticket that named the product was received before it. Tickets
// of sources that are not authenticated may have named an authenticated product later.
const withdrawProducts = `
WITH named AS (
    SELECT product_id FROM products WHERE product_id = ANY ($1::text[]) AND (changed_at <= $2 OR named_until IS NOT NULL)
    ORDER BY product_id FOR UPDATE
)
UPDATE products p
SET unsettled_from = now(), last_seen_at = first_seen_at - $3::interval,
    named_until = greatest(named_until, last_seen_at + $3::interval, CASE WHEN authenticated THEN now() + interval '1 day' END)
FROM named WHERE p.product_id = named.product_id`

// withdraw takes back what a ticket said about products, in the transaction that replaces its text. The products keep their names
// and prices for now. Once all transactions have ended that relied on them, learnAgain finds out what counts.
func withdraw(ctx context.Context, tx pgx.Tx, products []string, at time.Time) error {
	_, err := tx.Exec(ctx, withdrawProducts, products, at, lastSeenStep)
	return err
}

// withdrawnProducts selects products that were withdrawn a while ago, those first whose tickets are the newest.
const withdrawnProducts = `
WITH due AS (
    SELECT product_id, unsettled_from, first_seen_at, last_seen_at, authenticated,
           greatest(named_until, last_seen_at + $3::interval) AS until
    FROM products
    WHERE unsettled_from < now() - $1::interval AND named_until IS NOT NULL
    ORDER BY unsettled_from LIMIT $2
)
SELECT * FROM due ORDER BY until DESC, product_id`

// theSame are withdrawn products that have not changed since they were selected. It never waits for a lock, as settled.
const theSame = `
WITH same AS (
    SELECT p.product_id, u.n FROM products p
    JOIN unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS u (product_id, since, last_seen_at, n)
      ON p.product_id = u.product_id AND p.unsettled_from = u.since AND p.last_seen_at = u.last_seen_at
    WHERE p.named_until IS NOT NULL
    FOR UPDATE OF p SKIP LOCKED
)`

// learned sets what the newest tickets say. That is a change as any other, so it has to be settled, too.
//
// It notes in the outbox which tickets say so.
const learned = theSame + `, changed AS (
UPDATE products p
SET name = i.name, price = i.price, ticket_id = i.ticket_id, changed_at = i.at, authenticated = i.authenticated,
    last_seen_at = greatest(p.last_seen_at, i.at), unsettled_from = now(), named_until = NULL
FROM same JOIN unnest($4::text[], $5::text[]::numeric[], $6::uuid[], $7::timestamptz[], $8::bool[]) WITH ORDINALITY
    AS i (name, price, ticket_id, at, authenticated, n) USING (n)
WHERE p.product_id = same.product_id
RETURNING p.ticket_id)
INSERT INTO outbox (kind, tickets)
SELECT '` + kindProducts + `', string_agg(DISTINCT uuid_send(ticket_id), ''::bytea) FROM changed HAVING count(*) > 0`

// forgotten removes products that no ticket names any more.
const forgotten = theSame + `
DELETE FROM products p USING same
WHERE p.product_id = same.product_id AND EXISTS (SELECT FROM tickets WHERE received_at = p.first_seen_at)`

// kept is for products that are older than all tickets: others named them, which are gone, so they keep their names and prices.
const kept = theSame + `
UPDATE products p
SET unsettled_from = NULL, named_until = NULL, last_seen_at = greatest(p.last_seen_at, p.named_until - $4::interval)
FROM same WHERE p.product_id = same.product_id`

// outranked is for products of authenticated sources that no ticket of such a source names any more. Tickets of other sources did
// not move last_seen_at, so only from now on they are noticed, and are looked at the next time.
const outranked = theSame + `
UPDATE products p
SET authenticated = false, unsettled_from = now(), named_until = greatest(p.named_until, now() + interval '1 day'),
    last_seen_at = p.first_seen_at - $4::interval
FROM same WHERE p.product_id = same.product_id`

// goOn is for products whose tickets were read back to a time. The rest is for the next time.
const goOn = theSame + `
UPDATE products p
SET unsettled_from = now(), named_until = least(greatest(p.named_until, p.last_seen_at + $5::interval), $4),
    last_seen_at = p.first_seen_at - $5::interval
FROM same WHERE p.product_id = same.product_id`

// learnLater puts products off.
const learnLater = theSame + `
UPDATE products p SET unsettled_from = now() + $4::interval FROM same WHERE p.product_id = same.product_id`

// learnAgain sets withdrawn products to what the newest tickets say that name them. It removes a product that no ticket names any
// more. It returns how many it looked at, at most limit; 0 means that there are no more.
//
// A product that no ticket has named for long takes long to search: it goes on the next time where it stopped.
func (s *Store) learnAgain(ctx context.Context, after time.Duration, limit int) (int, error) {
	products, err := s.withdrawnProducts(ctx, after, limit)
	if err != nil || len(products) == 0 {
		return 0, explain("look for products of corrected tickets", err)
	}
	newest, err := s.newestSayings(ctx, products)
	setAside := errors.Is(err, errSetAside)
	moved := newest.reached.Before(products[0].to)
	switch {
	case err == nil, setAside, slow(err) && moved:
	case ctx.Err() != nil || !answered(err):
		return 0, explain("look for what counts for products of corrected tickets", err)
	default:
		w := withdrawnOf(products)
		if _, laterErr := s.pool.Exec(ctx, learnLater, w.ids, w.since, w.lastSeen, longestPause); laterErr != nil {
			return 0, explain("put products off", laterErr)
		}
		return len(products), fmt.Errorf("%d products that a corrected ticket named, among them %q, keep what it said for an hour: %w",
			len(products), products[0].id, explain("read the tickets that name them", err))
	}
	err = s.storeLearned(ctx, products, newest, setAside)
	return len(products), explain("store what counts for products of corrected tickets", err)
}

// storeLearned stores what was found.
func (s *Store) storeLearned(ctx context.Context, products []unsettled, newest *sayingsFound, setAside bool) error {
	var named, unnamed, lower, again, rest []unsettled
	var sayings []saying
	for _, p := range products {
		said, ok := newest.found[p.id]
		switch {
		case setAside:
			rest = append(rest, p)
		case !p.lastSeen.Before(p.from) && (!ok || said.firstAt.Before(p.lastSeen)):
			// An older ticket came late, so first_seen_at went back. One in between does not move last_seen_at: it may come now.
			again = append(again, p)
		case ok:
			named, sayings = append(named, p), append(sayings, said)
		case newest.reached.Before(p.from) && p.authenticated && s.authenticated != nil:
			lower = append(lower, p)
		case newest.reached.Before(p.from):
			unnamed = append(unnamed, p)
		default:
			rest = append(rest, p)
		}
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		if w := withdrawnOf(named); len(named) > 0 {
			v := valuesOf(sayings)
			batch.Queue(learned, w.ids, w.since, w.lastSeen, v.names, v.prices, v.tickets, v.times, v.authenticated)
		}
		if w := withdrawnOf(unnamed); len(unnamed) > 0 {
			batch.Queue(forgotten, w.ids, w.since, w.lastSeen)
			batch.Queue(kept, w.ids, w.since, w.lastSeen, lastSeenStep)
		}
		if w := withdrawnOf(lower); len(lower) > 0 {
			batch.Queue(outranked, w.ids, w.since, w.lastSeen, lastSeenStep)
		}
		if w := withdrawnOf(again); len(again) > 0 {
			batch.Queue(goOn, w.ids, w.since, w.lastSeen, products[0].to, lastSeenStep)
		}
		if w := withdrawnOf(rest); len(rest) > 0 {
			batch.Queue(goOn, w.ids, w.since, w.lastSeen, newest.reached, lastSeenStep)
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

func (s *Store) withdrawnProducts(ctx context.Context, after time.Duration, limit int) ([]unsettled, error) {
	rows, err := s.pool.Query(ctx, withdrawnProducts, after, limit, lastSeenStep)
	if err != nil {
		return nil, err
	}
	products, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (unsettled, error) {
		var p unsettled
		return p, row.Scan(&p.id, &p.since, &p.from, &p.lastSeen, &p.authenticated, &p.to)
	})
	var earliest time.Time
	// Only those whose times overlap, so that none waits while tickets are read that can name none of them.
	for i := range products {
		if i == 0 || products[i].from.Before(earliest) {
			if i > 0 && products[i].to.Before(earliest) {
				return products[:i], err
			}
			earliest = products[i].from
		}
	}
	return products, err
}

// withdrawn are the parameters of theSame.
type withdrawn struct {
	ids             []string
	since, lastSeen []time.Time
}

func withdrawnOf(products []unsettled) (w withdrawn) {
	w.ids, w.since = keysOf(products)
	for i := range products {
		w.lastSeen = append(w.lastSeen, products[i].lastSeen)
	}
	return w
}

// values are the parameters of learned.
type values struct {
	names, prices []string
	tickets       []uuid.UUID
	times         []time.Time
	authenticated []bool
}

// idsOf returns the ids of products.
func idsOf(sayings []saying) (ids []string) {
	for i := range sayings {
		ids = append(ids, sayings[i].ID)
	}
	return ids
}

func valuesOf(sayings []saying) (v values) {
	for i := range sayings {
		said := &sayings[i]
		v.names, v.prices = append(v.names, said.Name), append(v.prices, said.Price.String())
		v.tickets, v.times = append(v.tickets, said.ticketID), append(v.times, said.firstAt)
		v.authenticated = append(v.authenticated, said.authenticated)
	}
	return v
}
