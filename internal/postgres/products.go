package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

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
//
// With authenticated products ($8), what an authenticated source says outranks what another one says, whichever is newer. Tickets
// of a lower rank than the row's then change neither its words nor last_seen_at, which would stop older tickets of the
// row's own rank.
//
// It returns a row for each that it wrote: the product's id when it was not there before, or else NULL.
const upsertProducts = `
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
    name            = CASE WHEN ` + changes + ` THEN excluded.name ELSE p.name END,
    price           = CASE WHEN ` + changes + ` THEN excluded.price ELSE p.price END,
    ticket_id       = CASE WHEN ` + changes + ` THEN excluded.ticket_id ELSE p.ticket_id END,
    changed_at      = CASE WHEN ` + changes + ` THEN excluded.changed_at ELSE p.changed_at END,
    unsettled_since = CASE WHEN ` + changes + ` THEN now() ELSE p.unsettled_since END,
    authenticated   = CASE WHEN ` + changes + ` THEN excluded.authenticated ELSE p.authenticated END,
    last_seen_at    = CASE WHEN ` + outranks + ` THEN excluded.last_seen_at
                           WHEN ` + equalRank + ` THEN GREATEST(p.last_seen_at, excluded.last_seen_at)
                           ELSE p.last_seen_at END,
    first_seen_at   = LEAST(p.first_seen_at, excluded.first_seen_at)
WHERE ` + changes + `
   OR ` + equalRank + ` AND excluded.last_seen_at >= p.last_seen_at + interval '1 minute'
   OR excluded.first_seen_at < p.first_seen_at
RETURNING CASE WHEN p.xmax = 0 THEN p.product_id END`

// outranks, equalRank and changes compare a saying with the row. False is less than true.
const (
	outranks  = `(excluded.authenticated > (p.authenticated AND $8::bool))`
	equalRank = `(excluded.authenticated = (p.authenticated AND $8::bool))`
	changes   = `(` + outranks + ` OR ` + equalRank + `
        AND excluded.ticket_id > p.ticket_id AND excluded.last_seen_at >= p.last_seen_at
        AND (excluded.name, excluded.price) IS DISTINCT FROM (p.name, p.price))`
)

// lastSeenStep is how far last_seen_at may lag behind: the minute of upsertProducts.
const lastSeenStep = time.Minute

var productFormats = []int16{
	formatBinary, formatBinary, formatText, formatBinary, formatBinary, formatBinary, formatBinary, formatBinary,
}

// productParams returns the parameters of upsertProducts.
func (s *Store) productParams(sayings []saying) [][]byte {
	ranked := byte(0)
	if s.authenticated != nil {
		ranked = 1
	}
	return append(productArrays(sayings), []byte{ranked})
}

func productArrays(sayings []saying) [][]byte {
	n := len(sayings)
	ids, names, tickets := newArray(pgtype.TextOID, 16*n), newArray(pgtype.TextOID, 32*n), newArray(pgtype.UUIDOID, 20*n)
	times, firsts := newArray(pgtype.TimestamptzOID, 12*n), newArray(pgtype.TimestamptzOID, 12*n)
	authenticated := newArray(pgtype.BoolOID, 5*n)
	var prices amounts
	for i := range sayings {
		s := &sayings[i]
		ids.text(s.ID)
		names.text(s.Name)
		prices.add(s.Price)
		tickets.uuid(s.ticketID)
		times.time(ticket.IDTime(s.ticketID))
		firsts.time(s.firstAt)
		authenticated.bool(s.authenticated)
	}
	return [][]byte{
		ids.param(), names.param(), prices.param(), tickets.param(), times.param(), firsts.param(), authenticated.param(),
	}
}

// upsert runs upsertProducts, and returns the products that were not there before.
func (s *Store) upsert(ctx context.Context, conn *pgx.Conn, sayings []saying) ([]saying, error) {
	products, err := conn.Prepare(ctx, upsertProducts, upsertProducts)
	if err != nil {
		return nil, err
	}
	batch := &pgconn.Batch{}
	batch.ExecPrepared(products.Name, s.productParams(sayings), productFormats, nil)
	added, _, err := readAdded(conn.PgConn().ExecBatch(ctx, batch), sayings)
	return added, err
}

// readAdded reads what statements returned, of which upsertProducts is the only one that returns columns. It also returns
// what the last statement did.
func readAdded(
	results *pgconn.MultiResultReader, sayings []saying,
) (added []saying, last pgconn.CommandTag, err error) {
	var ids map[string]bool // mostly none
	for results.NextResult() {
		rows := results.ResultReader()
		for rows.NextRow() {
			if values := rows.Values(); len(values) > 0 && values[0] != nil {
				if ids == nil {
					ids = map[string]bool{}
				}
				ids[string(values[0])] = true
			}
		}
		if last, err = rows.Close(); err != nil {
			break // and Close returns it as well
		}
	}
	if err := results.Close(); err != nil {
		return nil, last, err
	}
	if len(ids) == 0 {
		return nil, last, nil
	}
	for i := range sayings {
		if ids[sayings[i].ID] {
			added = append(added, sayings[i])
		}
	}
	return added, last, nil
}

// saying is what a batch says about a product: the words of its newest ticket of the highest rank, and the time of its oldest.
type saying struct {
	ticket.Product
	ticketID      uuid.UUID
	firstAt       time.Time
	source        string
	authenticated bool // false where all sources count the same
}

// overrules reports whether a saying counts for more than another one, of another ticket. Booleans first: see upsertProducts.
func (s *saying) overrules(other *saying) bool {
	if s.authenticated != other.authenticated {
		return s.authenticated
	}
	return compareIDs(s.ticketID, other.ticketID) > 0
}

// distinctProducts returns what the treated tickets of a batch say, each product once.
func (s *Store) distinctProducts(rows []row) []saying {
	index := map[string]int{}
	var sayings []saying
	for r := range rows {
		t := rows[r].ticket
		if rows[r].status != ticket.Treated {
			continue
		}
		said := saying{ticketID: t.ID, firstAt: t.ReceivedAt, source: t.Source}
		said.authenticated = s.authenticated != nil && s.authenticated(t.Source)
		for i := range t.Order.Lines {
			line := &t.Order.Lines[i]
			said.Product = ticket.Product{ID: line.ProductID, Name: line.Name, Price: line.Price}
			at, ok := index[line.ProductID]
			if !ok {
				index[line.ProductID] = len(sayings)
				sayings = append(sayings, said)
				continue
			}
			earliest := sayings[at].firstAt
			if t.ReceivedAt.Before(earliest) {
				earliest = t.ReceivedAt
			}
			if said.ticketID == sayings[at].ticketID || said.overrules(&sayings[at]) { // the same ticket: its last line wins
				sayings[at] = said
			}
			sayings[at].firstAt = earliest
		}
	}
	return sayings
}

// compareIDs orders ids as Postgres does: by their bytes, which for UUIDv7 is by time.
func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }

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
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && !broken(err) || errors.Is(err, errSlow)
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
