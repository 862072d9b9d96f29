package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	neturl "net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
	"myticket/migrations"
)

// The statements of the version before migration 4, which stores a ticket's lines in tickets.lines. They are copies that do not
// follow the code: servers of that version send them on this version's schema, during an upgrade and after a rollback.
const (
	previousInsert = `
INSERT INTO tickets (id, received_at, source, body, content_type, traceparent, status, problems,
                     order_number, vat, total, extra, lines, parser_version, attempts, next_attempt_at, claims)
SELECT unnest($1::uuid[]), unnest($2::timestamptz[]), unnest($3::text[]), unnest($4::bytea[]), unnest($5::text[]),
       unnest($6::text[]), unnest($7::text[]), unnest($8::jsonb[]), unnest($9::text[]), unnest($10::numeric[]),
       unnest($11::numeric[]), unnest($12::jsonb[]), unnest($13::jsonb[]), $14::int2, $15::int2, now() + $16::interval, $15::int2`

	previousInsertAgain = previousInsert + `
ON CONFLICT (received_at, id) DO NOTHING`

	previousStandings = `
SELECT t.id, t.status, t.problems
FROM unnest($1::timestamptz[], $2::uuid[]) AS i (received_at, id)
JOIN tickets t ON t.received_at = i.received_at AND t.id = i.id`

	previousLockTicket = `SELECT FROM tickets WHERE received_at = $1 AND id = $2 FOR KEY SHARE`

	previousOutranks  = `(excluded.authenticated > (p.authenticated AND $8::bool))`
	previousEqualRank = `(excluded.authenticated = (p.authenticated AND $8::bool))`
	previousChanges   = `(` + previousOutranks + ` OR ` + previousEqualRank + `
        AND excluded.ticket_id > p.ticket_id AND excluded.last_seen_at >= p.last_seen_at
        AND (excluded.name, excluded.price) IS DISTINCT FROM (p.name, p.price))`

	previousUpsert = `
INSERT INTO products AS p (product_id, name, price, ticket_id, changed_at, last_seen_at, first_seen_at, authenticated)
SELECT i.product_id, i.name, i.price, i.ticket_id, i.at, i.at, i.first_at, i.authenticated
FROM unnest($1::text[], $2::text[], $3::numeric[], $4::uuid[], $5::timestamptz[], $6::timestamptz[], $7::bool[])
     AS i (product_id, name, price, ticket_id, at, first_at, authenticated)
LEFT JOIN products o ON o.product_id = i.product_id
WHERE o.product_id IS NULL
   OR i.authenticated = (o.authenticated AND $8::bool)
        AND (i.ticket_id > o.ticket_id AND i.at >= o.last_seen_at AND (i.name, i.price) IS DISTINCT FROM (o.name, o.price)
          OR i.at >= o.last_seen_at + interval '1 minute')
   OR i.authenticated > (o.authenticated AND $8::bool)
   OR i.first_at < o.first_seen_at
ORDER BY i.product_id
ON CONFLICT (product_id) DO UPDATE SET
    name            = CASE WHEN ` + previousChanges + ` THEN excluded.name ELSE p.name END,
    price           = CASE WHEN ` + previousChanges + ` THEN excluded.price ELSE p.price END,
    ticket_id       = CASE WHEN ` + previousChanges + ` THEN excluded.ticket_id ELSE p.ticket_id END,
    changed_at      = CASE WHEN ` + previousChanges + ` THEN excluded.changed_at ELSE p.changed_at END,
    unsettled_since = CASE WHEN ` + previousChanges + ` THEN now() ELSE p.unsettled_since END,
    authenticated   = CASE WHEN ` + previousChanges + ` THEN excluded.authenticated ELSE p.authenticated END,
    last_seen_at    = CASE WHEN ` + previousOutranks + ` THEN excluded.last_seen_at
                           WHEN ` + previousEqualRank + ` THEN GREATEST(p.last_seen_at, excluded.last_seen_at)
                           ELSE p.last_seen_at END,
    first_seen_at   = LEAST(p.first_seen_at, excluded.first_seen_at)
WHERE ` + previousChanges + `
   OR ` + previousEqualRank + ` AND excluded.last_seen_at >= p.last_seen_at + interval '1 minute'
   OR excluded.first_seen_at < p.first_seen_at
RETURNING CASE WHEN p.xmax = 0 THEN p.product_id END`

	previousKnownProducts = `SELECT product_id FROM products WHERE product_id = ANY ($1)`

	previousClaimKeys = `
INSERT INTO deliveries AS d (source, key, body_sha256, ticket_id, ticket_received_at, expires_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::timestamptz[], $6::timestamptz[]) AS i (source, key)
ORDER BY i.source, i.key
ON CONFLICT (source, key) DO UPDATE SET
    body_sha256 = excluded.body_sha256, ticket_id = excluded.ticket_id,
    ticket_received_at = excluded.ticket_received_at, expires_at = excluded.expires_at
WHERE excluded.ticket_received_at >= d.expires_at`

	previousLookUpKeys = `
SELECT d.source, d.key, d.body_sha256, d.ticket_id, d.ticket_received_at, d.expires_at, coalesce(t.status, 'TREATED'), t.problems
FROM unnest($1::text[], $2::text[]) AS i (source, key)
JOIN deliveries d ON d.source = i.source AND d.key = i.key
LEFT JOIN tickets t ON t.received_at = d.ticket_received_at AND t.id = d.ticket_id`

	previousClaim = `
WITH due AS (
    SELECT received_at, id, attempts, next_attempt_at FROM tickets
    WHERE status = 'TO_TREAT' AND next_attempt_at <= now()
    ORDER BY next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), picked AS (
    SELECT received_at, id FROM (
        SELECT received_at, id, row_number() OVER w AS n, max(attempts) OVER w AS attempts FROM due
        WINDOW w AS (ORDER BY next_attempt_at, received_at, id ROWS UNBOUNDED PRECEDING)) d
    WHERE n = 1 OR attempts <= 1
)
UPDATE tickets t
SET attempts = least(t.attempts, 32766) + 1, claims = t.claims + 1, next_attempt_at = now() + $2
FROM picked
WHERE t.received_at = picked.received_at AND t.id = picked.id
RETURNING t.id, t.received_at, t.source, t.body, t.content_type, coalesce(t.traceparent, ''), t.attempts, t.claims`

	previousFinish = `
UPDATE tickets t
SET status = i.status, problems = i.problems, order_number = i.order_number, vat = i.vat, total = i.total,
    extra = i.extra, lines = i.lines, parser_version = $8, next_attempt_at = NULL
FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::numeric[], $5::numeric[], $6::jsonb[], $7::jsonb[])
     AS i (status, problems, order_number, vat, total, extra, lines)
WHERE t.received_at = $9 AND t.id = $10 AND t.status = 'TO_TREAT' AND t.attempts = $11 AND t.claims = $12`

	previousFinished = `
SELECT FROM tickets WHERE received_at = $1 AND id = $2 AND status = $3 AND attempts = $4 AND claims = $5 FOR KEY SHARE`

	previousPostpone = `
UPDATE tickets SET next_attempt_at = now() + $5
WHERE received_at = $1 AND id = $2 AND status = 'TO_TREAT' AND attempts = $3 AND claims = $4`

	previousUnsettled = `
WITH due AS (
    SELECT product_id, unsettled_since, changed_at, authenticated FROM products
    WHERE unsettled_since < now() - $1::interval
    ORDER BY unsettled_since LIMIT $2 * 10
), oldest AS (
    SELECT * FROM due ORDER BY changed_at LIMIT $2
)
SELECT product_id, unsettled_since, changed_at, authenticated FROM oldest
WHERE changed_at < (SELECT min(changed_at) FROM oldest) + $3::interval
ORDER BY changed_at, product_id`

	previousSayings = `
DECLARE newest_sayings NO SCROLL CURSOR FOR
SELECT t.id, t.source, l.line, l.value ->> 'product_id', l.value ->> 'product', l.value ->> 'price'
FROM tickets t CROSS JOIN LATERAL jsonb_array_elements(t.lines) WITH ORDINALITY AS l (value, line)
WHERE t.received_at >= $1 AND t.received_at <= $2 AND t.status = 'TREATED' AND l.value ->> 'product_id' = ANY ($3)
ORDER BY t.received_at DESC, t.id DESC`

	previousFetchSayings = `FETCH 1000 FROM newest_sayings`

	previousSettled = `
WITH free AS (
    SELECT p.product_id FROM products p
    JOIN unnest($1::text[], $2::timestamptz[]) AS u (product_id, since)
      ON p.product_id = u.product_id AND p.unsettled_since = u.since
    FOR UPDATE OF p SKIP LOCKED
)
UPDATE products p SET unsettled_since = NULL FROM free WHERE p.product_id = free.product_id`

	previousSettleLater = `UPDATE products SET unsettled_since = now() WHERE product_id = $1`

	previousColumns = `id, received_at, source, status, coalesce(order_number, ''), vat::text, total::text, lines,
	extra, problems, content_type, coalesce(traceparent, ''), parser_version, attempts, next_attempt_at`

	previousShow = `SELECT ` + previousColumns + `, body FROM tickets WHERE received_at = $1 AND id = $2`

	previousList = `SELECT ` + previousColumns + ` FROM tickets ORDER BY received_at DESC, id DESC LIMIT $1`

	previousListByOrder = `SELECT * FROM (SELECT ` + previousColumns + ` FROM tickets WHERE order_number = $1 OFFSET 0) t` +
		` ORDER BY received_at DESC, id DESC LIMIT $2`

	previousSendBack = `UPDATE tickets SET status = 'TO_TREAT', attempts = 0, claims = claims + 1, next_attempt_at = now()` +
		` WHERE received_at = $1 AND id = $2 AND status = ANY ($3)`

	previousDismiss = `UPDATE tickets SET status = 'DISMISSED', problems = coalesce(problems, '[]') ||
			jsonb_build_array(jsonb_build_object('line', 0, 'code', 'dismissed', 'message', $1::text))` +
		` WHERE received_at = $2 AND id = $3 AND status = ANY ($4)`

	previousPruneCandidates = `
DECLARE prune_candidates NO SCROLL CURSOR WITH HOLD FOR
SELECT p.product_id, p.ticket_id, p.first_seen_at, p.last_seen_at, p.authenticated
FROM products p
WHERE p.last_seen_at < now() - interval '2 minutes' AND p.unsettled_since IS NULL
  AND EXISTS (SELECT FROM tickets WHERE received_at = p.changed_at AND id = p.ticket_id AND source = $1)
  AND EXISTS (SELECT FROM tickets WHERE received_at = p.first_seen_at AND status = 'TREATED' AND source = $1)
ORDER BY p.first_seen_at, p.last_seen_at
LIMIT 1001`

	previousOtherTickets = `
SELECT body, CASE WHEN parser_version <> 2 AND jsonb_typeof(lines) = 'array' THEN
    ARRAY(SELECT l ->> 'product_id' FROM jsonb_array_elements(lines) AS l WHERE l ->> 'product_id' IS NOT NULL) END
FROM tickets
WHERE status = 'TREATED' AND received_at >= $1 AND received_at <= $2 AND NOT (source = $3)`

	previousRemove = `
WITH same AS (
    SELECT p.product_id FROM products p
    JOIN unnest($1::text[], $2::uuid[], $3::timestamptz[]) AS u (product_id, ticket_id, last_seen_at)
      ON p.product_id = u.product_id AND p.ticket_id = u.ticket_id AND p.last_seen_at = u.last_seen_at
    WHERE p.unsettled_since IS NULL
    ORDER BY p.product_id
    FOR UPDATE OF p SKIP LOCKED
)
DELETE FROM products p USING same WHERE p.product_id = same.product_id`

	previousProbe = `
INSERT INTO tickets (id, received_at, source, body, status) VALUES ($1, $2, 'myticket-probe', '\x0a', 'TO_TREAT')`

	previousLockProbe = `LOCK TABLE products, deliveries IN ROW EXCLUSIVE MODE`

	previousBacklog = `
SELECT
    (SELECT count(*) FROM (SELECT FROM tickets WHERE status = 'ERROR' LIMIT $1) AS e),
    t.waiting, t.oldest, t.overdue,
    (SELECT greatest(reltuples, 0)::float8 FROM pg_class WHERE oid = 'products'::regclass)
FROM (
    SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(received_at)), 0)::float8 AS oldest,
           greatest(coalesce(extract(epoch FROM now() - min(next_attempt_at)), 0), 0)::float8 AS overdue
    FROM (SELECT received_at, next_attempt_at FROM tickets WHERE status = 'TO_TREAT' ORDER BY next_attempt_at LIMIT $1) AS w
) AS t`
)

