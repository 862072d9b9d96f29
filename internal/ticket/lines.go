package ticket

import (
	"errors"
	"fmt"
	"strings"
)

// columns says what each field of a product line is.
type columns struct {
	separator              byte
	names                  []string // as written
	count                  int      // of all columns; names holds at most MaxFields
	name, productID, price int      // indexes of the known columns; -1 for none
	twice                  int      // index of a known column that was named before; 0 for none
	copied                 int      // bytes of names that are copies, and not parts of the text
}

// knownColumns is the number of columns that MyTicket knows.
const knownColumns = 3

func (c *columns) known(i int) bool { return i == c.name || i == c.productID || i == c.price }

// findColumns reads a line as the one that names the columns. It reports whether the line names all that are needed.
func (p *parser) findColumns(line string) (columns, bool) {
	separators := p.reader.separators()
	for i := range len(separators) {
		separator := separators[i]
		first := strings.IndexByte(line, separator)
		if first < 0 || strings.IndexByte(line[first+1:], separator) < 0 {
			continue
		}
		c := p.readColumns(line, separator)
		p.names = c.names
		if c.name >= 0 && c.productID >= 0 && c.price >= 0 {
			return c, true
		}
	}
	return columns{}, false
}

func (p *parser) readColumns(line string, separator byte) columns {
	c := columns{separator: separator, name: -1, productID: -1, price: -1}
	r := fieldReader{text: line, separator: separator}
	var err error
	if c.names, err = r.record(p.names[:0]); err != nil || r.at < len(line) {
		return c
	}
	c.count, c.copied = r.count, r.copied
	for i, name := range c.names {
		var place *int
		switch p.reader.column(name) {
		case productColumn:
			place = &c.name
		case productIDColumn:
			place = &c.productID
		case priceColumn:
			place = &c.price
		default:
			continue
		}
		if *place >= 0 {
			c.twice = i
		}
		*place = i
	}
	return c
}

// checkColumns reports whether product lines can be read with a list of columns, and notes a problem if not.
func (p *parser) checkColumns(c columns) bool {
	line := p.line
	switch {
	case c.twice > 0:
		p.problemf(line, ProblemColumnsConflict, "the column %s is named twice, so it is unclear which one counts; %s",
			quote(c.names[c.twice]), p.notRead())
		return false
	case c.count > MaxFields:
		p.problemf(line, ProblemTooLong, "there are %d columns, and at most %d are read; %s", c.count, MaxFields, p.notRead())
		return false
	}
	for _, name := range c.names {
		if isTooLong(name, MaxFieldName) {
			p.problemf(line, ProblemTooLong, "the name of a column has more than %d characters: %s; %s",
				MaxFieldName, quote(name), p.notRead())
			return false
		}
	}
	return true
}

func (p *parser) columnsMissing(line string) {
	number := p.line
	p.problemf(number, ProblemColumnsMissing,
		"this line must name the columns of the product list, at least product, product_id and price, and it is %s; %s",
		quote(trim(line)), p.notRead())
}

// notRead skips the rest of the text, and says which lines were not read.
func (p *parser) notRead() string {
	from := p.line + 1
	for {
		if _, ok := p.next(); !ok {
			break
		}
	}
	switch {
	case p.line < from:
		return "nothing comes after it"
	case p.line == from:
		return "line " + itoa(from) + " was not read"
	}
	return "lines " + itoa(from) + " to " + itoa(p.line) + " were not read"
}

// products reads the product lines.
func (p *parser) products(c columns) {
	lines := 0
	fields := make([]string, 0, 8)
	for p.at < len(p.text) {
		if p.skipBlankLine() || p.reader != nil && p.skipPassedOver() {
			continue
		}
		if lines++; lines == 1 {
			p.order.Lines = make([]Line, 0, mostLines(p.text[p.at:]))
			p.unknownColumns(&c)
		}
		start, number := p.at, p.line+1
		if p.tooManyLines(number, lines, c.count) {
			return
		}
		r := fieldReader{text: p.text, at: start, separator: c.separator}
		var err error
		fields, err = r.record(fields[:0])
		p.at, p.line = r.at, number+r.breaks
		if err != nil {
			p.badRecord(err, start, number)
			continue
		}
		if p.refuseNULs(p.text[start:r.at], number) {
			continue
		}
		if r.count != c.count {
			if p.listing() {
				p.problemf(number, ProblemFieldsCount, "the line has %d fields, and the product list has %d columns; "+
					"a text that contains the separator %q must be in quotes", r.count, c.count, string(rune(c.separator)))
			}
			continue
		}
		p.order.size.text += r.copied
		p.productLine(c, fields, number)
		if p.tooLarge(number) {
			return
		}
	}
	if lines == 0 {
		p.problemf(0, ProblemNoProducts, "the ticket lists no product")
	}
	switch read := p.order.Lines; {
	case len(read) == 0:
		p.order.Lines, p.order.Columns = nil, nil
	case len(read) < cap(read)/2: // many lines were blank, or could not be read
		p.order.Lines = append(make([]Line, 0, len(read)), read...)
	}
}

