package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"myticket/internal/postgres"
)

// productsCmd is `myticket products`.
type productsCmd struct {
	List  productsListCmd  `cmd:"" help:"List products in the order of their ids."`
	Prune productsPruneCmd `cmd:"" help:"Remove products that only the named tickets made: a test, a source that sent nonsense. No ticket is changed."`
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

// productsPruneCmd is `myticket products prune`.
type productsPruneCmd struct {
	databaseFlags
	outputFlags
	IDs    []uuid.UUID `arg:"" name:"id" optional:"" help:"Ids of tickets; or else a filter."`
	Source string      `group:"Filter" help:"Tickets of this source, exactly."`
	Since  moment      `group:"Filter" placeholder:"TIME" help:"Received then or later: 2026-11-23T08:00:00Z, 2026-11-23 (UTC), or 2h, 3d, 1w ago."`
	Until  moment      `group:"Filter" placeholder:"TIME" help:"Received before then; written as --since."`
	Limit  int         `default:"1000000" help:"Products that are looked at, at most. Default: ${default}."`
	Apply  bool        `help:"Do it; without this, only say what would be done."`
}

// Validate is called by kong.
func (c productsPruneCmd) Validate() error {
	filtered := c.Source != "" || !time.Time(c.Since).IsZero() || !time.Time(c.Until).IsZero()
	switch {
	case len(c.IDs) > 0 && filtered:
		return errors.New("give ids or a filter, not both")
	case len(c.IDs) == 0 && !filtered:
		return errors.New("name the tickets: by their ids, or by --source, --since and --until")
	case c.Limit < 1 || c.Limit > 1_000_000:
		return errors.New("--limit must be 1 to 1000000")
	}
	return nil
}

func (c productsPruneCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, "products")
	if err != nil {
		return err
	}
	defer store.Close()
	selection := postgres.PruneSelection{
		IDs:    c.IDs,
		Filter: postgres.TicketFilter{Source: c.Source, Since: time.Time(c.Since), Until: time.Time(c.Until)},
	}
	pruned, err := store.PruneProducts(ctx, selection, c.Limit, !c.Apply)
	return errors.Join(interrupted(ctx, err), c.print(std, pruned))
}

func (c productsPruneCmd) print(std streams, pruned postgres.Pruned) error {
	if c.Output == "json" {
		return printJSON(std.stdout, struct {
			Applied bool `json:"applied"`
			postgres.Pruned
		}{c.Apply, pruned})
	}
	what := "would be removed; nothing was changed, --apply does it"
	if c.Apply {
		what = "removed"
	}
	fmt.Fprintf(std.stdout, "%d products have their name and price from these tickets, "+
		"and no ticket has named them for two minutes\n", pruned.Candidates)
	fmt.Fprintf(std.stdout, "%d are named by other tickets, too, and stay\n", pruned.Kept)
	if pruned.Changed > 0 {
		fmt.Fprintf(std.stdout, "%d were being changed, and stay: run it again\n", pruned.Changed)
	}
	fmt.Fprintf(std.stdout, "%d %s\n", pruned.Products, what)
	for i, id := range pruned.Examples {
		if i == 0 {
			fmt.Fprintln(std.stdout, "The first of them:")
		}
		fmt.Fprintf(std.stdout, "  %s\n", printable(id))
	}
	if pruned.More {
		fmt.Fprintf(std.stdout, "There are more than %d: run it again\n", c.Limit)
	}
	return nil
}
