package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// TicketFilter selects tickets. Empty fields select all.
type TicketFilter struct {
	Statuses []ticket.Status
	Source   string
	Order    string    // order number, exactly
	Problem  string    // code of one of its problems
	Since    time.Time // received at this time or later
	Until    time.Time // received before this time
}

// StoredTicket is a ticket as an operator sees it. Its amounts are what Postgres has, exactly.
type StoredTicket struct {
	ID            uuid.UUID        `json:"id"`
	ReceivedAt    time.Time        `json:"received_at"`
	Source        string           `json:"source"`
	Status        ticket.Status    `json:"status"`
	OrderNumber   string           `json:"order_number,omitempty"`
	VAT           json.Number      `json:"vat,omitempty"`
	Total         json.Number      `json:"total,omitempty"`
	Lines         []StoredLine     `json:"lines"`
	Extra         []StoredField    `json:"extra,omitempty"`
	Problems      []ticket.Problem `json:"problems"`
	ContentType   string           `json:"content_type,omitempty"`
	Traceparent   string           `json:"traceparent,omitempty"`
	ParserVersion int              `json:"parser_version"` // 0 when it was not read yet
	Attempts      int              `json:"attempts"`
	NextAttemptAt *time.Time       `json:"next_attempt_at,omitempty"`
	Body          []byte           `json:"-"` // only of Ticket
}

// StoredLine is one product line of a stored ticket. Extra are the columns that MyTicket does not know. Only Ticket has them,
// which reads them from the body: they are stored nowhere else, but on rows of a version before.
type StoredLine struct {
	Product   string        `json:"product"`
	ProductID string        `json:"product_id"`
	Price     json.Number   `json:"price,omitempty"` // absent when it was not read: an empty Number would be written as 0
	Extra     []StoredField `json:"extra,omitempty"`
}

// StoredField is a text that was kept without being understood.
type StoredField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

const ticketColumnsSQL = `id, received_at, source, status, coalesce(order_number, ''), vat::text, total::text, lines,
	extra, problems, content_type, coalesce(traceparent, ''), parser_version, attempts, next_attempt_at`

func scanTicket(row pgx.CollectableRow, more ...any) (StoredTicket, error) {
	var t StoredTicket
	var vat, total *string
	err := row.Scan(append([]any{
		&t.ID, &t.ReceivedAt, &t.Source, &t.Status, &t.OrderNumber, &vat, &total, &t.Lines, &t.Extra,
		&t.Problems, &t.ContentType, &t.Traceparent, &t.ParserVersion, &t.Attempts, &t.NextAttemptAt,
	}, more...)...)
	t.ReceivedAt = t.ReceivedAt.UTC()
	if t.NextAttemptAt != nil {
		next := t.NextAttemptAt.UTC()
		t.NextAttemptAt = &next
	}
	// So that a program reads an array, whether there is something in it or not.
	if t.Lines == nil {
		t.Lines = []StoredLine{}
	}
	if t.Problems == nil {
		t.Problems = []ticket.Problem{}
	}
	if vat != nil {
		t.VAT = json.Number(*vat)
	}
	if total != nil {
		t.Total = json.Number(*total)
	}
	return t, err
}

// conditions is a WHERE clause that grows, with its parameters.
type conditions struct {
	sql  []string
	args []any
}

// add adds a condition, in which each ? stands for the next of args.
func (c *conditions) add(sql string, args ...any) {
	for _, arg := range args {
		c.args = append(c.args, arg)
		sql = strings.Replace(sql, "?", fmt.Sprintf("$%d", len(c.args)), 1)
	}
	c.sql = append(c.sql, sql)
}

// where returns the clause, with more conditions that take no parameters.
func (c *conditions) where(more ...string) string {
	all := slices.Concat(c.sql, more)
	if len(all) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(all, " AND ")
}

// statusIs are conditions on the status as they stand in statements. A status is never a parameter where an index hangs
// on it: Postgres uses a partial index only where it can prove the index's condition while it plans, which it may do
// without the parameters of a statement that is run several times.
var statusIs = map[ticket.Status]string{
	ticket.ToTreat:   `status = 'TO_TREAT'`,
	ticket.Treated:   `status = 'TREATED'`,
	ticket.Error:     `status = 'ERROR'`,
	ticket.Dismissed: `status = 'DISMISSED'`,
}

