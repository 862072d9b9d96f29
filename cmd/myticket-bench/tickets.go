package main

import (
	"fmt"
	"strconv"
	"strings"
)

// tickets is a set of tickets that differ in their products, and each time one is sent also in its order number.
type tickets struct {
	name            string
	lines, products int
	requests        [][]byte // whole HTTP requests, with the order number's digits at its place
	at              []int    // of the order number in each request
}

const (
	hotProducts      = 10
	distinctProducts = 100_000
	orderDigits      = 10
)

// newTickets makes tickets with a number of lines each, which name a number of products in all.
func newTickets(lines, products int) tickets {
	t := tickets{name: fmt.Sprintf("%d lines, %d products", lines, products), lines: lines, products: products}
	count := max(products/lines, 1_000)
	for i := range count {
		var body strings.Builder
		fmt.Fprintf(&body, "Order: %0*d\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\n", orderDigits, 0)
		for line := range lines {
			product := (i*lines + line) % products
			fmt.Fprintf(&body, "Formule(s) midi %d,aZde%06d,%d.90\n", product, product, product%97)
		}
		text := strings.TrimSuffix(body.String(), "\n")
		head := "POST /ticket HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: " +
			strconv.Itoa(len(text)) + "\r\n\r\n"
		t.requests = append(t.requests, []byte(head+text))
		t.at = append(t.at, len(head)+len("Order: "))
	}
	return t
}

// appendRequest appends the n-th request.
func (t tickets) appendRequest(b []byte, n int) []byte {
	i := n % len(t.requests)
	at := len(b) + t.at[i]
	b = append(b, t.requests[i]...)
	for digit := at + orderDigits - 1; digit >= at && n > 0; digit-- {
		b[digit] = byte('0' + n%10)
		n /= 10
	}
	return b
}
