package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// Person is who changes something, and why.
type Person struct {
	Who string // such as user@host; at most MaxWho bytes. Required
	Why string // at most MaxReason bytes
}

// MaxWho is the longest name of a person that is kept, in bytes. A longer one is cut.
const MaxWho = 200

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
	if strings.TrimSpace(a.Who) == "" {
		return fmt.Errorf("audit %s: it is not said who makes the change", a.Action)
	}
	filter, err := auditJSON(a.Filter)
	if err != nil {
		return err
	}
	details, err := auditJSON(a.Details)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO audit (who, action, filter, tickets, why, details) VALUES ($1, $2, $3, $4, $5, $6)`,
		ticket.CleanText(a.Who, MaxWho), a.Action, filter, a.Tickets, ticket.CleanText(a.Why, MaxReason), details)
	if err != nil {
		return fmt.Errorf("audit %s: %w", a.Action, err)
	}
	return nil
}

// auditJSON returns an object of JSON.
func auditJSON(value any) (string, error) {
	if value == nil {
		return "{}", nil
	}
	text, err := json.Marshal(value)
	return string(text), err
}