// conditions returns the filter's but for the statuses, behind parameters that come before.
func (f TicketFilter) conditions(before ...any) *conditions {
	c := &conditions{args: before}
	if f.Source != "" {
		c.add("source = ?", f.Source)
	}
	if f.Order != "" {
		c.add("order_number = ?", f.Order)
	}
	if f.Problem != "" {
		c.add("problems @> jsonb_build_array(jsonb_build_object('code', ?::text))", f.Problem)
	}
	if !f.Since.IsZero() {
		c.add("received_at >= ?", f.Since)
	}
	if !f.Until.IsZero() {
		c.add("received_at < ?", f.Until)
	}
	return c
}

// Tickets returns at most limit tickets, the newest first, without their bodies and what only those say. After is the last
// ticket of the page before, or uuid.Nil. It reads no partition outside of the times, and finds an order number, and what is
// TO_TREAT or ERROR, by their indexes. There is none for DISMISSED, for a source or for a problem: those are looked for back
// in time until there are enough of them.
func (s *Store) Tickets(ctx context.Context, filter TicketFilter, after uuid.UUID, limit int) ([]StoredTicket, error) {
	sql, args := filter.page(after, limit)
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, explain("list tickets", err)
	}
	tickets, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (StoredTicket, error) { return scanTicket(row) })
	return tickets, explain("list tickets", err)
}

// page returns the statement of Tickets.
func (f TicketFilter) page(after uuid.UUID, limit int) (sql string, args []any) {
	c := f.conditions()
	if after != uuid.Nil {
		// The comparison of rows finds the place in the index, but leaves out no partition: that takes a plain one.
		c.add("received_at <= ?", ticket.IDTime(after))
		c.add("(received_at, id) < (?, ?)", ticket.IDTime(after), after)
	}
	const from = `SELECT ` + ticketColumnsSQL + ` FROM tickets`
	if f.Order != "" {
		if len(f.Statuses) > 0 {
			c.add("status = ANY (?)", f.Statuses)
		}
		c.args = append(c.args, limit)
		// OFFSET 0 keeps ORDER BY out of the choice of an index: it would tempt the planner, when it knows too little
		// about the table, to walk through all tickets by time until it has met the limit.
		return `SELECT * FROM (` + from + c.where() + ` OFFSET 0) t` + newestFirst(len(c.args)), c.args
	}
	c.args = append(c.args, limit)
	if len(f.Statuses) == 0 {
		return from + c.where() + newestFirst(len(c.args)), c.args
	}
	// Each status by the index that it has, if it has one.
	var pages []string
	for status, is := range statusIs {
		if slices.Contains(f.Statuses, status) {
			pages = append(pages, `(`+from+c.where(is)+newestFirst(len(c.args))+`)`)
		}
	}
	slices.Sort(pages) // a map's order is not one, and the statement's text is what it is prepared under
	return `SELECT * FROM (` + strings.Join(pages, ` UNION ALL `) + `) t` + newestFirst(len(c.args)), c.args
}

// newestFirst orders tickets, and limits them to what the parameter of that number says.
func newestFirst(limit int) string {
	return fmt.Sprintf(` ORDER BY received_at DESC, id DESC LIMIT $%d`, limit)
}

// Ticket returns one ticket with its body, and with what only that says, or ticket.ErrNotFound.
func (s *Store) Ticket(ctx context.Context, id uuid.UUID) (StoredTicket, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+ticketColumnsSQL+`, body FROM tickets WHERE received_at = $1 AND id = $2`,
		ticket.IDTime(id), id)
	if err != nil {
		return StoredTicket{}, explain("show a ticket", err)
	}
	t, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (StoredTicket, error) {
		var body []byte
		t, err := scanTicket(row, &body)
		t.Body = body
		t.readColumns()
		return t, err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return StoredTicket{}, fmt.Errorf("ticket %s: %w", id, ticket.ErrNotFound)
	}
	return t, explain("show a ticket", err)
}

