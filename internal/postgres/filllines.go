package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"myticket/internal/ticket"
)

// lineFiller writes the lines of tickets to ticket_lines. It reads them from the tickets' bodies. Only one goroutine may use it.
type lineFiller struct {
	store  *Store
	reader outboxReader
	period Period
	failed prometheus.Counter // tickets that were stepped over

	covered []span // partitions that were there when they were last needed
}

// Limits of what one transaction fills. Only the lines are in memory, with one body at a time. One ticket always fits. The
// commits of deliveries wait for a processor meanwhile, so more tickets would show in the slowest answers.
const (
	fillTickets = 64
	fillBytes   = 1 << 20 // of bodies
)

// OrderLinesBytes is the most memory that OrderLines holds, in bytes, unless one ticket alone needs more: the ids of linesRows
// batches, and the lines of fillBytes of bodies, which are copied into parameters, and these into the message to Postgres.
const OrderLinesBytes = 4 << 20

// outboxTicket is a ticket of a chunk.
type outboxTicket struct {
	id  uuid.UUID
	row *outboxRow // which it is of
}

// tickets returns the tickets of a chunk whose lines may be other ones now, in the order of the outbox. Those of a ticket that a
// person changed stay until it is treated again.
func (c outboxChunk) tickets() []outboxTicket {
	return ticketsOf(c.rows, func(kind string) bool { return kind != kindChanged && kind != kindProducts })
}

// ticketsOf returns the tickets of those rows whose kind is wanted.
func ticketsOf(rows []outboxRow, wanted func(kind string) bool) []outboxTicket {
	var n int
	for i := range rows {
		n += len(rows[i].tickets) / len(uuid.UUID{})
	}
	tickets := make([]outboxTicket, 0, n)
	for i := range rows {
		if !wanted(rows[i].kind) {
			continue
		}
		for ids := rows[i].tickets; len(ids) >= len(uuid.UUID{}); ids = ids[len(uuid.UUID{}):] {
			tickets = append(tickets, outboxTicket{uuid.UUID(ids), &rows[i]})
		}
	}
	return tickets
}

// fill fills the first of some tickets in one transaction, and returns how many. That transaction moves the reader's place, which
// is from, over those rows of the outbox whose tickets are all filled.
func (f *lineFiller) fill(ctx context.Context, tickets []outboxTicket, from uint64) (n int, place uint64, err error) {
	rows, n, err := f.read(ctx, tickets[:min(len(tickets), fillTickets)])
	if err != nil {
		return 0, from, err
	}
	step := stepTo(tickets, n, from)
	if err := f.write(ctx, rows, withoutLines(tickets[:n], rows), step); err != nil {
		return 0, from, err
	}
	return n, max(step.to, from), nil
}

// stepTo returns the step from a place over the first n of some tickets. Rows of one transaction must not be split, so the last
// one of the tickets counts only with its last ticket.
func stepTo(tickets []outboxTicket, n int, from uint64) outboxStep {
	step := outboxStep{from: from, of: tickets[n-1].row}
	for i := n; i > 0; i-- {
		if done := tickets[i-1].row; i == len(tickets) || tickets[i].row.xid != done.xid {
			step.to, step.at = done.xid, done.at
			break
		}
	}
	return step
}

