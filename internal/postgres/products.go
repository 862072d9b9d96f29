package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"myticket/internal/ticket"
)

// upsertProducts brings the product base up to date with a batch. The newest ticket counts, in whatever order tickets come.
//
// It reads first. A product without news is not locked, so tickets with the same hot products never wait for each other.
// Products that change are locked in the order of their ids, so two batches cannot deadlock.
//
// A ticket that confirms what is known writes nothing, except for last_seen_at once a minute. Now an older ticket may come later
// and say something else. Either last_seen_at stops it, or it is late by less than that minute. In the second case
// unsettled_from makes SettleProducts look at the product again.
//
// With authenticated products ($8), an authenticated source outranks any other source, whichever ticket is newer. Tickets of a
// lower rank than the row change neither its name and price nor last_seen_at, because that would stop older tickets of the
// row's own rank.
//
// It returns one row per product that it wrote: the product's id if it was not there before, else NULL.
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
    unsettled_from    = CASE WHEN ` + changes + ` THEN now() ELSE p.unsettled_from END,
    authenticated   = CASE WHEN ` + changes + ` THEN excluded.authenticated ELSE p.authenticated END,
    last_seen_at    = CASE WHEN ` + outranks + ` THEN excluded.last_seen_at
                           WHEN ` + equalRank + ` THEN GREATEST(p.last_seen_at, excluded.last_seen_at)
                           ELSE p.last_seen_at END,
    first_seen_at   = LEAST(p.first_seen_at, excluded.first_seen_at)
WHERE ` + changes + `
   OR ` + equalRank + ` AND excluded.last_seen_at >= p.last_seen_at + interval '1 minute'
   OR excluded.first_seen_at < p.first_seen_at
