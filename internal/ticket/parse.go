package ticket

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// ParserVersion is stored with each ticket that was read. Raise it when Parse understands more than before, or understands
// something differently. Tickets that an older version marked ERROR can then be found and sent back.
const ParserVersion = 2

// Limits of what is read. A text beyond a limit is not cut: it is a problem.
//
// The first four bound what a ticket becomes, for any length of its body: memory while it is read and stored, its row, and the
// products that it names. Beyond one of them, nothing of the product list is kept.
const (
	MaxTextBytes   = 16 << 20 // bytes of a body that is read; a longer one is not
	MaxLines       = 10_000   // lines of a product list, readable or not
	MaxCells       = 100_000  // lines of a product list times its columns
	MaxStoredBytes = 4 << 20  // bytes of JSON that product lines and unknown header records become (StoredBytes)

	MaxNumberLength    = 64   // characters of an order number
	MaxProductIDLength = 128  // characters
	MaxNameLength      = 512  // characters of a product's name
	MaxFieldName       = 64   // characters of the name of an unknown header record or column
	MaxFieldValue      = 1024 // characters of its value
	MaxFields          = 100  // unknown header records of a ticket, and columns of its product list
	MaxProblems        = 100  // problems that are listed; one more says how many are not
)

// Codes of the problems that Parse finds. docs/ticket-format.md has an example of each.
const (
	ProblemEmpty             = "empty"              // only blank lines
	ProblemHeaderUnreadable  = "header_unreadable"  // a line that is not of the form "Name: value"
	ProblemHeaderConflict    = "header_conflict"    // a known record twice, with two values
	ProblemOrderMissing      = "order_missing"      // no Order record
	ProblemVATMissing        = "vat_missing"        // no VAT record
	ProblemTotalMissing      = "total_missing"      // no Total record
	ProblemAmountInvalid     = "amount_invalid"     // a price, VAT or total that is not an amount
	ProblemColumnsMissing    = "columns_missing"    // no line names the columns, or not all of them
	ProblemColumnsConflict   = "columns_conflict"   // a column that is named twice
	ProblemFieldsCount       = "fields_count"       // more or fewer fields than columns
	ProblemFieldMissing      = "field_missing"      // a product line without a name or an id
	ProblemQuoteUnterminated = "quote_unterminated" // a quoted field without an end
	ProblemQuoteInvalid      = "quote_invalid"      // text after the closing quote of a field
	ProblemNUL               = "nul_byte"           // a NUL byte, which Postgres' text cannot hold
	ProblemTooLong           = "text_too_long"      // beyond one of the limits above
	ProblemNoProducts        = "no_products"        // no product line
	ProblemTooMany           = "too_many_problems"  // more than MaxProblems
	ProblemTooManyLines      = "too_many_lines"     // more than MaxLines
	ProblemTooManyCells      = "too_many_cells"     // more than MaxCells
	ProblemTooLarge          = "too_large"          // more than MaxTextBytes, or MaxStoredBytes
	ProblemEncoding          = "encoding_invalid"   // bytes that the encoding of the dialect does not have
	ProblemJSONInvalid       = "json_invalid"       // a ticket of a JSON dialect that is not JSON
	ProblemJSONUnexpected    = "json_unexpected"    // a value of another kind than the dialect needs in its place
)

// Parse reads a ticket. docs/ticket-format.md has the whole format; this is the usual form:
//
//	Order: 123456
//	VAT: 3.10
//	Total: 16.90
//
//	product,product_id,price
//	Formule(s) midi,aZde,14.90
//
// It is liberal in form. It accepts header records in any order and case, columns by their names, a comma, semicolon or tab
// between fields, quotes as in RFC 4180, LF, CRLF or CR, blank lines anywhere, a byte order mark, UTF-8, UTF-16 with a byte
// order mark, and Windows-1252. It is strict in meaning: every line is understood, or named in the problems. A ticket without
// problems is understood as a whole. With problems, the Order holds what could be read.
//
// It takes time and memory linear in the body, reads a body of at most MaxTextBytes, and never panics. Text in the Order is
// valid UTF-8 without NUL.
func Parse(body []byte) (Order, []Problem) { return (*Reader)(nil).Parse(body) }

