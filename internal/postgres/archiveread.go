package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/archive"
)

// archivedColumns are what ReadPart reads of a ticket t, in the order of archivedTicket's fields.
const archivedColumns = `id, received_at, source, status, order_number, vat::text, total::text, problems::text, extra::text,
	lines::text, content_type, traceparent, version, parser_version, attempts, claims, next_attempt_at, problem_group, correction,
	body, CASE WHEN t.correction IS NOT NULL THEN ` + textSQL + ` END, ` + dialectSQL

// archivedFormats asks for all of them in Postgres's binary format, for which archivedTicket is made.
var archivedFormats = func() (formats pgx.QueryResultFormats) {
	for range archivedFields {
		formats = append(formats, pgx.BinaryFormatCode)
	}
	return formats
}()

// pageTickets is how many tickets of a detached table one transaction reads: a long one would hold back vacuum in the whole
// database. Nobody writes to that table, so the pages fit together.
const pageTickets = 50_000

// ReadPart calls do with each ticket of a detached table, in the order of time. The ticket's texts and bytes are its own, and its
// lines are not read yet.
func (s *Store) ReadPart(ctx context.Context, p archive.Part, do func(*archive.Ticket) error) error {
	var after place
	read := archivedReader{store: s}
	for {
		n := 0
		err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			table, err := s.partTable(ctx, tx, p)
			if err != nil {
				return err
			}
			// While the archive is slow, the transaction is idle for longer than prepareSession allows.
			if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
				return err
			}
			rows, err := tx.Query(ctx, `SELECT `+archivedColumns+` FROM `+table+` t WHERE (received_at, id) > ($1, $2)
				ORDER BY received_at, id LIMIT $3`, archivedFormats, after.at, after.id, pageTickets)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				t, err := read.ticket(rows.RawValues())
				if err != nil {
					return err
				}
				if err := do(t); err != nil {
					return err
				}
				after = place{t.ReceivedAt, t.ID}
				n++
			}
			return rows.Err()
		})
		if err != nil || n < pageTickets {
			return err
		}
	}
}

// The columns of archivedColumns.
const (
	archivedID = iota
	archivedReceivedAt
	archivedSource
	archivedStatus
	archivedOrderNumber
	archivedVAT
	archivedTotal
	archivedProblems
	archivedExtra
	archivedStoredLines
	archivedContentType
	archivedTraceparent
	archivedVersion
	archivedParserVersion
	archivedAttempts
	archivedClaims
	archivedNextAttemptAt
	archivedProblemGroup
	archivedCorrection
	archivedBody
	archivedText
	archivedDialectVersion
	archivedDialect
	archivedFields
)

// Sizes in Postgres's binary format, in bytes.
const (
	sizeOfSmallint  = 2
	sizeOfInt       = 4
	sizeOfBigint    = 8
	sizeOfTimestamp = 8
	sizeOfUUID      = 16
)

// archivedSizes are those of the columns; 0 for texts and bytes, which may have any.
var archivedSizes = [archivedFields]int{
	archivedID: sizeOfUUID, archivedReceivedAt: sizeOfTimestamp, archivedVersion: sizeOfInt, archivedParserVersion: sizeOfInt,
	archivedAttempts: sizeOfInt, archivedClaims: sizeOfInt, archivedNextAttemptAt: sizeOfTimestamp,
	archivedProblemGroup: sizeOfBigint, archivedCorrection: sizeOfInt, archivedDialectVersion: sizeOfInt,
}

// archivedReader makes tickets of rows. It decodes them itself, and makes many of what it needs at once: millions of tickets
// are read one after the other, and scanning them took more time than writing them.
type archivedReader struct {
	store *Store

	tickets []archive.Ticket // to be given out
	texts   []string         // for what may be missing, which is a pointer
	memory  []byte           // for bodies and texts
	names   map[string]string
}

const (
	archivedChunk  = 256       // tickets that are made at once
	archivedMemory = 256 << 10 // bytes that are made at once
	archivedNames  = 10_000    // names that are kept, such as those of sources
)

