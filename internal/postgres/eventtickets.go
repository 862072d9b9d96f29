package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"myticket/internal/events"
	"myticket/internal/ticket"
)

// ticketReader reads tickets and products, and makes events of them: of what they are when they are read. Only one goroutine may
// use it.
type ticketReader struct {
	store *Store
	sub   events.Subscription

	statuses []ticket.Status // whose tickets are wanted
	sources  []string        // that are wanted; nil for all but tests
	tests    []string        // sources that are not wanted
}

// ticketReader returns one for the filter of a subscription. Test sources have no events, unless the filter names them.
func (s *Store) ticketReader(sub events.Subscription) ticketReader {
	r := ticketReader{store: s, sub: sub, statuses: sub.Filter.TicketStatuses(), tests: []string{}}
	if r.sources = sub.Filter.Sources; len(r.sources) == 0 {
		r.sources, r.tests = nil, s.sources.tests()
	}
	return r
}

// eventTicket is a ticket that something happened to.
type eventTicket struct {
	id               uuid.UUID
	at               time.Time // when
	ticket, products bool      // whether there is an event about itself, and about the products that are as it says
}

// readForEvents returns some tickets in the given order, and how many there are. They are left out from where what is
// returned of them has more than $3 bytes, but never the first one. A text that is not the body is returned with the body if the
// body is wanted ($7).
const readForEvents = `
SELECT n, id, source, status, version, order_number, vat, total, lines, problems, content_type, corrected, body,
       text, ` + dialectSQL + `, tickets
FROM (
    SELECT *, count(*) OVER () AS tickets, row_number() OVER (ORDER BY n) AS place,
           sum(octet_length(text) + coalesce(octet_length(body), 0)) OVER (ORDER BY n ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (
        SELECT i.n, t.id, t.source, t.status, t.version, coalesce(t.order_number, '') AS order_number,
               coalesce(t.vat::text, '') AS vat, coalesce(t.total::text, '') AS total, t.lines::text AS lines,
               t.problems::text AS problems, t.content_type, t.correction IS NOT NULL AS corrected,
               CASE WHEN $7 AND t.correction IS NOT NULL THEN t.body END AS body,
               ` + textSQL + ` AS text, t.dialect, t.problem_group
        FROM unnest($1::timestamptz[], $2::uuid[]) WITH ORDINALITY AS i (received_at, id, n)
        JOIN tickets t ON t.received_at = i.received_at AND t.id = i.id
        WHERE t.status = ANY ($4) AND ($5::text[] IS NULL OR t.source = ANY ($5)) AND t.source <> ALL ($6)) t) t
WHERE bytes <= $3 OR place = 1
ORDER BY n`

// countThere counts the tickets that are there.
const countThere = `
SELECT count(*) FROM unnest($1::timestamptz[], $2::uuid[]) AS i (received_at, id)
JOIN tickets t ON t.received_at = i.received_at AND t.id = i.id`

// productColumns are what an event says of a product p, of which the ticket t says what it is.
const productColumns = `p.product_id, p.name, p.price::text, p.ticket_id, t.source, p.changed_at, p.first_seen_at`

// productsOfTickets finds the products that are as one of some tickets says, of the first ticket only those after $5. The tickets
// are found by their primary key.
const productsOfTickets = `
SELECT i.n, ` + productColumns + `
FROM unnest($1::uuid[]) WITH ORDINALITY AS i (id, n)
JOIN products p ON p.ticket_id = i.id
JOIN tickets t ON t.received_at = p.changed_at AND t.id = p.ticket_id
WHERE ($2::text[] IS NULL OR t.source = ANY ($2)) AND t.source <> ALL ($3) AND (i.n > 1 OR p.product_id > $5)
ORDER BY i.n, p.product_id LIMIT $4`

// productsByID finds products.
const productsByID = `
SELECT 1, ` + productColumns + `
FROM unnest($1::text[]) AS i (id)
JOIN products p ON p.product_id = i.id
JOIN tickets t ON t.received_at = p.changed_at AND t.id = p.ticket_id`

// reach is how far a chunk goes.
type reach struct {
	n     int    // tickets that are read
	after string // the ticket after these has more products than fit: it and they are read up to this one; empty for none
}

// read makes a chunk of events about the first of some tickets and their products, and returns how far it goes. If after is not
// empty, it reads only products of the first ticket, and only those after that one.
func (r *ticketReader) read(ctx context.Context, refs []eventTicket, after string) (chunk events.Chunk, to reach, err error) {
	to = reach{n: len(refs)}
	var products productsFound
	if r.sub.Filter.WantsProducts() {
		if products, to, err = r.products(ctx, refs, after); err != nil {
			return events.Chunk{}, reach{}, err
		}
	}
	if r.sub.Filter.WantsTickets() && after == "" {
		var end int
		if chunk, end, err = r.tickets(ctx, refs[:min(max(to.n, 1), len(refs))]); err != nil {
			return events.Chunk{}, reach{}, err
		}
		if end < to.n { // the products belong to other tickets, too
			to = reach{n: end}
			products.cut(end)
		}
	}
	chunk.Events = append(chunk.Events, products.events...)
	return chunk, to, nil
}