// Parse reads a ticket in the reader's dialect, with all that the function Parse promises. A line is understood, passed over
// because the dialect says so, or named in the problems.
func (r *Reader) Parse(body []byte) (Order, []Problem) {
	if len(body) > MaxTextBytes {
		return Order{}, []Problem{{Code: ProblemTooLarge, Message: fmt.Sprintf(
			"the ticket has %d bytes, and at most %d are read; nothing of it was read", len(body), MaxTextBytes)}}
	}
	if r != nil && r.json != nil {
		return r.parseJSON(body)
	}
	p := parser{reader: r}
	p.decode(body)
	p.order.size.text = len(p.text)
	p.hasNUL = strings.IndexByte(p.text, 0) >= 0
	if p.isBlank() {
		return Order{}, []Problem{{Code: ProblemEmpty, Message: "the ticket has only blank lines"}}
	}
	var names [8]string // saves an allocation for the usual number of columns
	p.names = names[:0]
	columns, ok := p.header()
	p.missing()
	if ok {
		p.products(columns)
	}
	return p.result()
}

// result returns what was read, and says how many problems are not listed.
func (p *parser) result() (Order, []Problem) {
	if p.unlisted > 0 {
		p.problems = append(p.problems, Problem{
			Code: ProblemTooMany, Message: fmt.Sprintf("there are %d more problems, which are not listed", p.unlisted),
		})
	}
	return p.order, p.problems
}

// missing notes the records that the header lacks. It is called before the product lines are read, because their problems could
// fill the list.
func (p *parser) missing() {
	if !p.seen.order {
		p.problemf(0, ProblemOrderMissing, "there is no Order record")
	}
	if !p.seen.vat && p.reader.needs(vatRecord) {
		p.problemf(0, ProblemVATMissing, "there is no VAT record")
	}
	if !p.seen.total && p.reader.needs(totalRecord) {
		p.problemf(0, ProblemTotalMissing, "there is no Total record")
	}
}

// parser reads the text once, line by line.
type parser struct {
	reader *Reader // nil for the dialect of everyone
	text   string
	at     int // where the next line begins
	line   int // number of the last line that was read
	hasNUL bool
	names  []string // scratch memory, because each line of the header may name the columns

	cells []string // memory for the unknown columns of lines, of which a part may be unused

	order    Order
	seen     struct{ order, vat, total bool } // the ticket has the record, readable or not
	problems []Problem
	unlisted int // problems beyond MaxProblems
}

// listing reports whether one more problem will be listed, and counts it if not. Call it first for a problem that many lines may
// have, because the arguments of problemf take ten times the memory of a short line.
func (p *parser) listing() bool {
	if len(p.problems) >= MaxProblems {
		p.unlisted++
		return false
	}
	return true
}

func (p *parser) problemf(line int, code, format string, args ...any) {
	if !p.listing() {
		return
	}
	p.problems = append(p.problems, Problem{Line: line, Code: code, Message: fmt.Sprintf(format, args...)})
}

func (p *parser) isBlank() bool {
	return p.text == "" || mayBeBlank(p.text[0]) && strings.Trim(p.text, " \t\r\n\u00a0") == ""
}

// mayBeBlank reports whether a blank text can begin with c. For nearly all texts this check is enough.
func mayBeBlank(c byte) bool { return c <= ' ' || c == 0xc2 } // 0xc2 begins a no-break space

// next returns the next line without its end, which is LF, CRLF or CR.
func (p *parser) next() (string, bool) {
	if p.at >= len(p.text) {
		return "", false
	}
	start := p.at
	for i := start; i < len(p.text); i++ {
		switch p.text[i] {
		case '\r':
			p.at = i + 1
			if p.at < len(p.text) && p.text[p.at] == '\n' {
				p.at++
			}
		case '\n':
			p.at = i + 1
		default:
			continue
		}
		p.line++
		return p.text[start:i], true
	}
	p.at = len(p.text)
	p.line++
	return p.text[start:], true
}

// skipBlankLine reports whether the next line is blank, and skips it if it is.
func (p *parser) skipBlankLine() bool {
	if !mayBeBlank(p.text[p.at]) {
		return false
	}
	at, number := p.at, p.line
	if line, _ := p.next(); trim(line) == "" {
		return true
	}
	p.at, p.line = at, number
	return false
}

