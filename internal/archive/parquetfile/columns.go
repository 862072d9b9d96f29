package parquetfile

import (
	"fmt"
	"io"
	"unsafe"

	"github.com/parquet-go/parquet-go"

	"myticket/internal/archive"
)

// Tickets are written column by column, in blocks. The library would write rows, too, but then it looks at each field of each
// row and of each line by reflection, and each line must be made a row before: that takes more time than all the rest. A block
// bounds what is held besides the tickets: their lines.
const (
	blockTickets = 128
	blockBytes   = 128 << 10 // of bodies and texts
)

// column is a column of a file with tickets.
type column struct {
	to     *parquet.ColumnWriter
	most   int // the definition level of a value
	values []parquet.Value
}

func (c *column) null() { c.values = append(c.values, parquet.Value{}) }

// add adds a value that is there. Repeat is its repetition level: 0 for the first of a ticket.
func (c *column) add(v parquet.Value, repeat int) {
	v.SetRepetitionLevel(repeat)
	v.SetDefinitionLevel(c.most)
	c.values = append(c.values, v)
}

// miss adds a value that is null, although the line that it is of is there.
func (c *column) miss(repeat int) {
	var v parquet.Value
	v.SetRepetitionLevel(repeat)
	v.SetDefinitionLevel(lineLevel)
	c.values = append(c.values, v)
}

func (c *column) number(n int) { c.add(parquet.Int32Value(int32(n)), 0) }

func (c *column) text(s string) { c.add(parquet.ByteArrayValue(bytesOf(s)), 0) }

// filled adds a text, or null if it is empty.
func (c *column) filled(s string) {
	if s == "" {
		c.null()
	} else {
		c.text(s)
	}
}

func (c *column) optional(s *string) {
	if s == nil {
		c.null()
	} else {
		c.text(*s)
	}
}

func (c *column) optionalInt64(n *int64) {
	if n == nil {
		c.null()
	} else {
		c.add(parquet.Int64Value(*n), 0)
	}
}

// amount adds an amount, and how it is written to another column.
func (c *column) amount(writing *column, amount *string) {
	units, fits, written := keepAmount(amount)
	if fits {
		c.add(parquet.Int64Value(units), 0)
	} else {
		c.null()
	}
	writing.filled(written)
}

func (c *column) write() error {
	if len(c.values) == 0 {
		return nil
	}
	_, err := c.to.WriteRowValues(c.values)
	clear(c.values) // they refer to tickets
	c.values = c.values[:0]
	return err
}

// ticketColumns are the columns of ticketRow.
type ticketColumns struct {
	all []*column

	id, receivedAt, source, status, orderNumber, vat, total, vatText, totalText, problems, extra, storedLines, contentType,
	traceparent, version, parserVersion, dialect, attempts, claims, nextAttemptAt, problemGroup, correction, text, body *column

	productID, product, price, priceText, extraName, extraValue *column // of lines

	tickets, bytes int // in the present block
}

// inLines is the path of a column of lines.
func inLines(path ...string) []string { return append([]string{"lines", "list", "element"}, path...) }

func newTicketColumns(file *parquet.GenericWriter[ticketRow]) *ticketColumns {
	c := &ticketColumns{}
	writers := file.ColumnWriters()
	c.all = make([]*column, len(writers))
	of := func(path ...string) *column {
		leaf, ok := file.Schema().Lookup(path...)
		if !ok {
			panic(fmt.Sprintf("there is no column %q", path)) // ticketRow has it
		}
		made := &column{to: writers[leaf.ColumnIndex], most: leaf.MaxDefinitionLevel}
		c.all[leaf.ColumnIndex] = made
		return made
	}
	c.id, c.receivedAt, c.source, c.status = of("id"), of("received_at"), of("source"), of("status")
	c.orderNumber, c.vat, c.total = of("order_number"), of("vat"), of("total")
	c.vatText, c.totalText = of("vat_text"), of("total_text")
	c.problems, c.extra, c.storedLines = of("problems"), of("extra"), of("stored_lines")
	c.contentType, c.traceparent = of("content_type"), of("traceparent")
	c.version, c.parserVersion, c.dialect = of("version"), of("parser_version"), of("dialect")
	c.attempts, c.claims, c.nextAttemptAt = of("attempts"), of("claims"), of("next_attempt_at")
	c.problemGroup, c.correction, c.text, c.body = of("problem_group"), of("correction"), of("text"), of("body")
	line := func(path ...string) *column { return of(inLines(path...)...) }
	c.productID, c.product = line("product_id"), line("product")
	c.price, c.priceText = line("price"), line("price_text")
	c.extraName, c.extraValue = line("extra", "list", "element", "name"), line("extra", "list", "element", "value")
	return c
}

