package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// unsettledProducts selects products that changed a while ago, those with the oldest tickets first. It selects only products
// whose tickets are close together in time, so that newestSayings reads a short span of tickets, and looks at a bounded number.
const unsettledProducts = `
WITH due AS (
    SELECT product_id, unsettled_from, changed_at, authenticated FROM products
    WHERE unsettled_from < now() - $1::interval AND named_until IS NULL
    ORDER BY unsettled_from LIMIT $2 * 10
), oldest AS (
    SELECT * FROM due ORDER BY changed_at, unsettled_from LIMIT $2
)
SELECT product_id, unsettled_from, changed_at, authenticated FROM oldest
WHERE changed_at < (SELECT min(changed_at) FROM oldest) + $3::interval
ORDER BY changed_at, product_id`

// unsettledAhead is for marks that were set while Postgres' clock was ahead: they count from now on. Otherwise the products would
// not be looked at before that time comes. Marks of products that were put off (settleLater, learnLater) are not as far ahead.
const unsettledAhead = `
WITH free AS (
    SELECT product_id FROM products
    WHERE unsettled_from > now() + interval '1 minute'
      AND unsettled_from > now() + interval '1 minute' + CASE WHEN named_until IS NULL
            THEN greatest(now() - changed_at, interval '0') ELSE interval '1 hour' END
    LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE products p SET unsettled_from = now() FROM free WHERE p.product_id = free.product_id`

// newestSayings reads the bodies back in time, so that it can end as soon as there is a saying for each product. It leaves out
// test sources ($3).
const newestSayings = `
DECLARE newest_sayings NO SCROLL CURSOR FOR
SELECT t.id, t.source, ` + readTextSQL + ` FROM tickets t
WHERE received_at >= $1 AND received_at <= $2 AND status = 'TREATED' AND source <> ALL ($3::text[])
ORDER BY received_at DESC, id DESC`

// fetchSayings fetches few tickets, because each may be long, and what was fetched is received even if it comes too late.
const fetchSayings = `FETCH 32 FROM newest_sayings`

// settled takes the marks of products away, or puts the products behind all others. It never waits for a lock, so it cannot
// deadlock with a batch. Products that it skips are settled the next time.
const settled = `
WITH free AS (
    SELECT p.product_id FROM products p
    JOIN unnest($1::text[], $2::timestamptz[]) AS u (product_id, since)
      ON p.product_id = u.product_id AND p.unsettled_from = u.since
    FOR UPDATE OF p SKIP LOCKED
)
UPDATE products p SET unsettled_from = CASE WHEN $3::bool THEN now() END FROM free WHERE p.product_id = free.product_id`

// tellSettled notes in the outbox which tickets say now what a product is that this transaction has changed. Those that settle
// only confirms were noted when they were stored. The comparison of transactions is that of copiedRow.
const tellSettled = `
INSERT INTO outbox (kind, tickets)
SELECT '` + kindProducts + `', string_agg(DISTINCT uuid_send(p.ticket_id), ''::bytea)
FROM unnest($1::text[], $2::uuid[]) AS i (product_id, ticket_id)
JOIN products p ON p.product_id = i.product_id AND p.ticket_id = i.ticket_id
WHERE p.xmin::text::bigint = (pg_current_xact_id()::text::numeric % 4294967296)::bigint
HAVING count(*) > 0`

// settleLater puts products that cannot be settled off, for as long as they have not been settled. So they are tried less and
// less often, however many there are, and the others come first. It is an hour at most ($3), because a ticket that came a moment
// ago may say that it is weeks old.
const settleLater = `
UPDATE products p SET unsettled_from = now() + least(greatest(now() - p.changed_at, interval '0'), $3::interval)
FROM unnest($1::text[], $2::timestamptz[]) AS u (product_id, since)
WHERE p.product_id = u.product_id AND p.unsettled_from = u.since`

// longestPause is the longest time for which products are put off whose tickets cannot be read.
const longestPause = time.Hour

// settleTime bounds the reading of the tickets of one group of products, if the caller gives no deadline.
const settleTime = 10 * time.Second