// productsFound are the events about products of some tickets, and which of these tickets each is of, in their order.
type productsFound struct {
	events []events.Event
	places []int
}

// cut leaves those of the first n tickets.
func (p *productsFound) cut(n int) {
	end, _ := slices.BinarySearch(p.places, n)
	p.events, p.places = p.events[:end], p.places[:end]
}

// products returns the events about the products of the first of some tickets, and how far they go. A single ticket may have more
// than fit into a chunk.
func (r *ticketReader) products(
	ctx context.Context, refs []eventTicket, after string,
) (found productsFound, to reach, err error) {
	if after != "" {
		refs = refs[:1]
	}
	ids, at := make([][16]byte, 0, len(refs)), make([]time.Time, 0, len(refs))
	places := make([]int, 0, len(refs)) // where in refs they are
	seen := make(map[uuid.UUID]bool, len(refs))
	for i := range refs {
		if refs[i].products && !seen[refs[i].id] {
			seen[refs[i].id] = true
			ids, at, places = append(ids, refs[i].id), append(at, refs[i].at), append(places, i)
		}
	}
	if len(ids) == 0 {
		return productsFound{}, reach{n: len(refs)}, nil
	}
	rows, err := r.store.pool.Query(ctx, productsOfTickets, ids, r.sources, r.tests, eventProducts, after)
	if err != nil {
		return productsFound{}, reach{}, err
	}
	all, err := productEvents(rows, at)
	switch {
	case err != nil:
		return productsFound{}, reach{}, err
	case len(all.events) == eventProducts && len(refs) > 1:
		return r.products(ctx, refs[:len(refs)/2], after)
	case len(all.events) == eventProducts:
		to.after = all.events[eventProducts-1].Product
	default:
		to.n = len(refs)
	}
	for i, n := range all.places {
		all.places[i] = places[n]
	}
	return all, to, nil
}

// productEvents makes events of products, of which the first column says at which time.
func productEvents(rows pgx.Rows, at []time.Time) (found productsFound, err error) {
	var n int
	var p events.Product
	columns := []any{&n, &p.ID, &p.Name, &p.Price, &p.Ticket, &p.Source, &p.ChangedAt, &p.FirstSeenAt}
	_, err = pgx.ForEachRow(rows, columns, func() error {
		p.ChangedAt, p.FirstSeenAt = p.ChangedAt.UTC(), p.FirstSeenAt.UTC()
		event, err := events.EncodeProduct(&p, at[n-1].UTC())
		found.events, found.places = append(found.events, event), append(found.places, n-1)
		return err
	})
	return found, err
}

// tickets returns the events about the first of some tickets, and how many tickets these are.
func (r *ticketReader) tickets(ctx context.Context, refs []eventTicket) (chunk events.Chunk, n int, err error) {
	// pgx takes six times as long for a uuid.UUID, because that makes a text of itself.
	ids, times := make([][16]byte, 0, len(refs)), make([]time.Time, 0, len(refs))
	places := make([]int, 0, len(refs)) // where in refs they are
	seen := make(map[uuid.UUID]bool, len(refs))
	for i := range refs {
		if refs[i].ticket && !seen[refs[i].id] {
			seen[refs[i].id] = true
			ids, times, places = append(ids, refs[i].id), append(times, ticket.IDTime(refs[i].id)), append(places, i)
		}
	}
	if len(ids) == 0 {
		return events.Chunk{}, len(refs), nil
	}
	end := len(ids)
	err = r.store.steady(ctx, func(tx pgx.Tx) error {
		chunk = events.Chunk{Events: make([]events.Event, 0, len(ids))}
		rows, err := tx.Query(ctx, readForEvents, times, ids, eventBytes, r.statuses, r.sources, r.tests, r.sub.Body)
		if err != nil {
			return err
		}
		end, err = r.encode(rows, &chunk, len(ids), func(n int) time.Time { return refs[places[n]].at })
		if err != nil || len(chunk.Events)+chunk.Missing == end {
			return err
		}
		var there int
		if err := tx.QueryRow(ctx, countThere, times[:end], ids[:end]).Scan(&there); err != nil {
			return err
		}
		chunk.Missing += end - there
		return nil
	})
	switch {
	case isCode(err, dataCorrupted, indexCorrupted) && len(refs) > 1:
		return r.tickets(ctx, refs[:len(refs)/2])
	case isCode(err, dataCorrupted, indexCorrupted):
		r.passOver(uuid.UUID(ids[0]), err)
		return events.Chunk{Missing: 1}, 1, nil
	case err != nil:
		return events.Chunk{}, 0, err
	case end < len(ids):
		return chunk, places[end], nil
	}
	return chunk, len(refs), nil
}

