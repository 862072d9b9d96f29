package postgres

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// The parameters of the hot statements are written directly in Postgres' binary array format, without pgx's encoding of Go
// slices, because that costs more time and memory.

// Formats of parameters, as the protocol's Bind message has them
// (https://www.postgresql.org/docs/current/protocol-message-formats.html).
const (
	formatText   = 0
	formatBinary = 1
)

// array is a one-dimensional array in the binary format of array_recv: a header of five 32-bit integers (dimensions,
// has nulls, element type, length, lower bound), then each element with its length in front, -1 for NULL.
type array struct {
	b      []byte
	length uint32
}

const arrayHeader = 20

func newArray(elementType uint32, size int) array {
	b := make([]byte, arrayHeader, arrayHeader+size)
	binary.BigEndian.PutUint32(b[0:], 1)
	binary.BigEndian.PutUint32(b[8:], elementType)
	binary.BigEndian.PutUint32(b[16:], 1)
	return array{b: b}
}

func (a *array) null() {
	a.b = append(a.b, 0xff, 0xff, 0xff, 0xff)
	a.b[7] = 1
	a.length++
}

func (a *array) text(s string) {
	a.b = binary.BigEndian.AppendUint32(a.b, uint32(len(s)))
	a.b = append(a.b, s...)
	a.length++
}

func (a *array) textOrNull(s string) {
	if s == "" {
		a.null()
		return
	}
	a.text(s)
}

func (a *array) bytes(p []byte) {
	a.b = binary.BigEndian.AppendUint32(a.b, uint32(len(p)))
	a.b = append(a.b, p...)
	a.length++
}

func (a *array) uuid(id uuid.UUID) { a.bytes(id[:]) }

func (a *array) int4(n int) {
	a.b = binary.BigEndian.AppendUint32(a.b, 4)
	a.b = binary.BigEndian.AppendUint32(a.b, uint32(n))
	a.length++
}

func (a *array) int8(n int64) {
	a.b = binary.BigEndian.AppendUint32(a.b, 8)
	a.b = binary.BigEndian.AppendUint64(a.b, uint64(n))
	a.length++
}

func (a *array) bool(value bool) {
	a.b = append(a.b, 0, 0, 0, 1, 0)
	if value {
		a.b[len(a.b)-1] = 1
	}
	a.length++
}

func (a *array) time(t time.Time) {
	a.b = binary.BigEndian.AppendUint32(a.b, 8)
	a.b = appendTime(a.b, t)
	a.length++
}

// jsonb appends what write appends: a version, which is 1, and then the JSON text.
func (a *array) jsonb(write func([]byte) []byte) {
	at := len(a.b)
	a.b = append(a.b, 0, 0, 0, 0, 1)
	a.b = write(a.b)
	binary.BigEndian.PutUint32(a.b[at:], uint32(len(a.b)-at-4))
	a.length++
}

func (a *array) param() []byte {
	binary.BigEndian.PutUint32(a.b[12:], a.length)
	return a.b
}

// postgresEpoch is the zero of Postgres' timestamps: 2000-01-01, in Unix microseconds.
const postgresEpoch = 946_684_800_000_000

func appendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(t.UnixMicro()-postgresEpoch))
}

// appendInterval appends what interval_recv reads: microseconds, days, months.
func appendInterval(b []byte, d time.Duration) []byte {
	return append(binary.BigEndian.AppendUint64(b, uint64(d.Microseconds())), 0, 0, 0, 0, 0, 0, 0, 0)
}

// amounts is an array of numerics in text format, which is simpler for decimals.
type amounts struct{ b []byte }

func (a *amounts) add(amount ticket.Amount) {
	if len(a.b) == 0 {
		a.b = append(a.b, '{')
	} else {
		a.b = append(a.b, ',')
	}
	if !amount.IsSet() {
		a.b = append(a.b, "NULL"...)
		return
	}
	a.b = amount.AppendText(a.b)
}

// param returns the array, which may be empty. It may be called only once.
func (a *amounts) param() []byte {
	if len(a.b) == 0 {
		return []byte("{}")
	}
	return append(a.b, '}')
}

// ticketColumns are arrays with one element per ticket.
type ticketColumns struct {
	id, receivedAt, source, body, contentType, traceparent []byte
	status, problems, orderNumber, vat, total, extra       []byte
}

