package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"myticket/internal/postgres"
)

// problemsCmd is `myticket problems`.
type problemsCmd struct {
	databaseFlags
	outputFlags
	zoneFlags
	watchFlags
	Source []source `group:"Filter" placeholder:"NAME" help:"Exact name of the source. Separate several with commas, or repeat the flag."`
	Since  moment   `group:"Filter" placeholder:"TIME" help:"Received at this time or later: 2026-11-24T18:50:00Z; 2026-11-24, '2026-11-24 18:50', today, yesterday, 'monday 18:00' or 18:50 in the zone of --tz; or 2h, 1d or 1w before now."`
	Until  moment   `group:"Filter" placeholder:"TIME" help:"Received before this time, written as in --since."`
	Sort   string   `default:"tickets" enum:"tickets,first,last" help:"tickets: those with most tickets first. first: those that began last first. last: those that were seen last first. Default: ${default}."`
	Limit  int      `default:"50" help:"Maximum number of groups. Default: ${default}."`
}

// Validate is called by kong.
func (c problemsCmd) Validate() error {
	if c.Limit < 1 || c.Limit > 10_000 {
		return errors.New("--limit must be 1 to 10000")
	}
	return nil
}

func (c problemsCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "problems")
	if err != nil {
		return err
	}
	defer store.Close()
	return c.repeat(ctx, std, func(std streams) error {
		c.Since, c.Until = c.Since.again(), c.Until.again()
		return c.list(ctx, std, store)
	})
}

func (c problemsCmd) list(ctx context.Context, std streams, store *postgres.Store) error {
	filter := postgres.ProblemFilter{Sources: texts(c.Source), Since: c.Since.in(c.zone()), Until: c.Until.in(c.zone())}
	found, err := store.Problems(ctx, filter, postgres.ProblemOrder(c.Sort), c.Limit)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(std.stdout, found)
	}
	rows := make([][]string, 0, len(found.Groups))
	for _, g := range found.Groups {
		rows = append(rows, []string{
			g.Source, strconv.Itoa(g.Tickets), c.stamp(g.First), c.stamp(g.Last), g.Example.String(), groupName(g),
			describeKinds(g),
		})
	}
	header := []string{"SOURCE", "TICKETS", "FIRST", "LAST", "EXAMPLE", "GROUP", "PROBLEM"}
	if err := printTable(std.stdout, header, rows); err != nil {
		return err
	}
	if more := found.Total - len(found.Groups); more > 0 {
		fmt.Fprintf(std.stderr, "Groups that are not listed: %d. Raise --limit, or give --source or --since.\n", more)
	}
	if c.Watch != 0 {
		return nil
	}
	return c.goOn(std.stderr, found)
}

// argument returns a source as an argument that is no flag.
func argument(source string) string {
	if strings.HasPrefix(source, "-") {
		return " -- " + printable(source)
	}
	return " " + printable(source)
}

// groupName returns a group as --problem-group takes it.
func groupName(g postgres.ProblemGroup) string {
	if g.Group == 0 {
		return "-"
	}
	return g.Group.String()
}

// describeKinds returns what is wrong with the tickets of a group, as one line.
func describeKinds(g postgres.ProblemGroup) string {
	if g.Group == 0 {
		return "(stored by the version before; a server will group them)"
	}
	if len(g.Kinds) == 0 {
		return "(none is stored)"
	}
	kinds := make([]string, 0, len(g.Kinds))
	for _, k := range g.Kinds {
		kinds = append(kinds, k.Code+": "+k.Shape)
	}
	if g.Others {
		kinds = append(kinds, "others")
	}
	return strings.Join(kinds, "; ")
}

// goOn writes the commands that come next, for the first group.
func (c problemsCmd) goOn(w io.Writer, found postgres.Problems) error {
	if len(found.Groups) == 0 || found.Groups[0].Group == 0 {
		return nil
	}
	g := found.Groups[0]
	var filter strings.Builder
	filter.WriteString(shellFlag("source", g.Source) + shellFlag("problem-group", g.Group.String()))
	for _, t := range []struct {
		name  string
		value moment
	}{{"since", c.Since}, {"until", c.Until}} {
		if !t.value.isZero() {
			filter.WriteString(" --" + t.name + " " + t.value.in(c.zone()).UTC().Format(time.RFC3339Nano))
		}
	}
	_, err := fmt.Fprintf(w, `
For the first group:
  myticket tickets show %s
  myticket tickets list --status ERROR%s
  myticket dialects try --file FILE%s
  myticket tickets retry%s
`, g.Example, &filter, argument(g.Source), &filter)
	return err
}