RETURNING CASE WHEN p.xmax = 0 THEN p.product_id END`

// outranks, equalRank and changes compare a saying with the row. In SQL, false is less than true.
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
	batch := &pgconn.Batch{}
	if err := s.queueProducts(ctx, conn, batch, sayings); err != nil {
		return nil, err
	}
	a, err := s.readAnswers(conn.PgConn().ExecBatch(ctx, batch), sayings)
	return a.added, err
}

// queueProducts adds upsertProducts to a batch.
func (s *Store) queueProducts(ctx context.Context, conn *pgx.Conn, batch *pgconn.Batch, sayings []saying) error {
	products, err := conn.Prepare(ctx, upsertProducts, upsertProducts)
	if err != nil {
		return err
	}
	batch.ExecPrepared(products.Name, s.productParams(sayings), productFormats, nil)
	return nil
}

// queueSeen adds selectSeen to a batch.
func queueSeen(ctx context.Context, conn *pgx.Conn, batch *pgconn.Batch, sayings []saying) error {
	seen, err := conn.Prepare(ctx, selectSeen, selectSeen)
	if err != nil {
		return err
	}
	ids := newArray(pgtype.TextOID, 16*len(sayings))
	for i := range sayings {
		ids.text(sayings[i].ID)
	}
	batch.ExecPrepared(seen.Name, [][]byte{ids.param()}, []int16{formatBinary}, []int16{formatBinary})
	return nil
}

// answers are the results of a batch of statements.
type answers struct {
	added []saying          // the products that were not there before
	seen  seenProducts      // of selectSeen
	last  pgconn.CommandTag // of the last statement
}

// readAnswers reads the results of a batch of statements. Only upsertProducts and selectSeen return columns.
func (s *Store) readAnswers(results *pgconn.MultiResultReader, sayings []saying) (a answers, err error) {
	var ids map[string]bool // usually empty
	for results.NextResult() {
		rows := results.ResultReader()
		if len(rows.FieldDescriptions()) == seenColumns {
			a.seen = s.known.read(rows)
		}
		for rows.NextRow() {
			if values := rows.Values(); len(values) > 0 && values[0] != nil {
				if ids == nil {
					ids = map[string]bool{}
				}
				ids[string(values[0])] = true
			}
		}
		var failed error
		if a.last, failed = rows.Close(); failed != nil {
			break // results.Close returns the same error
		}
	}
	if err := results.Close(); err != nil {
		return answers{}, err
	}
	for i := range sayings {
		if len(ids) > 0 && ids[sayings[i].ID] {
			a.added = append(a.added, sayings[i])
		}
	}
	return a, nil
}

// saying is what a batch says about a product: name and price in its newest ticket of the highest rank, and the time of the
// oldest ticket.
type saying struct {
	ticket.Product
	ticketID      uuid.UUID
	firstAt       time.Time
	source        string
	authenticated bool // always false if all sources have the same rank
}

// overrules reports whether a saying overrules one of another ticket: first by rank, then by age, as in upsertProducts.
func (s *saying) overrules(other *saying) bool {
	if s.authenticated != other.authenticated {
		return s.authenticated
	}
	return compareIDs(s.ticketID, other.ticketID) > 0
}

// news returns what the TREATED rows say about products that must be asked about, each product once, and what the transaction
// relies on then. Rows that only confirm such a product are included, because the newest one counts.
func (s *Store) news(rows []row) ([]saying, reliance) {
	rows = s.teaching(rows)
	ids, relies := s.known.news(rows, s.authenticated)
	if ids != nil && len(ids) == 0 {
		return nil, relies
	}
	return s.sayings(rows, ids), relies
}

// everything is news for a transaction that asks about all products.
func (s *Store) everything(rows []row) ([]saying, reliance) {
	return s.distinctProducts(rows), reliance{}
}

// distinctProducts returns what the TREATED rows say about products, each product once.
func (s *Store) distinctProducts(rows []row) []saying { return s.sayings(s.teaching(rows), nil) }

// teaching returns the rows that are not of a test source. It does not change rows.
func (s *Store) teaching(rows []row) []row {
	test := func(r row) bool { return s.sources.Tests[r.ticket.Source] }
	if len(s.sources.Tests) == 0 || !slices.ContainsFunc(rows, test) {
		return rows // nearly always, without a copy
	}
	return slices.DeleteFunc(slices.Clone(rows), test)
}

// sayings is distinctProducts for the products in only; nil for all. It changes only, which must have the value -1 for each.
func (s *Store) sayings(rows []row, only map[string]int) []saying {
	index, all := only, only == nil
	if all {
		index = map[string]int{}
	}
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
			if !ok && !all {
				continue
			}
			if !ok || at < 0 {
				index[line.ProductID] = len(sayings)
				sayings = append(sayings, said)
				continue
			}
			earliest := sayings[at].firstAt
			if t.ReceivedAt.Before(earliest) {
				earliest = t.ReceivedAt
			}
			if said.ticketID == sayings[at].ticketID || said.overrules(&sayings[at]) { // of the same ticket, the last line counts
				sayings[at] = said
			}
			sayings[at].firstAt = earliest
		}
	}
	return sayings
}

// compareIDs orders ids as Postgres does: by their bytes, which for UUIDv7 is by time.
func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }

// StoredProduct is a product as an operator sees it.
type StoredProduct struct {
	ProductID   string      `json:"product_id"`
	Name        string      `json:"name"`
	Price       json.Number `json:"price"`
	FirstSeenAt time.Time   `json:"first_seen_at"`
	LastSeenAt  time.Time   `json:"last_seen_at"`
	ChangedAt   time.Time   `json:"changed_at"`
	TicketID    uuid.UUID   `json:"ticket_id"`
}

// ProductFilter selects products. Empty fields select all.
type ProductFilter struct {
	ID           string    // exactly
	Name         string    // a part of it; upper and lower case are the same
	ChangedSince time.Time // name or price changed at this time or later
}

// Products returns up to limit products in the order of their ids, after a given id.
func (s *Store) Products(ctx context.Context, filter ProductFilter, after string, limit int) ([]StoredProduct, error) {
	c := &conditions{}
	if filter.ID != "" {
		c.add("product_id = ?", filter.ID)
	}
	if filter.Name != "" {
		// In a database of locale C, lower knows only ASCII. ICU knows all letters.
		c.add(`strpos(lower(name COLLATE "und-x-icu"), lower(?::text COLLATE "und-x-icu")) > 0`, filter.Name)
	}
	if !filter.ChangedSince.IsZero() {
		c.add("changed_at >= ?", filter.ChangedSince)
	}
	if after != "" {
		c.add("product_id > ?", after)
	}
	c.args = append(c.args, limit)
	rows, err := s.pool.Query(ctx, `
		SELECT product_id, name, price::text, first_seen_at, last_seen_at, changed_at, ticket_id
		FROM products`+c.where()+fmt.Sprintf(` ORDER BY product_id LIMIT $%d`, len(c.args)), c.args...)
	if err != nil {
		return nil, explain("list products", err)
	}
	products, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (StoredProduct, error) {
		var p StoredProduct
		var price string
		err := row.Scan(&p.ProductID, &p.Name, &price, &p.FirstSeenAt, &p.LastSeenAt, &p.ChangedAt, &p.TicketID)
		p.Price = json.Number(price)
		p.FirstSeenAt, p.LastSeenAt, p.ChangedAt = p.FirstSeenAt.UTC(), p.LastSeenAt.UTC(), p.ChangedAt.UTC()
		return p, err
	})
	return products, explain("list products", err)
}