// passOver tells of a ticket that there is no event about.
func (r *ticketReader) passOver(id uuid.UUID, why error) {
	r.store.logger.Warn("there is no event about a ticket, because it cannot be read; the ticket itself is stored as it was",
		"subscription", r.sub.Name, "ticket", id, "error", why)
}

// encode makes events of the rows of readForEvents for some tickets, one text at a time. It returns how many of the tickets are
// done.
func (r *ticketReader) encode(rows pgx.Rows, chunk *events.Chunk, tickets int, at func(n int) time.Time) (end int, err error) {
	var t events.Ticket
	var text text // valid until the next row, as the others
	var lines, problems, body []byte
	var status string
	var place, found, seen int
	columns := slices.Concat([]any{
		&place, &t.ID, &t.Source, &status, &t.Version, &t.OrderNumber, &t.VAT, &t.Total, (*pgtype.DriverBytes)(&lines),
		(*pgtype.DriverBytes)(&problems), &t.ContentType, &t.Corrected, (*pgtype.DriverBytes)(&body),
	}, text.scan(), []any{&found})
	_, err = pgx.ForEachRow(rows, columns, func() error {
		seen++
		t.Status, t.ReceivedAt, t.Lines, t.Problems, t.Body = ticket.Status(status), ticket.IDTime(t.ID), nil, nil, nil
		if r.sub.Body {
			if t.Body = text.body; t.Corrected {
				t.Body = body
			}
		}
		if problems != nil {
			if err := json.Unmarshal(problems, &t.Problems); err != nil {
				return fmt.Errorf("the problems of ticket %s: %w", t.ID, err)
			}
		}
		if t.Status != ticket.ToTreat {
			var err error
			if t.Lines, err = r.lines(text, lines); err != nil {
				return fmt.Errorf("ticket %s: %w", t.ID, err)
			}
		}
		event, err := events.EncodeTicket(&t, at(place-1).UTC())
		if err != nil { // a status of a newer version
			chunk.Missing++
			r.passOver(t.ID, err)
			return nil
		}
		chunk.Events = append(chunk.Events, event)
		return nil
	})
	if seen < found {
		return place, err
	}
	return tickets, err
}

// lines returns the lines of a ticket: those that an older version stored, or else those that are read from its text.
func (r *ticketReader) lines(t text, stored []byte) ([]ticket.Line, error) {
	if stored == nil {
		order, _, err := r.store.parse(t)
		return order.Lines, err
	}
	var old []StoredLine
	if err := json.Unmarshal(stored, &old); err != nil {
		return nil, err
	}
	lines := make([]ticket.Line, len(old))
	for i := range old {
		lines[i] = ticket.Line{Name: old[i].Product, ProductID: old[i].ProductID}
		if old[i].Price != "" {
			price, err := ticket.ParseAmount(string(old[i].Price))
			if err != nil {
				return nil, err
			}
			lines[i].Price = price
		}
	}
	return lines, nil
}

// again makes a chunk of events about what the first of some dead letters are about, and returns how many these are.
func (r *ticketReader) again(ctx context.Context, letters []letter) (chunk events.Chunk, n int, err error) {
	all := ticketReader{store: r.store, sub: r.sub, statuses: ticket.Statuses(), tests: []string{}}
	now := time.Now().UTC()
	refs, products := make([]eventTicket, len(letters)), make([]string, 0)
	for i := range letters {
		refs[i] = eventTicket{id: letters[i].ticket, at: ticket.IDTime(letters[i].ticket), ticket: letters[i].product == nil}
	}
	if chunk, n, err = all.tickets(ctx, refs); err != nil {
		return events.Chunk{}, 0, err
	}
	for i := range letters[:n] {
		if p := letters[i].product; p != nil && !slices.Contains(products, *p) {
			products = append(products, strings.Clone(*p))
		}
	}
	if len(products) > 0 {
		rows, err := r.store.pool.Query(ctx, productsByID, products)
		if err != nil {
			return events.Chunk{}, 0, err
		}
		found, err := productEvents(rows, []time.Time{now})
		if err != nil {
			return events.Chunk{}, 0, err
		}
		chunk.Events = append(chunk.Events, found.events...)
	}
	return chunk, n, nil
}