// readColumns sets Extra of the lines from the body. It leaves alone what it does not recognise: lines that another version
// of the parser read in another way, and those that have it.
func (t *StoredTicket) readColumns() {
	order, _ := ticket.Parse(t.Body)
	if len(order.Columns) == 0 || len(order.Lines) != len(t.Lines) {
		return
	}
	for i := range t.Lines {
		line, read := &t.Lines[i], &order.Lines[i]
		if line.Extra != nil || line.Product != read.Name || line.ProductID != read.ProductID {
			continue
		}
		for column, name := range order.Columns {
			line.Extra = append(line.Extra, StoredField{name, read.Extra[column]})
		}
	}
}

// change is an UPDATE that a person may order: on which statuses, what it sets, and the parameters of that, $1 and on.
type change struct {
	from []ticket.Status
	set  string
	args []any
}

// retry keeps the problems, the dismissal among them, until the ticket is treated: they say why it was sent back. It makes
// every claim from before void, as a new claim does.
func retry() change {
	return change{
		from: []ticket.Status{ticket.Error, ticket.Dismissed},
		set:  `status = 'TO_TREAT', attempts = 0, claims = claims + 1, next_attempt_at = now()`,
	}
}

// dismiss takes nothing that is TO_TREAT: a server may be treating it right now, and it becomes ERROR if it cannot be
// read.
func dismiss(reason string) change {
	return change{
		from: []ticket.Status{ticket.Error},
		set: `status = 'DISMISSED', problems = coalesce(problems, '[]') ||
			jsonb_build_array(jsonb_build_object('line', 0, 'code', 'dismissed', 'message', $1::text))`,
		args: []any{ticket.CleanText(reason, MaxReason)},
	}
}

// MaxReason is the longest reason that is kept, in bytes. What is longer is cut.
const MaxReason = 1000

// RetryTicket sends an ERROR or DISMISSED ticket back to be treated. A ticket of another status is left alone, which is
// an error, and so is one that is not there (ticket.ErrNotFound).
func (s *Store) RetryTicket(ctx context.Context, id uuid.UUID) error {
	return s.changeOne(ctx, retry(), id)
}

// DismissTicket sets an ERROR ticket aside, with a reason of at most MaxReason bytes. Errors as with RetryTicket.
func (s *Store) DismissTicket(ctx context.Context, id uuid.UUID, reason string) error {
	return s.changeOne(ctx, dismiss(reason), id)
}

// RetryTickets sends the ERROR and DISMISSED tickets that a filter selects back to be treated, and returns how many. It
// does so in transactions of bounded size: when it fails, the number is that of those that were sent back before.
// Tickets that arrive after it began are left alone. With dryRun it only counts.
func (s *Store) RetryTickets(ctx context.Context, filter TicketFilter, dryRun bool) (int, error) {
	return s.changeAll(ctx, retry(), filter, dryRun)
}

// DismissTickets sets the ERROR tickets that a filter selects aside, in the manner of RetryTickets.
func (s *Store) DismissTickets(ctx context.Context, filter TicketFilter, reason string, dryRun bool) (int, error) {
	return s.changeAll(ctx, dismiss(reason), filter, dryRun)
}

func (s *Store) changeOne(ctx context.Context, ch change, id uuid.UUID) error {
	c := &conditions{args: slices.Clone(ch.args)}
	c.add("received_at = ?", ticket.IDTime(id))
	c.add("id = ?", id)
	c.add("status = ANY (?)", ch.from)
	var changed int64
	err := s.on(ctx, func(conn *pgxpool.Conn) error {
		tag, err := conn.Exec(ctx, `UPDATE tickets SET `+ch.set+c.where(), c.args...)
		changed = tag.RowsAffected()
		return err
	})
	switch {
	case errors.Is(err, errUnreplicated):
		return s.awaitStandbys(ctx, place{ticket.IDTime(id), id})
	case err != nil:
		return explain("change a ticket", err)
	case changed == 1:
		return nil
	}
	t, err := s.Ticket(ctx, id)
	if err != nil {
		return err
	}
	return fmt.Errorf("ticket %s is %s: only tickets that are %s can be changed so; nothing was changed",
		id, t.Status, or(ch.from))
}

func or(statuses []ticket.Status) string {
	words := make([]string, len(statuses))
	for i, status := range statuses {
		words[i] = string(status)
	}
	return strings.Join(words, " or ")
}

