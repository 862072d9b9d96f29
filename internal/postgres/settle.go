package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// unsettledProducts are changes that were made a while ago, the oldest tickets first, and only those whose tickets are
// close together, so that newestSayings reads a short span of tickets. It looks at a bounded number of them, however many
// there are.
const unsettledProducts = `
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

// newestSayings reads back in time, so that it can end as soon as there is a saying for each product. It sorts nothing but the
// lines that come from the index anyway: a hostile ticket may name one product on each of its lines.
const newestSayings = `
DECLARE newest_sayings NO SCROLL CURSOR FOR
SELECT t.id, t.source, l.line, l.value ->> 'product_id', l.value ->> 'product', l.value ->> 'price'
FROM tickets t CROSS JOIN LATERAL jsonb_array_elements(t.lines) WITH ORDINALITY AS l (value, line)
WHERE t.received_at >= $1 AND t.received_at <= $2 AND t.status = 'TREATED' AND l.value ->> 'product_id' = ANY ($3)
ORDER BY t.received_at DESC, t.id DESC`

// fetchSayings is how many lines are held at once.
const fetchSayings = `FETCH 1000 FROM newest_sayings`

// settled never waits for a lock, so it cannot deadlock with a batch; what it passes by is settled the next time.
const settled = `
WITH free AS (
    SELECT p.product_id FROM products p
    JOIN unnest($1::text[], $2::timestamptz[]) AS u (product_id, since)
      ON p.product_id = u.product_id AND p.unsettled_since = u.since
    FOR UPDATE OF p SKIP LOCKED
)
UPDATE products p SET unsettled_since = NULL FROM free WHERE p.product_id = free.product_id`

// settleLater puts a product that cannot be settled behind all others.
const settleLater = `UPDATE products SET unsettled_since = now() WHERE product_id = $1`

// settleTime is how long reading the tickets of one group of products may take, where the caller gives no deadline.
const settleTime = 10 * time.Second

// unsettled is a product whose name or price changed.
type unsettled struct {
	id               string
	since, changedAt time.Time
	authenticated    bool // only what authenticated sources say can overrule it
}

// SettleProducts makes sure of products whose name or price changed at least after ago: where a newer ticket says
// otherwise, that one counts. A product that no ticket names any more keeps what it has. After must be longer than any
// transaction that stores tickets takes, so that all that ran beside the change have ended. It returns how many products it
// looked at, at most limit; 0 means that all are settled.
//
// Products that cannot be settled, for whatever reason, keep nobody from it: it tries fewer at once, and puts one that cannot
// be settled by itself behind all others, which is an error.
func (s *Store) SettleProducts(ctx context.Context, after time.Duration, limit int) (int, error) {
	for {
		products, err := s.unsettledProducts(ctx, after, limit)
		if err != nil || len(products) == 0 {
			return 0, explain("look for products that changed", err)
		}
		err = s.settle(ctx, products)
		switch {
		case err == nil:
			return len(products), nil
		case ctx.Err() != nil || !answered(err):
			return 0, explain("settle products", err)
		case len(products) == 1:
			if _, laterErr := s.pool.Exec(ctx, settleLater, products[0].id); laterErr != nil {
				return 0, explain("put a product off", laterErr)
			}
			return 1, fmt.Errorf("product %q: %w", products[0].id, explain("settle products", err))
		}
		limit = len(products) / 2
	}
}

// answered reports whether it is the server that said so: it is there, and did not do this one thing.
func answered(err error) bool {
	return sqlState(err) != "" && !broken(err) || errors.Is(err, errSlow)
}

var errSlow = errors.New("reading the tickets that name them takes too long")

func (s *Store) unsettledProducts(ctx context.Context, after time.Duration, limit int) ([]unsettled, error) {
	var products []unsettled
	err := s.retry(ctx, "look for products that changed", func() error {
		rows, err := s.pool.Query(ctx, unsettledProducts, after, limit, lastSeenStep)
		if err != nil {
			return err
		}
		products, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p unsettled, err error) {
			return p, row.Scan(&p.id, &p.since, &p.changedAt, &p.authenticated)
		})
		return err
	})
	return products, err
}

// settle settles products that are in the order of their times.
func (s *Store) settle(ctx context.Context, products []unsettled) error {
	sayings, err := s.newestSayings(ctx, products)
	if err != nil {
		return err
	}
	ids, since := make([]string, len(products)), make([]time.Time, len(products))
	for i := range products {
		ids[i], since[i] = products[i].id, products[i].since
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if len(sayings) > 0 {
			if _, err := s.upsert(ctx, tx.Conn(), sayings); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, settled, ids, since)
		return err
	})
}

// newestSayings returns what the newest tickets say about products, of those since the oldest of their changes. A product
// that was said by an authenticated source is looked for only in tickets of such.
func (s *Store) newestSayings(ctx context.Context, products []unsettled) ([]saying, error) {
	budget := settleTime
	if deadline, ok := ctx.Deadline(); ok {
		budget = time.Until(deadline) / 2
	}
	giveUp := time.Now().Add(budget)
	ids := make([]string, len(products))
	wanted := make(map[string]*unsettled, len(products)) // without those for which the newest ticket was found
	for i := range products {
		ids[i] = products[i].id
		wanted[products[i].id] = &products[i]
	}
	newest := sayingsFound{wanted: wanted, found: make(map[string]*found, len(products))}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// It is the server that ends a statement that takes too long: a context that ends costs a connection.
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, max(budget.Milliseconds(), 1))); err != nil {
			return err
		}
		from, to := products[0].changedAt, products[len(products)-1].changedAt.Add(lastSeenStep)
		if _, err := tx.Exec(ctx, newestSayings, from, to, ids); err != nil {
			return err
		}
		for !newest.complete() {
			if time.Now().After(giveUp) {
				return errSlow
			}
			rows, err := tx.Query(ctx, fetchSayings)
			if err != nil {
				return err
			}
			if n, err := newest.read(rows, s.authenticated); err != nil || n == 0 {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sayings := make([]saying, 0, len(newest.found))
	for _, f := range newest.found {
		sayings = append(sayings, f.saying)
	}
	return sayings, nil
}

// found is the newest saying about a product, and the line it stands on.
type found struct {
	saying
	line int64
}

// sayingsFound is what was found so far, in lines of the newest tickets first.
type sayingsFound struct {
	wanted map[string]*unsettled
	found  map[string]*found // by product
	oldest uuid.UUID         // of the tickets in found
	last   uuid.UUID         // the ticket of the last line that was read
}

// complete reports whether there is a saying for each product, and no more lines of their tickets.
func (s *sayingsFound) complete() bool { return len(s.found) == len(s.wanted) && s.last != s.oldest }

// read reads lines, and returns how many there were. A ticket's lines may be in any order: its last one counts. A line without
// a price that can be read says nothing.
func (s *sayingsFound) read(rows pgx.Rows, authenticated func(string) bool) (n int, err error) {
	var f found
	var name, price *string
	_, err = pgx.ForEachRow(rows, []any{&f.ticketID, &f.source, &f.line, &f.ID, &name, &price}, func() error {
		n++
		s.last = f.ticketID
		product := s.wanted[f.ID]
		f.authenticated = authenticated != nil && authenticated(f.source)
		if product == nil || name == nil || price == nil || authenticated != nil && product.authenticated && !f.authenticated {
			return nil
		}
		if have := s.found[f.ID]; have != nil && (have.ticketID != f.ticketID || have.line > f.line) {
			return nil
		}
		amount, err := ticket.ParseAmount(*price)
		if err != nil {
			return nil //nolint:nilerr // whoever wrote it, it was not this program
		}
		said := f
		said.Name, said.Price, said.firstAt = *name, amount, ticket.IDTime(f.ticketID)
		s.found[f.ID], s.oldest = &said, f.ticketID
		return nil
	})
	return n, err
}