// unsettled is a product whose name or price changed.
type unsettled struct {
	id            string
	since         time.Time
	from, to      time.Time // the tickets that are looked at were received in this time
	authenticated bool      // only authenticated sources can overrule it

	lastSeen time.Time // only if it is withdrawn: see withdraw
}

// SettleProducts checks products whose name or price changed longer than after ago. If a newer ticket says something else, that
// ticket counts. A product that no ticket names any more keeps its name and price. After must be longer than any transaction
// that stores tickets, so that all transactions that ran beside the change have ended. It returns how many products it checked,
// at most limit; 0 means that all are settled. It also finds out what counts for products that a corrected ticket named: see
// withdraw.
//
// While tickets of the time of such a change are set aside (MoveStrays), the products are put behind all others, because no query
// finds these tickets until they are moved.
//
// A product that cannot be settled does not hold up the others. SettleProducts tries fewer at once, and puts a product off that
// alone cannot be settled, which is an error. If it takes too long to read the tickets, it puts the half off that changed first,
// because to try fewer at once would leave them less time. The other half has fewer tickets to read the next time.
func (s *Store) SettleProducts(ctx context.Context, after time.Duration, limit int) (int, error) {
	settled, err := s.settleChanged(ctx, after, limit)
	if err != nil {
		return settled, err
	}
	learned, err := s.learnAgain(ctx, after, limit) // also while others change faster than they are settled
	return settled + learned, err
}

// settleChanged is SettleProducts for products that changed.
func (s *Store) settleChanged(ctx context.Context, after time.Duration, limit int) (int, error) {
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
		case len(products) == 1 || slow(err):
			products = products[:(len(products)+1)/2]
			ids, since := keysOf(products)
			if _, laterErr := s.pool.Exec(ctx, settleLater, ids, since, longestPause); laterErr != nil {
				return 0, explain("put products off", laterErr)
			}
			return len(products), fmt.Errorf("%d products that changed, among them %q, are put off: %w",
				len(products), products[0].id, explain("settle products", err))
		}
		limit = len(products) / 2
	}
}

// answered reports whether the server is there, and only failed to do this one thing.
func answered(err error) bool {
	_, unknown := errors.AsType[*unknownDialectError](err)
	return sqlState(err) != "" && !broken(err) || errors.Is(err, errSlow) || unknown
}

// slow reports whether the time was over before all tickets were read.
func slow(err error) bool { return errors.Is(err, errSlow) || isCode(err, queryCanceled) }

var errSlow = errors.New("it takes too long to read the tickets that name them")

func (s *Store) unsettledProducts(ctx context.Context, after time.Duration, limit int) ([]unsettled, error) {
	var products []unsettled
	err := s.retry(ctx, "look for products that changed", func() error {
		if _, err := s.pool.Exec(ctx, unsettledAhead, limit); err != nil {
			return err
		}
		rows, err := s.pool.Query(ctx, unsettledProducts, after, limit, lastSeenStep)
		if err != nil {
			return err
		}
		products, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p unsettled, err error) {
			err = row.Scan(&p.id, &p.since, &p.from, &p.authenticated)
			p.to = p.from.Add(lastSeenStep)
			return p, err
		})
		return err
	})
	return products, err
}

// settle settles products, which must be in the order of their times.
func (s *Store) settle(ctx context.Context, products []unsettled) error {
	newest, err := s.newestSayings(ctx, products)
	later := errors.Is(err, errSetAside)
	if err != nil && !later {
		return err
	}
	ids, since := keysOf(products)
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if sayings := newest.all(); len(sayings) > 0 {
			if _, err := s.upsert(ctx, tx.Conn(), sayings); err != nil {
				return err
			}
			saying := valuesOf(sayings)
			if _, err := tx.Exec(ctx, tellSettled, idsOf(sayings), saying.tickets); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, settled, ids, since, later)
		return err
	})
}

// keysOf returns the ids of products, and the marks that they were found with.
func keysOf(products []unsettled) (ids []string, since []time.Time) {
	for i := range products {
		ids, since = append(ids, products[i].id), append(since, products[i].since)
	}
	return ids, since
}

