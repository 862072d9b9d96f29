package ticket

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/ianaindex"
	"golang.org/x/text/encoding/unicode"
)

// Dialect says how a source writes its tickets, where Parse would not understand them. It is data: nothing in it makes reading
// slower than linear. The zero Dialect reads as Parse does.
type Dialect struct {
	Order, VAT, Total         []string // other names of these header records; those of Parse count, too
	Product, ProductID, Price []string // other names of these columns; those of Parse count, too

	VATOptional, TotalOptional bool // the record may be missing

	Separator byte    // between fields, the only one; 0 for the first of comma, semicolon and tab that fits
	Decimal   byte    // decimal sign, '.' or ','; the other one then separates groups of digits. 0 for what ParseAmount takes.
	Encoding  string  // IANA name of what a body is that has no byte order mark and is not UTF-8; empty for Windows-1252
	PassOver  []Match // lines that are passed over
	End       []Match // lines after which nothing is read

	JSON *JSON // the tickets are JSON (RFC 8259); of the fields above, only VATOptional, TotalOptional and Decimal count then
}

// ParseFunc reads a ticket of a source. It also returns the version of the dialect that it used, which is 0 for that of everyone.
type ParseFunc func(source string, body []byte) (order Order, problems []Problem, dialect int)

// ParseAny is the ParseFunc that reads every source in the dialect of everyone.
func ParseAny(_ string, body []byte) (Order, []Problem, int) {
	order, problems := Parse(body)
	return order, problems, 0
}

// Match is a line, without spaces around it, or the beginning of one.
type Match struct {
	Text   string
	Begins bool // a line matches if it begins with Text; otherwise it must be Text
}

// Limits of a dialect. They bound what each line of a ticket is compared with.
const (
	MaxDialectNames = 20  // other names of one record or column
	MaxDialectLines = 100 // lines in PassOver and End, together
	MaxDialectText  = 200 // bytes of a name, a line or a JSON Pointer
)

// ErrDialect is wrapped by the error of NewReader.
var ErrDialect = errors.New("not a dialect")

// Reader reads tickets in a dialect. Several goroutines may use it. A nil Reader reads as Parse does.
type Reader struct {
	dialect  Dialect
	records  map[string]record // by their names in lower case
	columns  map[string]column
	starts   [256]bool         // the first bytes of lines and begins: for nearly all lines this check is enough
	lines    map[string]effect // whole lines
	begins   map[byte][]begin  // beginnings of lines, by their first byte
	encoding encoding.Encoding // nil for Windows-1252
	always   bool              // the encoding is that of every body without a byte order mark
	json     *places           // nil for text
}

// record is a header record that MyTicket knows.
type record uint8

const (
	unknownRecord record = iota
	orderRecord
	vatRecord
	totalRecord
)

// column is a column that MyTicket knows.
type column uint8

const (
	unknownColumn column = iota
	productColumn
	productIDColumn
	priceColumn
)

// effect is what a line of a dialect does.
type effect uint8

const (
	noEffect effect = iota
	passOver
	end
)

type begin struct {
	text string
	effect
}

// NewReader checks a dialect, and returns its Reader. The error wraps ErrDialect and names what is wrong.
func NewReader(d Dialect) (*Reader, error) {
	r := &Reader{dialect: d}
	if d.Decimal != 0 && d.Decimal != '.' && d.Decimal != ',' {
		return nil, fmt.Errorf("%w: the decimal sign must be a point or a comma, and it is %q", ErrDialect, d.Decimal)
	}
	if d.JSON != nil {
		if d.hasText() {
			return nil, fmt.Errorf("%w: names of records and columns, separator, encoding, and lines to pass over are for tickets of "+
				"lines, and its tickets are JSON", ErrDialect)
		}
		var err error
		r.json, err = newPlaces(d)
		return r, err
	}
	var err error
	r.records, err = nameMap[record](named("Order", d.Order), named("VAT", d.VAT), named("Total", d.Total))
	if err != nil {
		return nil, err
	}
	r.columns, err = nameMap[column](named("product", d.Product), named("product_id", d.ProductID), named("price", d.Price))
	if err != nil {
		return nil, err
	}
	return r, errors.Join(r.addLines(), r.checkSeparator(), r.findEncoding())
}

// hasText reports whether the dialect says something that only tickets of lines can have.
func (d *Dialect) hasText() bool {
	n := 0
	for _, list := range [][]string{d.Order, d.VAT, d.Total, d.Product, d.ProductID, d.Price} {
		n += len(list)
	}
	return n+len(d.PassOver)+len(d.End) > 0 || d.Separator != 0 || d.Encoding != ""
}

// nameMap returns what names mean. The meanings are numbered from 1 on, and the first name of each is that of Parse.
func nameMap[T record | column](names ...[]string) (map[string]T, error) {
	meanings := map[string]T{}
	for _, list := range names {
		meanings[lower(list[0])] = T(len(meanings) + 1)
	}
	for i, list := range names {
		usual, others := list[0], list[1:]
		if len(others) > MaxDialectNames {
			return nil, fmt.Errorf("%w: %s has %d other names, and at most %d are allowed",
				ErrDialect, usual, len(others), MaxDialectNames)
		}
		for _, name := range others {
			other, ok := meanings[lower(name)]
			switch {
			case name == "" || name != trim(name) || !plain(name):
				return nil, fmt.Errorf("%w: %q cannot be a name of %s: it must have 1 to %d bytes, be on one line, and have no spaces "+
					"around it", ErrDialect, name, usual, MaxDialectText)
			case ok && int(other) == i+1:
				return nil, fmt.Errorf("%w: %q is given twice as a name of %s, whose own name counts, too", ErrDialect, name, usual)
			case ok:
				return nil, fmt.Errorf("%w: %q is a name of %s and of %s", ErrDialect, name, usual, names[other-1][0])
			}
			meanings[lower(name)] = T(i + 1)
		}
	}
	return meanings, nil
}