// header reads header records up to the line that names the columns, and returns those columns.
func (p *parser) header() (columns, bool) {
	records, afterBlank := false, false
	for {
		line, ok := p.next()
		if !ok {
			p.problemf(0, ProblemColumnsMissing, "no line names the columns of the product list: product, product_id, price")
			return columns{}, false
		}
		text := trim(line)
		if p.reader != nil && p.passedOver(text) {
			continue
		}
		if p.refuseNULs(line, p.line) {
			name, _, _ := strings.Cut(line, ":")
			p.seeRecord(p.reader.record(trim(name)))
			continue
		}
		if text == "" {
			afterBlank = records
			continue
		}
		if c, ok := p.findColumns(line); ok {
			return c, p.checkColumns(c)
		}
		name, value, isRecord := strings.Cut(text, ":")
		name, value = trim(name), trim(value)
		switch {
		case isRecord && name != "" && !(afterBlank && strings.ContainsAny(name, ",;\t")):
			records = true
			p.record(name, value)
		case afterBlank:
			p.columnsMissing(line)
			return columns{}, false
		case p.listing():
			p.problemf(p.line, ProblemHeaderUnreadable, "%s is not a header record, which has the form \"Name: value\"", quote(text))
		}
	}
}

// refuseNULs notes a problem for each line of a record that has a NUL byte, and reports whether there was one. number is that of
// the record's first line.
func (p *parser) refuseNULs(record string, number int) bool {
	if !p.hasNUL || strings.IndexByte(record, 0) < 0 {
		return false
	}
	lines := parser{text: record, line: number - 1}
	for line, ok := lines.next(); ok; line, ok = lines.next() {
		if strings.IndexByte(line, 0) >= 0 && p.listing() {
			p.problemf(lines.line, ProblemNUL, "the line has a NUL byte, which a text must not have: %s", quote(line))
		}
	}
	return true
}

// passedOver reports whether the line that was just read, without spaces around it, says nothing by the dialect. If it ends the
// ticket, nothing is left to read.
func (p *parser) passedOver(text string) bool {
	what := p.reader.effect(text)
	if what == end {
		p.at = len(p.text)
	}
	return what != noEffect
}

// seeRecord prevents that a known record that cannot be read is also reported as missing.
func (p *parser) seeRecord(what record) {
	p.seen.order = p.seen.order || what == orderRecord
	p.seen.vat = p.seen.vat || what == vatRecord
	p.seen.total = p.seen.total || what == totalRecord
}

// record notes one header record.
func (p *parser) record(name, value string) {
	what := p.reader.record(name)
	p.seeRecord(what)
	switch {
	case what == orderRecord:
		p.orderRecord(value)
	case what == vatRecord:
		p.amountRecord("VAT", &p.order.VAT, value)
	case what == totalRecord:
		p.amountRecord("Total", &p.order.Total, value)
	case len(p.order.Extra) >= MaxFields:
		if p.listing() {
			p.problemf(p.line, ProblemTooLong, "there are more than %d header records that MyTicket does not know", MaxFields)
		}
	case p.tooLong(p.line, "the name of the record", name, MaxFieldName),
		p.tooLong(p.line, "the value of the record", value, MaxFieldValue):
	default:
		field := Field{name, value}
		p.order.Extra = append(p.order.Extra, field)
		p.order.size.extra += field.json()
	}
}

func (p *parser) orderRecord(value string) {
	switch {
	case value == "":
		p.problemf(p.line, ProblemOrderMissing, "the Order record is empty")
	case p.tooLong(p.line, "the order number", value, MaxNumberLength):
	case p.order.Number != "" && p.order.Number != value:
		p.conflict("Order", p.order.Number, value)
	default:
		p.order.Number = value
	}
}

func (p *parser) amountRecord(name string, field *Amount, value string) {
	amount, err := p.reader.amount(value)
	switch {
	case err != nil:
		if p.listing() {
			p.problemf(p.line, ProblemAmountInvalid, "%s %s: %v", name, quote(value), err)
		}
	case field.set && !field.Equal(amount):
		p.conflict(name, field.String(), value)
	default:
		*field = amount
	}
}

func (p *parser) conflict(name, first, second string) {
	if !p.listing() {
		return
	}
	p.problemf(p.line, ProblemHeaderConflict, "%s appears twice, as %s and as %s", name, quote(first), quote(second))
}

// tooLong reports whether a text has more than most characters, and notes a problem if it has.
func (p *parser) tooLong(line int, what, text string, most int) bool {
	if !isTooLong(text, most) {
		return false
	}
	if p.listing() {
		p.problemf(line, ProblemTooLong, "%s has more than %d characters: %s", what, most, quote(text))
	}
	return true
}

func isTooLong(text string, most int) bool {
	return len(text) > most && utf8.RuneCountInString(text) > most
}