// skipPassedOver reports whether the next line says nothing by the dialect, and skips it if so.
func (p *parser) skipPassedOver() bool {
	if first := p.text[p.at]; !mayBeBlank(first) && !p.reader.starts[first] {
		return false
	}
	at, number := p.at, p.line
	line, _ := p.next()
	if p.passedOver(trim(line)) {
		return true
	}
	p.at, p.line = at, number
	return false
}

// mostLines returns an upper bound of the product lines in a text, so that their slice is made once. It follows from the number
// of line ends, from the shortest possible line "a,b,1\n", and from MaxLines.
func mostLines(text string) int {
	ends := max(strings.Count(text, "\n"), strings.Count(text, "\r"))
	return min(ends+1, len(text)/len("a,b,1\n")+1, MaxLines)
}

// unknownColumns keeps the names of the columns that MyTicket does not know. Lines keep only their values, because with the
// names on each line a ticket of 1 MiB could become 200 MiB.
func (p *parser) unknownColumns(c *columns) {
	if len(c.names) <= knownColumns {
		return
	}
	p.order.size.text += c.copied
	p.order.Columns = make([]string, 0, len(c.names)-knownColumns)
	for i, name := range c.names {
		if !c.known(i) {
			p.order.Columns = append(p.order.Columns, name)
		}
	}
}

// tooManyLines reports whether the product list has more lines or fields than the limits, and gives up if it has.
func (p *parser) tooManyLines(number, lines, columns int) bool {
	switch {
	case lines > MaxLines:
		p.giveUp(number, ProblemTooManyLines, fmt.Sprintf("the product list has more than %d lines", MaxLines))
	case lines*columns > MaxCells:
		p.giveUp(number, ProblemTooManyCells, fmt.Sprintf("the product list has %d columns and more than %d lines; "+
			"at most %d fields are read", columns, MaxCells/columns, MaxCells))
	default:
		return false
	}
	return true
}

// tooLarge reports whether what was read becomes more than MaxStoredBytes, and gives up if it does.
func (p *parser) tooLarge(number int) bool {
	if p.order.StoredBytes() <= MaxStoredBytes {
		return false
	}
	p.giveUp(number, ProblemTooLarge,
		fmt.Sprintf("what was read up to this line takes more than %d bytes as JSON", MaxStoredBytes))
	return true
}

// giveUp notes a problem and discards the whole product list, because a part of it could be mistaken for the whole. The caller
// must stop reading.
func (p *parser) giveUp(number int, code, why string) {
	if len(p.problems) == MaxProblems { // this problem says why there are no lines, so it is always listed
		p.problems = p.problems[:MaxProblems-1]
		p.unlisted++
	}
	p.problemf(number, code, "%s; no product of the ticket is kept, and nothing from this line on was read", why)
	p.order = p.order.withoutLines()
}

func (p *parser) badRecord(err error, start, number int) {
	if !p.listing() {
		return
	}
	text := quote(p.text[start:min(len(p.text), start+200)])
	if errors.Is(err, errUnterminated) {
		p.problemf(number, ProblemQuoteUnterminated, "a quote opens here and is never closed, in %s; %s", text, p.notReadAfter(number))
		return
	}
	p.problemf(number, ProblemQuoteInvalid, "there is text after the closing quote of a field, in %s; "+
		"write a quote inside a quoted field twice", text)
}

// notReadAfter says which lines were not read because of an open quote.
func (p *parser) notReadAfter(number int) string {
	if p.line <= number {
		return "nothing comes after it"
	}
	return "lines " + itoa(number+1) + " to " + itoa(p.line) + " were not read"
}

// productLine reads the fields of a line, one for each column.
func (p *parser) productLine(c columns, fields []string, number int) {
	line := Line{Name: fields[c.name], ProductID: fields[c.productID]}
	before := len(p.problems) + p.unlisted
	p.checkLine(&line, fields[c.price], number)
	if len(p.order.Columns) > 0 {
		line.Extra = p.cellsOfALine()
		for i, name := range c.names {
			if c.known(i) {
				continue
			}
			if isTooLong(fields[i], MaxFieldValue) && p.listing() {
				p.problemf(number, ProblemTooLong, "the column %s has more than %d characters: %s",
					quote(name), MaxFieldValue, quote(fields[i]))
			}
			line.Extra = append(line.Extra, fields[i])
		}
	}
	if len(p.problems)+p.unlisted != before {
		return
	}
	p.cells = p.cells[:len(p.cells)+len(line.Extra)]
	p.addLine(line)
}