// previous is a server of the version before, as far as the database sees it.
type previous struct {
	t    *testing.T
	pool *pgxpool.Pool
}

func newPrevious(t *testing.T, b *testBundle) previous {
	t.Helper()
	return previous{t, openPool(t, b.url)}
}

// tx runs statements in one transaction.
func (p previous) tx(do func(ctx context.Context, tx pgx.Tx)) {
	p.t.Helper()
	require.NoError(p.t, pgx.BeginFunc(p.t.Context(), p.pool, func(tx pgx.Tx) error {
		do(p.t.Context(), tx)
		return nil
	}))
}

// exec runs one statement, and returns how many rows it changed.
func (p previous) exec(sql string, args ...any) int {
	p.t.Helper()
	tag, err := p.pool.Exec(p.t.Context(), sql, args...)
	require.NoError(p.t, err)
	return int(tag.RowsAffected())
}

func numeric(t *testing.T, a ticket.Amount) (n pgtype.Numeric) {
	t.Helper()
	if a.IsSet() {
		require.NoError(t, n.Scan(string(a.AppendText(nil))))
	}
	return n
}

// linesJSON returns what the version before stores in tickets.lines.
func linesJSON(t *testing.T, order *ticket.Order) *string {
	t.Helper()
	if len(order.Lines) == 0 {
		return nil
	}
	type line struct {
		Product   string       `json:"product"`
		ProductID string       `json:"product_id"`
		Price     *json.Number `json:"price"`
	}
	var lines []line
	for _, l := range order.Lines {
		is := line{Product: l.Name, ProductID: l.ProductID}
		if l.Price.IsSet() {
			price := json.Number(l.Price.AppendText(nil))
			is.Price = &price
		}
		lines = append(lines, is)
	}
	text, err := json.Marshal(lines)
	require.NoError(t, err)
	return new(string(text))
}

