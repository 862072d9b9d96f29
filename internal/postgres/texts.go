package postgres

import (
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5/pgtype"

	"myticket/internal/dialect"
	"myticket/internal/ticket"
)

// textSQL is the text of a ticket t: what is read of it, the body or a correction. This is the one place where it is chosen.
const textSQL = `CASE WHEN t.correction IS NULL THEN t.body ELSE (SELECT c.text FROM corrections c
    WHERE c.ticket_received_at = t.received_at AND c.ticket_id = t.id AND c.number = t.correction) END`

// dialectSQL is the dialect that a ticket t was read with when it was stored: its version, and the dialect itself; 0 and NULL for
// that of everyone.
//
// If the version before sends a ticket back and treats it, it leaves both the dialect and the group of problems as they were.
// Only from that a TREATED ticket has a group, and it was then read in the dialect of everyone.
const dialectSQL = `CASE WHEN t.status = 'TREATED' AND t.problem_group IS NOT NULL THEN 0 ELSE t.dialect END,
    CASE WHEN t.dialect <> 0 THEN (SELECT d.dialect::text FROM dialects d WHERE d.version = t.dialect) END`

// readTextSQL are the columns of a text. See text.
const readTextSQL = textSQL + `, ` + dialectSQL

// text is the text of a ticket, and the dialect that it was read with.
type text struct {
	body    []byte
	version int    // of the dialect; 0 for the dialect of everyone
	dialect []byte // as it is kept
}

// scan returns where the columns of readTextSQL are scanned to. The text is valid until the next row.
func (t *text) scan() []any {
	return []any{(*pgtype.DriverBytes)(&t.body), &t.version, (*pgtype.DriverBytes)(&t.dialect)}
}

// parse reads a text as it was read when the ticket was stored, whatever dialect counts now. The error is an
// *unknownDialectError.
func (s *Store) parse(t text) (ticket.Order, []ticket.Problem, error) {
	reader, err := s.readers.of(t.version, t.dialect)
	if err != nil {
		return ticket.Order{}, nil, err
	}
	order, problems := reader.Parse(t.body)
	return order, problems, nil
}

// maxReaders bounds the readers that are kept. A dialect has at most 64 KiB, and usually some hundred bytes.
const maxReaders = 256

// readers keeps readers of dialects. They are found by the dialects themselves and not by their versions. A version never
// changes, but after the database was restored from a backup, its number may be given to another dialect.
type readers struct {
	mu        sync.Mutex                // guards byDialect
	byDialect map[string]*ticket.Reader // at most maxReaders
}

// of returns the reader of a version, whose dialect is kept as written.
func (r *readers) of(version int, written []byte) (*ticket.Reader, error) {
	if version == 0 {
		return nil, nil //nolint:nilnil // a nil Reader reads in the dialect of everyone
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if reader, ok := r.byDialect[string(written)]; ok {
		return reader, nil
	}
	reader, err := newReader(written)
	if err != nil {
		return nil, &unknownDialectError{version, err}
	}
	if r.byDialect == nil {
		r.byDialect = map[string]*ticket.Reader{}
	}
	for other := range r.byDialect {
		if len(r.byDialect) < maxReaders {
			break
		}
		delete(r.byDialect, other)
	}
	r.byDialect[string(written)] = reader
	return reader, nil
}

func newReader(written []byte) (*ticket.Reader, error) {
	d, err := dialect.Parse(written)
	if err != nil {
		return nil, err
	}
	return ticket.NewReader(d)
}

// unknownDialectError means that this program does not understand a dialect, which a newer one has stored.
type unknownDialectError struct {
	version int
	why     error
}

func (e *unknownDialectError) Error() string {
	return fmt.Sprintf("this program does not understand version %d of the dialects, which a newer one has applied: %v",
		e.version, e.why)
}

func (e *unknownDialectError) Unwrap() error { return e.why }
