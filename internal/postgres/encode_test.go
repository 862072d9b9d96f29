package postgres

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"unicode/utf16"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

const columnsLine = "Order: 1\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price"

// shapes are bodies that become as much as they can, each in another way.
func shapes() map[string]string {
	numbered := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	var names strings.Builder
	for i := range 97 {
		fmt.Fprintf(&names, ",%s%d", strings.Repeat("n", 62), i)
	}
	utf16le := "\xff\xfe"
	for _, u := range utf16.Encode([]rune(columnsLine + "\n" + numbered(300, "€ %d,é,1\n"))) {
		utf16le += string([]byte{byte(u), byte(u >> 8)}) //nolint:perfsprint // a short loop
	}
	plain := columnsLine + "\n"
	return map[string]string{
		"the sample":              columnsLine + "\nFormule(s) midi,aZde,14.90\nCafé,IZ8z,2",
		"40 lines":                plain + numbered(40, "Formule(s) midi %d,aZde,14.90\n"),
		"10,000 lines":            plain + numbered(10_000, "Formule(s) midi %[1]d,aZde%[1]d,14.90\n"),
		"10,000 short lines":      plain + numbered(10_000, "x,%d,1\n"),
		"10,001 lines":            plain + numbered(10_001, "x,%d,1\n"),
		"97 unknown columns":      columnsLine + names.String() + "\n" + numbered(1000, "x,%d,1"+strings.Repeat(",", 97)+"\n"),
		"97 and one line":         columnsLine + names.String() + "\nx,a,1" + strings.Repeat(",v", 97),
		"too many cells":          columnsLine + names.String() + "\n" + numbered(1001, "x,%d,1"+strings.Repeat(",", 97)+"\n"),
		"one unknown column":      columnsLine + ",n\n" + numbered(9_999, "x,%d,1,\"a \"\"b\"\"\"\n"),
		"control characters":      plain + numbered(1500, "\x01"+strings.Repeat("\x02", 500)+"\x01,%d\x01,1\n"),
		"more control characters": plain + numbered(1900, "\x01"+strings.Repeat("\x02", 500)+"\x01,%d\x01,1\n"),
		"quotes":                  plain + numbered(2000, `"""%d""\\""",a""",1`+"\n"),
		"doubled quotes":          plain + numbered(1900, `"`+strings.Repeat(`""`, 250)+`",%d,1`+"\n"),
		"emoji":                   plain + numbered(400, "\"☕😀,\n\",%d😀,1\n"),
		"HTML":                    plain + numbered(400, "<&>\u2028,%d,1\n") + "<&>\u2028,<&>",
		"Windows-1252":            plain + numbered(400, "\x80\x80\x80\xe9,%d\x80,1\n"),
		"UTF-16":                  utf16le,
		"long amounts":            plain + numbered(400, "x,%d,-999999999999.999999\n"),
		"many problems":           plain + numbered(10_000, "\U000e0001\U000e0001\"\\\x01,%d,\U000e0001\U000e0001\x01\x01\"\\\n"),
		"records":                 numbered(101, "\x01\x02%d: "+strings.Repeat("\x03", 1020)+"\n") + plain + "x,a,1",
		"blank lines":             plain + strings.Repeat("\n", 70_000) + "x,a,1",
		"bad lines":               plain + strings.Repeat("x,a\n", 9_000) + "x,a,1",
		"nothing":                 "x",
		"NULs":                    strings.Repeat("\x00\n", 1000),
		"1 MiB of newlines":       plain + strings.Repeat("\n", 1<<20),
		"1 MiB of records":        strings.Repeat("a:,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,\n", 1<<20/45),
	}
}

func parsed(body string) *intake.Entry {
	e := &intake.Entry{Ticket: ticket.Ticket{
		Source: strings.Repeat("s", 63), ContentType: strings.Repeat("c", 255), Traceparent: strings.Repeat("0", 55),
		Body: []byte(body), Status: ticket.Treated,
	}}
	if e.Ticket.Order, e.Ticket.Problems = ticket.Parse(e.Ticket.Body); len(e.Ticket.Problems) > 0 {
		e.Ticket.Status = ticket.Error
	}
	return e
}

