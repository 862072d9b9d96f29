package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/postgres"
)

// check compares what is stored with what was acknowledged. No server runs any more.
func (t *trial) check(ctx context.Context) error {
	// Products that a busy server has put off are due now, too.
	err := t.exec(ctx, `UPDATE products SET unsettled_from = now() WHERE unsettled_from > now()`)
	if err := errors.Join(err, settleProducts(ctx, t.url)); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, t.url)
	if err != nil {
		return fmt.Errorf("look into the database: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	a := newAudit(slices.Concat(t.ledger.tickets, t.others.tickets))
	rows, err := conn.Query(ctx, `SELECT id, body, status FROM tickets WHERE source <> $1`, oddSource)
	if err != nil {
		return fmt.Errorf("read the tickets: %w", err)
	}
	var id uuid.UUID
	var body []byte
	var status string
	if _, err := pgx.ForEachRow(rows, []any{&id, &body, &status}, func() error {
		a.see(id, body, status)
		return nil
	}); err != nil {
		return fmt.Errorf("read the tickets: %w", err)
	}
	products := map[string]product{}
	rows, err = conn.Query(ctx, `SELECT product_id, name, price::text FROM products`)
	if err != nil {
		return fmt.Errorf("read the products: %w", err)
	}
	var p product
	var productID string
	if _, err := pgx.ForEachRow(rows, []any{&productID, &p.name, &p.price}, func() error {
		products[productID] = p
		return nil
	}); err != nil {
		return fmt.Errorf("read the products: %w", err)
	}
	a.finish(products)
	t.result.checked, t.result.lost, t.result.doubled = true, a.lost, a.doubled
	t.result.failures = append(t.result.failures, a.failures...)
	return nil
}

// settleProducts does now what the server does by itself a minute later.
func settleProducts(ctx context.Context, url string) error {
	store, err := postgres.Open(ctx, postgres.Config{URL: url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer store.Close()
	for range 1000 {
		looked, err := store.SettleProducts(ctx, 0, 1000)
		if err != nil {
			return err
		}
		if looked == 0 {
			return nil
		}
	}
	return errors.New("the products never settle")
}

// product is what is known of a product, or what a ticket says about it.
type product struct {
	name, price string
	ticketID    uuid.UUID
}

// audit compares tickets that were sent with tickets that are stored, one by one.
type audit struct {
	tickets []sent
	index   map[[sha256.Size]byte]int // of tickets, by body
	stored  []uint8                   // for each ticket, how often its bytes are stored
	found   []bool                    // for each ticket, that they are stored under the id that was acknowledged
	ids     map[uuid.UUID]bool        // that are stored
	said    map[string]product        // by product id, what the newest ticket says

	lost, doubled int
	invented      int
	examples      map[string]string // by kind of failure, the first
	failures      []string
}

func newAudit(tickets []sent) *audit {
	a := &audit{
		tickets: tickets, index: make(map[[sha256.Size]byte]int, len(tickets)),
		stored: make([]uint8, len(tickets)), found: make([]bool, len(tickets)),
		ids: make(map[uuid.UUID]bool, len(tickets)), said: map[string]product{}, examples: map[string]string{},
	}
	for i := range tickets {
		a.index[tickets[i].body] = i
	}
	return a
}

// see takes note of a stored ticket.
func (a *audit) see(id uuid.UUID, body []byte, status string) {
	n, known := a.index[sha256.Sum256(body)]
	switch {
	case !known:
		a.invented++
		a.example("invented", fmt.Sprintf("%s with %.60q", id, body))
	case a.ids[id] || a.stored[n] > 0:
		a.doubled++
		a.example("doubled", fmt.Sprintf("%s with %.60q", id, body))
	}
	a.ids[id] = true
	if known {
		a.stored[n]++
		a.found[n] = a.found[n] || a.tickets[n].id == id
	}
	if status == "TREATED" {
		a.hear(id, body)
	}
}

// hear takes note of what a ticket says about its product: it is in the last line, and the newest ticket counts. Which
// of two is newer is told by the bytes of their ids.
func (a *audit) hear(id uuid.UUID, body []byte) {
	fields := strings.Split(string(body[bytes.LastIndexByte(body, '\n')+1:]), ",")
	if len(fields) != 3 || strings.HasPrefix(fields[1], hostileProduct) {
		return
	}
	if before, ok := a.said[fields[1]]; ok && bytes.Compare(before.ticketID[:], id[:]) > 0 {
		return
	}
	a.said[fields[1]] = product{name: fields[0], price: fields[2], ticketID: id}
}

// finish says what is wrong, given the product base.
func (a *audit) finish(products map[string]product) {
	for i := range a.tickets {
		s := &a.tickets[i]
		if !s.acknowledged() || a.found[i] {
			continue
		}
		// The same key may have been sent to two servers. One stored the ticket, and its answer got lost. The other did not
		// know that when it spooled the ticket, so the first id counts, and not the one that it promised. The ticket is there
		// once.
		if s.keyed && s.status == http.StatusAccepted && a.stored[i] == 1 {
			continue
		}
		a.lost++
		switch {
		case a.ids[s.id]:
			a.example("lost", fmt.Sprintf("%s (%d), which is there with other bytes", s.id, s.status))
		case a.stored[i] > 0:
			a.example("lost", fmt.Sprintf("%s (%d), whose bytes are there under another id", s.id, s.status))
		default:
			a.example("lost", fmt.Sprintf("%s (%d), sent %s after the start", s.id, s.status, s.at))
		}
	}
	a.say(a.lost, "lost", "LOST: %d acknowledged tickets are not stored as they were sent, such as %s")
	a.say(a.doubled, "doubled", "DOUBLED: %d tickets are stored more than once, such as %s")
	a.say(a.invented, "invented", "INVENTED: %d stored tickets were never sent, such as %s")
	a.compare(products)
}

func (a *audit) compare(products map[string]product) {
	var unknown, wrong, unnamed int
	for id, said := range a.said {
		known, ok := products[id]
		switch {
		case !ok:
			unknown++
			a.example("unknown", fmt.Sprintf("%s of ticket %s", id, said.ticketID))
		case known.name != said.name || !sameAmount(known.price, said.price):
			wrong++
			a.example("wrong", fmt.Sprintf("%s, known as %q for %s, while its newest ticket %s says %q for %s",
				id, known.name, known.price, said.ticketID, said.name, said.price))
		}
	}
	for id := range products {
		if _, ok := a.said[id]; !ok && !strings.HasPrefix(id, hostileProduct) {
			unnamed++
			a.example("unnamed", id)
		}
	}
	a.say(unknown, "unknown", "%d products of tickets are not known, such as %s")
	a.say(wrong, "wrong", "%d products are not what the newest ticket says, such as %s")
	a.say(unnamed, "unnamed", "%d products are known that no ticket names, such as %s")
}

// sameAmount compares 1.9 and 1.90.
func sameAmount(a, b string) bool {
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	return errX == nil && errY == nil && x == y
}

func (a *audit) example(kind, text string) {
	if a.examples[kind] == "" {
		a.examples[kind] = text
	}
}

func (a *audit) say(count int, kind, format string) {
	if count > 0 {
		a.failures = append(a.failures, fmt.Sprintf(format, count, a.examples[kind]))
	}
}
