package parquetfile

import (
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"myticket/internal/archive"
)

// ticketRow is a row of a file with tickets. It is written by ticketColumns. An optional text that is empty is null. JSON is a
// plain text: not all readers know the type JSON, and the library fails on those that are null.
type ticketRow struct {
	ID            uuid.UUID `parquet:"id,uuid"`
	ReceivedAt    int64     `parquet:"received_at,timestamp(microsecond),delta"`
	Source        string    `parquet:"source,dict"`
	Status        string    `parquet:"status,dict"`
	OrderNumber   *string   `parquet:"order_number,optional"`
	VAT           *int64    `parquet:"vat,optional,decimal(6:18)"`
	Total         *int64    `parquet:"total,optional,decimal(6:18)"`
	VATText       string    `parquet:"vat_text,optional"`   // if vat does not say how it is stored: see restoreAmount
	TotalText     string    `parquet:"total_text,optional"` // the same
	Problems      string    `parquet:"problems,optional"`
	Extra         string    `parquet:"extra,optional"`
	Lines         []lineRow `parquet:"lines,list"`
	StoredLines   string    `parquet:"stored_lines,optional"`
	ContentType   string    `parquet:"content_type,dict"`
	Traceparent   *string   `parquet:"traceparent,optional"`
	Version       int32     `parquet:"version"`
	ParserVersion int32     `parquet:"parser_version"`
	Dialect       int32     `parquet:"dialect"`
	Attempts      int32     `parquet:"attempts"`
	Claims        int32     `parquet:"claims"`
	NextAttemptAt *int64    `parquet:"next_attempt_at,optional,timestamp(microsecond)"` // the library's time.Time ends in 2262
	ProblemGroup  *int64    `parquet:"problem_group,optional"`
	Correction    *int32    `parquet:"correction,optional"`
	Text          []byte    `parquet:"text,optional"` // what is read instead of the body
	Body          []byte    `parquet:"body"`
}

type lineRow struct {
	ProductID string     `parquet:"product_id,dict"`
	Product   string     `parquet:"product,dict"`
	Price     *int64     `parquet:"price,optional,decimal(6:18),dict"`
	PriceText string     `parquet:"price_text,optional"` // if it does not fit into price
	Extra     []fieldRow `parquet:"extra,list"`
}

type fieldRow struct {
	Name  string `parquet:"name,dict"`
	Value string `parquet:"value"`
}

type correctionRow struct {
	TicketID   uuid.UUID `parquet:"ticket_id,uuid"`
	ReceivedAt int64     `parquet:"ticket_received_at,timestamp(microsecond)"`
	Number     int32     `parquet:"number"`
	Reverted   bool      `parquet:"reverted"` // the body is read again, and there is no text
	Text       []byte    `parquet:"text"`
	At         int64     `parquet:"created_at,timestamp(microsecond)"`
	Who        string    `parquet:"who"`
	Why        string    `parquet:"why"`
}

type changeRow struct {
	ID      int64  `parquet:"id"`
	At      int64  `parquet:"at,timestamp(microsecond)"`
	Who     string `parquet:"who"`
	Action  string `parquet:"action"`
	Filter  string `parquet:"filter"`
	Tickets int64  `parquet:"tickets"`
	Why     string `parquet:"why"`
	Details string `parquet:"details"`
}

func micros(at time.Time) int64 { return at.UnixMicro() }

func fromMicros(micros int64) time.Time { return time.UnixMicro(micros).UTC() }

func (r *ticketRow) ticket() archive.Ticket {
	t := archive.Ticket{
		ID: r.ID, ReceivedAt: fromMicros(r.ReceivedAt), Source: r.Source, Status: r.Status, OrderNumber: r.OrderNumber,
		VAT: restoreAmount(r.VAT, r.VATText), Total: restoreAmount(r.Total, r.TotalText),
		Problems: optional(r.Problems), Extra: optional(r.Extra), StoredLines: optional(r.StoredLines), ContentType: r.ContentType,
		Traceparent: r.Traceparent, Version: int(r.Version), ParserVersion: int(r.ParserVersion), Dialect: int(r.Dialect),
		Attempts: int(r.Attempts), Claims: int(r.Claims), ProblemGroup: r.ProblemGroup,
		Text: r.Text, Body: r.Body,
	}
	if r.NextAttemptAt != nil {
		next := fromMicros(*r.NextAttemptAt)
		t.NextAttemptAt = &next
	}
	if r.Correction != nil {
		number := int(*r.Correction)
		t.Correction = &number
	}
	for i := range r.Lines {
		from := &r.Lines[i]
		line := archive.Line{ProductID: from.ProductID, Product: from.Product, Price: optional(from.PriceText)}
		if from.Price != nil {
			price := formatDecimal(*from.Price)
			line.Price = &price
		}
		for _, f := range from.Extra {
			line.Extra = append(line.Extra, archive.Field(f))
		}
		t.Lines = append(t.Lines, line)
	}
	return t
}

func text(optional *string) string {
	if optional == nil {
		return ""
	}
	return *optional
}

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// Amounts are DECIMAL(18, 6), which holds every amount that MyTicket reads (ticket.MaxAmountDigits and MaxAmountScale).
const (
	decimalScale  = 6
	decimalDigits = 12 // before the point
	decimalUnit   = 1_000_000
)

// keepAmount returns an amount for a DECIMAL column; and as a text, if it does not fit, or if formatDecimal would write it in
// another way than it is stored, such as 16.900.
func keepAmount(amount *string) (units int64, fits bool, written string) {
	if amount == nil {
		return 0, false, ""
	}
	if units, fits = parseDecimal(*amount); !fits {
		return 0, false, *amount
	}
	var room [32]byte
	if string(appendDecimal(room[:0], units)) != *amount {
		written = *amount
	}
	return units, true, written
}

func restoreAmount(units *int64, written string) *string {
	switch {
	case written != "":
		return &written
	case units == nil:
		return nil
	}
	amount := formatDecimal(*units)
	return &amount
}

// parseOptional is parseDecimal for a text that may be missing.
func parseOptional(amount *string) (units int64, ok bool) {
	if amount == nil {
		return 0, false
	}
	return parseDecimal(*amount)
}

// parseDecimal returns a decimal number in millionths. It fails if that does not hold it exactly.
func parseDecimal(s string) (units int64, ok bool) {
	digits, negative := strings.CutPrefix(s, "-")
	whole, fraction, _ := strings.Cut(digits, ".")
	if len(whole) == 0 || len(whole) > decimalDigits || len(fraction) > decimalScale {
		return 0, false
	}
	for _, part := range [2]string{whole, fraction} {
		for i := range len(part) {
			if part[i] < '0' || part[i] > '9' {
				return 0, false
			}
			units = units*10 + int64(part[i]-'0')
		}
	}
	for range decimalScale - len(fraction) {
		units *= 10
	}
	if negative {
		units = -units
	}
	return units, true
}

func formatDecimal(units int64) string { return string(appendDecimal(nil, units)) }

// appendDecimal writes millionths with two digits after the point, or with as many as it needs.
func appendDecimal(b []byte, units int64) []byte {
	if units < 0 {
		b, units = append(b, '-'), -units
	}
	b = strconv.AppendInt(b, units/decimalUnit, 10)
	point := len(b)
	b = strconv.AppendInt(b, decimalUnit+units%decimalUnit, 10)
	b[point] = '.' // instead of the 1 of decimalUnit
	for len(b)-point > 3 && b[len(b)-1] == '0' {
		b = b[:len(b)-1]
	}
	return b
}