func problemsJSON(t *testing.T, problems []ticket.Problem) *string {
	t.Helper()
	if len(problems) == 0 {
		return nil
	}
	text, err := json.Marshal(problems)
	require.NoError(t, err)
	return new(string(text))
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// insert stores one ticket, and returns how many rows that made.
func (p previous) insert(ctx context.Context, tx pgx.Tx, sql string, e *intake.Entry, unread bool) int {
	p.t.Helper()
	k, order, status, problems := &e.Ticket, e.Ticket.Order, e.Ticket.Status, e.Ticket.Problems
	parser, attempts, due := ticket.ParserVersion, 0, (*time.Duration)(nil)
	if unread {
		order, status, problems, parser, attempts, due = ticket.Order{}, ticket.ToTreat, nil, 0, 1, new(time.Duration)
	}
	tag, err := tx.Exec(ctx, sql,
		[]uuid.UUID{k.ID}, []time.Time{k.ReceivedAt}, []string{k.Source}, [][]byte{k.Body}, []string{k.ContentType},
		[]*string{textOrNull(k.Traceparent)}, []string{string(status)}, []*string{problemsJSON(p.t, problems)},
		[]*string{textOrNull(order.Number)}, []pgtype.Numeric{numeric(p.t, order.VAT)},
		[]pgtype.Numeric{numeric(p.t, order.Total)}, []*string{nil}, []*string{linesJSON(p.t, &order)}, parser, attempts, due)
	require.NoError(p.t, err)
	return int(tag.RowsAffected())
}

// said is what a ticket says about a product.
type said struct {
	ticket.Product
	by uuid.UUID
}

// upsert brings the product base up to date, and returns the products that are new.
func (p previous) upsert(ctx context.Context, tx pgx.Tx, says []said) []string {
	p.t.Helper()
	if len(says) == 0 {
		return nil
	}
	var ids, names []string
	var prices []pgtype.Numeric
	var tickets []uuid.UUID
	var at []time.Time
	for _, s := range says {
		ids, names = append(ids, s.ID), append(names, s.Name)
		prices = append(prices, numeric(p.t, s.Price))
		tickets, at = append(tickets, s.by), append(at, ticket.IDTime(s.by))
	}
	rows, err := tx.Query(ctx, previousUpsert, ids, names, prices, tickets, at, at, make([]bool, len(ids)), false)
	require.NoError(p.t, err)
	written, err := pgx.CollectRows(rows, pgx.RowTo[*string])
	require.NoError(p.t, err)
	var added []string
	for _, id := range written {
		if id != nil {
			added = append(added, *id)
		}
	}
	return added
}

func saysOf(k *ticket.Ticket) []said {
	if k.Status != ticket.Treated {
		return nil
	}
	var says []said
	for _, product := range k.Order.Products() {
		says = append(says, said{product, k.ID})
	}
	return says
}

// save stores one ticket with its products, and returns the products that are new.
func (p previous) save(e *intake.Entry) (added []string) {
	p.t.Helper()
	p.tx(func(ctx context.Context, tx pgx.Tx) {
		require.Equal(p.t, 1, p.insert(ctx, tx, previousInsert, e, false))
		added = p.upsert(ctx, tx, saysOf(&e.Ticket))
	})
	return added
}

// saveAgain stores one ticket that may be there already. It returns how many rows that made, and what the ticket is stored as.
func (p previous) saveAgain(e *intake.Entry) (n int, status ticket.Status) {
	p.t.Helper()
	p.tx(func(ctx context.Context, tx pgx.Tx) {
		n = p.insert(ctx, tx, previousInsertAgain, e, false)
		tag, err := tx.Exec(ctx, previousLockTicket, e.Ticket.ReceivedAt, e.Ticket.ID)
		require.NoError(p.t, err)
		require.Equal(p.t, int64(1), tag.RowsAffected())
		var id uuid.UUID
		var problems []ticket.Problem
		require.NoError(p.t, tx.QueryRow(ctx, previousStandings, []time.Time{e.Ticket.ReceivedAt}, []uuid.UUID{e.Ticket.ID}).
			Scan(&id, &status, &problems))
		require.Equal(p.t, e.Ticket.ID, id)
		if status == ticket.Treated {
			p.upsert(ctx, tx, saysOf(&e.Ticket))
		}
	})
	return n, status
}

// saveUnread stores one ticket TO_TREAT.
func (p previous) saveUnread(e *intake.Entry) {
	p.t.Helper()
	p.tx(func(ctx context.Context, tx pgx.Tx) {
		require.Equal(p.t, 1, p.insert(ctx, tx, previousInsert, e, true))
	})
}

// saveKeyed stores one ticket unless its key is taken, and returns the id of the ticket that has the key.
func (p previous) saveKeyed(e *intake.Entry) (holder uuid.UUID) {
	p.t.Helper()
	p.tx(func(ctx context.Context, tx pgx.Tx) {
		source, key := []string{e.Ticket.Source}, []string{e.Key}
		_, err := tx.Exec(ctx, previousClaimKeys, source, key, [][]byte{e.BodySHA256[:]}, []uuid.UUID{e.Ticket.ID},
			[]time.Time{e.Ticket.ReceivedAt}, []time.Time{e.KeyExpiresAt})
		require.NoError(p.t, err)
		var gotSource, gotKey, status string
		var sum []byte
		var at, expires time.Time
		var problems []ticket.Problem
		require.NoError(p.t, tx.QueryRow(ctx, previousLookUpKeys, source, key).
			Scan(&gotSource, &gotKey, &sum, &holder, &at, &expires, &status, &problems))
		if holder == e.Ticket.ID {
			p.insert(ctx, tx, previousInsert, e, false)
			p.upsert(ctx, tx, saysOf(&e.Ticket))
		}
	})
	return holder
}

// claim claims what is due.
func (p previous) claim(lease time.Duration) []treatment.Claim {
	p.t.Helper()
	rows, err := p.pool.Query(p.t.Context(), previousClaim, 32, lease)
	require.NoError(p.t, err)
	claims, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (treatment.Claim, error) {
		c := treatment.Claim{Ticket: &ticket.Ticket{Status: ticket.ToTreat}}
		k := c.Ticket
		err := row.Scan(&k.ID, &k.ReceivedAt, &k.Source, &k.Body, &k.ContentType, &k.Traceparent, &c.Attempt, &c.Number)
		return c, err
	})
	require.NoError(p.t, err)
	return claims
}

// read reads a claimed ticket, as treatment does in both versions.
func read(c treatment.Claim) treatment.Claim {
	k := *c.Ticket
	k.Status = ticket.Treated
	if k.Order, k.Problems = ticket.Parse(k.Body); len(k.Problems) > 0 {
		k.Status = ticket.Error
	}
	c.Ticket = &k
	return c
}

// finish stores what was read of a claimed ticket, and reports whether the claim was still valid.
func (p previous) finish(c treatment.Claim) (valid bool) {
	p.t.Helper()
	c = read(c)
	k := c.Ticket
	p.tx(func(ctx context.Context, tx pgx.Tx) {
		tag, err := tx.Exec(ctx, previousFinish,
			[]string{string(k.Status)}, []*string{problemsJSON(p.t, k.Problems)}, []*string{textOrNull(k.Order.Number)},
			[]pgtype.Numeric{numeric(p.t, k.Order.VAT)}, []pgtype.Numeric{numeric(p.t, k.Order.Total)}, []*string{nil},
			[]*string{linesJSON(p.t, &k.Order)}, ticket.ParserVersion, k.ReceivedAt, k.ID, c.Attempt, c.Number)
		require.NoError(p.t, err)
		if valid = tag.RowsAffected() == 1; !valid {
			return
		}
		p.upsert(ctx, tx, saysOf(k))
		done, err := tx.Exec(ctx, previousFinished, k.ReceivedAt, k.ID, k.Status, c.Attempt, c.Number)
		require.NoError(p.t, err)
		require.Equal(p.t, int64(1), done.RowsAffected(), "as if the answer to its COMMIT had been lost")
	})
	return valid
}

// settle settles all products that are marked for this version, and returns how many.
func (p previous) settle() (n int) {
	p.t.Helper()
	type product struct {
		id               string
		since, changedAt time.Time
		authenticated    bool
	}
	for {
		rows, err := p.pool.Query(p.t.Context(), previousUnsettled, time.Duration(0), 1000, time.Minute)
		require.NoError(p.t, err)
		products, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (u product, err error) {
			return u, row.Scan(&u.id, &u.since, &u.changedAt, &u.authenticated)
		})
		require.NoError(p.t, err)
		if len(products) == 0 {
			return n
		}
		n += len(products)
		var ids []string
		var since []time.Time
		for _, u := range products {
			ids, since = append(ids, u.id), append(since, u.since)
		}
		p.tx(func(ctx context.Context, tx pgx.Tx) {
			if newest := p.newestSayings(ctx, tx, products[0].changedAt, products[len(products)-1].changedAt, ids); len(newest) > 0 {
				p.upsert(ctx, tx, newest)
			}
			_, err := tx.Exec(ctx, previousSettled, ids, since)
			require.NoError(p.t, err)
		})
	}
}

