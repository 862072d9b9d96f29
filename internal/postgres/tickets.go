package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// TicketFilter selects tickets. An empty field selects all.
type TicketFilter struct {
	Statuses []ticket.Status `json:"statuses,omitempty"`
	Sources  []string        `json:"sources,omitempty"`      // one of these
	Order    string          `json:"order,omitempty"`        // order number, exactly
	Problems []string        `json:"problems,omitempty"`     // one of its problems has one of these codes
	Group    ticket.Group    `json:"problem_group,omitzero"` // of its problems: see Store.Problems
	Since    time.Time       `json:"since,omitzero"`         // received at this time or later
	Until    time.Time       `json:"until,omitzero"`         // received before this time
	MinTotal string          `json:"min_total,omitempty"`    // its total is this amount or more
	MaxTotal string          `json:"max_total,omitempty"`    // its total is this amount or less
	Product  string          `json:"product,omitempty"`      // id of a product of its lines, in order_lines
}

// StoredTicket is a ticket as an operator sees it. Its amounts are exactly those in Postgres.
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
	ParserVersion int              `json:"parser_version"` // 0 if it was not read yet
	Dialect       int              `json:"dialect"`        // version of the dialect that it was read with; 0 for that of everyone
	Correction    int              `json:"correction"`     // which correction is read instead of the body; 0 if the body is
	Attempts      int              `json:"attempts"`
	NextAttemptAt *time.Time       `json:"next_attempt_at,omitempty"`
	Body          []byte           `json:"-"` // only from Store.Ticket
	Text          []byte           `json:"-"` // only from Store.Ticket: what is read instead of the body, or the body

	reader *ticket.Reader // in the dialect that it was read with; nil for that of everyone
}

// StoredLine is one product line of a stored ticket, as it is read from the body now. Extra are the columns that MyTicket does
// not know. Lines that an older version has stored are shown as they are.
type StoredLine struct {
	Product   string        `json:"product"`
	ProductID string        `json:"product_id"`
	Price     json.Number   `json:"price,omitempty"` // absent if it was not read, because an empty Number would be written as 0
	Extra     []StoredField `json:"extra,omitempty"`
}

// StoredField is a text that MyTicket keeps without understanding it.
type StoredField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ticketColumnsSQL are columns of a ticket t, for scanTicket.
const ticketColumnsSQL = `id, received_at, source, status, coalesce(order_number, ''), vat::text, total::text, lines,
	extra, problems, content_type, coalesce(traceparent, ''), parser_version, attempts, next_attempt_at,
	coalesce(correction, 0), body, ` + readTextSQL

func (s *Store) scanTicket(row pgx.CollectableRow) (StoredTicket, error) {
	var t StoredTicket
	var vat, total *string
	var text text
	err := row.Scan(append([]any{
		&t.ID, &t.ReceivedAt, &t.Source, &t.Status, &t.OrderNumber, &vat, &total, &t.Lines, &t.Extra,
		&t.Problems, &t.ContentType, &t.Traceparent, &t.ParserVersion, &t.Attempts, &t.NextAttemptAt, &t.Correction, &t.Body,
	}, text.scan()...)...)
	t.Dialect, t.Text = text.version, t.Body
	if t.Correction != 0 {
		t.Text = bytes.Clone(text.body)
	}
	if err == nil && t.ParserVersion != 0 {
		var order ticket.Order
		reader, unknown := s.readers.of(text.version, text.dialect)
		if unknown != nil {
			s.logger.Warn("the lines of a ticket cannot be shown; the ticket itself is stored", "ticket", t.ID, "error", unknown)
		} else {
			t.reader = reader
			order, _ = reader.Parse(text.body)
		}
		t.readLines(&order)
	}
	t.ReceivedAt = t.ReceivedAt.UTC()
	if t.NextAttemptAt != nil {
		next := t.NextAttemptAt.UTC()
		t.NextAttemptAt = &next
	}
	// In JSON these are arrays, also if they are empty.
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

// Readable returns a text of the ticket in UTF-8, as it is read: its Body, its Text, or another one.
func (t *StoredTicket) Readable(text []byte) string { return t.reader.Text(text) }

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

// statusIs are conditions on the status as literals. The status is not a parameter if an index depends on it: Postgres uses a
// partial index only if it can prove the condition of the index at planning, and the plan of a statement that is run several
// times may not know the parameters.
var statusIs = map[ticket.Status]string{
	ticket.ToTreat:   `status = 'TO_TREAT'`,
	ticket.Treated:   `status = 'TREATED'`,
	ticket.Error:     `status = 'ERROR'`,
	ticket.Dismissed: `status = 'DISMISSED'`,
}

// hasProduct is for a ticket t. It is what the view order_lines shows, without making rows of it: the lines in ticket_lines, or
// those of a row of an older version.
const hasProduct = `(EXISTS (SELECT FROM ticket_lines l WHERE l.received_at = t.received_at AND l.ticket_id = t.id
	AND strpos(E'\n' || l.lines, E'\n' || ?::text || E'\t') > 0)
	OR status = 'TREATED' AND lines @> jsonb_build_array(jsonb_build_object('product_id', ?::text)))`

// conditions returns the conditions of the filter, without the statuses. Their parameters follow those in before.
func (f TicketFilter) conditions(before ...any) *conditions {
	c := &conditions{args: before}
	if len(f.Sources) > 0 {
		c.add("source = ANY (?)", f.Sources)
	}
	if f.Order != "" {
		c.add("order_number = ?", f.Order)
	}
	if len(f.Problems) > 0 {
		c.add(`EXISTS (SELECT FROM unnest(?::text[]) AS code WHERE problems @> jsonb_build_array(jsonb_build_object('code', code)))`,
			f.Problems)
	}
	if f.Group != 0 {
		c.add("problem_group = ? AND "+byGroup, int64(f.Group))
	}
	if !f.Since.IsZero() {
		c.add("received_at >= ?", f.Since)
	}
	if !f.Until.IsZero() {
		c.add("received_at < ?", f.Until)
	}
	if f.MinTotal != "" {
		c.add("total >= ?::text::numeric", f.MinTotal)
	}
	if f.MaxTotal != "" {
		c.add("total <= ?::text::numeric", f.MaxTotal)
	}
	if f.Product != "" {
		c.add(hasProduct, string(appendEscaped(nil, f.Product)), f.Product)
	}
	return c
}

// Tickets returns up to limit tickets, the newest first, without their bodies. After is the last ticket of the previous page, or
// uuid.Nil. It reads no partition outside of the filter's times. It finds order numbers, and the statuses TO_TREAT and ERROR, by
// indexes. There is no index for DISMISSED, a source, a problem, an amount or a product: it searches back in time until it has
// enough tickets.
func (s *Store) Tickets(ctx context.Context, filter TicketFilter, after uuid.UUID, limit int) ([]StoredTicket, error) {
	sql, args := filter.page(after, limit)
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, explain("list tickets", err)
	}
	tickets, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (StoredTicket, error) {
		t, err := s.scanTicket(row)
		t.Body, t.Text = nil, nil
		return t, err
	})
	return tickets, explain("list tickets", err)
}

