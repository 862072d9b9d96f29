package ticket

import (
	"strings"
	"unsafe"
)

// size is the memory that an Order takes. The parser counts it while it reads, so that Cost need not look at all texts of a
// ticket.
type size struct {
	text    int // bytes of the memory that the Order's texts share, and of their copies
	texts   int // bytes of the texts of the lines' products
	escapes int // additional bytes of JSON for those texts
	extra   int // bytes of JSON that Extra becomes
}

// Additional bytes around texts, as they are stored and sent.
const (
	// A line as JSON: {"product":"","product_id":"","price":}, and an amount, which has at most 20 characters.
	lineJSON = 40 + MaxAmountDigits + MaxAmountScale + len("-.")
	// A header record as JSON with a comma: {"name":"","value":""}.
	fieldJSON = 23
	// A problem as JSON: {"line":,"code":"","message":""}, a comma, and a line's number.
	problemJSON = 36 + 20
	// A product's parameters: the length of each (int4), its price, the ticket's id, three times, and a bool.
	productParams = 8*4 + 21 + 16 + 3*8 + 1
	// The ticket itself, its entry in a batch, and those of its parameters that have a fixed length.
	ticketCost = 896
)

// StoredBytes returns the most bytes of JSON that the product lines and the unknown header records of an Order become. The Order
// must be one that Parse returned. Only the header records are stored with the ticket. The lines are stored behind, and take less
// there; as JSON they are shown. The values of unknown columns are stored only in the body.
func (o *Order) StoredBytes() int {
	return lineJSON*len(o.Lines) + o.size.texts + o.size.escapes + o.size.extra + len("[][]")
}

// Cost returns an upper bound of the bytes that a ticket takes until it is stored: the memory of its body and of what Parse read
// from it, the parameters of its INSERT, and those of its products. All limits of tickets in bytes (of a batch, of what waits,
// of a drain) use this, because a short body may become a long row. It is fast: it looks only at each problem and at each
// header record that MyTicket does not know.
func (t *Ticket) Cost() int {
	o := &t.Order
	n := ticketCost + 2*(len(t.Body)+len(t.Source)+len(t.ContentType)+len(t.Traceparent)+len(o.Number)) + o.size.text
	n += o.size.extra + int(unsafe.Sizeof(Field{}))*cap(o.Extra)
	// The lines' unknown columns share pieces of memory, and the last piece may not be full.
	cells := len(o.Columns)*(len(o.Lines)+1) + min(len(o.Columns)*cap(o.Lines), chunkOfCells)
	n += int(unsafe.Sizeof(Line{}))*cap(o.Lines) + int(unsafe.Sizeof(""))*cells
	n += productParams*len(o.Lines) + o.size.texts
	n += int(unsafe.Sizeof(Problem{})) * cap(t.Problems)
	for i := range t.Problems {
		p := &t.Problems[i]
		n += problemJSON + 2*len(p.Message) + len(p.Code) + escapes(p.Message)
	}
	return n
}

// withoutLines returns a copy of the Order without its lines. The copy shares no memory with the text that was read.
func (o *Order) withoutLines() Order {
	short := Order{Number: strings.Clone(o.Number), VAT: o.VAT, Total: o.Total}
	short.size.text = len(short.Number)
	for _, f := range o.Extra {
		short.Extra = append(short.Extra, Field{strings.Clone(f.Name), strings.Clone(f.Value)})
		short.size.text += len(f.Name) + len(f.Value)
		short.size.extra += f.json()
	}
	return short
}

// json returns how many bytes of JSON a field becomes.
func (f *Field) json() int {
	return fieldJSON + len(f.Name) + len(f.Value) + escapes(f.Name) + escapes(f.Value)
}

// escapes returns how many bytes a JSON string takes more than its text, without the quotes around it: a control character
// becomes six bytes, a quote and a backslash two (RFC 8259, section 7).
func escapes(s string) int {
	n := 0
	for i := range len(s) {
		n += int(escaped[s[i]])
	}
	return n
}

// escaped is how many bytes of JSON a byte takes more than itself.
var escaped = func() (table [256]uint8) {
	for c := range 0x20 {
		table[c] = 5
	}
	table['"'], table['\\'] = 1, 1
	return table
}()