// newestSayings returns what the newest tickets say about products. It looks at tickets since the oldest change. For a product
// of an authenticated source it looks only at tickets of such sources. If it fails, it also returns what it found until then.
func (s *Store) newestSayings(ctx context.Context, products []unsettled) (*sayingsFound, error) {
	budget := settleTime
	if deadline, ok := ctx.Deadline(); ok {
		budget = time.Until(deadline) / 2
	}
	from, to := products[0].from, products[0].to
	for i := range products {
		if products[i].from.Before(from) {
			from = products[i].from
		}
		if products[i].to.After(to) {
			to = products[i].to
		}
	}
	newest := newSayingsFound(products, to, time.Now().Add(budget))
	return newest, pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// The server ends a statement that takes too long. A context that ends would cost the connection.
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, max(budget.Milliseconds(), 1))); err != nil {
			return err
		}
		if err := noneSetAside(ctx, tx, from, to); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, newestSayings, from, to, s.sources.tests()); err != nil {
			return err
		}
		for !newest.complete() {
			rows, err := tx.Query(ctx, fetchSayings)
			if err != nil {
				return err
			}
			n, err := newest.read(rows, s.authenticated, s.parse)
			if err != nil {
				return err
			}
			if n == 0 {
				newest.reach(time.Time{})
				return nil
			}
		}
		return nil
	})
}

// sayingsFound is what was found so far. The newest tickets come first.
type sayingsFound struct {
	giveUp  time.Time
	wanted  map[string]*unsettled // by product
	found   map[string]saying     // by product
	open    []*unsettled          // those whose time is not over, the earliest time first
	unnamed int                   // products whose time is over, and that no ticket named
	reached time.Time             // all later tickets were looked at
}

func newSayingsFound(products []unsettled, to, giveUp time.Time) *sayingsFound {
	s := &sayingsFound{
		giveUp: giveUp, reached: to, wanted: make(map[string]*unsettled, len(products)), found: make(map[string]saying, len(products)),
	}
	for i := range products {
		s.wanted[products[i].id] = &products[i]
		s.open = append(s.open, &products[i])
	}
	slices.SortFunc(s.open, func(a, b *unsettled) int { return a.from.Compare(b.from) })
	return s
}

// all returns what was found.
func (s *sayingsFound) all() []saying { return slices.Collect(maps.Values(s.found)) }

// complete reports whether nothing more can be found.
func (s *sayingsFound) complete() bool { return len(s.found)+s.unnamed == len(s.wanted) }

// reach goes back to a time.
func (s *sayingsFound) reach(at time.Time) {
	s.reached = at
	for last := len(s.open) - 1; last >= 0 && at.Before(s.open[last].from); last-- {
		if _, ok := s.found[s.open[last].id]; !ok {
			s.unnamed++
		}
		s.open = s.open[:last]
	}
}

// read reads tickets, one at a time, and returns how many there were.
func (s *sayingsFound) read(
	rows pgx.Rows, authenticated func(string) bool, parse func(text) (ticket.Order, []ticket.Problem, error),
) (n int, err error) {
	var id uuid.UUID
	var source string
	var text text // read before the next row comes
	_, err = pgx.ForEachRow(rows, append([]any{&id, &source}, text.scan()...), func() error {
		n++
		said := saying{ticketID: id, firstAt: ticket.IDTime(id), source: source}
		if s.reach(said.firstAt); s.complete() { // the rest of what was fetched
			return nil
		}
		if time.Now().After(s.giveUp) {
			return errSlow
		}
		order, _, err := parse(text)
		if err != nil {
			return err
		}
		said.authenticated = authenticated != nil && authenticated(source)
		for i := range order.Lines {
			line := &order.Lines[i]
			product := s.wanted[line.ProductID]
			if product == nil || said.firstAt.Before(product.from) {
				continue
			}
			if authenticated != nil && product.authenticated && !said.authenticated {
				continue
			}
			if newer, ok := s.found[product.id]; ok && newer.ticketID != id {
				continue
			}
			said.Product = ticket.Product{ID: product.id, Name: strings.Clone(line.Name), Price: line.Price}
			s.found[product.id] = said // of one ticket, the last line counts
		}
		return nil
	})
	return n, err
}