// page returns the statement of Tickets.
func (f TicketFilter) page(after uuid.UUID, limit int) (sql string, args []any) {
	c := f.conditions()
	if after != uuid.Nil {
		// The comparison of rows finds the place in the index, but excludes no partition. The plain comparison does.
		c.add("received_at <= ?", ticket.IDTime(after))
		c.add("(received_at, id) < (?, ?)", ticket.IDTime(after), after)
	}
	const from = `SELECT ` + ticketColumnsSQL + ` FROM tickets t`
	if f.Order != "" {
		if len(f.Statuses) > 0 {
			c.add("status = ANY (?)", f.Statuses)
		}
		c.args = append(c.args, limit)
		// OFFSET 0 keeps ORDER BY out of the choice of an index. Otherwise a planner that knows little about the table may
		// read all tickets by time until it has enough.
		return `SELECT * FROM (` + from + c.where() + ` OFFSET 0) t` + newestFirst(len(c.args)), c.args
	}
	c.args = append(c.args, limit)
	if len(f.Statuses) == 0 {
		return from + c.where() + newestFirst(len(c.args)), c.args
	}
	// Each status is read by its own index, if it has one.
	var pages []string
	for status, is := range statusIs {
		if slices.Contains(f.Statuses, status) {
			pages = append(pages, `(`+from+c.where(is)+newestFirst(len(c.args))+`)`)
		}
	}
	slices.Sort(pages) // a map has no order, and a prepared statement is found by its text
	return `SELECT * FROM (` + strings.Join(pages, ` UNION ALL `) + `) t` + newestFirst(len(c.args)), c.args
}

// newestFirst orders tickets, and limits them to the parameter $limit.
func newestFirst(limit int) string {
	return fmt.Sprintf(` ORDER BY received_at DESC, id DESC LIMIT $%d`, limit)
}

// Ticket returns one ticket, with its body and what is only there, or ticket.ErrNotFound.
func (s *Store) Ticket(ctx context.Context, id uuid.UUID) (StoredTicket, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+ticketColumnsSQL+` FROM tickets t WHERE received_at = $1 AND id = $2`,
		ticket.IDTime(id), id)
	if err != nil {
		return StoredTicket{}, explain("show a ticket", err)
	}
	t, err := pgx.CollectExactlyOneRow(rows, s.scanTicket)
	if errors.Is(err, pgx.ErrNoRows) {
		return StoredTicket{}, fmt.Errorf("ticket %s: %w", id, ticket.ErrNotFound)
	}
	return t, explain("show a ticket", err)
}

// readLines takes the lines from what was read from the text. A row of an older version has lines. Of these it takes only Extra,
// unless that is there, too, or the text is read differently now.
func (t *StoredTicket) readLines(order *ticket.Order) {
	if t.Lines == nil {
		for i := range order.Lines {
			t.Lines = append(t.Lines, storedLine(&order.Lines[i]))
		}
	}
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

func storedLine(line *ticket.Line) StoredLine {
	stored := StoredLine{Product: line.Name, ProductID: line.ProductID}
	if line.Price.IsSet() {
		stored.Price = json.Number(line.Price.AppendText(nil))
	}
	return stored
}

// AsRead returns a ticket that is not stored, as an operator would see it after it was read.
func AsRead(order *ticket.Order, problems []ticket.Problem) StoredTicket {
	t := StoredTicket{
		Status: ticket.Treated, OrderNumber: order.Number, Problems: append([]ticket.Problem{}, problems...),
		ParserVersion: ticket.ParserVersion,
	}
	if len(problems) > 0 {
		t.Status = ticket.Error
	}
	if order.VAT.IsSet() {
		t.VAT = json.Number(order.VAT.String())
	}
	if order.Total.IsSet() {
		t.Total = json.Number(order.Total.String())
	}
	for _, f := range order.Extra {
		t.Extra = append(t.Extra, StoredField{f.Name, f.Value})
	}
	if t.readLines(order); t.Lines == nil {
		t.Lines = []StoredLine{}
	}
	return t
}
