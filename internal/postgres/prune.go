package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// PruneSelection selects tickets by their ids, or else by Source, Since and Until of a filter.
type PruneSelection struct {
	IDs    []uuid.UUID
	Filter TicketFilter
}

// Pruned is the result of PruneProducts.
type Pruned struct {
	Candidates int      `json:"candidates"` // products that have their name and price from a selected ticket
	Kept       int      `json:"kept"`       // of these: named by other tickets, too, so they stay
	Products   int      `json:"products"`   // of these: named only by selected tickets, so they are (to be) removed
	Changed    int      `json:"changed"`    // of these: not removed, because another transaction was changing them
	Examples   []string `json:"examples"`   // some ids of Products
	More       bool     `json:"more"`       // there are more candidates than the limit: run it again
}

const (
	pruneChunk    = 50_000 // products for which the other tickets are searched at once
	pruneBatch    = 1000   // products that one transaction removes
	pruneExamples = 20
	// pruneRest is how long no ticket must have named a product. A ticket that names it updates last_seen_at if that is more
	// than a minute old. With twice that time, removeProducts notices every ticket that names the product now. It is longer, so
	// that servers remember also the products of late tickets (knownRest).
	pruneRest = 10 * time.Minute
)

// pruneCandidates selects products that only tickets of the selection may have made. The ticket that gave the name and the price
// is one of them, and so is the ticket that named the product first. That ticket must still be there: a product that is older
// than all kept tickets was named by others. Tickets of test sources ($1) teach no products, so they are none of these others.
//
// The cursor outlives its transaction, because a transaction that is open for the whole time would hold back vacuum in the whole
// database. So it needs a connection of its own, which a pooler must not share.
const pruneCandidates = `
DECLARE prune_candidates NO SCROLL CURSOR WITH HOLD FOR
SELECT p.product_id, p.ticket_id, p.first_seen_at, p.last_seen_at, p.authenticated
FROM products p
WHERE p.last_seen_at < now() - interval '%[3]d seconds' AND p.unsettled_from IS NULL AND p.named_until IS NULL
  AND EXISTS (SELECT FROM tickets WHERE received_at = p.changed_at AND id = p.ticket_id AND %[1]s)
  AND EXISTS (SELECT FROM tickets WHERE received_at = p.first_seen_at AND status = 'TREATED'
              AND (%[1]s OR source = ANY ($1::text[])))
ORDER BY p.first_seen_at, p.last_seen_at
LIMIT %[2]d`

// otherTickets selects tickets that may name a product of the time from $1 to $2, and are neither in the selection nor of a test
// source ($3). For tickets that another version of the parser read, it also returns the products that that version found.
const otherTickets = `
SELECT ` + readTextSQL + `, CASE WHEN parser_version <> %[2]d AND jsonb_typeof(lines) = 'array' THEN
    ARRAY(SELECT l ->> 'product_id' FROM jsonb_array_elements(lines) AS l WHERE l ->> 'product_id' IS NOT NULL) END
FROM tickets t
WHERE status = 'TREATED' AND received_at >= $1 AND received_at <= $2 AND source <> ALL ($3::text[]) AND NOT (%[1]s)`

// removeProducts removes products that have not changed since they were selected. It skips products that another transaction
// has locked.
const removeProducts = `
WITH same AS (
    SELECT p.product_id FROM products p
    JOIN unnest($1::text[], $2::uuid[], $3::timestamptz[]) AS u (product_id, ticket_id, last_seen_at)
      ON p.product_id = u.product_id AND p.ticket_id = u.ticket_id AND p.last_seen_at = u.last_seen_at
    WHERE p.unsettled_from IS NULL AND p.named_until IS NULL
    ORDER BY p.product_id
    FOR UPDATE OF p SKIP LOCKED
)
DELETE FROM products p USING same WHERE p.product_id = same.product_id`

// where returns the condition for the selected tickets. Its parameters follow those in before.
func (s PruneSelection) where(before ...any) (sql string, args []any, err error) {
	c := &conditions{args: before}
	if len(s.IDs) > 0 {
		c.add("id = ANY (?)", s.IDs)
	} else {
		c = TicketFilter{Sources: s.Filter.Sources, Since: s.Filter.Since, Until: s.Filter.Until}.conditions(before...)
	}
	if len(c.sql) == 0 {
		return "", nil, errors.New("no tickets are named")
	}
	return strings.Join(c.sql, " AND "), c.args, nil
}

// candidate is a product that may be removed.
type candidate struct {
	id                  string
	ticketID            uuid.UUID
	firstSeen, lastSeen time.Time
	authenticated       bool
}

