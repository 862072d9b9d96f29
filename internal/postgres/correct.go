package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// MaxCorrections is how many corrections of one ticket are kept, with those that went back to the body.
const MaxCorrections = 100

// Correction is what a person made of the text of a ticket.
type Correction struct {
	Number int       `json:"number"` // from 1 on, for each ticket
	At     time.Time `json:"at"`
	Who    string    `json:"who"`
	Why    string    `json:"why"`
	Bytes  *int      `json:"bytes"` // of its text; null if the body is read again
}

// NewText is a text that is to be read instead of a ticket's body.
type NewText struct {
	Text []byte // at most ticket.MaxTextBytes; nil to read the body again
	Seen int    // the number of the last correction that the person has seen; 0 for none
}

var (
	// ErrCorrectedMeanwhile means that another person has corrected the ticket.
	ErrCorrectedMeanwhile = errors.New("it was corrected meanwhile, so nothing was changed: look at it again")

	// ErrNotCorrected means that the body is what is read.
	ErrNotCorrected = errors.New("its text is what was sent, so there is nothing to revert")
)

// lockedTicket is a ticket as CorrectTicket finds it. Nobody can treat or correct it meanwhile.
const lockedTicket = `
SELECT t.status, t.correction, coalesce(t.lines, '[]'), ` + readTextSQL + `
FROM tickets t WHERE received_at = $1 AND id = $2 FOR UPDATE OF t`

// selectCorrections selects the corrections of a ticket, the last one first.
const selectCorrections = `
SELECT number, created_at, who, why, octet_length(text) FROM corrections
WHERE ticket_received_at = $1 AND ticket_id = $2 ORDER BY number DESC`

const selectCorrection = `SELECT text FROM corrections WHERE ticket_received_at = $1 AND ticket_id = $2 AND number = $3`

const insertCorrection = `
INSERT INTO corrections (ticket_received_at, ticket_id, number, text, who, why) VALUES ($1, $2, $3, $4, $5, $6)`

// treatCorrected invalidates every older claim, as Retry does.
const treatCorrected = `
UPDATE tickets SET correction = $3, status = 'TO_TREAT', attempts = 0, claims = claims + 1, next_attempt_at = now(),
                   problem_group = NULL
WHERE received_at = $1 AND id = $2`

// CorrectTicket stores a text beside a ticket's body, which stays as it came. From then on the text is read instead: the ticket
// is treated again, whatever its status is. What it said about products is taken back.
//
// It returns ticket.ErrNotFound, ErrCorrectedMeanwhile or ErrNotCorrected. If it fails, nothing was changed.
func (s *Store) CorrectTicket(ctx context.Context, by Person, id uuid.UUID, to NewText) error {
	if len(to.Text) > ticket.MaxTextBytes {
		return fmt.Errorf("the text has %d bytes, and at most %d are read; nothing was changed", len(to.Text), ticket.MaxTextBytes)
	}
	by = Person{Who: ticket.CleanText(by.Who, MaxWho), Why: ticket.CleanText(by.Why, MaxReason)}
	var refusal error
	again := false
	err := s.commit(ctx, "correct a ticket", func(conn *pgxpool.Conn) error {
		defer func() { again = true }()
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
			refusal, err = s.correct(ctx, tx, by, id, to, again)
			return err
		})
	})
	if err == nil && refusal != nil {
		err = fmt.Errorf("ticket %s: %w", id, refusal)
	}
	return err
}

// correct is one attempt of CorrectTicket. Again means that an attempt before may have been committed. The refusal says why
// nothing was changed.
func (s *Store) correct(
	ctx context.Context, tx pgx.Tx, by Person, id uuid.UUID, to NewText, again bool,
) (refusal, err error) {
	at := ticket.IDTime(id)
	var status ticket.Status
	var correction *int
	var stored []StoredLine
	var was text
	err = tx.QueryRow(ctx, lockedTicket, at, id).Scan(&status, &correction, &stored, &was.body, &was.version, &was.dialect)
	if errors.Is(err, pgx.ErrNoRows) {
		return ticket.ErrNotFound, nil
	}
	if err != nil {
		return nil, err
	}
	last, err := lastCorrection(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	if again && last.Number == to.Seen+1 && last.Who == by.Who && last.Why == by.Why {
		var there []byte
		if err := tx.QueryRow(ctx, selectCorrection, at, id, last.Number).Scan(&there); err != nil {
			return nil, err
		}
		if (there == nil) == (to.Text == nil) && bytes.Equal(there, to.Text) {
			return nil, nil
		}
	}
	switch {
	case last.Number != to.Seen:
		return ErrCorrectedMeanwhile, nil
	case to.Text == nil && correction == nil:
		return ErrNotCorrected, nil
	case last.Number >= MaxCorrections:
		return fmt.Errorf("it was corrected %d times, which is the most that is kept; nothing was changed", last.Number), nil
	}
	var products []string
	if status == ticket.Treated { // any other said nothing about products
		if products, err = s.productsOf(was, stored); err != nil {
			return fmt.Errorf("it cannot be taken back what it said about products, so nothing was changed: %w", err), nil
		}
	}
	number := last.Number + 1
	if _, err := tx.Exec(ctx, insertCorrection, at, id, number, to.Text, by.Who, by.Why); err != nil {
		return nil, err
	}
	details := map[string]any{"number": number, "bytes": len(to.Text)}
	correction = &number
	if to.Text == nil {
		details, correction = map[string]any{"number": number, "revert": true}, nil
	}
	if _, err := tx.Exec(ctx, treatCorrected, at, id, correction); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, insertChanged, id); err != nil {
		return nil, err
	}
	if len(products) > 0 {
		if err := withdraw(ctx, tx, products, at); err != nil {
			return nil, err
		}
	}
	return nil, audit(ctx, tx, AuditEntry{
		Who: by.Who, Why: by.Why, Action: ActionCorrect, Filter: map[string]any{"id": id}, Tickets: 1, Details: details,
	})
}

