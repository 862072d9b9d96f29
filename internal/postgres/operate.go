package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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

// StoredLine is one product line of a stored ticket.
type StoredLine struct {
	Product   string        `json:"product"`
	ProductID string        `json:"product_id"`
	Price     json.Number   `json:"price"`
	Extra     []StoredField `json:"extra,omitempty"`
}

// StoredField is a text that was kept without being understood.
type StoredField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

const ticketColumnsSQL = `id, received_at, source, status, coalesce(order_number, ''), vat::text, total::text, lines, extra,
	problems, content_type, coalesce(traceparent, ''), parser_version, attempts, next_attempt_at`

func scanTicket(row pgx.CollectableRow, more ...any) (StoredTicket, error) {
	var t StoredTicket
	var vat, total *string
	err := row.Scan(append([]any{
		&t.ID, &t.ReceivedAt, &t.Source, &t.Status, &t.OrderNumber, &vat, &total, &t.Lines, &t.Extra,
		&t.Problems, &t.ContentType, &t.Traceparent, &t.ParserVersion, &t.Attempts, &t.NextAttemptAt,
	}, more...)...)
	t.ReceivedAt = t.ReceivedAt.UTC()
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

func (c *conditions) where() string {
	if len(c.sql) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.sql, " AND ")
}

// conditions returns the filter's, behind parameters that come before.
func (f TicketFilter) conditions(before ...any) *conditions {
	c := &conditions{args: before}
	switch len(f.Statuses) {
	case 0:
	case 1: // so that the index of this status can serve
		c.add("status = ?", string(f.Statuses[0]))
	default:
		c.add("status = ANY (?)", f.Statuses)
	}
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

// Tickets returns at most limit tickets, the newest first, without their bodies. After is the last ticket of the page
// before, or uuid.Nil.
func (s *Store) Tickets(ctx context.Context, filter TicketFilter, after uuid.UUID, limit int) ([]StoredTicket, error) {
	c := filter.conditions()
	if after != uuid.Nil {
		c.add("(received_at, id) < (?, ?)", ticket.IDTime(after), after)
	}
	c.args = append(c.args, limit)
	rows, err := s.pool.Query(ctx, `SELECT `+ticketColumnsSQL+` FROM tickets`+c.where()+
		fmt.Sprintf(` ORDER BY received_at DESC, id DESC LIMIT $%d`, len(c.args)), c.args...)
	if err != nil {
		return nil, explain("list tickets", err)
	}
	tickets, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (StoredTicket, error) { return scanTicket(row) })
	return tickets, explain("list tickets", err)
}

// Ticket returns one ticket with its body, or ticket.ErrNotFound.
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
		return t, err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return StoredTicket{}, fmt.Errorf("ticket %s: %w", id, ticket.ErrNotFound)
	}
	return t, explain("show a ticket", err)
}

// change is an UPDATE that a person may order: on which statuses, and what it sets. $1 is a text for it.
type change struct {
	from []ticket.Status
	set  string
}

var (
	retry = change{
		from: []ticket.Status{ticket.Error, ticket.Dismissed},
		set:  `status = 'TO_TREAT', attempts = 0, next_attempt_at = now()`,
	}
	dismiss = change{
		from: []ticket.Status{ticket.Error},
		set: `status = 'DISMISSED', problems = coalesce(problems, '[]') ||
			jsonb_build_array(jsonb_build_object('line', 0, 'code', 'dismissed', 'message', $1::text))`,
	}
)

// RetryTicket sends an ERROR or DISMISSED ticket back to be treated. A ticket of another status is left alone, which is
// an error, and so is one that is not there (ticket.ErrNotFound).
func (s *Store) RetryTicket(ctx context.Context, id uuid.UUID) error {
	return s.changeOne(ctx, retry, id, "")
}

// DismissTicket sets an ERROR ticket aside, with a reason. Errors as with RetryTicket.
func (s *Store) DismissTicket(ctx context.Context, id uuid.UUID, reason string) error {
	return s.changeOne(ctx, dismiss, id, reason)
}

// RetryTickets sends the ERROR and DISMISSED tickets that a filter selects back to be treated, and returns how many.
// With dryRun it only counts.
func (s *Store) RetryTickets(ctx context.Context, filter TicketFilter, dryRun bool) (int, error) {
	return s.changeAll(ctx, retry, filter, "", dryRun)
}

// DismissTickets sets the ERROR tickets that a filter selects aside, and returns how many. With dryRun it only counts.
func (s *Store) DismissTickets(ctx context.Context, filter TicketFilter, reason string, dryRun bool) (int, error) {
	return s.changeAll(ctx, dismiss, filter, reason, dryRun)
}

func (s *Store) changeOne(ctx context.Context, ch change, id uuid.UUID, text string) error {
	tag, err := s.pool.Exec(ctx, `UPDATE tickets SET `+ch.set+
		` WHERE received_at = $2 AND id = $3 AND status = ANY ($4) AND $1::text IS NOT NULL`,
		ticket.CleanText(text, maxReason), ticket.IDTime(id), id, ch.from)
	if err != nil {
		return explain("change a ticket", err)
	}
	if tag.RowsAffected() == 1 {
		return nil
	}
	t, err := s.Ticket(ctx, id)
	if err != nil {
		return err
	}
	return fmt.Errorf("ticket %s is %s: only tickets that are %s can be changed so; nothing was changed", id, t.Status, or(ch.from))
}

// maxReason is the longest reason that is kept, in bytes.
const maxReason = 1000

func or(statuses []ticket.Status) string {
	words := make([]string, len(statuses))
	for i, status := range statuses {
		words[i] = string(status)
	}
	return strings.Join(words, " or ")
}

// changeBatch is how many tickets one transaction changes.
const changeBatch = 1000

// changeAll goes through the tickets once, from the oldest to the newest, in transactions of changeBatch: a ticket that
// is treated meanwhile, and becomes ERROR again, is not met a second time.
func (s *Store) changeAll(ctx context.Context, ch change, filter TicketFilter, text string, dryRun bool) (int, error) {
	var after uuid.UUID
	total := 0
	for {
		c := filter.conditions(ticket.CleanText(text, maxReason))
		c.add("status = ANY (?)", ch.from)
		c.add("$1::text IS NOT NULL")
		if after != uuid.Nil {
			c.add("(received_at, id) > (?, ?)", ticket.IDTime(after), after)
		}
		picked := `SELECT received_at, id FROM tickets` + c.where() +
			fmt.Sprintf(` ORDER BY received_at, id LIMIT %d`, changeBatch)
		sql := `WITH picked AS (` + picked + ` FOR UPDATE)
			UPDATE tickets t SET ` + ch.set + ` FROM picked p WHERE t.received_at = p.received_at AND t.id = p.id RETURNING t.id`
		if dryRun {
			sql = `SELECT id FROM (` + picked + `) p`
		}
		rows, err := s.pool.Query(ctx, sql, c.args...)
		if err != nil {
			return total, explain("change tickets", err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return total, explain("change tickets", err)
		}
		for _, id := range ids {
			if compareIDs(id, after) > 0 {
				after = id
			}
		}
		total += len(ids)
		if len(ids) < changeBatch {
			return total, nil
		}
	}
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
	rows, err := s.pool.Query(ctx, `SELECT product_id, name, price::text, first_seen_at, last_seen_at, changed_at, ticket_id
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