func ticketParams(rows []row) ticketColumns {
	n, bodies := len(rows), 0
	for i := range rows {
		bodies += len(rows[i].ticket.Body)
	}
	ids, times := newArray(pgtype.UUIDOID, 20*n), newArray(pgtype.TimestamptzOID, 12*n)
	sources, body := newArray(pgtype.TextOID, 16*n), newArray(pgtype.ByteaOID, bodies+4*n)
	types, parents := newArray(pgtype.TextOID, 32*n), newArray(pgtype.TextOID, 4*n)
	statuses, problems := newArray(pgtype.TextOID, 12*n), newArray(pgtype.JSONBOID, 4*n)
	numbers, extras := newArray(pgtype.TextOID, 16*n), newArray(pgtype.JSONBOID, 4*n)
	var vats, totals amounts
	for i := range rows {
		r := &rows[i]
		t, o := r.ticket, r.order
		ids.uuid(t.ID)
		times.time(t.ReceivedAt)
		sources.text(t.Source)
		body.bytes(t.Body)
		types.text(t.ContentType)
		parents.textOrNull(t.Traceparent)
		statuses.text(string(r.status))
		problemsJSON(&problems, r.problems)
		numbers.textOrNull(o.Number)
		vats.add(o.VAT)
		totals.add(o.Total)
		fieldsJSON(&extras, o.Extra)
	}
	return ticketColumns{
		id: ids.param(), receivedAt: times.param(), source: sources.param(), body: body.param(),
		contentType: types.param(), traceparent: parents.param(), status: statuses.param(),
		problems: problems.param(), orderNumber: numbers.param(), vat: vats.param(), total: totals.param(),
		extra: extras.param(),
	}
}

var insertFormats = []int16{
	formatBinary, formatBinary, formatBinary, formatBinary, formatBinary, formatBinary, formatBinary, formatBinary,
	formatBinary, formatText, formatText, formatBinary, formatBinary, formatBinary, formatBinary,
}

// insertParams returns the parameters of insertTickets for the rows of a batch.
func insertParams(b intake.Batch, rows []row) [][]byte {
	p := ticketParams(rows)
	parser, attempts, next := ticket.ParserVersion, 0, []byte(nil)
	if b.Unread {
		parser, attempts, next = 0, 1, appendInterval(nil, b.ClaimFor)
	}
	return [][]byte{
		p.id, p.receivedAt, p.source, p.body, p.contentType, p.traceparent, p.status, p.problems, p.orderNumber,
		p.vat, p.total, p.extra, int2(parser), int2(attempts), next,
	}
}

// unusualFormats are those of insertUnusual, which has unusualParams behind the parameters of insertTickets.
var unusualFormats = append(slices.Clip(insertFormats), formatBinary, formatBinary)

// anyUnusual reports whether a ticket was read in a dialect of its own, or could not be read.
func anyUnusual(rows []row) bool {
	for i := range rows {
		if rows[i].dialect != 0 || rows[i].status == ticket.Error {
			return true
		}
	}
	return false
}

func unusualParams(rows []row) [][]byte {
	dialects, groups := newArray(pgtype.Int4OID, 8*len(rows)), newArray(pgtype.Int8OID, 12*len(rows))
	for i := range rows {
		dialects.int4(rows[i].dialect)
		if group := rows[i].group(); group != 0 {
			groups.int8(int64(group))
		} else {
			groups.null()
		}
	}
	return [][]byte{dialects.param(), groups.param()}
}

var finishFormats = []int16{
	formatBinary, formatBinary, formatBinary, formatText, formatText, formatBinary, formatBinary, formatBinary,
	formatBinary, formatBinary, formatBinary, formatBinary, formatBinary,
}

func int2(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
func int4(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

// groupOrNull is a group as a parameter.
func groupOrNull(g ticket.Group) []byte {
	if g == 0 {
		return nil
	}
	return binary.BigEndian.AppendUint64(nil, uint64(g))
}

func problemsJSON(a *array, problems []ticket.Problem) {
	if len(problems) == 0 {
		a.null()
		return
	}
	a.jsonb(func(b []byte) []byte { return ticket.AppendProblems(b, problems) })
}

func fieldsJSON(a *array, fields []ticket.Field) {
	if len(fields) == 0 {
		a.null()
		return
	}
	a.jsonb(func(b []byte) []byte { return appendFields(b, fields) })
}

func appendFields(b []byte, fields []ticket.Field) []byte {
	b = append(b, '[')
	for i := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = ticket.AppendJSON(append(b, `{"name":`...), fields[i].Name)
		b = ticket.AppendJSON(append(b, `,"value":`...), fields[i].Value)
		b = append(b, '}')
	}
	return append(b, ']')
}