// newestSayings returns what the newest of those tickets say that have lines in tickets.
func (p previous) newestSayings(ctx context.Context, tx pgx.Tx, from, to time.Time, ids []string) []said {
	p.t.Helper()
	_, err := tx.Exec(ctx, previousSayings, from, to.Add(time.Minute), ids)
	require.NoError(p.t, err)
	defer func() {
		_, err := tx.Exec(ctx, `CLOSE newest_sayings`)
		require.NoError(p.t, err)
	}()
	found, line := map[string]said{}, map[string]int64{}
	for {
		rows, err := tx.Query(ctx, previousFetchSayings)
		require.NoError(p.t, err)
		var s said
		var source string
		var n int64
		var name, price *string
		tag, err := pgx.ForEachRow(rows, []any{&s.by, &source, &n, &s.ID, &name, &price}, func() error {
			have, ok := found[s.ID]
			if ok && (have.by != s.by || line[s.ID] > n) {
				return nil
			}
			amount, err := ticket.ParseAmount(*price)
			s.Name, s.Price = *name, amount
			found[s.ID], line[s.ID] = s, n
			return err
		})
		require.NoError(p.t, err)
		if tag.RowsAffected() == 0 {
			return slices.Collect(maps.Values(found))
		}
	}
}

// shown is a ticket as `tickets show` and `tickets list` of the version before read it.
type shown struct {
	id     uuid.UUID
	status ticket.Status
	order  string
	lines  []postgres.StoredLine
	body   []byte
}

func (p previous) tickets(sql string, withBody bool, args ...any) []shown {
	p.t.Helper()
	rows, err := p.pool.Query(p.t.Context(), sql, args...)
	require.NoError(p.t, err)
	tickets, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s shown, err error) {
		var at time.Time
		var source, contentType, traceparent string
		var vat, total *string
		var extra []postgres.StoredField
		var problems []ticket.Problem
		var parser, attempts int
		var next *time.Time
		columns := []any{
			&s.id, &at, &source, &s.status, &s.order, &vat, &total, &s.lines, &extra, &problems, &contentType, &traceparent,
			&parser, &attempts, &next,
		}
		if withBody {
			columns = append(columns, &s.body)
		}
		return s, row.Scan(columns...)
	})
	require.NoError(p.t, err)
	return tickets
}

func (p previous) show(id uuid.UUID) shown {
	p.t.Helper()
	found := p.tickets(previousShow, true, ticket.IDTime(id), id)
	require.Len(p.t, found, 1)
	return found[0]
}

// prune removes the products that only tickets of a source name, and returns how many.
func (p previous) prune(source string) (removed int) {
	p.t.Helper()
	conn, err := p.pool.Acquire(p.t.Context())
	require.NoError(p.t, err)
	defer conn.Release()
	ctx := p.t.Context()
	_, err = conn.Exec(ctx, previousPruneCandidates, source)
	require.NoError(p.t, err)
	rows, err := conn.Query(ctx, `FETCH 50000 FROM prune_candidates`)
	require.NoError(p.t, err)
	type candidate struct {
		ticketID    uuid.UUID
		first, last time.Time
	}
	candidates := map[string]candidate{}
	var id string
	var c candidate
	var authenticated bool
	_, err = pgx.ForEachRow(rows, []any{&id, &c.ticketID, &c.first, &c.last, &authenticated}, func() error {
		candidates[id] = c
		return nil
	})
	require.NoError(p.t, err)
	_, err = conn.Exec(ctx, `CLOSE prune_candidates`)
	require.NoError(p.t, err)
	rows, err = conn.Query(ctx, previousOtherTickets, time.Unix(0, 0), time.Now().Add(time.Hour), source)
	require.NoError(p.t, err)
	var body []byte
	var found []string
	_, err = pgx.ForEachRow(rows, []any{&body, &found}, func() error {
		order, _ := ticket.Parse(body)
		for i := range order.Lines {
			found = append(found, order.Lines[i].ProductID)
		}
		for _, id := range found {
			delete(candidates, id)
		}
		return nil
	})
	require.NoError(p.t, err)
	var ids []string
	var tickets []uuid.UUID
	var seen []time.Time
	for id, c := range candidates {
		ids, tickets, seen = append(ids, id), append(tickets, c.ticketID), append(seen, c.last)
	}
	return p.exec(previousRemove, ids, tickets, seen)
}

// linesInView returns the rows of order_lines for a ticket, as text.
func linesInView(t *testing.T, b *testBundle, id uuid.UUID) string {
	t.Helper()
	return one[string](t, b, `SELECT coalesce(string_agg(format('%s|%s|%s|%s', line, product, product_id, price), E'\n' ORDER BY line), '')
		FROM order_lines WHERE ticket_id = $1`, id)
}

// migrateTo3 brings an empty database to the schema of the version before.
func migrateTo3(t *testing.T, b *testBundle) {
	t.Helper()
	migrateTo2(t, b)
	sql, err := migrations.FS.ReadFile("0003_claims.up.sql")
	require.NoError(t, err)
	exec(t, b, string(sql))
	exec(t, b, `UPDATE schema_migrations SET version = 3`)
}

const awkward = `Thé\n "vert" \ 5 €,a\b,2.50`

var awkwardInView = `1|Thé\n "vert" \ 5 €|a\b|2.50`