// PruneProducts removes the products that only the selected tickets name: no body of another TREATED ticket names them, not
// counting test sources. It leaves out products that were withdrawn: their last_seen_at does not say when they were named. It
// looks at up to limit products, and holds a bounded number of them and one ticket at a time in memory. It may be
// repeated: if it fails, the products that were removed before are gone. With dryRun it only counts. It does not remove products
// that a ticket has named within the last ten minutes.
//
// While tickets of that time are set aside (MoveStrays) it fails, because they may name the products, too.
//
// It does not know tickets that wait in a spool. When such a ticket is drained, the products that it names come back.
func (s *Store) PruneProducts(
	ctx context.Context, by Person, selection PruneSelection, limit int, dryRun bool,
) (Pruned, error) {
	pruned := Pruned{Examples: []string{}}
	run := &pruneRun{by: by, selection: selection, dryRun: dryRun}
	where, args, err := selection.where(s.sources.tests())
	if err != nil {
		return pruned, err
	}
	err = s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if _, err := conn.Exec(ctx, fmt.Sprintf(pruneCandidates, where, limit+1, pruneRest/time.Second), args...); err != nil {
			return err
		}
		defer func() { _, _ = conn.Exec(context.WithoutCancel(ctx), `CLOSE prune_candidates`) }()
		for {
			rows, err := conn.Query(ctx, fmt.Sprintf(`FETCH %d FROM prune_candidates`, pruneChunk))
			if err != nil {
				return err
			}
			chunk, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c candidate, err error) {
				return c, row.Scan(&c.id, &c.ticketID, &c.firstSeen, &c.lastSeen, &c.authenticated)
			})
			if err != nil || len(chunk) == 0 {
				return err
			}
			if pruned.Candidates+len(chunk) > limit {
				pruned.More = true
				chunk = chunk[:limit-pruned.Candidates]
			}
			if err := s.pruneChunk(ctx, run, chunk, &pruned); err != nil {
				return err
			}
			if pruned.More {
				return nil
			}
		}
	})
	return pruned, explain("prune products", err)
}

// pruneRun is what all chunks of PruneProducts have in common.
type pruneRun struct {
	by        Person
	selection PruneSelection
	dryRun    bool
	head      int64 // the run's first row in the audit, or 0
}

// entry returns the row of the audit for a transaction that removes products.
func (r *pruneRun) entry(removed int) AuditEntry {
	details := map[string]any{"products": removed}
	if r.head != 0 {
		details["run"] = r.head
	}
	filter := any(r.selection.Filter)
	if ids := r.selection.IDs; len(ids) > 0 {
		filter = map[string]any{"ids": ids[:min(len(ids), pruneExamples)], "number": len(ids)}
	}
	return AuditEntry{Who: r.by.Who, Why: r.by.Why, Action: ActionPrune, Filter: filter, Details: details}
}

// pruneChunk handles some candidates, and adds the result to pruned.
func (s *Store) pruneChunk(ctx context.Context, run *pruneRun, chunk []candidate, pruned *Pruned) error {
	kept, err := s.namedByOthers(ctx, run.selection, chunk)
	if err != nil {
		return err
	}
	pruned.Candidates += len(chunk)
	pruned.Kept += len(kept)
	var going []candidate
	for _, c := range chunk {
		if !kept[c.id] {
			going = append(going, c)
			if len(pruned.Examples) < pruneExamples {
				pruned.Examples = append(pruned.Examples, c.id)
			}
		}
	}
	if run.dryRun {
		pruned.Products += len(going)
		return nil
	}
	for len(going) > 0 {
		batch := going[:min(len(going), pruneBatch)]
		going = going[len(batch):]
		var ids []string
		var tickets []uuid.UUID
		var seen []time.Time
		for _, c := range batch {
			ids, tickets, seen = append(ids, c.id), append(tickets, c.ticketID), append(seen, c.lastSeen)
		}
		var removed int
		var row int64
		if err := s.retry(ctx, "remove products", func() error {
			row = 0
			return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
				tag, err := tx.Exec(ctx, removeProducts, ids, tickets, seen)
				removed = int(tag.RowsAffected())
				if err != nil || removed == 0 {
					return err
				}
				row, err = auditRow(ctx, tx, run.entry(pruned.Products+removed))
				return err
			})
		}); err != nil {
			return err
		}
		if run.head == 0 {
			run.head = row
		}
		pruned.Products += removed
		pruned.Changed += len(batch) - removed
	}
	return nil
}

// namedByOthers returns the candidates that a ticket outside of the selection names. It reads the bodies of all tickets of the
// time in which the candidates were named.
func (s *Store) namedByOthers(ctx context.Context, selection PruneSelection, chunk []candidate) (map[string]bool, error) {
	candidates := make(map[string]bool, len(chunk))
	from, to := chunk[0].firstSeen, chunk[0].lastSeen
	for _, c := range chunk {
		candidates[c.id] = true
		if c.firstSeen.Before(from) {
			from = c.firstSeen
		}
		last := c.lastSeen
		if c.authenticated { // tickets of other sources do not update last_seen_at
			last = time.Now().Add(24 * time.Hour)
		}
		if last.After(to) {
			to = last
		}
	}
	to = to.Add(lastSeenStep)
	where, args, err := selection.where(from, to, s.sources.tests())
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	err = s.steady(ctx, func(tx pgx.Tx) error {
		if err := noneSetAside(ctx, tx, from, to); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, fmt.Sprintf(otherTickets, where, ticket.ParserVersion), args...)
		if err != nil {
			return err
		}
		return s.namedIn(rows, candidates, named)
	})
	return named, err
}

// namedIn adds those candidates to named that rows of otherTickets name.
func (s *Store) namedIn(rows pgx.Rows, candidates, named map[string]bool) error {
	var text text
	var found []string
	_, err := pgx.ForEachRow(rows, append(text.scan(), &found), func() error {
		order, _, err := s.parse(text)
		if err != nil {
			return err
		}
		for i := range order.Lines {
			found = append(found, order.Lines[i].ProductID)
		}
		for _, id := range found {
			if candidates[id] {
				named[strings.Clone(id)] = true // a clone, so that the ticket's memory is freed
			}
		}
		return nil
	})
	return err
}
