// Package archivetest makes tickets for the tests and benchmarks of the archive.
package archivetest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"myticket/internal/archive"
	"myticket/internal/ticket"
)

// Shop makes tickets that differ as those of shops do: their order numbers count up, and each line names one of 5,000
// products, the first ones more often. The same Shop makes the same tickets in every run.
type Shop struct {
	lines  int
	from   time.Time
	every  time.Duration
	n      int
	chance *rand.Rand
}

const shopProducts = 5000

// NewShop returns a Shop whose tickets have a number of lines, and are received at even distances from a time on.
func NewShop(lines int, from time.Time, every time.Duration) *Shop {
	return &Shop{lines: lines, from: from, every: every, chance: rand.New(rand.NewPCG(1, 2))}
}

// Next returns the next ticket. It was treated, and has its own body.
func (s *Shop) Next() archive.Ticket {
	t := archive.Ticket{
		ReceivedAt: s.from.Add(time.Duration(s.n) * s.every).Truncate(time.Millisecond),
		Source:     fmt.Sprintf("till-%d", s.chance.IntN(40)),
		Status:     "TREATED", ContentType: "text/plain; charset=utf-8", Version: 1, ParserVersion: ticket.ParserVersion,
	}
	binary.BigEndian.PutUint64(t.ID[:], uint64(t.ReceivedAt.UnixMilli())<<16|0x7000|uint64(s.chance.IntN(1<<12)))
	binary.BigEndian.PutUint64(t.ID[8:], s.chance.Uint64()>>2|1<<63)
	number := fmt.Sprintf("%08d", 10_000_000+s.n)
	s.n++
	var cents int
	text := make([]byte, 0, 64+30*s.lines)
	for range s.lines {
		product := int(shopProducts * s.chance.Float64() * s.chance.Float64())
		price := 49 + product*7919%2500
		cents += price
		text = fmt.Appendf(text, "\nTomates grappe bio %d,%06d,%s", product, 400_000+product*37, money(price))
	}
	vat, total := money(cents/11), money(cents)
	t.OrderNumber, t.VAT, t.Total, t.Unread = &number, &vat, &total, true
	t.Body = fmt.Appendf(nil, "Order: %s\nVAT: %s\nTotal: %s\n\nproduct,product_id,price%s", number, vat, total, text)
	return t
}

func money(cents int) string { return fmt.Sprintf("%d.%02d", cents/100, cents%100) }

// Columns are those of Row.
func Columns() []string {
	return []string{
		"id", "received_at", "source", "status", "order_number", "vat", "total", "content_type", "parser_version", "body",
	}
}

// Row returns a ticket of a Shop as a row of the table tickets.
func Row(t *archive.Ticket) []any {
	return []any{
		t.ID, t.ReceivedAt, t.Source, t.Status, t.OrderNumber, t.VAT, t.Total, t.ContentType, t.ParserVersion, t.Body,
	}
}