// add adds a ticket to the block, and writes that when it is full.
func (c *ticketColumns) add(t *archive.Ticket) error {
	c.id.add(parquet.FixedLenByteArrayValue(t.ID[:]), 0)
	c.receivedAt.add(parquet.Int64Value(micros(t.ReceivedAt)), 0)
	c.source.text(t.Source)
	c.status.text(t.Status)
	c.orderNumber.optional(t.OrderNumber)
	c.vat.amount(c.vatText, t.VAT)
	c.total.amount(c.totalText, t.Total)
	c.problems.filled(text(t.Problems))
	c.extra.filled(text(t.Extra))
	c.storedLines.filled(text(t.StoredLines))
	c.contentType.text(t.ContentType)
	c.traceparent.optional(t.Traceparent)
	c.version.number(t.Version)
	c.parserVersion.number(t.ParserVersion)
	c.dialect.number(t.Dialect)
	c.attempts.number(t.Attempts)
	c.claims.number(t.Claims)
	if t.NextAttemptAt == nil {
		c.nextAttemptAt.null()
	} else {
		c.nextAttemptAt.add(parquet.Int64Value(micros(*t.NextAttemptAt)), 0)
	}
	c.problemGroup.optionalInt64(t.ProblemGroup)
	if t.Correction == nil {
		c.correction.null()
	} else {
		c.correction.number(*t.Correction)
	}
	if t.Text == nil {
		c.text.null()
	} else {
		c.text.add(parquet.ByteArrayValue(t.Text), 0)
	}
	c.body.add(parquet.ByteArrayValue(t.Body), 0)
	c.lines(t)
	c.tickets++
	if c.bytes += len(t.Body) + len(t.Text); c.tickets < blockTickets && c.bytes < blockBytes {
		return nil
	}
	return c.write()
}

// lines adds the lines of a ticket: those that its text has, or those that it has already.
func (c *ticketColumns) lines(t *archive.Ticket) {
	if !t.Unread {
		for i := range t.Lines {
			line := &t.Lines[i]
			at := c.line(i, line.ProductID, line.Product)
			switch units, ok := parseOptional(line.Price); {
			case ok:
				c.price.add(parquet.Int64Value(units), at)
				c.priceText.miss(at)
			default:
				c.price.miss(at)
				if line.Price == nil {
					c.priceText.miss(at)
				} else {
					c.priceText.add(parquet.ByteArrayValue(bytesOf(*line.Price)), at)
				}
			}
			for j := range line.Extra {
				c.field(at, j, line.Extra[j].Name, line.Extra[j].Value)
			}
			c.noField(at, len(line.Extra))
		}
		c.noLine(len(t.Lines))
		return
	}
	read := t.Body
	if t.Correction != nil {
		read = t.Text
	}
	order, _ := t.Reader.Parse(read)
	c.bytes += len(order.Columns) * len(order.Lines) * fieldBytes
	for i := range order.Lines {
		line := &order.Lines[i]
		at := c.line(i, line.ProductID, line.Name)
		if units, ok := line.Price.Units(decimalScale); ok {
			c.price.add(parquet.Int64Value(units), at)
		} else {
			c.price.miss(at)
		}
		c.priceText.miss(at) // every amount that is read fits
		for j, name := range order.Columns {
			c.field(at, j, name, line.Extra[j])
		}
		c.noField(at, len(order.Columns))
	}
	c.noLine(len(order.Lines))
}

// lineLevel is the definition level of what is missing in a line that is there.
const lineLevel = 1

// line begins a line, and returns its repetition level.
func (c *ticketColumns) line(n int, productID, product string) (at int) {
	if n > 0 {
		at = 1
	}
	c.productID.add(parquet.ByteArrayValue(bytesOf(productID)), at)
	c.product.add(parquet.ByteArrayValue(bytesOf(product)), at)
	return at
}

func (c *ticketColumns) field(at, n int, name, value string) {
	if n > 0 {
		at = 2
	}
	c.extraName.add(parquet.ByteArrayValue(bytesOf(name)), at)
	c.extraValue.add(parquet.ByteArrayValue(bytesOf(value)), at)
}

func (c *ticketColumns) noField(at, fields int) {
	if fields == 0 {
		c.extraName.miss(at)
		c.extraValue.miss(at)
	}
}

