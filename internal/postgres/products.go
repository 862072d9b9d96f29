package postgres

import (
	"bytes"
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// upsertProducts brings the product base up to date with a batch. What the newest ticket says counts, in whatever order
// the tickets come.
//
// It reads first: a product about which there is nothing new is not locked, so tickets with the same hot products never
// wait for each other. Those that change are locked in the order of their ids, so two batches cannot deadlock.
//
// A ticket that confirms what is known writes nothing, but for last_seen_at once a minute. So an older ticket that comes
// later, and says otherwise, is stopped by last_seen_at, or else was overtaken by less than that minute: then
// unsettled_since makes SettleProducts look into it.
const upsertProducts = `
INSERT INTO products AS p (product_id, name, price, ticket_id, changed_at, last_seen_at, first_seen_at)
SELECT i.product_id, i.name, i.price, i.ticket_id, i.at, i.at, i.first_at
FROM unnest($1::text[], $2::text[], $3::numeric[], $4::uuid[], $5::timestamptz[], $6::timestamptz[])
     AS i (product_id, name, price, ticket_id, at, first_at)
LEFT JOIN products o ON o.product_id = i.product_id
WHERE o.product_id IS NULL
   OR i.ticket_id > o.ticket_id AND i.at >= o.last_seen_at AND (i.name, i.price) IS DISTINCT FROM (o.name, o.price)
   OR i.at >= o.last_seen_at + interval '1 minute'
   OR i.first_at < o.first_seen_at
ORDER BY i.product_id
ON CONFLICT (product_id) DO UPDATE SET
    name            = CASE WHEN ` + changes + ` THEN excluded.name ELSE p.name END,
    price           = CASE WHEN ` + changes + ` THEN excluded.price ELSE p.price END,
    ticket_id       = CASE WHEN ` + changes + ` THEN excluded.ticket_id ELSE p.ticket_id END,
    changed_at      = CASE WHEN ` + changes + ` THEN excluded.changed_at ELSE p.changed_at END,
    unsettled_since = CASE WHEN ` + changes + ` THEN now() ELSE p.unsettled_since END,
    last_seen_at    = GREATEST(p.last_seen_at, excluded.last_seen_at),
    first_seen_at   = LEAST(p.first_seen_at, excluded.first_seen_at)
WHERE ` + changes + `
   OR excluded.last_seen_at >= p.last_seen_at + interval '1 minute'
   OR excluded.first_seen_at < p.first_seen_at`

const changes = `(excluded.ticket_id > p.ticket_id AND excluded.last_seen_at >= p.last_seen_at
        AND (excluded.name, excluded.price) IS DISTINCT FROM (p.name, p.price))`

// lastSeenStep is how far last_seen_at may lag behind: the minute of upsertProducts.
const lastSeenStep = time.Minute

var productFormats = []int16{formatBinary, formatBinary, formatText, formatBinary, formatBinary, formatBinary}

// productParams returns the parameters of upsertProducts.
func productParams(sayings []saying) [][]byte {
	n := len(sayings)
	ids, names, tickets := newArray(pgtype.TextOID, 16*n), newArray(pgtype.TextOID, 32*n), newArray(pgtype.UUIDOID, 20*n)
	times, firsts := newArray(pgtype.TimestamptzOID, 12*n), newArray(pgtype.TimestamptzOID, 12*n)
	var prices amounts
	for i := range sayings {
		s := &sayings[i]
		ids.text(s.ID)
		names.text(s.Name)
		prices.add(s.Price)
		tickets.uuid(s.ticketID)
		times.time(ticket.IDTime(s.ticketID))
		firsts.time(s.firstAt)
	}
	return [][]byte{ids.param(), names.param(), prices.param(), tickets.param(), times.param(), firsts.param()}
}

func upsert(ctx context.Context, conn *pgx.Conn, sayings []saying) error {
	products, err := conn.Prepare(ctx, upsertProducts, upsertProducts)
	if err != nil {
		return err
	}
	return conn.PgConn().ExecPrepared(ctx, products.Name, productParams(sayings), productFormats, nil).Read().Err
}

// saying is what a batch says about a product: the words of its newest ticket, and the time of its oldest.
type saying struct {
	ticket.Product
	ticketID uuid.UUID
	firstAt  time.Time
}

// distinctProducts returns what the treated tickets of a batch say, each product once.
func distinctProducts(entries []*intake.Entry) []saying {
	index := map[string]int{}
	var sayings []saying
	for _, e := range entries {
		t := &e.Ticket
		if t.Status != ticket.Treated {
			continue
		}
		for i := range t.Order.Lines {
			line := &t.Order.Lines[i]
			product := ticket.Product{ID: line.ProductID, Name: line.Name, Price: line.Price}
			at, ok := index[line.ProductID]
			if !ok {
				index[line.ProductID] = len(sayings)
				sayings = append(sayings, saying{product, t.ID, t.ReceivedAt})
				continue
			}
			s := &sayings[at]
			if compareIDs(t.ID, s.ticketID) >= 0 { // the same ticket: its last line wins
				s.Product, s.ticketID = product, t.ID
			}
			if t.ReceivedAt.Before(s.firstAt) {
				s.firstAt = t.ReceivedAt
			}
		}
	}
	return sayings
}

// compareIDs orders ids as Postgres does: by their bytes, which for UUIDv7 is by time.
func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }

// unsettledProducts are changes that were made a while ago, the oldest tickets first, and only those whose tickets are
// close together, so that newestSayings reads a short span of tickets.
const unsettledProducts = `
WITH oldest AS (
    SELECT product_id, unsettled_since, changed_at FROM products
    WHERE unsettled_since < now() - $1::interval
    ORDER BY changed_at LIMIT $2
)
SELECT product_id, unsettled_since, changed_at FROM oldest
WHERE changed_at < (SELECT min(changed_at) FROM oldest) + $3::interval`

const newestSayings = `
SELECT DISTINCT ON (l.value ->> 'product_id')
       l.value ->> 'product_id', l.value ->> 'product', l.value ->> 'price', t.id
FROM tickets t CROSS JOIN LATERAL jsonb_array_elements(t.lines) WITH ORDINALITY AS l (value, line)
WHERE t.received_at >= $1 AND t.received_at <= $2 AND t.status = 'TREATED' AND l.value ->> 'product_id' = ANY ($3)
ORDER BY l.value ->> 'product_id', t.id DESC, l.line DESC`

// settled never waits for a lock, so it cannot deadlock with a batch; what it passes by is settled the next time.
const settled = `
WITH free AS (
    SELECT p.product_id FROM products p
    JOIN unnest($1::text[], $2::timestamptz[]) AS u (product_id, since)
      ON p.product_id = u.product_id AND p.unsettled_since = u.since
    FOR UPDATE OF p SKIP LOCKED
)
UPDATE products p SET unsettled_since = NULL FROM free WHERE p.product_id = free.product_id`

// SettleProducts makes sure of products whose name or price changed at least after ago: where a newer ticket says
// otherwise, that one counts. After must be longer than any transaction that stores tickets takes, so that all that ran
// beside the change have ended. It returns how many products it looked at, at most limit; 0 means that all are settled.
func (s *Store) SettleProducts(ctx context.Context, after time.Duration, limit int) (int, error) {
	var looked int
	err := s.retry(ctx, "settle products", func() error {
		var ids []string
		var since []time.Time
		var from, to, changedAt time.Time
		rows, err := s.pool.Query(ctx, unsettledProducts, after, limit, lastSeenStep)
		if err != nil {
			return err
		}
		var id string
		var at time.Time
		if _, err := pgx.ForEachRow(rows, []any{&id, &at, &changedAt}, func() error {
			ids, since = append(ids, id), append(since, at)
			if from.IsZero() || changedAt.Before(from) {
				from = changedAt
			}
			if end := changedAt.Add(lastSeenStep); end.After(to) {
				to = end
			}
			return nil
		}); err != nil {
			return err
		}
		looked = len(ids)
		if looked == 0 {
			return nil
		}
		sayings, err := s.newestSayings(ctx, from, to, ids)
		if err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if err := upsert(ctx, tx.Conn(), sayings); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, settled, ids, since)
			return err
		})
	})
	return looked, err
}

func (s *Store) newestSayings(ctx context.Context, from, to time.Time, ids []string) ([]saying, error) {
	rows, err := s.pool.Query(ctx, newestSayings, from, to, ids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (saying, error) {
		var said saying
		var price string
		err := row.Scan(&said.ID, &said.Name, &price, &said.ticketID)
		if err != nil {
			return said, err
		}
		said.firstAt = ticket.IDTime(said.ticketID)
		said.Price, err = ticket.ParseAmount(price)
		return said, err
	})
}