// checkLine reads the price of a product line, and notes what is wrong with the line.
func (p *parser) checkLine(line *Line, price string, number int) {
	switch {
	case line.Name == "":
		p.problemf(number, ProblemFieldMissing, "the line has no product name")
	case line.ProductID == "":
		p.problemf(number, ProblemFieldMissing, "the line has no product_id")
	}
	p.tooLong(number, "the product's name", line.Name, MaxNameLength)
	p.tooLong(number, "the product_id", line.ProductID, MaxProductIDLength)
	var err error
	if line.Price, err = p.reader.amount(price); err != nil && p.listing() {
		p.problemf(number, ProblemAmountInvalid, "price %s: %v", quote(price), err)
	}
}

func (p *parser) addLine(line Line) {
	p.order.Lines = append(p.order.Lines, line)
	p.order.size.escapes += escapes(line.Name) + escapes(line.ProductID)
	p.order.size.texts += len(line.Name) + len(line.ProductID)
}

// chunkOfCells is the most fields that share one piece of memory.
const chunkOfCells = 1024

// cellsOfALine returns an empty slice with room for the unknown columns of one line. It is part of a larger slice that several
// lines share. The larger one has room for all lines that may come, but for at most chunkOfCells fields.
func (p *parser) cellsOfALine() []string {
	columns := len(p.order.Columns)
	if cap(p.cells)-len(p.cells) < columns {
		lines := min(cap(p.order.Lines)-len(p.order.Lines), chunkOfCells/columns)
		p.cells = make([]string, 0, columns*max(lines, 1))
	}
	at := len(p.cells)
	return p.cells[at : at : at+columns]
}

var (
	errUnterminated = errors.New("a quoted field has no end")
	errAfterQuote   = errors.New("text after the closing quote of a field")
)

// fieldReader reads one record of separated fields (RFC 4180, section 2) from a text, and trims the fields. A quoted field may
// have separators, doubled quotes and line breaks in it, and spaces around it.
type fieldReader struct {
	text      string
	at        int
	separator byte
	breaks    int // line ends inside quoted fields
	count     int // fields of the record
	copied    int // bytes of fields that are copies, and not parts of the text
}

// record appends the fields of the record to dst. Fields beyond MaxFields are only counted. Then r.at is after the record's line
// end: after errAfterQuote, after the end of that line; after errUnterminated, at the end of the text.
func (r *fieldReader) record(dst []string) ([]string, error) {
	for {
		field, err := r.field()
		if err != nil {
			return dst, err
		}
		if r.count++; r.count <= MaxFields {
			dst = append(dst, field)
		}
		if r.at >= len(r.text) {
			return dst, nil
		}
		c := r.text[r.at]
		r.at++
		if c == r.separator {
			continue
		}
		if c == '\r' && r.at < len(r.text) && r.text[r.at] == '\n' {
			r.at++
		}
		return dst, nil
	}
}

// field reads one field. Then r.at is at the separator, line end or end of the text that ends the field.
func (r *fieldReader) field() (string, error) {
	start := r.at
	for r.at < len(r.text) && r.text[r.at] == ' ' {
		r.at++
	}
	if r.at < len(r.text) && r.text[r.at] == '"' {
		return r.quoted()
	}
	// Local variables stay in registers: this loop is the hottest of the parser.
	text, separator, at := r.text, r.separator, r.at
	for at < len(text) && text[at] != separator && text[at] != '\n' && text[at] != '\r' {
		at++
	}
	r.at = at
	return trim(text[start:at]), nil
}

func (r *fieldReader) quoted() (string, error) {
	r.at++
	start, doubled := r.at, false
	for {
		i := strings.IndexByte(r.text[r.at:], '"')
		if i < 0 {
			// After the end of the last line there is no other line.
			r.countBreaks(strings.TrimSuffix(strings.TrimSuffix(r.text[start:], "\n"), "\r"))
			r.at = len(r.text)
			return "", errUnterminated
		}
		r.at += i + 1
		if r.at >= len(r.text) || r.text[r.at] != '"' {
			break
		}
		doubled = true
		r.at++
	}
	field := r.text[start : r.at-1]
	r.countBreaks(field)
	if doubled {
		field = strings.ReplaceAll(field, `""`, `"`)
		r.copied += len(field)
	}
	end := r.at
	for r.at < len(r.text) && r.text[r.at] == ' ' {
		r.at++
	}
	if r.at >= len(r.text) || r.text[r.at] == r.separator || r.text[r.at] == '\n' || r.text[r.at] == '\r' {
		return trim(field), nil
	}
	line := parser{text: r.text, at: end}
	line.next()
	r.at = line.at
	return "", errAfterQuote
}

// countBreaks counts the line ends in the text of a quoted field: LF, CRLF or CR.
func (r *fieldReader) countBreaks(text string) {
	r.breaks += strings.Count(text, "\n") + strings.Count(text, "\r") - strings.Count(text, "\r\n")
}
