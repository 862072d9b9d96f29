package main

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
)

// hostileProduct begins the id of every product that a hostile ticket names, and of no other. These products are not
// compared with what the tickets say, because a server may refuse them.
const hostileProduct = "~"

// hostileSize is the length of a hostile ticket: the most that the server takes (--max-body).
const hostileSize = 1 << 20

// hostileMaker makes tickets that cost the server more than their size suggests. Each repeats one pattern, and differs from all
// others.
type hostileMaker struct {
	run      string
	count    atomic.Int64
	products atomic.Int64
}

func newHostileMaker() *hostileMaker { return &hostileMaker{run: rand.Text()[:10]} }

// head is the start of a ticket that can be read.
func (m *hostileMaker) head() string {
	return fmt.Sprintf("Order: %s-%d\nVAT: 3.10\nTotal: 16.90\n", m.run, m.count.Add(1))
}

// fillWith appends lines, each with its newline, as long as the ticket stays within a size.
func fillWith(b *strings.Builder, size int, line func() string) {
	for {
		next := line()
		if b.Len()+len(next) > size {
			return
		}
		b.WriteString(next)
	}
}

// wide has 97 columns beside those that are known, with names of 64 characters, and lines of nothing but commas. A server
// that keeps the names with each line makes hundreds of MiB of it.
func (m *hostileMaker) wide(char string) []byte {
	const columns, nameLength = 97, 64
	var b strings.Builder
	b.WriteString(m.head() + "\nproduct,product_id,price")
	for i := range columns {
		number := strconv.Itoa(i)
		b.WriteString("," + strings.Repeat(char, nameLength-len(number)) + number)
	}
	b.WriteString("\n")
	line := "x," + hostileProduct + ",1" + strings.Repeat(",", columns) + "\n"
	fillWith(&b, hostileSize, func() string { return line })
	return []byte(b.String())
}

// same names one product on every line.
func (m *hostileMaker) same() []byte {
	var b strings.Builder
	b.WriteString(m.head() + "\nproduct,product_id,price\n")
	fillWith(&b, hostileSize, func() string { return "x," + hostileProduct + "aaa,1\n" })
	return []byte(b.String())
}

// distinct names another product on every line, at most about 70,000. All tickets of this kind name the same products.
func (m *hostileMaker) distinct(lines int) []byte {
	n := 0
	return m.lines(lines, func() int { n++; return n })
}

// flood names products that no ticket has named before.
func (m *hostileMaker) flood(lines int) []byte {
	return m.lines(lines, func() int { return int(m.products.Add(1)) + 1<<20 })
}

func (m *hostileMaker) lines(lines int, product func() int) []byte {
	var b strings.Builder
	b.WriteString(m.head() + "\nproduct,product_id,price\n")
	fillWith(&b, hostileSize, func() string {
		if lines--; lines < 0 {
			return strings.Repeat(" ", hostileSize)
		}
		return "x," + hostileProduct + strconv.FormatInt(int64(product()), 36) + ",1\n"
	})
	return []byte(b.String())
}

// odd returns tickets that may be hard for a parser, each as long as a ticket may be.
func (m *hostileMaker) odd() [][]byte {
	repeat := func(pattern string) []byte {
		head := m.head()
		return []byte(head + strings.Repeat(pattern, (hostileSize-len(head))/len(pattern)))
	}
	list := func(pattern string) []byte {
		head := m.head() + "\nproduct,product_id,price\n"
		return []byte(head + strings.Repeat(pattern, (hostileSize-len(head))/len(pattern)))
	}
	return [][]byte{
		repeat("a:b\n"),      // unknown records
		repeat("\n"),         // blank lines
		repeat("\x00"),       //
		repeat("\xff"),       // Latin-1, of which each byte becomes two
		repeat("😀"),          //
		list(",,\n"),         // a problem on each line
		list("\"\n"),         // a quote that does not end, on each line
		list("\"\"\"\"\n"),   //
		list("x,~,1e9999\n"), // problems with what they complain about
		list("\x01,~\x01,1\n"),
	}
}