// changeBatch is how many tickets one transaction changes.
const changeBatch = 1000

// place is a ticket's place in time.
type place struct {
	at time.Time
	id uuid.UUID
}

// changeAll goes through the tickets of each status once, from the oldest to the newest that is there when it begins: a
// ticket that is treated meanwhile, and becomes ERROR again, is not met a second time, and those that arrive meanwhile
// cannot keep it busy for ever. It ends when the standbys have all of it, also what an earlier call has changed whose wait
// for them was given up: then this one finds nothing left to change.
func (s *Store) changeAll(ctx context.Context, ch change, filter TicketFilter, dryRun bool) (int, error) {
	var newest place
	err := s.pool.QueryRow(ctx, `SELECT received_at, id FROM tickets ORDER BY received_at DESC, id DESC LIMIT 1`).
		Scan(&newest.at, &newest.id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, explain("look for the newest ticket", err)
	}
	total := 0
	for _, status := range ch.from {
		if len(filter.Statuses) > 0 && !slices.Contains(filter.Statuses, status) {
			continue
		}
		n := 0
		if dryRun {
			c := filter.conditions()
			err = s.pool.QueryRow(ctx, `SELECT count(*) FROM tickets`+c.where(statusIs[status]), c.args...).Scan(&n)
		} else {
			n, err = s.changeStatus(ctx, ch, filter, status, newest)
		}
		total += n
		if err != nil {
			return total, explain("change tickets", err)
		}
	}
	if dryRun {
		return total, nil
	}
	return total, s.awaitStandbys(ctx, newest)
}

// changeStatus changes the tickets of one status up to a place, batch by batch.
func (s *Store) changeStatus(
	ctx context.Context, ch change, filter TicketFilter, status ticket.Status, last place,
) (total int, err error) {
	var done place
	for {
		sql, args := ch.batch(filter, status, done, last)
		var changed int
		err := s.pool.QueryRow(ctx, sql, args...).Scan(&changed, &done.at, &done.id)
		if errors.Is(err, pgx.ErrNoRows) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		total += changed
	}
}

// batch returns the statement that changes the first changeBatch tickets of a status behind one place, and not behind
// another one. It returns how many it changed, and the place of the last; no row when there was none.
//
// It locks the tickets in the order of their places, so that two of them cannot deadlock. A ticket that another process
// has changed meanwhile is left alone: Postgres looks at its status again once it has the lock
// (https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED). The condition on the status in
// the UPDATE itself is a second bolt; were it the same as the first, Postgres might match what was picked with every
// ticket of the status, by that index, and not by the primary key.
func (ch change) batch(filter TicketFilter, status ticket.Status, done, last place) (sql string, args []any) {
	c := filter.conditions(ch.args...)
	c.add("received_at >= ?", done.at) // see page: comparisons of rows leave out no partition
	c.add("received_at <= ?", last.at)
	c.add("(received_at, id) > (?, ?)", done.at, done.id)
	c.add("(received_at, id) <= (?, ?)", last.at, last.id)
	return fmt.Sprintf(`
WITH picked AS (
    SELECT received_at, id FROM tickets%s
    ORDER BY received_at, id LIMIT %d FOR UPDATE
), changed AS (
    UPDATE tickets t SET %s FROM picked p
    WHERE t.received_at = p.received_at AND t.id = p.id AND t.status NOT IN ('TO_TREAT', 'TREATED')
    RETURNING t.id
)
SELECT (SELECT count(*) FROM changed), received_at, id FROM picked ORDER BY received_at DESC, id DESC LIMIT 1`,
		c.where(statusIs[status]), changeBatch, ch.set), c.args
}

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
	Name         string    // a part of it, in any case
	ChangedSince time.Time // name or price changed at this time or later
}

// Products returns at most limit products in the order of their ids, those behind the id after.
func (s *Store) Products(ctx context.Context, filter ProductFilter, after string, limit int) ([]StoredProduct, error) {
	c := &conditions{}
	if filter.ID != "" {
		c.add("product_id = ?", filter.ID)
	}
	if filter.Name != "" {
		// A database of locale C knows no case beyond ASCII; ICU does.
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