// The texts above are those of the version before, so they must work on its own schema, and go on when that is migrated under
// them: on the same connections, whose statements are prepared.
func TestPrevious_GoesOnWhileItsSchemaIsMigrated(t *testing.T) {
	t.Parallel()
	b, old := setupPrevious(t)
	all := func(round string) {
		t.Helper()
		e, later := entry(t, body(round, awkward, "Café,c,2")), entry(t, body(round+" later", "Café,c,3"))
		old.save(e)
		old.save(later)
		assert.Equal(t, awkwardInView+"\n2|Café|c|2", linesInView(t, b, e.Ticket.ID), round)
		n, status := old.saveAgain(e)
		assert.Zero(t, n, round)
		assert.Equal(t, ticket.Treated, status, round)
		first := old.saveKeyed(keyed(t, "key "+round, body(round+" keyed")))
		assert.Equal(t, first, old.saveKeyed(keyed(t, "key "+round, body(round+" keyed"))), round)
		unread := entry(t, body(round+" unread", "Eau,e,1"))
		old.saveUnread(unread)
		claims := old.claim(time.Minute)
		require.Len(t, claims, 1, round)
		assert.Equal(t, 1, old.exec(previousPostpone, claims[0].Ticket.ReceivedAt, claims[0].Ticket.ID, claims[0].Attempt,
			claims[0].Number, time.Duration(0)), round)
		claims = old.claim(time.Minute)
		require.Len(t, claims, 1, round)
		assert.True(t, old.finish(claims[0]), round)
		assert.Equal(t, "1|Eau|e|1", linesInView(t, b, unread.Ticket.ID), round)
		bad := entry(t, "hello "+round)
		old.save(bad)
		at, id, failed := bad.Ticket.ReceivedAt, bad.Ticket.ID, []string{"ERROR"}
		assert.Equal(t, 1, old.exec(previousDismiss, "no ticket", at, id, failed), round)
		assert.Equal(t, 1, old.exec(previousSendBack, at, id, []string{"ERROR", "DISMISSED"}), round)
		require.True(t, old.finish(old.claim(time.Minute)[0]), round)
		assert.Equal(t, ticket.Error, old.show(id).status, round)
		assert.Equal(t, 1, old.settle(), "%s: the price of c changed once", round)
		assert.NotEmpty(t, old.tickets(previousList, false, 100), round)
		assert.Len(t, old.tickets(previousListByOrder, false, round, 10), 1, round)
		assert.Equal(t, 1, old.exec(previousSettleLater, "c"), round)
		assert.Equal(t, 1, old.settle(), round)
		probe := entry(t, "probe")
		require.ErrorIs(t, pgx.BeginFunc(t.Context(), old.pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), previousProbe, probe.Ticket.ID, probe.Ticket.ReceivedAt)
			require.NoError(t, err)
			_, err = tx.Exec(t.Context(), previousLockProbe)
			require.NoError(t, err)
			return context.Canceled
		}), context.Canceled, round)
		old.exec(previousBacklog, 1000)
		old.exec(previousKnownProducts, []string{"c"})
		old.prune("nobody")
	}
	all("before")
	unsettled := entry(t, body("unsettled", "Café,c,9"))
	old.save(unsettled)
	require.NoError(t, postgres.MigrateUp(t.Context(), b.url))
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from = unsettled_since`),
		"a mark of the version before is taken over")
	assert.Equal(t, "1|Café|c|9", linesInView(t, b, unsettled.Ticket.ID))
	old.settle()
	exec(t, b, `UPDATE products SET price = 2 WHERE product_id = 'c'`)
	all("after")
	stored, err := b.store.Ticket(t.Context(), unsettled.Ticket.ID)
	require.NoError(t, err)
	assert.Equal(t, []postgres.StoredLine{{Product: "Café", ProductID: "c", Price: "9"}}, stored.Lines)
}

func TestPrevious_TicketsOfBothVersions_AreShownByBoth(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	before, now := entry(t, body("before", awkward)), entry(t, body("now", awkward))
	assert.Equal(t, []string{`a\b`}, old.save(before), "which products are new")
	save(t, b, now)

	lines := []postgres.StoredLine{{Product: `Thé\n "vert" \ 5 €`, ProductID: `a\b`, Price: "2.50"}}
	for _, e := range []*intake.Entry{before, now} {
		stored, err := b.store.Ticket(t.Context(), e.Ticket.ID)
		require.NoError(t, err)
		assert.Equal(t, lines, stored.Lines)
		found := old.show(e.Ticket.ID)
		assert.Equal(t, string(e.Ticket.Body), string(found.body))
		assert.Equal(t, e.Ticket.Order.Number, found.order)
	}
	assert.Equal(t, lines, old.show(before.Ticket.ID).lines)
	assert.Empty(t, old.show(now.Ticket.ID).lines, "docs/upgrading.md says that it shows none")
	listed, err := b.store.Tickets(t.Context(), postgres.TicketFilter{}, uuid.Nil, 10)
	require.NoError(t, err)
	require.Len(t, listed, 2)
	assert.Equal(t, lines, listed[0].Lines)
	assert.Equal(t, lines, listed[1].Lines)
	assert.Len(t, old.tickets(previousList, false, 10), 2)
	fill(t, b)
	assert.Equal(t, awkwardInView, linesInView(t, b, before.Ticket.ID))
	assert.Equal(t, awkwardInView, linesInView(t, b, now.Ticket.ID))
}

// A spool that one version has filled is drained by the other, perhaps a second time.
func TestPrevious_TicketThatTheOtherVersionHasStored_IsThereOnceAndStaysAsItIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	before, now := entry(t, body("before", "Café,c,2")), entry(t, body("now", "Café,c,2"))
	old.save(before)
	save(t, b, now)
	n, status := old.saveAgain(now)
	assert.Zero(t, n)
	assert.Equal(t, ticket.Treated, status)
	assert.True(t, one[bool](t, b, `SELECT lines IS NULL FROM tickets WHERE id = $1`, now.Ticket.ID))
	assert.Equal(t, before.Ticket.ID, save(t, b, before)[0].ID)
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM tickets`))
	fill(t, b)
	assert.Equal(t, "1|Café|c|2", linesInView(t, b, before.Ticket.ID), "the outbox names it, and it has lines in tickets")
	assert.Equal(t, "1|Café|c|2", linesInView(t, b, now.Ticket.ID))
}

func TestPrevious_KeyOfTheOtherVersion_IsADuplicate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	before := keyed(t, "1", body("before", "Café,c,2"))
	require.Equal(t, before.Ticket.ID, old.saveKeyed(before))
	again := save(t, b, keyed(t, "1", string(before.Ticket.Body)))
	assert.Equal(t, before.Ticket.ID, again[0].ID)
	assert.True(t, again[0].Duplicate)

	now := keyed(t, "2", body("now", "Café,c,2"))
	save(t, b, now)
	assert.Equal(t, now.Ticket.ID, old.saveKeyed(keyed(t, "2", string(now.Ticket.Body))))
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestPrevious_UnreadTicket_IsTreatedOnceByEitherVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	mine, theirs := entry(t, body("mine", "Café,c,2")), entry(t, body("theirs", "Eau,e,1"))
	finish := func(c treatment.Claim) error {
		_, _, err := b.store.Finish(t.Context(), read(c))
		return err
	}
	claim := func(lease time.Duration) treatment.Claim {
		t.Helper()
		claims, err := b.store.Claim(t.Context(), 1, lease)
		require.NoError(t, err)
		require.Len(t, claims, 1)
		return claims[0]
	}

	saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{mine}, Unread: true})
	late := claim(0)
	claims := old.claim(0)
	require.Len(t, claims, 1)
	require.ErrorIs(t, finish(late), treatment.ErrClaimLost)
	require.True(t, old.finish(claims[0]))
	assert.Equal(t, "1|Café|c|2", linesInView(t, b, mine.Ticket.ID))

	old.saveUnread(theirs)
	claims = old.claim(0)
	require.Len(t, claims, 1)
	taken := claim(time.Minute)
	assert.False(t, old.finish(claims[0]), "its claim is over")
	require.NoError(t, finish(taken))
	assert.False(t, old.finish(claims[0]), "it is treated")
	assert.True(t, one[bool](t, b, `SELECT lines IS NULL AND status = 'TREATED' FROM tickets WHERE id = $1`, theirs.Ticket.ID))
	fill(t, b)
	assert.Equal(t, "1|Eau|e|1", linesInView(t, b, theirs.Ticket.ID))
	assert.Equal(t, "1|Café|c|2", linesInView(t, b, mine.Ticket.ID), "the outbox names it, and it has lines in tickets")
	assert.Equal(t, "c e", products(t, b))

	failed := entry(t, "hello")
	save(t, b, failed)
	require.Equal(t, 1, old.exec(previousSendBack, failed.Ticket.ReceivedAt, failed.Ticket.ID, []string{"ERROR", "DISMISSED"}))
	require.NoError(t, finish(claim(time.Minute)))
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Retry, failed.Ticket.ID))
	require.True(t, old.finish(old.claim(time.Minute)[0]))
	assert.Equal(t, ticket.Error, old.show(failed.Ticket.ID).status)
}

// The version before settles a product by the lines in tickets, and does not see those of this version's tickets. The trigger
// products_unsettled leaves this version its own mark.
func TestPrevious_ProductThatItSettledWrongly_IsPutRight(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, before, price string
	}{
		{"with the trigger", "", "2"},
		{"without it, which shows what it is for", `DROP TRIGGER products_unsettled ON products`, "3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			exec(t, b, c.before)
			old := newPrevious(t, b)
			first, late, confirming := entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,3")), entry(t, body("3", "Café,a,2"))
			assert.Equal(t, []string{"a"}, old.save(first))
			save(t, b, confirming) // finds nothing new, and so writes nothing
			assert.Empty(t, old.save(late), "which products are new")
			price := func() string { return one[string](t, b, `SELECT price::text FROM products`) }
			require.Equal(t, "3", price())
			require.Equal(t, 1, old.settle())
			require.Equal(t, "3", price(), "it does not see the newest ticket, without which this proves nothing")
			settle(t, b)
			assert.Equal(t, c.price, price())
		})
	}
}

// settledBefore is what the version before mending does once it has looked at a product: it takes its own mark away.
const settledBefore = `UPDATE products SET unsettled_at = NULL`

