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
	List  productsListCmd  `cmd:"" help:"List products, ordered by id."`
	Prune productsPruneCmd `cmd:"" help:"Remove products that only the selected tickets created, such as those of a test. Tickets are not changed."`
}

type productsListCmd struct {
	databaseFlags
	outputFlags
	zoneFlags
	watchFlags
	ID           string `group:"Filter" help:"Exact product id."`
	Name         string `group:"Filter" placeholder:"TEXT" help:"Part of the name, in upper or lower case."`
	ChangedSince moment `group:"Filter" placeholder:"TIME" help:"Name or price changed at this time or later: 2026-11-24T18:50:00Z; 2026-11-24, '2026-11-24 18:50', today, yesterday, 'monday 18:00' or 18:50 in the zone of --tz; or 2h, 1d or 1w before now."`
	Limit        int    `default:"50" help:"Maximum number of products. Default: ${default}."`
	After        string `placeholder:"ID" help:"Id of the last product of the previous page."`
}

// Validate is called by kong.
func (c productsListCmd) Validate() error {
	if c.Limit < 1 || c.Limit > 100_000 {
		return errors.New("--limit must be 1 to 100000")
	}
	return nil
}

func (c productsListCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "products")
	if err != nil {
		return err
	}
	defer store.Close()
	return c.repeat(ctx, std, func(std streams) error {
		c.ChangedSince = c.ChangedSince.again()
		return c.list(ctx, std, store)
	})
}

func (c productsListCmd) list(ctx context.Context, std streams, store *postgres.Store) error {
	filter := postgres.ProductFilter{ID: c.ID, Name: c.Name, ChangedSince: c.ChangedSince.in(c.zone())}
	products, err := store.Products(ctx, filter, c.After, c.Limit+1) // if there is one more, there is a next page
	if err != nil {
		return err
	}
	if len(products) > c.Limit {
		products = products[:c.Limit]
		if c.Watch == 0 {
			defer fmt.Fprintln(std.stderr, "Next page:", c.command(products[c.Limit-1].ProductID))
		}
	}
	if c.Output == "json" {
		return printJSON(std.stdout, append([]postgres.StoredProduct{}, products...))
	}
	rows := make([][]string, 0, len(products))
	for _, p := range products {
		rows = append(rows, []string{
			p.ProductID, p.Name, p.Price.String(),
			c.stamp(p.FirstSeenAt), c.stamp(p.LastSeenAt), c.stamp(p.ChangedAt), p.TicketID.String(),
		})
	}
	header := []string{"PRODUCT_ID", "NAME", "PRICE", "FIRST_SEEN", "LAST_SEEN", "CHANGED", "TICKET"}
	return printTable(std.stdout, header, rows)
}

// command returns the command line for the page after a product. See ticketsListCmd.command.
func (c productsListCmd) command(after string) string {
	command := "myticket products list"
	if c.Name != "" {
		command += shellFlag("name", c.Name)
	}
	if !c.ChangedSince.isZero() {
		command += " --changed-since " + c.ChangedSince.in(c.zone()).UTC().Format(time.RFC3339Nano)
	}
	command += c.tzFlag()
	if c.Output != "table" {
		command += " --output " + c.Output
	}
	return command + fmt.Sprintf(" --limit %d", c.Limit) + shellFlag("after", after)
}

// productsPruneCmd is `myticket products prune`.
type productsPruneCmd struct {
	databaseFlags
	outputFlags
	testSourcesFlag
	zoneFlags
	personFlags
	IDs    []uuid.UUID `arg:"" name:"id" optional:"" help:"Ids of tickets. Use a filter instead to select many."`
	Source []source    `group:"Filter" placeholder:"NAME" help:"Exact name of the tickets' source. Separate several with commas, or repeat the flag."`
	Since  moment      `group:"Filter" placeholder:"TIME" help:"Received at this time or later: 2026-11-24T18:50:00Z; 2026-11-24, '2026-11-24 18:50', today, yesterday, 'monday 18:00' or 18:50 in the zone of --tz; or 2h, 1d or 1w before now."`
	Until  moment      `group:"Filter" placeholder:"TIME" help:"Received before this time, written as in --since."`
	Limit  int         `default:"1000000" help:"Maximum number of products to look at. Default: ${default}."`
	Apply  bool        `help:"Remove the products. Without this flag, only show what would be removed."`
}

// Validate is called by kong.
func (c productsPruneCmd) Validate() error {
	filtered := len(c.Source) > 0 || !c.Since.isZero() || !c.Until.isZero()
	switch {
	case len(c.IDs) > 0 && filtered:
		return errors.New("give ids or a filter, not both")
	case len(c.IDs) == 0 && !filtered:
		return errors.New("give ids of tickets, or a filter: --source, --since, --until")
	case c.Limit < 1 || c.Limit > 1_000_000:
		return errors.New("--limit must be 1 to 1000000")
	}
	return c.check()
}

func (c productsPruneCmd) Run(ctx context.Context, std streams) error {
	by, err := c.person()
	if err != nil {
		return err
	}
	store, err := c.openWith(ctx, std, "products", c.testSources())
	if err != nil {
		return err
	}
	defer store.Close()
	selection := postgres.PruneSelection{
		IDs:    c.IDs,
		Filter: postgres.TicketFilter{Sources: texts(c.Source), Since: c.Since.in(c.zone()), Until: c.Until.in(c.zone())},
	}
	pruned, err := store.PruneProducts(ctx, by, selection, c.Limit, !c.Apply)
	return errors.Join(interrupted(ctx, err), c.print(std, pruned))
}

func (c productsPruneCmd) print(std streams, pruned postgres.Pruned) error {
	if c.Output == "json" {
		return printJSON(std.stdout, struct {
			Applied bool `json:"applied"`
			postgres.Pruned
		}{c.Apply, pruned})
	}
	what := "would be removed; nothing was changed. Use --apply to remove them"
	if c.Apply {
		what = "removed"
	}
	fmt.Fprintf(std.stdout, "%d products have their name and price from these tickets, "+
		"and no ticket has named them for ten minutes\n", pruned.Candidates)
	fmt.Fprintf(std.stdout, "%d of them stay, because other tickets name them too\n", pruned.Kept)
	if pruned.Changed > 0 {
		fmt.Fprintf(std.stdout, "%d of them stay, because they were being changed: run the command again\n", pruned.Changed)
	}
	fmt.Fprintf(std.stdout, "%d %s\n", pruned.Products, what)
	for i, id := range pruned.Examples {
		if i == 0 {
			fmt.Fprintln(std.stdout, "The first of them:")
		}
		fmt.Fprintf(std.stdout, "  %s\n", printable(id))
	}
	if pruned.More {
		fmt.Fprintf(std.stdout, "There are more than %d: run the command again\n", c.Limit)
	}
	return nil
}