// withoutLines returns those tickets that were treated again and have no rows. They may have had lines before they were
// corrected.
func withoutLines(tickets []outboxTicket, rows []lineRow) (ids []uuid.UUID) {
	var has map[uuid.UUID]bool
	for i := range tickets {
		if tickets[i].row.kind != kindTreated {
			continue
		}
		if has == nil {
			has = make(map[uuid.UUID]bool, len(rows))
			for r := range rows {
				has[rows[r].id] = true
			}
		}
		if id := tickets[i].id; !has[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// lineRow is a ticket's row of ticket_lines.
type lineRow struct {
	id     uuid.UUID
	source string
	order  string
	lines  []byte
}

// readForLines returns those of some tickets that are treated and have no lines in tickets, in the given order, and how many
// there are. The bodies after the first $3 bytes are left out, but never the first one.
const readForLines = `
SELECT n, id, source, order_number, text, ` + dialectSQL + `, tickets FROM (
    SELECT *, count(*) OVER () AS tickets, sum(octet_length(text)) OVER (ORDER BY n ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (
        SELECT i.n, t.id, t.source, coalesce(t.order_number, '') AS order_number, ` + textSQL + ` AS text, t.dialect,
               t.status, t.problem_group
        FROM unnest($1::timestamptz[], $2::uuid[]) WITH ORDINALITY AS i (received_at, id, n)
        JOIN tickets t ON t.received_at = i.received_at AND t.id = i.id
        WHERE t.status = 'TREATED' AND t.lines IS NULL) t) t
WHERE bytes <= $3 OR bytes = octet_length(text)
ORDER BY n`

// read reads the bodies of the first of some tickets. It returns the rows for them, and how many tickets these are. A ticket that
// has no row is not treated, has its lines in tickets, is not in tickets, or was stepped over.
func (f *lineFiller) read(ctx context.Context, tickets []outboxTicket) (lines []lineRow, n int, err error) {
	ids, times := make([]uuid.UUID, len(tickets)), make([]time.Time, len(tickets))
	for i := range tickets {
		ids[i], times[i] = tickets[i].id, ticket.IDTime(tickets[i].id)
	}
	err = f.store.steady(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, readForLines, times, ids, fillBytes)
		if err != nil {
			return err
		}
		lines, n, err = f.parse(rows, len(tickets))
		return err
	})
	switch {
	case err == nil || !isCode(err, dataCorrupted, indexCorrupted):
		return lines, n, err
	case len(tickets) > 1:
		return f.read(ctx, tickets[:len(tickets)/2])
	}
	f.stepOver(ids[0], err)
	return nil, 1, nil
}

// parse reads the rows of readForLines for some tickets, one body at a time.
func (f *lineFiller) parse(rows pgx.Rows, tickets int) (lines []lineRow, n int, err error) {
	lines = make([]lineRow, 0, tickets)
	var row lineRow
	var text text // valid until the next row
	var place, found, seen int
	columns := slices.Concat([]any{&place, &row.id, &row.source, &row.order}, text.scan(), []any{&found})
	_, err = pgx.ForEachRow(rows, columns, func() error {
		seen++
		filled, err := f.store.linesOf(text)
		if err != nil {
			f.stepOver(row.id, err)
			return nil
		}
		if row.lines = filled; len(filled) > 0 {
			lines = append(lines, row)
		}
		return nil
	})
	if seen < found {
		return lines, place, err
	}
	return lines, tickets, err
}

// linesOf returns the lines of a text as ticket_lines has them.
func (s *Store) linesOf(t text) ([]byte, error) {
	order, problems, err := s.parse(t)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 { // an older version of the parser has read it
		return nil, fmt.Errorf("this version cannot read it: %s", problems[0].Message)
	}
	return appendLineTexts(make([]byte, 0, 48*len(order.Lines)), order.Lines), nil
}

func appendLineTexts(b []byte, lines []ticket.Line) []byte {
	for i := range lines {
		if i > 0 {
			b = append(b, '\n')
		}
		b = appendEscaped(b, lines[i].ProductID)
		b = lines[i].Price.AppendText(append(b, '\t'))
		b = appendEscaped(append(b, '\t'), lines[i].Name)
	}
	return b
}

// appendEscaped is the inverse of the function order_line_text in the database.
func appendEscaped(b []byte, s string) []byte {
	if !strings.ContainsAny(s, "\\\t\n") {
		return append(b, s...)
	}
	for i := range len(s) {
		switch s[i] {
		case '\\':
			b = append(b, `\s`...)
		case '\t':
			b = append(b, `\t`...)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = append(b, s[i])
		}
	}
	return b
}

// stepOver counts a ticket whose lines cannot be filled.
func (f *lineFiller) stepOver(id uuid.UUID, why error) {
	f.failed.Inc()
	f.store.logger.Warn("the lines of a ticket could not be filled, so order_lines lacks them; the ticket itself is stored",
		"ticket", id, "error", why)
}

// write stores rows, deletes those of other tickets, and moves the reader's place. A row that Postgres refuses is stepped over.
func (f *lineFiller) write(ctx context.Context, rows []lineRow, gone []uuid.UUID, step outboxStep) error {
	err := f.insert(ctx, rows, gone, step)
	switch half := len(rows) / 2; {
	case !refused(err) || len(rows) == 0:
		return err
	case len(rows) == 1:
		f.stepOver(rows[0].id, err)
		return f.write(ctx, nil, gone, step)
	default:
		if err := f.write(ctx, rows[:half], nil, outboxStep{from: step.from, of: step.of}); err != nil {
			return err
		}
		return f.write(ctx, rows[half:], gone, step)
	}
}

// insertLines inserts nothing if Postgres failed over since the tickets were read, and lost the row of the outbox ($6, $7) that
// the last of them is of, and so the ticket.
const insertLines = `
INSERT INTO ticket_lines (received_at, ticket_id, source, order_number, lines)
SELECT unnest($1::timestamptz[]), unnest($2::uuid[]), unnest($3::text[]), unnest($4::text[]), unnest($5::text[])
WHERE EXISTS (SELECT FROM outbox WHERE xid = $6 AND at = $7)`

// insertLinesAgain is for rows of which some are there already, because they are read again.
const insertLinesAgain = insertLines + `
ON CONFLICT (received_at, ticket_id) DO UPDATE SET lines = excluded.lines, order_number = excluded.order_number
WHERE (ticket_lines.lines, ticket_lines.order_number) IS DISTINCT FROM (excluded.lines, excluded.order_number)`

const deleteLines = `
DELETE FROM ticket_lines l USING unnest($1::timestamptz[], $2::uuid[]) AS gone (received_at, id)
WHERE l.received_at = gone.received_at AND l.ticket_id = gone.id AND EXISTS (SELECT FROM outbox WHERE xid = $3 AND at = $4)`

// insert is write in one transaction and one round trip.
func (f *lineFiller) insert(ctx context.Context, rows []lineRow, gone []uuid.UUID, step outboxStep) error {
	if err := f.cover(ctx, rows); err != nil {
		return err
	}
	err := f.send(ctx, insertLines, rows, gone, step)
	if isCode(err, uniqueViolation) {
		err = f.send(ctx, insertLinesAgain, distinctRows(rows), gone, step)
	}
	if transient(err) { // perhaps because a partition is not there any more
		f.covered = nil
	}
	return err
}

// distinctRows returns the rows without those of the same ticket, which was stored and treated in the same chunk.
func distinctRows(rows []lineRow) []lineRow {
	seen := make(map[uuid.UUID]bool, len(rows))
	distinct := make([]lineRow, 0, len(rows))
	for _, row := range rows {
		if !seen[row.id] {
			seen[row.id] = true
			distinct = append(distinct, row)
		}
	}
	return distinct
}

func (f *lineFiller) send(ctx context.Context, sql string, rows []lineRow, gone []uuid.UUID, step outboxStep) error {
	return f.store.pool.AcquireFunc(ctx, func(pooled *pgxpool.Conn) error {
		conn, batch := pooled.Conn(), &pgconn.Batch{}
		if err := f.reader.queue(ctx, conn, batch, step); err != nil {
			return err
		}
		if len(gone) > 0 {
			remove, err := conn.Prepare(ctx, deleteLines, deleteLines)
			if err != nil {
				return err
			}
			batch.ExecPrepared(remove.Name, append(goneParams(gone), step.of.params()...), []int16{formatBinary}, nil)
		}
		if len(rows) > 0 {
			insert, err := conn.Prepare(ctx, sql, sql)
			if err != nil {
				return err
			}
			batch.ExecPrepared(insert.Name, append(lineParams(rows), step.of.params()...), []int16{formatBinary}, nil)
		}
		results := conn.PgConn().ExecBatch(ctx, batch)
		moved := results.NextResult()
		if moved {
			tag, err := results.ResultReader().Close()
			moved = err == nil && tag.RowsAffected() == 1
		}
		if err := results.Close(); err != nil {
			return err
		}
		if !moved {
			return errNotReader
		}
		return nil
	})
}

func lineParams(rows []lineRow) [][]byte {
	n, size := len(rows), 0
	for i := range rows {
		size += len(rows[i].lines) + 4
	}
	times, ids := newArray(pgtype.TimestamptzOID, 12*n), newArray(pgtype.UUIDOID, 20*n)
	sources, orders := newArray(pgtype.TextOID, 16*n), newArray(pgtype.TextOID, 16*n)
	lines := newArray(pgtype.TextOID, size)
	for i := range rows {
		times.time(ticket.IDTime(rows[i].id))
		ids.uuid(rows[i].id)
		sources.text(rows[i].source)
		orders.textOrNull(rows[i].order)
		lines.bytes(rows[i].lines)
	}
	return [][]byte{times.param(), ids.param(), sources.param(), orders.param(), lines.param()}
}

// params are the parameters that find the row again.
func (o *outboxRow) params() [][]byte { return [][]byte{appendXID(o.xid), appendTime(nil, o.at)} }

func goneParams(gone []uuid.UUID) [][]byte {
	times, ids := newArray(pgtype.TimestamptzOID, 12*len(gone)), newArray(pgtype.UUIDOID, 20*len(gone))
	for _, id := range gone {
		times.time(ticket.IDTime(id))
		ids.uuid(id)
	}
	return [][]byte{times.param(), ids.param()}
}

// cover makes the partitions that rows need.
func (f *lineFiller) cover(ctx context.Context, rows []lineRow) error {
	var missing []time.Time
	for i := range rows {
		at := ticket.IDTime(rows[i].id)
		if within(f.covered, at) < 0 {
			missing = append(missing, at)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var err error
	f.covered, err = f.store.ensureLines(ctx, f.period, missing)
	return err
}