// The version before mending settles a product without the tickets that need a dialect.
func TestPreviousOfMending_ProductThatItSettledWithoutADialect_IsPutRight(t *testing.T) {
	t.Parallel()
	b := setup(t)
	apply(t, b, "shop-1", 0, french)
	first, late := entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,3"))
	confirming := readBy(t, live(t, b), "shop-1", frenchBody("3", "Café,a,2"))
	save(t, b, first)
	save(t, b, confirming) // finds nothing new, and so writes nothing
	exec(t, b, fmt.Sprintf(`UPDATE products SET price = 3, ticket_id = '%s', unsettled_at = now()`, late.Ticket.ID))
	exec(t, b, settledBefore)
	settle(t, b)
	assert.Equal(t, "2", one[string](t, b, `SELECT price::text FROM products`))
}

// The version before mending steps over lines that need a dialect.
func TestPreviousOfMending_LinesThatItSteppedOver_AreFilled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	apply(t, b, "shop-1", 0, french)
	save(t, b, entry(t, body("1", "Thé,t,3")))
	fill(t, b)
	save(t, b, readBy(t, live(t, b), "shop-1", frenchBody("2", "Café,c,2")))
	exec(t, b, `UPDATE outbox_readers SET xid = (SELECT max(xid) FROM outbox), held_until = '-infinity'`)
	save(t, b, entry(t, body("3", "Eau,e,1")))
	fill(t, b)
	assert.Equal(t, "Café, Eau, Thé", one[string](t, b, `SELECT string_agg(product, ', ' ORDER BY product) FROM order_lines`))
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM outbox_readers WHERE xid = own_xid`))
}

// The statements with which the version before migration 7 fills ticket_lines. It knows no kinds of rows of the outbox.
const (
	previousNextInOutbox = `
SELECT xid, at, extract(epoch FROM clock_timestamp() - at)::float8, tickets FROM outbox
WHERE xid > $1 AND xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY xid FETCH FIRST ($2) ROWS WITH TIES`

	previousReadForLines = `
SELECT n, id, source, order_number, body, tickets FROM (
    SELECT i.n, t.id, t.source, coalesce(t.order_number, '') AS order_number, t.body, count(*) OVER () AS tickets,
           sum(octet_length(t.body)) OVER (ORDER BY i.n ROWS UNBOUNDED PRECEDING) AS bytes
    FROM unnest($1::timestamptz[], $2::uuid[]) WITH ORDINALITY AS i (received_at, id, n)
    JOIN tickets t ON t.received_at = i.received_at AND t.id = i.id
    WHERE t.status = 'TREATED' AND t.lines IS NULL) f
WHERE bytes <= $3 OR bytes = octet_length(body)
ORDER BY n`

	previousInsertLinesAgain = `
INSERT INTO ticket_lines (received_at, ticket_id, source, order_number, lines)
SELECT unnest($1::timestamptz[]), unnest($2::uuid[]), unnest($3::text[]), unnest($4::text[]), unnest($5::text[])
ON CONFLICT (received_at, ticket_id) DO UPDATE SET lines = excluded.lines WHERE ticket_lines.lines <> excluded.lines`

	previousMoveReader = `
