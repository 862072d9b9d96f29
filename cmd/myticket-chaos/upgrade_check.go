package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/dialect"
	"myticket/internal/lab"
	"myticket/internal/ticket"
)

// shownEach is how many tickets of each version, and of those that were read in a dialect, are shown by each.
const shownEach = 10

// finish waits until all tickets are treated and all lines are filled, and compares what both versions show with the bodies.
func (u *upgradeTrial) finish(ctx context.Context) error {
	if err := u.drain(ctx); err != nil {
		return err
	}
	err := lab.Await(ctx, time.Minute, "all tickets to be treated", func(ctx context.Context) error {
		n, err := u.countRows(ctx, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d are not", n)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range []struct{ what, where string }{
		{"tickets were stored by the version before", `stored_by = 'before'`},
		{"tickets were stored by this version", `stored_by = 'new'`},
		{"tickets were stored unread, and treated later by the version before", `treated_by = 'before' AND order_number LIKE '%555'`},
		{"tickets were stored unread, and treated later by this version", `treated_by = 'new' AND order_number LIKE '%555'`},
		{"tickets could not be read and were sent back", `status = 'ERROR' AND claims > 1`},
		{"tickets of the version before were read in a dialect later", `stored_by = 'before' AND treated_by = 'new' AND dialect <> 0`},
		{"tickets were read in a dialect as they came", `stored_by = 'new' AND treated_by IS NULL AND dialect <> 0`},
	} {
		n, err := u.countRows(ctx, `SELECT count(*) FROM tickets WHERE `+c.where)
		if err != nil {
			return err
		}
		if u.notef("%d %s", n, c.what); n == 0 {
			u.failf("no %s, so this proves nothing", c.what)
		}
	}
	left, err := u.countRows(ctx, `SELECT count(*) FROM tickets WHERE status <> 'TREATED' AND body NOT LIKE 'hello%'`)
	if left > 0 {
		u.failf("%d tickets that can be read are not TREATED", left)
	}
	return errors.Join(err, u.compareGroups(ctx), u.showEach(ctx), u.compareLines(ctx))
}

// dialectOf is the dialect that a ticket t was read in; NULL for that of everyone.
const dialectOf = `(SELECT dialect::text FROM dialects d WHERE d.version = t.dialect)`

// readAs reads a body in a dialect, as it is kept; nil for that of everyone.
func readAs(written, body []byte) (ticket.Order, error) {
	if written == nil {
		order, _ := ticket.Parse(body)
		return order, nil
	}
	d, err := dialect.Parse(written)
	if err != nil {
		return ticket.Order{}, err
	}
	reader, err := ticket.NewReader(d)
	if err != nil {
		return ticket.Order{}, err
	}
	order, _ := reader.Parse(body)
	return order, nil
}

// showEach demands that both versions show tickets of both, and tickets that were read in a dialect.
func (u *upgradeTrial) showEach(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, u.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `
		SELECT id, body, `+dialectOf+` FROM (
			(SELECT * FROM tickets WHERE status = 'TREATED' AND dialect <> 0 ORDER BY random() LIMIT $1) UNION ALL
			(SELECT * FROM tickets WHERE status = 'TREATED' AND dialect = 0 AND stored_by = 'new' ORDER BY random() LIMIT $1) UNION ALL
			(SELECT * FROM tickets WHERE status = 'TREATED' AND dialect = 0 AND stored_by = 'before' ORDER BY random() LIMIT $1)) t`,
		shownEach)
	if err != nil {
		return fmt.Errorf("choose tickets: %w", err)
	}
	var id uuid.UUID
	var body, written []byte
	bodies, orders := map[uuid.UUID][]byte{}, map[uuid.UUID]ticket.Order{}
	if _, err := pgx.ForEachRow(rows, []any{&id, &body, &written}, func() (err error) {
		bodies[id] = bytes.Clone(body)
		orders[id], err = readAs(written, bodies[id])
		return err
	}); err != nil {
		return fmt.Errorf("choose tickets: %w", err)
	}
	if len(bodies) != 3*shownEach {
		u.failf("only %d tickets could be shown, which proves nothing", len(bodies))
	}
	for id, body := range bodies {
		for _, program := range []string{u.config.before, u.program} {
			raw, err := u.output(ctx, program, "tickets", "show", "--raw", id.String())
			if err != nil || !bytes.Equal(raw, body) {
				u.failf("%s does not show the ticket %s: %v", program, id, err)
			}
		}
		if err := u.run(ctx, u.config.before, "tickets", "show", id.String()); err != nil {
			u.failf("%s", err)
		}
		shown, err := u.output(ctx, u.program, "tickets", "show", "--output", "json", id.String())
		line := fmt.Appendf(nil, "%q", orders[id].Lines[0].Name)
		if err != nil || !bytes.Contains(shown, line) {
			u.failf("the ticket %s is shown without its lines: %v", id, err)
		}
	}
	return errors.Join(u.run(ctx, u.config.before, "tickets", "list"),
		u.run(ctx, u.config.before, "tickets", "list", "--source", foreignSource))
}

// compareLines demands that the view order_lines shows the lines of each treated ticket once. Those of tickets of this version
// come a moment later.
func (u *upgradeTrial) compareLines(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, u.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	want := map[string]int{}
	rows, err := conn.Query(ctx, `SELECT id, body, `+dialectOf+` FROM tickets t WHERE status = 'TREATED'`)
	if err != nil {
		return fmt.Errorf("read the tickets: %w", err)
	}
	var id uuid.UUID
	var body, written []byte
	tickets := 0
	if _, err := pgx.ForEachRow(rows, []any{&id, &body, &written}, func() error {
		tickets++
		order, err := readAs(written, body)
		if err != nil {
			return err
		}
		for i, line := range order.Lines {
			want[fmt.Sprintf("%s %d: %s %q for %s", id, i+1, line.ProductID, line.Name, line.Price.AppendText(nil))]++
		}
		return nil
	}); err != nil {
		return fmt.Errorf("read the tickets: %w", err)
	}
	start := time.Now()
	err = lab.Await(ctx, time.Minute, "order_lines to be complete", func(ctx context.Context) error {
		n, err := u.countRows(ctx, `SELECT count(*) FROM order_lines`)
		if err == nil && n < len(want) {
			err = fmt.Errorf("it shows %d of %d lines", n, len(want))
		}
		return err
	})
	if err != nil { // what it shows is still compared
		u.failf("%s", err)
	}
	waited := time.Since(start)
	rows, err = conn.Query(ctx, `SELECT ticket_id, line, product_id, product, price::text FROM order_lines`)
	if err != nil {
		return fmt.Errorf("read the lines: %w", err)
	}
	var number int
	var product, name, price string
	if _, err := pgx.ForEachRow(rows, []any{&id, &number, &product, &name, &price}, func() error {
		want[fmt.Sprintf("%s %d: %s %q for %s", id, number, product, name, price)]--
		return nil
	}); err != nil {
		return fmt.Errorf("read the lines: %w", err)
	}
	missing, surplus := 0, 0
	var example string
	for line, n := range want {
		if n != 0 {
			example = line
		}
		missing += max(n, 0)
		surplus += max(-n, 0)
	}
	if missing+surplus > 0 {
		u.failf("order_lines lacks %d lines and shows %d that no ticket has, or twice, such as %s", missing, surplus, example)
	}
	u.notef("order_lines shows the lines of %d treated tickets, as their bodies have them, %.1f s after the last one was treated",
		tickets, waited.Seconds())
	return nil
}