func (c *ticketColumns) noLine(lines int) {
	if lines == 0 {
		for _, column := range [...]*column{c.productID, c.product, c.price, c.priceText, c.extraName, c.extraValue} {
			column.null()
		}
	}
}

// write writes the block.
func (c *ticketColumns) write() error {
	c.tickets, c.bytes = 0, 0
	for _, column := range c.all {
		if err := column.write(); err != nil {
			return err
		}
	}
	return nil
}

// pages reads the values of a column that has no nulls, no repetition and no dictionary.
type pages struct {
	from parquet.Pages
	page parquet.Page
	n    int64 // values of the page that are not taken yet

	fixed   []byte // of FIXED_LEN_BYTE_ARRAY, with width bytes each
	width   int
	numbers []int64
	bytes   []byte   // of BYTE_ARRAY
	ends    []uint32 // one more than there are values
}

// more makes sure that there is a value. It returns io.EOF after the last one.
func (p *pages) more() error {
	for p.n == 0 {
		p.release()
		page, err := p.from.ReadPage()
		if err != nil {
			return err
		}
		p.page, p.n = page, page.NumValues()
		data := page.Data()
		if page.Dictionary() != nil || page.NumNulls() != 0 {
			return fmt.Errorf("%w: a column has another encoding than it is written with", archive.ErrDamaged)
		}
		switch page.Type().Kind() {
		case parquet.FixedLenByteArray:
			p.fixed, p.width = data.FixedLenByteArray()
		case parquet.Int64:
			p.numbers = data.Int64()
		case parquet.ByteArray:
			p.bytes, p.ends = data.ByteArray()
		default:
			return fmt.Errorf("%w: a column has another type than it is written with", archive.ErrDamaged)
		}
	}
	p.n--
	return nil
}

func (p *pages) nextFixed() []byte {
	value := p.fixed[:p.width]
	p.fixed = p.fixed[p.width:]
	return value
}

func (p *pages) nextNumber() int64 {
	n := p.numbers[0]
	p.numbers = p.numbers[1:]
	return n
}

func (p *pages) nextBytes() []byte {
	value := p.bytes[p.ends[0]:p.ends[1]]
	p.ends = p.ends[1:]
	return value
}

func (p *pages) release() {
	if p.page != nil {
		parquet.Release(p.page)
		p.page = nil
	}
}

func (p *pages) close() {
	p.release()
	_ = p.from.Close()
}

// eachContent calls do with what the check of a file reads of each ticket. The body is valid until do returns.
func eachContent(file io.ReaderAt, size int64, do func(id []byte, receivedAt int64, body []byte) error) error {
	return open(file, size, func(opened *parquet.File) error {
		for _, group := range opened.RowGroups() {
			if err := groupContent(group, do); err != nil {
				return err
			}
		}
		return nil
	})
}

func groupContent(group parquet.RowGroup, do func(id []byte, receivedAt int64, body []byte) error) error {
	var of [3]*pages
	chunks := group.ColumnChunks()
	for i, want := range [...]struct {
		name string
		kind parquet.Kind
	}{{"id", parquet.FixedLenByteArray}, {"received_at", parquet.Int64}, {"body", parquet.ByteArray}} {
		leaf, ok := group.Schema().Lookup(want.name)
		if !ok || leaf.MaxRepetitionLevel != 0 || leaf.MaxDefinitionLevel != 0 || leaf.Node.Type().Kind() != want.kind {
			return fmt.Errorf("%w: it has no such column %s as it is written with", archive.ErrDamaged, want.name)
		}
		of[i] = &pages{from: chunks[leaf.ColumnIndex].Pages()}
		defer of[i].close()
	}
	for n := range group.NumRows() {
		for _, p := range of {
			switch err := p.more(); {
			case err == io.EOF: //nolint:errorlint // the library returns it as it is
				return fmt.Errorf("%w: it has %d tickets less than it says", archive.ErrDamaged, group.NumRows()-n)
			case err != nil:
				return fmt.Errorf("%w: %w", archive.ErrDamaged, err)
			}
		}
		if err := do(of[0].nextFixed(), of[1].nextNumber(), of[2].nextBytes()); err != nil {
			return err
		}
	}
	return nil
}

// bytesOf returns the bytes of a text without copying them. Nobody may write to them.
func bytesOf(s string) []byte {
	return unsafe.Slice(unsafe.StringData(s), len(s)) //nolint:gosec // the library only reads and copies them
}