// productsOf returns the products that a ticket names: those that are read from its text, and those that an older version stored.
func (s *Store) productsOf(t text, stored []StoredLine) (ids []string, err error) {
	order, _, err := s.parse(t)
	for i := range order.Lines {
		ids = append(ids, order.Lines[i].ProductID)
	}
	for i := range stored {
		ids = append(ids, stored[i].ProductID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// lastCorrection returns the last correction of a ticket; the zero value if there is none.
func lastCorrection(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Correction, error) {
	rows, err := tx.Query(ctx, selectCorrections+` LIMIT 1`, ticket.IDTime(id), id)
	if err != nil {
		return Correction{}, err
	}
	last, err := pgx.CollectExactlyOneRow(rows, scanCorrection)
	if errors.Is(err, pgx.ErrNoRows) {
		return Correction{}, nil
	}
	return last, err
}

func scanCorrection(row pgx.CollectableRow) (c Correction, err error) {
	err = row.Scan(&c.Number, &c.At, &c.Who, &c.Why, &c.Bytes)
	c.At = c.At.UTC()
	return c, err
}

// Corrections returns what people made of the text of a ticket, the last one first.
func (s *Store) Corrections(ctx context.Context, id uuid.UUID) ([]Correction, error) {
	rows, err := s.pool.Query(ctx, selectCorrections, ticket.IDTime(id), id)
	if err != nil {
		return nil, explain("list the corrections of a ticket", err)
	}
	corrections, err := pgx.CollectRows(rows, scanCorrection)
	return corrections, explain("list the corrections of a ticket", err)
}

// CorrectionText returns the text of a correction. If there is no such one, or the body is read again by it, that is an error.
func (s *Store) CorrectionText(ctx context.Context, id uuid.UUID, number int) (text []byte, err error) {
	err = s.pool.QueryRow(ctx, selectCorrection, ticket.IDTime(id), id, number).Scan(&text)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fmt.Errorf("ticket %s has no correction %d", id, number)
	case err != nil:
		return nil, explain("show a correction", err)
	case text == nil:
		return nil, fmt.Errorf("correction %d of ticket %s has no text: it went back to what was sent", number, id)
	}
	return text, nil
}

// correctionBatch is how many corrections one transaction deletes.
const correctionBatch = 1000

// deleteOldCorrections deletes corrections of tickets that are gone with their partitions.
const deleteOldCorrections = `
DELETE FROM corrections c USING (
    SELECT ticket_received_at, ticket_id, number FROM corrections o
    WHERE ticket_received_at < $1
      AND NOT EXISTS (SELECT FROM tickets t WHERE t.received_at = o.ticket_received_at AND t.id = o.ticket_id)
    ORDER BY ticket_received_at, ticket_id, number LIMIT $2) old
WHERE c.ticket_received_at = old.ticket_received_at AND c.ticket_id = old.ticket_id AND c.number = old.number`

// DeleteOldCorrections deletes the corrections of tickets that were received before a time and are not there any more. It deletes
// none while tickets of that time are set aside (MoveStrays), because no query finds these. It may be repeated.
func (s *Store) DeleteOldCorrections(ctx context.Context, before time.Time) error {
	var aside error
	for more := true; more && aside == nil; {
		err := s.retry(ctx, "delete the corrections of dropped tickets", func() error {
			return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
				if err := noneSetAside(ctx, tx, time.Unix(0, 0), before); err != nil {
					if errors.Is(err, errSetAside) {
						aside, err = err, nil
					}
					return err
				}
				tag, err := tx.Exec(ctx, deleteOldCorrections, before, correctionBatch)
				more = tag.RowsAffected() == correctionBatch
				return err
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}