func named(usual string, others []string) []string { return append([]string{usual}, others...) }

// lower is how names are compared: without regard to the case of their letters.
func lower(name string) string { return strings.ToLower(name) }

// plain reports whether a text of a dialect can be on one line of a ticket.
func plain(text string) bool {
	return len(text) <= MaxDialectText && utf8.ValidString(text) && !strings.ContainsAny(text, "\r\n\x00")
}

func (r *Reader) addLines() error {
	r.lines, r.begins = map[string]effect{}, map[byte][]begin{}
	if n := len(r.dialect.PassOver) + len(r.dialect.End); n > MaxDialectLines {
		return fmt.Errorf("%w: it passes over and ends at %d lines, and at most %d are allowed", ErrDialect, n, MaxDialectLines)
	}
	given := map[Match]bool{}
	for what, matches := range map[effect][]Match{passOver: r.dialect.PassOver, end: r.dialect.End} {
		for _, m := range matches {
			switch {
			case m.Text == "" || !plain(m.Text) || m.Text != trim(m.Text) && !m.Begins || trim(m.Text[:1]) == "":
				return fmt.Errorf("%w: %q is not a line to pass over or to end at: it must have 1 to %d bytes, be one line, and have no "+
					"spaces around it", ErrDialect, m.Text, MaxDialectText)
			case given[m]:
				return fmt.Errorf("%w: the line %q is given twice, to pass over or to end at", ErrDialect, m.Text)
			}
			given[m], r.starts[m.Text[0]] = true, true
			if m.Begins {
				r.begins[m.Text[0]] = append(r.begins[m.Text[0]], begin{m.Text, what})
			} else {
				r.lines[m.Text] = what
			}
		}
	}
	return nil
}

// effect returns what a line does, which is without spaces around it. A whole line comes before beginnings, and a longer
// beginning before a shorter one.
func (r *Reader) effect(line string) effect {
	if line == "" || !r.starts[line[0]] {
		return noEffect
	}
	if what := r.lines[line]; what != noEffect {
		return what
	}
	longest, what := 0, noEffect
	for _, b := range r.begins[line[0]] {
		if len(b.text) > longest && strings.HasPrefix(line, b.text) {
			longest, what = len(b.text), b.effect
		}
	}
	return what
}

// separators are the signs that no name or amount has.
const separators = ",;\t|/#!$%&'()*<=>?@[\\]^`{}~"

func (r *Reader) checkSeparator() error {
	if s := r.dialect.Separator; s != 0 && strings.IndexByte(separators, s) < 0 {
		return fmt.Errorf("%w: %q cannot be the separator; one of these can: %q", ErrDialect, s, separators)
	}
	return nil
}

// findEncoding takes the encodings that can be told from UTF-8, and UTF-16 without a byte order mark.
func (r *Reader) findEncoding() error {
	name := lower(r.dialect.Encoding)
	switch name {
	case "":
		return nil
	case "utf-16le":
		r.encoding, r.always = unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM), true
		return nil
	case "utf-16be":
		r.encoding, r.always = unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM), true
		return nil
	}
	e, err := ianaindex.IANA.Encoding(name)
	likeASCII := slices.ContainsFunc([]string{"utf", "iso-2022", "hz-"}, func(kind string) bool {
		return strings.HasPrefix(name, kind)
	})
	if err != nil || e == nil || likeASCII {
		return fmt.Errorf("%w: %q is not the name of an encoding that is known here; ISO-8859-15, IBM850, windows-1250, Shift_JIS "+
			"and UTF-16LE are such names (UTF-8, and UTF-16 with a byte order mark, are recognized without one)",
			ErrDialect, r.dialect.Encoding)
	}
	r.encoding = e
	return nil
}

// record returns which header record a name means.
func (r *Reader) record(name string) record {
	if r != nil {
		return r.records[lower(name)]
	}
	switch {
	case strings.EqualFold(name, "Order"):
		return orderRecord
	case strings.EqualFold(name, "VAT"):
		return vatRecord
	case strings.EqualFold(name, "Total"):
		return totalRecord
	}
	return unknownRecord
}

// column returns which column a name means.
func (r *Reader) column(name string) column {
	if r != nil {
		return r.columns[lower(name)]
	}
	switch {
	case strings.EqualFold(name, "product"):
		return productColumn
	case strings.EqualFold(name, "product_id"):
		return productIDColumn
	case strings.EqualFold(name, "price"):
		return priceColumn
	}
	return unknownColumn
}

// separators returns what may be between the fields of a line.
func (r *Reader) separators() string {
	if r == nil || r.dialect.Separator == 0 {
		return ",;\t"
	}
	return string(rune(r.dialect.Separator))
}

// amount reads an amount.
func (r *Reader) amount(text string) (Amount, error) {
	if r == nil || r.dialect.Decimal == 0 {
		return ParseAmount(text)
	}
	return parseAmount(text, r.dialect.Decimal)
}

// needs reports whether a ticket without a record has a problem.
func (r *Reader) needs(what record) bool {
	switch {
	case r == nil:
		return true
	case what == vatRecord:
		return !r.dialect.VATOptional
	case what == totalRecord:
		return !r.dialect.TotalOptional
	}
	return true
}
