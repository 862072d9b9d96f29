package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"myticket/internal/postgres"
)

// productsCmd is `myticket products`.
type productsCmd struct {
	List productsListCmd `cmd:"" help:"List products in the order of their ids."`
}

type productsListCmd struct {
	databaseFlags
	outputFlags
	ID           string `group:"Filter" help:"Product id, exactly."`
	Name         string `group:"Filter" placeholder:"TEXT" help:"A part of the name, in any case."`
	ChangedSince moment `group:"Filter" placeholder:"TIME" help:"Name or price changed then or later: 2026-11-23T08:00:00Z, 2026-11-23 (UTC), or 2h, 3d, 1w ago."`
	Limit        int    `default:"50" help:"Products at most. Default: ${default}."`
	After        string `placeholder:"ID" help:"The last product of the page before."`
}

// Validate is called by kong.
func (c productsListCmd) Validate() error {
	if c.Limit < 1 || c.Limit > 100_000 {
		return errors.New("--limit must be 1 to 100000")
	}
	return nil
}

func (c productsListCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, "products")
	if err != nil {
		return err
	}
	defer store.Close()
	filter := postgres.ProductFilter{ID: c.ID, Name: c.Name, ChangedSince: time.Time(c.ChangedSince)}
	products, err := store.Products(ctx, filter, c.After, c.Limit+1) // one more tells whether there is a next page
	if err != nil {
		return err
	}
	if len(products) > c.Limit {
		products = products[:c.Limit]
		defer fmt.Fprintln(std.stderr, "Next page:", c.command(products[c.Limit-1].ProductID))
	}
	if c.Output == "json" {
		return printJSON(std.stdout, append([]postgres.StoredProduct{}, products...))
	}
	rows := make([][]string, 0, len(products))
	for _, p := range products {
		rows = append(rows, []string{
			p.ProductID, p.Name, p.Price.String(),
			stamp(p.FirstSeenAt), stamp(p.LastSeenAt), stamp(p.ChangedAt), p.TicketID.String(),
		})
	}
	header := []string{"PRODUCT_ID", "NAME", "PRICE", "FIRST_SEEN", "LAST_SEEN", "CHANGED", "TICKET"}
	return printTable(std.stdout, header, rows)
}

// command returns the command line of the page behind a product. See that of ticketsListCmd.
func (c productsListCmd) command(after string) string {
	command := "myticket products list"
	if c.Name != "" {
		command += shellFlag("name", c.Name)
	}
	if t := time.Time(c.ChangedSince); !t.IsZero() {
		command += " --changed-since " + t.UTC().Format(time.RFC3339Nano)
	}
	if c.Output != "table" {
		command += " --output " + c.Output
	}
	return command + fmt.Sprintf(" --limit %d", c.Limit) + shellFlag("after", after)
}
