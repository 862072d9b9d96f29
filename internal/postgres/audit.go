package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// Person is who changes something, and why.
type Person struct {
	Who string // such as user@host; at most MaxWho bytes. Required
	Why string // at most MaxReason bytes
}

// Limits of what is kept of a person, in bytes. A longer text is cut.
const (
	MaxWho    = 200
	MaxReason = 1000
)

// The actions of the audit.
const (
	ActionRetry     = "tickets.retry"
	ActionDismiss   = "tickets.dismiss"
	ActionReopen    = "tickets.reopen"
	ActionCorrect   = "tickets.correct"
	ActionRetention = "retention"
	ActionPrune     = "products.prune"

	ActionSubscribe         = "subscriptions.create"
	ActionResubscribe       = "subscriptions.change"
	ActionPause             = "subscriptions.pause"
	ActionResume            = "subscriptions.resume"
	ActionReplay            = "subscriptions.replay"
	ActionUnsubscribe       = "subscriptions.delete"
	ActionReplayDeadLetters = "dead_letters.replay"
	ActionDeleteDeadLetters = "dead_letters.delete"

	ActionArchive = "archive"
	ActionRestore = "archive.restore"
	ActionRelease = "archive.release"
)

// AuditEntry is a change that a person makes.
type AuditEntry struct {
	Who, Action string
	Filter      any // which tickets the person selected; nil for none
	Tickets     int // how many tickets it changes
	Why         string
	Details     any // what else there is to know; nil for nothing
}

// audit adds a row to the audit in the transaction of the change. So there is a row exactly if the change was made.
func audit(ctx context.Context, tx pgx.Tx, a AuditEntry) error {
	_, err := auditRow(ctx, tx, a)
	return err
}

const insertAudit = `
INSERT INTO audit (who, action, filter, tickets, why, details) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id`

// auditRow is audit, and returns the id of the row.
func auditRow(ctx context.Context, tx pgx.Tx, a AuditEntry) (id int64, err error) {
	if strings.TrimSpace(a.Who) == "" {
		return 0, fmt.Errorf("audit %s: it is not said who makes the change", a.Action)
	}
	filter, err := auditJSON(a.Filter)
	if err != nil {
		return 0, err
	}
	details, err := auditJSON(a.Details)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRow(ctx, insertAudit,
		ticket.CleanText(a.Who, MaxWho), a.Action, filter, a.Tickets, ticket.CleanText(a.Why, MaxReason), details).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("audit %s: %w", a.Action, err)
	}
	return id, nil
}

// auditJSON returns an object of JSON.
func auditJSON(value any) (string, error) {
	if value == nil {
		return "{}", nil
	}
	text, err := json.Marshal(value)
	return string(text), err
}

// AuditFilter selects changes. An empty field selects all.
type AuditFilter struct {
	Since  time.Time // begun at this time or later
	Until  time.Time // begun before this time
	Who    string    // exactly
	Action string    // exactly, or a part before a point, such as tickets
}

// AuditRecord is a change that a person made. The rows of a bulk change, one for each of its transactions, are one record.
type AuditRecord struct {
	ID           int64           `json:"id"`
	At           time.Time       `json:"at"`    // its first transaction
	Until        time.Time       `json:"until"` // its last one
	Who          string          `json:"who"`
	Action       string          `json:"action"`
	Filter       json.RawMessage `json:"filter"`
	Tickets      int64           `json:"tickets"`
	Transactions int64           `json:"transactions"`
	Why          string          `json:"why"`
	Details      json.RawMessage `json:"details"` // of its last transaction, without run
}

// auditPage finds the rows of a run by the index audit_run.
const auditPage = `
SELECT a.id, a.at, greatest(run.until, a.at), a.who, a.action, a.filter, a.tickets + run.tickets, 1 + run.transactions, a.why,
       coalesce(run.details - 'run', a.details)
FROM audit a
CROSS JOIN LATERAL (
    SELECT max(r.at) AS until, coalesce(sum(r.tickets), 0)::bigint AS tickets, count(*) AS transactions,
           (array_agg(r.details ORDER BY r.id DESC))[1] AS details
    FROM audit r WHERE r.details ? 'run' AND r.details ->> 'run' = a.id::text) run`

// Audit returns up to limit changes, the newest first. After is the last one of the previous page, or 0.
func (s *Store) Audit(ctx context.Context, filter AuditFilter, after int64, limit int) ([]AuditRecord, error) {
	sql, args := filter.page(after, limit)
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, explain("list the audit", err)
	}
	records, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r AuditRecord, err error) {
		err = row.Scan(&r.ID, &r.At, &r.Until, &r.Who, &r.Action, &r.Filter, &r.Tickets, &r.Transactions, &r.Why, &r.Details)
		r.At, r.Until = r.At.UTC(), r.Until.UTC()
		return r, err
	})
	return records, explain("list the audit", err)
}

// page returns the statement of Audit.
func (f AuditFilter) page(after int64, limit int) (sql string, args []any) {
	c := &conditions{}
	if !f.Since.IsZero() {
		c.add("a.at >= ?", f.Since)
	}
	if !f.Until.IsZero() {
		c.add("a.at < ?", f.Until)
	}
	if f.Who != "" {
		c.add("a.who = ?", f.Who)
	}
	if f.Action != "" {
		c.add("(a.action = ? OR starts_with(a.action, ? || '.'))", f.Action, f.Action)
	}
	if after != 0 {
		c.add("a.id < ?", after)
	}
	c.args = append(c.args, limit)
	return auditPage + c.where("NOT a.details ? 'run'") + fmt.Sprintf(` ORDER BY a.id DESC LIMIT $%d`, len(c.args)), c.args
}