// ticket makes a ticket of a row, of which it keeps nothing.
func (r *archivedReader) ticket(row [][]byte) (t *archive.Ticket, err error) {
	if len(row) != archivedFields {
		return nil, fmt.Errorf("a ticket has %d columns instead of %d", len(row), archivedFields)
	}
	for column, most := range archivedSizes {
		if size := len(row[column]); most != 0 && size != most && (most != sizeOfInt || size != sizeOfSmallint) && row[column] != nil {
			return nil, fmt.Errorf("column %d of a ticket has %d bytes instead of %d", column, size, most)
		}
	}
	if len(r.tickets) == 0 {
		r.tickets = make([]archive.Ticket, archivedChunk)
	}
	t, r.tickets = &r.tickets[0], r.tickets[1:]
	copy(t.ID[:], row[archivedID])
	t.ReceivedAt = binaryTime(row[archivedReceivedAt])
	t.Source, t.Status, t.ContentType = r.name(row[archivedSource]), r.name(row[archivedStatus]), r.name(row[archivedContentType])
	t.OrderNumber, t.VAT, t.Total = r.text(row[archivedOrderNumber]), r.text(row[archivedVAT]), r.text(row[archivedTotal])
	t.Problems, t.Extra = r.text(row[archivedProblems]), r.text(row[archivedExtra])
	t.StoredLines, t.Traceparent = r.text(row[archivedStoredLines]), r.text(row[archivedTraceparent])
	t.Version, t.ParserVersion = binaryInt(row[archivedVersion]), binaryInt(row[archivedParserVersion])
	t.Attempts, t.Claims = binaryInt(row[archivedAttempts]), binaryInt(row[archivedClaims])
	if value := row[archivedNextAttemptAt]; value != nil {
		next := binaryTime(value)
		t.NextAttemptAt = &next
	}
	if value := row[archivedProblemGroup]; value != nil {
		group := int64(binary.BigEndian.Uint64(value))
		t.ProblemGroup = &group
	}
	if value := row[archivedCorrection]; value != nil {
		number := binaryInt(value)
		t.Correction, t.Text = &number, r.bytes(row[archivedText])
	}
	t.Body = r.bytes(row[archivedBody])
	t.Dialect = binaryInt(row[archivedDialectVersion])
	if t.Unread = t.ParserVersion != 0; t.Unread {
		if t.Reader, err = r.store.readers.of(t.Dialect, row[archivedDialect]); err != nil {
			return nil, fmt.Errorf("ticket %s: %w", t.ID, err)
		}
	}
	return t, nil
}

// bytes returns a copy, which is not nil.
func (r *archivedReader) bytes(value []byte) []byte {
	if len(value) > archivedMemory/8 {
		return append([]byte{}, value...)
	}
	if len(r.memory)+len(value) > cap(r.memory) {
		r.memory = make([]byte, 0, archivedMemory)
	}
	begin := len(r.memory)
	r.memory = append(r.memory, value...)
	return r.memory[begin:len(r.memory):len(r.memory)]
}

// text returns a text that may be missing.
func (r *archivedReader) text(value []byte) *string {
	if value == nil {
		return nil
	}
	if len(r.texts) == 0 {
		r.texts = make([]string, archivedChunk)
	}
	text := &r.texts[0]
	r.texts = r.texts[1:]
	*text = string(value)
	return text
}

// name returns a text that many tickets have.
func (r *archivedReader) name(value []byte) string {
	if name, ok := r.names[string(value)]; ok {
		return name
	}
	if r.names == nil || len(r.names) >= archivedNames {
		r.names = map[string]string{}
	}
	name := string(value)
	r.names[name] = name
	return name
}

// binaryTimeZero is what Postgres counts the microseconds of a timestamp from, as Unix microseconds.
var binaryTimeZero = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// binaryTime decodes a timestamp. Infinity becomes a time that nothing else has, and is infinity again when it is restored.
func binaryTime(value []byte) time.Time {
	return time.UnixMicro(binaryTimeZero + int64(binary.BigEndian.Uint64(value))).UTC()
}

// binaryInt decodes a smallint or an integer.
func binaryInt(value []byte) int {
	switch len(value) {
	case sizeOfSmallint:
		return int(int16(binary.BigEndian.Uint16(value)))
	case sizeOfInt:
		return int(int32(binary.BigEndian.Uint32(value)))
	}
	return 0 // NULL, which none of them may be
}
