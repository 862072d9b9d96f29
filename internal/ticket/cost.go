package ticket

import (
	"strings"
	"unsafe"
)

// size is what reading an Order took. The parser counts while it reads, so that nobody has to walk through all the texts
// of a ticket to learn what it takes.
type size struct {
	text    int // bytes of memory that the Order's texts are parts of, or copies from
	texts   int // bytes of the texts of the lines' products
	escapes int // bytes that JSON takes besides, for those texts and for Extra
}

// What is around texts as they are stored and sent, in bytes.
const (
	// A line as JSON: {"product":"","product_id":"","price":}, and an amount, which has at most 20 characters.
	lineJSON = 40 + MaxAmountDigits + MaxAmountScale + len("-.")
	// A header record as JSON with a comma: {"name":"","value":""}.
	fieldJSON = 23
	// A problem as JSON: {"line":,"code":"","message":""}, a comma, and a line's number.
	problemJSON = 36 + 20
	// A product's parameters: the length of each (int4), its price, the ticket's id, three times, and a bool.
	productParams = 8*4 + 21 + 16 + 3*8 + 1
	// The ticket itself, its entry in a batch, and those of its parameters whose length does not vary.
	ticketCost = 896
)

// StoredBytes returns how many bytes of JSON the product lines and the unknown header records of an Order become at most. The
// Order must be one that Parse returned. What the unknown columns hold is stored in the body alone.
func (o *Order) StoredBytes() int {
	n := lineJSON*len(o.Lines) + o.size.texts + o.size.escapes + len("[][]")
	for i := range o.Extra {
		n += fieldJSON + len(o.Extra[i].Name) + len(o.Extra[i].Value)
	}
	return n
}

// Cost returns how many bytes a ticket takes on its way into a store, never less than it does: the memory of its body and of
// what Parse read from it, the parameters of its INSERT, and those of its products. Whatever bounds tickets in bytes (a
// batch, what waits, a drain) counts this, because a short body may become a long row. It takes no time to speak of: at most
// that of looking at each problem, and at each header record that MyTicket does not know.
func (t *Ticket) Cost() int {
	o := &t.Order
	n := ticketCost + 2*(len(t.Body)+len(t.Source)+len(t.ContentType)+len(t.Traceparent)+len(o.Number)) + o.size.text
	n += o.StoredBytes() + int(unsafe.Sizeof(Field{}))*cap(o.Extra)
	// The lines' unknown columns share pieces of memory, of which the last need not be full.
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

// withoutLines returns the Order without its lines, and without the memory of the text that it was read from.
func (o *Order) withoutLines() Order {
	short := Order{Number: strings.Clone(o.Number), VAT: o.VAT, Total: o.Total}
	short.size.text = len(short.Number)
	for _, f := range o.Extra {
		short.Extra = append(short.Extra, Field{strings.Clone(f.Name), strings.Clone(f.Value)})
		short.size.text += len(f.Name) + len(f.Value)
		short.size.escapes += escapes(f.Name) + escapes(f.Value)
	}
	return short
}

// escapes returns how many bytes a JSON string takes besides those of its text, without the quotes around it: a control
// character becomes six, a quote and a backslash two (RFC 8259, section 7).
func escapes(s string) int {
	n := 0
	for i := range len(s) {
		n += int(escaped[s[i]])
	}
	return n
}

// escaped is how many bytes of JSON a byte takes besides its own.
var escaped = func() (table [256]uint8) {
	for c := range 0x20 {
		table[c] = 5
	}
	table['"'], table['\\'] = 1, 1
	return table
}()