UPDATE outbox_readers
SET xid = $3, at = greatest(at, $4), holder = $5, held_until = clock_timestamp() + $6::interval
WHERE name = $1 AND xid = $2
  AND (holder = $5 OR held_until NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute')
  AND set_config('synchronous_commit', 'off', true) <> ''`
)

// fillLines fills the lines of all that may be read, a row of the outbox at a time. It returns how many rows these were, and the
// tickets that it stepped over.
func (p previous) fillLines() (rows int, steppedOver []uuid.UUID) {
	p.t.Helper()
	ctx, me := p.t.Context(), uuid.New()
	for {
		var place, to uint64
		require.NoError(p.t, p.pool.QueryRow(ctx, `SELECT xid FROM outbox_readers WHERE name = 'order_lines'`).Scan(&place))
		type row struct {
			xid     uint64
			at      time.Time
			age     float64
			tickets []byte
		}
		found, err := p.pool.Query(ctx, previousNextInOutbox, place, 1)
		require.NoError(p.t, err)
		chunk, err := pgx.CollectRows(found, func(r pgx.CollectableRow) (o row, err error) {
			err = r.Scan(&o.xid, &o.at, &o.age, &o.tickets)
			return o, err
		})
		require.NoError(p.t, err)
		if len(chunk) == 0 {
			return rows, steppedOver
		}
		var times []time.Time
		var ids []uuid.UUID
		var at time.Time
		for _, o := range chunk {
			for ; len(o.tickets) >= 16; o.tickets = o.tickets[16:] {
				ids = append(ids, uuid.UUID(o.tickets[:16]))
				times = append(times, ticket.IDTime(ids[len(ids)-1]))
			}
			to, at = o.xid, o.at
		}
		rows += len(chunk)
		found, err = p.pool.Query(ctx, previousReadForLines, times, ids, 1<<20)
		require.NoError(p.t, err)
		var n, tickets int
		var id uuid.UUID
		var source, order string
		var content []byte
		var says [5][]string
		_, err = pgx.ForEachRow(found, []any{&n, &id, &source, &order, &content, &tickets}, func() error {
			read, problems := ticket.Parse(content)
			if len(problems) > 0 {
				steppedOver = append(steppedOver, id)
				return nil
			}
			var lines []string
			for _, l := range read.Lines {
				lines = append(lines, l.ProductID+"\t"+string(l.Price.AppendText(nil))+"\t"+l.Name)
			}
			for i, text := range []string{
				ticket.IDTime(id).Format(time.RFC3339Nano), id.String(), source, order, strings.Join(lines, "\n"),
			} {
				says[i] = append(says[i], text)
			}
			return nil
		})
		require.NoError(p.t, err)
		p.tx(func(ctx context.Context, tx pgx.Tx) {
			tag, err := tx.Exec(ctx, previousMoveReader, "order_lines", place, to, at, me, 10*time.Second)
			require.NoError(p.t, err)
			require.EqualValues(p.t, 1, tag.RowsAffected())
			_, err = tx.Exec(ctx, previousInsertLinesAgain, says[0], says[1], says[2], says[3], says[4])
			require.NoError(p.t, err)
		})
	}
}

// While this version tells in the outbox of what people changed, and of products, the filler of the version before goes through
// these rows: it changes no line that is right, and what it cannot read this version fills.
func TestPrevious_FillsLinesBesideRowsOfChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 1, time.Now())
	require.NoError(t, err)
	save(t, b, entry(t, body("0", "Café,a,2")))
	fill(t, b)
	good, junk, wrong, again := entry(t, body("1", "Café,a,2")), entry(t, "junk"), entry(t, "wrong"), entry(t, body("4", "Thé,t,3"))
	save(t, b, good, junk, wrong, again)
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Dismiss, junk.Ticket.ID))
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Reopen, junk.Ticket.ID))
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Dismiss, junk.Ticket.ID))
	require.NoError(t, b.store.CorrectTicket(t.Context(), tester, wrong.Ticket.ID, postgres.NewText{Text: []byte(body("3", "Eau,e,1"))}))
	treat(t, b)
	exec(t, b, `INSERT INTO outbox (kind, tickets) SELECT 'products', string_agg(uuid_send(id), '') FROM tickets WHERE status = 'TREATED'`)
	kinds := one[string](t, b, `SELECT string_agg(DISTINCT kind, ' ' ORDER BY kind) FROM outbox`)
	require.Equal(t, "changed products stored treated", kinds)
	awaitReadable(t, b)

	exec(t, b, `UPDATE outbox_readers SET held_until = '-infinity'`)
	rows, steppedOver := old.fillLines()
	assert.Equal(t, one[int](t, b, `SELECT count(*) - 1 FROM outbox`), rows, "it stops at none")
	assert.True(t, one[bool](t, b, `SELECT xid = (SELECT max(xid) FROM outbox) FROM outbox_readers WHERE name = 'order_lines'`))
	right := []string{"0/1 a Café 2", "1/1 a Café 2", "4/1 t Thé 3"}
	assert.Equal(t, right, lineTexts(t, b))
	assert.Contains(t, steppedOver, wrong.Ticket.ID, "it reads no corrections")
	assert.NotContains(t, steppedOver, good.Ticket.ID)

	fill(t, b)
	assert.Equal(t, []string{"0/1 a Café 2", "1/1 a Café 2", "3/1 e Eau 1", "4/1 t Thé 3"}, lineTexts(t, b))
	assert.Equal(t, 4, one[int](t, b, `SELECT count(*) FROM ticket_lines`), "none twice")
	old.fillLines()
	assert.Len(t, lineTexts(t, b), 4)
}

// Neither version takes away the other's mark, because the other one may see a ticket that it does not.
func TestPrevious_MarkOfThisVersion_Stays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	marks := func() string {
		return one[string](t, b, `SELECT concat_ws(' ', CASE WHEN unsettled_since IS NOT NULL THEN 'theirs' END,
			CASE WHEN unsettled_from IS NOT NULL THEN 'mine' END) FROM products`)
	}
	save(t, b, entry(t, body("1", "Café,a,2")))
	save(t, b, entry(t, body("2", "Café,a,3")))
	require.Equal(t, "mine", marks())
	assert.Zero(t, old.settle())
	require.Equal(t, "mine", marks())
	old.save(entry(t, body("3", "Café,a,4")))
	require.Equal(t, "theirs mine", marks())
	assert.Equal(t, 1, old.settle())
	require.Equal(t, "mine", marks())
	old.exec(previousSettleLater, "a")
	settle(t, b)
	assert.Equal(t, "theirs", marks())
}

// While only the version before runs, each change of a product leaves a mark for this version, over days.
func TestPrevious_MarksOfALongTime_AreSettledOneAfterTheOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	const hours = 20
	for i := range hours {
		d := time.Duration(hours-i) * time.Hour
		old.save(ago(entry(t, body("1", fmt.Sprintf("Café,c%d,1", i))), d))
		old.save(ago(entry(t, body("2", fmt.Sprintf("Café,c%d,2", i))), d-time.Second))
	}
	old.settle()
	exec(t, b, `UPDATE products SET unsettled_from = unsettled_from - interval '1 hour'`)
	require.Equal(t, hours, one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`))
	maintain(t, b)
	require.Eventually(t, func() bool {
		return one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`) == 0
	}, 30*time.Second, 10*time.Millisecond, "one minute of tickets at each interval (5 s) would take hours after a day")
}

// Tickets of both versions come in random order, and both settle when they like. In the end this version makes the product base
// equal to a replay of all tickets in the order of their ids.
func TestPrevious_ProductsOfBothVersions_EqualAReplay(t *testing.T) {
	t.Parallel()
	t.Run("with the trigger", func(t *testing.T) {
		t.Parallel()
		assert.Empty(t, wrongAfterAMix(t, setup(t)))
	})
	t.Run("without it, which shows that the mix is one that needs it", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		exec(t, b, `DROP TRIGGER products_unsettled ON products`)
		assert.NotEmpty(t, wrongAfterAMix(t, b))
	})
}

// wrongAfterAMix stores tickets of both versions, and returns the products that are not what the newest ticket says.
func wrongAfterAMix(t *testing.T, b *testBundle) (wrong []string) {
	t.Helper()
	old := newPrevious(t, b)
	r := rand.New(rand.NewPCG(13, 6))
	var entries []*intake.Entry
	newest := map[string]said{}
	for i := range 600 { // few prices, so that confirmations and changes mix
		p := r.IntN(100)
		e := entry(t, body(strconv.Itoa(i), fmt.Sprintf("Product %d,p%d,%d", p, p, r.IntN(2))))
		entries = append(entries, e)
		for _, s := range saysOf(&e.Ticket) { // the ids of entries grow
			newest[s.ID] = s
		}
	}
	r.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	for _, e := range entries {
		switch r.IntN(20) {
		case 0:
			old.settle()
		case 1:
			b.store.Forget() // a minute passes before a server settles, and it relies on what it knows for less
			settle(t, b)
		}
		if r.IntN(2) == 0 {
			old.save(e)
		} else {
			save(t, b, e)
		}
	}
	old.settle()
	settle(t, b)
	for id, s := range newest {
		want := fmt.Sprintf("%s %s", s.Name, s.Price.AppendText(nil))
		if is := one[string](t, b, `SELECT name || ' ' || price FROM products WHERE product_id = $1`, id); is != want {
			wrong = append(wrong, fmt.Sprintf("%s is %s, and the newest ticket says %s", id, is, want))
		}
	}
	return wrong
}

func TestPrevious_PrunesWhatOnlyItsTicketsName_WhicheverVersionStoredThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(t, b)
	save(t, b, from(t, "shop", body("1", "Café,shared,2")), from(t, "junk", body("2", "Café,shared,2", "x,junk1,1")))
	old.save(from(t, "junk", body("3", "x,junk2,1", "x,kept,1")))
	save(t, b, from(t, "shop", body("4", "x,kept,1")), from(t, "other", body("5", "x,other1,1")))
	old.save(from(t, "other", body("6", "x,other2,1")))
	rest(t, b)
	assert.Equal(t, 2, old.prune("junk"))
	assert.Equal(t, "kept other1 other2 shared", products(t, b))
	pruned, err := b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"other"}}}, 10, false)
	require.NoError(t, err)
	assert.Equal(t, 2, pruned.Products)
	assert.Equal(t, "kept shared", products(t, b))
}

// setupPrevious returns a database with the schema of the version before, and such a server.
func setupPrevious(t *testing.T) (*testBundle, previous) {
	t.Helper()
	b := &testBundle{url: pgtest.Empty(t)}
	b.store, b.pool = open(t, b.url), openPool(t, b.url)
	migrateTo3(t, b)
	return b, newPrevious(t, b)
}

// The schema is migrated while senders, settling and partitions of the version before go on, and while reports read what it
// changes. Nothing of that fails, and nothing deadlocks.
func TestMigrations_OnABusyDatabase(t *testing.T) {
	t.Parallel()
	b, old := setupPrevious(t)
	ahead := 1
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, ahead, time.Now())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	again := func(do func()) {
		group.Go(func() {
			for ctx.Err() == nil {
				do()
			}
		})
	}
	var stored atomic.Int64
	var longest atomic.Int64
	for range 4 {
		again(func() {
			n := stored.Add(1)
			start := time.Now()
			old.save(entry(t, body(strconv.Itoa(int(n)), fmt.Sprintf("Café,c%d,%d", n%8, n/100))))
			longest.Store(max(longest.Load(), int64(time.Since(start))))
		})
	}
	again(func() { old.settle(); old.claim(time.Minute) })
	again(func() {
		ahead++ // each time there is a partition to make
		if _, err := b.store.EnsurePartitions(t.Context(), postgres.Day, ahead, time.Now()); err != nil {
			assert.ErrorContains(t, err, "55P03", "it gives way, and is tried again")
		}
		time.Sleep(200 * time.Millisecond)
	})
	report := func(sql string, d time.Duration) func() {
		conn := connect(t, b.url)
		return func() {
			err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), sql)
				time.Sleep(d) // a report that takes as long
				return err
			})
			assert.NoError(t, err) //nolint:testifylint // not in the test's own goroutine
			time.Sleep(d / 4)
		}
	}
	again(report(`SELECT count(*) FROM order_lines`, 700*time.Millisecond))
	again(report(`SELECT count(*) FROM products`, 300*time.Millisecond))
	again(report(`SELECT count(*) FROM products JOIN order_lines USING (product_id)`, 10*time.Millisecond))
	require.Eventually(t, func() bool { return stored.Load() > 50 }, time.Minute, time.Millisecond)
	require.NoError(t, postgres.MigrateUp(t.Context(), b.url))
	migrated := stored.Load()
	require.Eventually(t, func() bool { return stored.Load() > migrated+50 }, time.Minute, time.Millisecond)
	cancel()
	group.Wait()
	assert.Less(t, time.Duration(longest.Load()), 10*time.Second)
	assert.Zero(t, one[int](t, b, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`))
	assert.Equal(t, int(stored.Load()), one[int](t, b, `SELECT count(DISTINCT ticket_id) FROM order_lines`))
}

