package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
)

// tickets is a set of tickets that differ in their products, and each time one is sent also in its order number.
type tickets struct {
	name            string
	order           string // what they call the order number
	lines, products int
	count           int
	pick            func() int // the next product

	once     sync.Once
	requests [][]byte // whole HTTP requests, with the order number's digits at its place
	at       []int    // of the order number in each request
}

const (
	hotProducts = 10
	orderDigits = 10
)

// product is what all tickets say about it.
type product struct{ id, name, price string }

func productOf(i int) product {
	return product{
		id: fmt.Sprintf("aZde%06d", i), name: fmt.Sprintf("Formule(s) midi %d", i), price: fmt.Sprintf("%d.90", i%97),
	}
}

// newTickets returns tickets with a number of lines each, which name a number of products in all, one after the other.
func newTickets(lines, products int) *tickets {
	next := -1
	return &tickets{
		name: fmt.Sprintf("%d lines, %d products", lines, products), lines: lines, products: products, order: "Order",
		count: max(products/lines, 1_000),
		pick: func() int {
			next++
			return next % products
		},
	}
}

// newShopTickets returns tickets whose products are picked by chance, always the same. So most of a new shop's first tickets name
// products that no ticket named before, and later ones fewer and fewer.
func newShopTickets(lines, products int) *tickets {
	chance := rand.New(rand.NewPCG(1, 2))
	return &tickets{
		name: fmt.Sprintf("%d lines, %d new products", lines, products), lines: lines, products: products, order: "Order",
		count: 8 * products / lines,
		pick:  func() int { return chance.IntN(products) },
	}
}

// make writes the requests, when they are needed for the first time.
func (t *tickets) make() {
	t.once.Do(func() {
		for range t.count {
			var body strings.Builder
			fmt.Fprintf(&body, "%s: %0*d\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\n", t.order, orderDigits, 0)
			for range t.lines {
				p := productOf(t.pick())
				fmt.Fprintf(&body, "%s,%s,%s\n", p.name, p.id, p.price)
			}
			text := strings.TrimSuffix(body.String(), "\n")
			head := "POST /ticket HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: " +
				strconv.Itoa(len(text)) + "\r\n\r\n"
			t.requests = append(t.requests, []byte(head+text))
			t.at = append(t.at, len(head)+len(t.order)+len(": "))
		}
	})
}

// appendRequest appends the n-th request. The caller must have called make.
func (t *tickets) appendRequest(b []byte, n int) []byte {
	i := n % len(t.requests)
	at := len(b) + t.at[i]
	b = append(b, t.requests[i]...)
	for digit := at + orderDigits - 1; digit >= at && n > 0; digit-- {
		b[digit] = byte('0' + n%10)
		n /= 10
	}
	return b
}
