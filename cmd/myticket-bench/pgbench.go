package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"myticket/internal/postgres"
)

// ceilingLines is how many lines the ticket of storedRow has.
const ceilingLines = 2

// storedRow is what MyTicket stores of the two-line ticket.
const storedRow = `(gen_random_uuid(), now(), 'default', 'Order: 0000000000
VAT: 3.10
Total: 16.90

product,product_id,price
Formule(s) midi 1,aZde000001,14.90
Formule(s) midi 2,aZde000002,2.90', 'text/plain; charset=utf-8', 'TREATED', (random() * 1e10)::bigint, 3.10, 16.90, 2)`

const insertRow = `INSERT INTO tickets
(id, received_at, source, body, content_type, status, order_number, vat, total, parser_version) VALUES `

// printCeiling measures (c): rows/s of the same row, one by one and in batches of 100, and the time of a single-row commit.
func (b *bench) printCeiling(ctx context.Context) error {
	db, err := b.newDatabase(ctx, 0)
	if err != nil {
		return err
	}
	// The partition that the server would make, so that both write into the same.
	store, err := postgres.Open(ctx, postgres.Config{URL: db.url})
	if err != nil {
		return err
	}
	defer store.Close()
	if _, err := store.EnsurePartitions(ctx, postgres.Day, 1, time.Now()); err != nil {
		return err
	}
	alone, err := b.runPgbench(ctx, db, 1, 1)
	if err != nil {
		return err
	}
	oneByOne, err := b.runPgbench(ctx, db, 50, 1)
	if err != nil {
		return err
	}
	batches, err := b.runPgbench(ctx, db, 4, 100)
	if err != nil {
		return err
	}
	b.single, b.ceiling = time.Duration(float64(time.Second)/alone), batches*100
	fmt.Fprintf(b.out, "\n\n| pgbench, the same row | rows/s |\n|---|--:|\n| one by one, 1 client (a commit takes %s) | %.0f |\n"+
		"| (c) one by one, 50 clients | %.0f |\n| (c) in batches of 100, 4 clients | %.0f |\n",
		b.single.Round(time.Microsecond), alone, oneByOne, b.ceiling)
	return nil
}

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// runPgbench returns the transactions a second of an INSERT of a number of rows.
func (b *bench) runPgbench(ctx context.Context, db *database, clients, rows int) (float64, error) {
	dir, err := os.MkdirTemp("", "myticket-bench-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	script := filepath.Join(dir, "insert.sql")
	statement := insertRow + strings.TrimSuffix(strings.Repeat(storedRow+",", rows), ",") + ";\n"
	if err := os.WriteFile(script, []byte(statement), 0o644); err != nil {
		return 0, err
	}
	for lasts := b.pgbench; ; lasts *= 2 {
		command := exec.CommandContext(ctx, "pgbench", "--no-vacuum", "--protocol=prepared", "--client", strconv.Itoa(clients),
			"--jobs", "2", "--time", strconv.Itoa(int(lasts.Seconds())), "--file", script, db.url)
		output, err := command.CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("pgbench: %w\n%s", err, output)
		}
		if found := tps.FindSubmatch(output); found != nil {
			return strconv.ParseFloat(string(found[1]), 64)
		}
		// On a busy machine the time may be over before all clients are connected. Then no transaction was processed.
		if lasts >= time.Minute {
			return 0, fmt.Errorf("pgbench said no rate:\n%s", output)
		}
	}
}