// What an operator must do then is in docs/operations.md, "A migration that failed".
func TestMigrations_KilledWhileTheyWait_LeaveTheVersionBeforeAtWork(t *testing.T) {
	t.Parallel()
	for locked, failed := range map[string]uint{"order_lines": 4, "products": 5} {
		t.Run(fmt.Sprintf("%d", failed), func(t *testing.T) {
			t.Parallel()
			b, old := setupPrevious(t)
			report := connect(t, b.url)
			_, err := report.Exec(t.Context(), `BEGIN; SELECT count(*) FROM `+locked)
			require.NoError(t, err)
			ended := make(chan error, 1)
			go func() { ended <- postgres.MigrateUp(t.Context(), b.url) }()
			require.Eventually(t, func() bool {
				return one[int](t, b, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
					WHERE datname = current_database() AND application_name = 'myticket migrate' AND wait_event_type = 'Lock'`) > 0
			}, time.Minute, time.Millisecond)
			require.Error(t, <-ended)
			_, err = report.Exec(t.Context(), `ROLLBACK`)
			require.NoError(t, err)

			status, err := b.store.Schema(t.Context())
			require.NoError(t, err)
			assert.True(t, status.Dirty)
			assert.Equal(t, failed, status.Version)
			assert.False(t, status.Ready(), "this version needs what is missing")
			status.Latest = 3
			assert.True(t, status.Ready(), "the version before goes on")
			old.save(entry(t, body("1", "Café,c,2")))
			require.ErrorContains(t, postgres.MigrateUp(t.Context(), b.url), "migrate force")

			config := postgres.MigrateConfig{URL: b.url, Logger: slog.New(slog.DiscardHandler)}
			require.NoError(t, postgres.ForceSchema(t.Context(), config, failed-1))
			require.NoError(t, postgres.MigrateUp(t.Context(), b.url))
			save(t, b, entry(t, body("2", "Café,c,2")))

			// The process may also die after Postgres has committed, and before that is noted. Then nothing runs twice.
			exec(t, b, fmt.Sprintf(`UPDATE schema_migrations SET version = %d, dirty = true`, failed))
			require.NoError(t, postgres.ForceSchema(t.Context(), config, failed-1))
			require.ErrorContains(t, postgres.MigrateUp(t.Context(), b.url), "already exists")
			require.NoError(t, postgres.ForceSchema(t.Context(), config, 5))
			save(t, b, entry(t, body("3", "Café,c,2")))
		})
	}
}

// Functions in a view are called with the rights of the role that reads the view, unlike its tables
// (https://www.postgresql.org/docs/current/sql-createview.html).
func TestMigrations_ReaderOfOrderLines_NeedsNoMoreRightsThanBefore(t *testing.T) {
	t.Parallel()
	b, old := setupPrevious(t)
	role := newRole(t, b)
	exec(t, b, `ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC; GRANT SELECT ON order_lines TO `+role)
	require.NoError(t, postgres.MigrateUp(t.Context(), b.url))
	e := entry(t, body("1", awkward))
	old.save(e)
	exec(t, b, `CREATE TABLE ticket_lines_default PARTITION OF ticket_lines DEFAULT;
		INSERT INTO ticket_lines VALUES (now(), gen_random_uuid(), 'shop', '2', E'a\\sb\t2.50\tTh\u00e9')`)
	reader := connect(t, b.url)
	_, err := reader.Exec(t.Context(), `SET ROLE `+role)
	require.NoError(t, err)
	rows, err := reader.Query(t.Context(), `SELECT product_id FROM order_lines`)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	assert.Equal(t, []string{`a\b`, `a\b`}, found)
}

// The rights that docs/upgrading.md names for servers whose role owns no table. Such a server makes no partitions.
func TestMigrations_RoleThatOwnsNothing_NeedsTheRightsThatTheDocsName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	role := newRole(t, b)
	exec(t, b, `GRANT SELECT, INSERT, UPDATE ON tickets, deliveries, products TO `+role+`; GRANT SELECT ON schema_migrations TO `+role)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 1, time.Now())
	require.NoError(t, err)
	url, err := neturl.Parse(b.url)
	require.NoError(t, err)
	url.RawQuery += "&role=" + role
	server := open(t, url.String())
	lines := postgres.NewOrderLines(postgres.OrderLinesConfig{}, server)

	require.Error(t, trySave(t.Context(), server, entry(t, body("1", awkward))), "as before, which is not enough")
	exec(t, b, `GRANT SELECT, INSERT ON outbox TO `+role)
	require.NoError(t, trySave(t.Context(), server, entry(t, body("1", awkward))))
	require.NoError(t, server.Ping(t.Context()))

	dialects := postgres.NewLiveDialects(server, false)
	require.Error(t, dialects.Load(t.Context()))
	require.Error(t, dialects.Store().Ping(t.Context()), "to intake the database is away")
	exec(t, b, `GRANT SELECT ON dialects TO `+role)
	require.NoError(t, dialects.Store().Ping(t.Context()))

	_, err = server.Claim(t.Context(), 1, time.Minute)
	require.Error(t, err)
	exec(t, b, `GRANT SELECT ON corrections TO `+role)
	treat(t, &testBundle{store: server})

	_, err = lines.Round(t.Context())
	require.Error(t, err)
	exec(t, b, `GRANT SELECT, INSERT, UPDATE ON outbox_readers TO `+role+`; GRANT SELECT, INSERT ON ticket_lines TO `+role)
	exec(t, b, `CREATE TABLE ticket_lines_all PARTITION OF ticket_lines FOR VALUES FROM ('2000-01-01') TO ('2100-01-01')`)
	require.Eventually(t, func() bool { // what is read waits for the transactions of all databases of the server
		_, err := lines.Round(t.Context())
		return assert.NoError(t, err) && one[int](t, b, `SELECT count(*) FROM order_lines`) == 1
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, trySave(t.Context(), server, entry(t, body("2", "Café,c,3"))))
	settle(t, &testBundle{store: server})

	wrong := entry(t, body("3", "Café,d,3"))
	require.NoError(t, trySave(t.Context(), server, wrong))
	require.Error(t, server.CorrectTicket(t.Context(), tester, wrong.Ticket.ID, postgres.NewText{Text: []byte("x")}))
	exec(t, b, `GRANT INSERT, DELETE ON corrections TO `+role+`; GRANT SELECT, INSERT ON audit TO `+role)
	require.NoError(t, server.CorrectTicket(t.Context(), tester, wrong.Ticket.ID, postgres.NewText{Text: []byte("x")}))
	treat(t, &testBundle{store: server})
	_, err = server.SettleProducts(t.Context(), 0, 1000)
	require.Error(t, err)
	exec(t, b, `GRANT DELETE ON products, ticket_lines TO `+role)
	settle(t, &testBundle{store: server})
	require.Error(t, server.DeleteOldCorrections(t.Context(), time.Now().AddDate(1, 0, 0)))
	_, err = server.ArchiveBacklog(t.Context())
	require.Error(t, err)
	exec(t, b, `GRANT SELECT ON archives, archive_runs TO `+role)
	require.NoError(t, server.DeleteOldCorrections(t.Context(), time.Now().AddDate(1, 0, 0)))
	_, err = server.ArchiveBacklog(t.Context())
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := lines.Round(t.Context())
		return assert.NoError(t, err) && waiting(t, b) == 0
	}, time.Minute, 10*time.Millisecond)
}

// newRole makes a role that may do nothing.
func newRole(t *testing.T, b *testBundle) string {
	t.Helper()
	role := "role_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	exec(t, b, `CREATE ROLE `+role)
	t.Cleanup(func() {
		_, err := b.pool.Exec(context.WithoutCancel(t.Context()), `DROP OWNED BY `+role+`; DROP ROLE `+role)
		assert.NoError(t, err)
	})
	return role
}