// paramBytes is how many bytes of parameters a ticket becomes.
func paramBytes(e *intake.Entry) (n int) {
	batch := intake.Batch{Entries: []*intake.Entry{e}}
	rows := rowsOf(batch, nil)
	s := &Store{}
	for _, params := range [][][]byte{insertParams(batch, rows), s.productParams(s.distinctProducts(rows))} {
		for _, p := range params {
			n += len(p)
		}
	}
	return n
}

// readBytes is the memory of what was read from a ticket, but for the text that its strings are parts of.
func readBytes(t *ticket.Ticket) int {
	n := cap(t.Order.Lines)*int(unsafe.Sizeof(ticket.Line{})) + cap(t.Order.Columns)*int(unsafe.Sizeof("")) +
		cap(t.Order.Extra)*int(unsafe.Sizeof(ticket.Field{})) + cap(t.Problems)*int(unsafe.Sizeof(ticket.Problem{}))
	for _, line := range t.Order.Lines {
		n += cap(line.Extra) * int(unsafe.Sizeof(""))
	}
	for _, p := range t.Problems {
		n += len(p.Message)
	}
	return n
}

func TestCost_IsNeverLessThanWhatATicketBecomes(t *testing.T) {
	t.Parallel()
	for name, body := range shapes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := parsed(body)
			cost := e.Ticket.Cost()
			really := int(unsafe.Sizeof(*e)) + len(body) + len(e.Ticket.Source) + len(e.Ticket.ContentType) + len(e.Ticket.Traceparent) +
				readBytes(&e.Ticket) + paramBytes(e)
			if len(e.Ticket.Order.Lines) > 0 { // or else nothing need be left of the text
				really += len(body)
			}
			assert.GreaterOrEqual(t, cost, really)
			assert.LessOrEqual(t, cost, 2*really, "a bound that is far from what it bounds stops tickets for nothing")
		})
	}
}

func TestCost_OfAnOrdinaryTicket_IsAboutAKibibyte(t *testing.T) {
	t.Parallel()
	e := parsed(shapes()["the sample"])
	e.Ticket.Source, e.Ticket.ContentType, e.Ticket.Traceparent = "shop-1", "text/plain", ""
	assert.Less(t, e.Ticket.Cost(), 2<<10)
}

func TestNoTicketBecomesMoreThanItsLimits(t *testing.T) {
	t.Parallel()
	for name, body := range shapes() {
		e := parsed(body)
		lines := []StoredLine{}
		for i := range e.Ticket.Order.Lines {
			lines = append(lines, storedLine(&e.Ticket.Order.Lines[i]))
		}
		var shown bytes.Buffer
		out := json.NewEncoder(&shown)
		out.SetEscapeHTML(false)
		require.NoError(t, out.Encode(lines))
		stored := shown.Len() - len("\n") + len(appendFields(nil, e.Ticket.Order.Extra))
		assert.LessOrEqual(t, stored, e.Ticket.Order.StoredBytes(), name)
		assert.LessOrEqual(t, stored, ticket.MaxStoredBytes, name)
		assert.LessOrEqual(t, e.Ticket.Cost(), 20<<20, name)
	}
}

// TestCost_BoundsTheMemoryOfATicketThatWaits runs alone, because it measures the memory of the whole process.
func TestCost_BoundsTheMemoryOfATicketThatWaits(t *testing.T) { //nolint:paralleltest // see above
	for name, body := range shapes() {
		held := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		const copies = 8
		entries := make([]*intake.Entry, copies)
		before := held()
		for i := range entries {
			entries[i] = parsed(body)
		}
		each := int(held()-before) / copies
		assert.LessOrEqual(t, each, entries[0].Ticket.Cost()+1<<10, "%s: memory that a ticket holds", name)
		runtime.KeepAlive(entries)
	}
}

// BenchmarkTicketParams is what the process itself does for a batch of 256 tickets, without the database.
func BenchmarkTicketParams(b *testing.B) {
	batch := intake.Batch{}
	for range 256 {
		batch.Entries = append(batch.Entries, parsed(shapes()["the sample"]))
	}
	s := &Store{}
	b.ReportAllocs()
	for b.Loop() {
		rows := rowsOf(batch, nil)
		_ = insertParams(batch, rows)
		_ = s.productParams(s.distinctProducts(rows))
		_ = saved{rows: rows}.outcomes(batch.Entries)
	}
}
