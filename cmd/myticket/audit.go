package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"myticket/internal/postgres"
)

// auditCmd is `myticket audit`.
type auditCmd struct {
	databaseFlags
	outputFlags
	zoneFlags
	Since  moment `group:"Filter" placeholder:"TIME" help:"Begun at this time or later: 2026-11-24T18:50:00Z; 2026-11-24, '2026-11-24 18:50', today, yesterday, 'monday 18:00' or 18:50 in the zone of --tz; or 2h, 1d or 1w before now."`
	Until  moment `group:"Filter" placeholder:"TIME" help:"Begun before this time, written as in --since."`
	By     string `group:"Filter" placeholder:"WHO" help:"Exactly who made the change."`
	Action string `group:"Filter" help:"What was done, such as tickets.retry, or tickets for all of them."`
	Limit  int    `default:"50" help:"Maximum number of changes. Default: ${default}."`
	After  int64  `placeholder:"ID" help:"Id of the last change of the previous page."`
}

// Validate is called by kong.
func (c auditCmd) Validate() error {
	if c.Limit < 1 || c.Limit > 10_000 {
		return errors.New("--limit must be 1 to 10000")
	}
	return nil
}

func (c auditCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "audit")
	if err != nil {
		return err
	}
	defer store.Close()
	filter := postgres.AuditFilter{Since: c.Since.in(c.zone()), Until: c.Until.in(c.zone()), Who: c.By, Action: c.Action}
	records, err := store.Audit(ctx, filter, c.After, c.Limit+1) // if there is one more, there is a next page
	if err != nil {
		return err
	}
	if len(records) > c.Limit {
		records = records[:c.Limit]
		defer fmt.Fprintln(std.stderr, "Next page:", c.command(records[c.Limit-1].ID))
	}
	if c.Output == "json" {
		return printJSON(std.stdout, append([]postgres.AuditRecord{}, records...))
	}
	rows := make([][]string, 0, len(records))
	for _, r := range records {
		rows = append(rows, []string{
			strconv.FormatInt(r.ID, 10), c.stamp(r.At), r.Who, r.Action, strconv.FormatInt(r.Tickets, 10), r.Why,
			compact(r.Filter), compact(r.Details),
		})
	}
	return printTable(std.stdout, []string{"ID", "TIME", "WHO", "ACTION", "TICKETS", "REASON", "FILTER", "DETAILS"}, rows)
}

// compact returns an object of JSON on one line, or nothing if it is empty.
func compact(object json.RawMessage) string {
	var b bytes.Buffer
	if err := json.Compact(&b, object); err != nil || b.String() == "{}" {
		return ""
	}
	return b.String()
}

// command returns the command line for the page after a change. See ticketsListCmd.command.
func (c auditCmd) command(after int64) string {
	command := "myticket audit"
	if c.By != "" {
		command += shellFlag("by", c.By)
	}
	if c.Action != "" {
		command += shellFlag("action", c.Action)
	}
	if !c.Since.isZero() {
		command += " --since " + c.Since.in(c.zone()).UTC().Format(time.RFC3339Nano)
	}
	if !c.Until.isZero() {
		command += " --until " + c.Until.in(c.zone()).UTC().Format(time.RFC3339Nano)
	}
	command += c.tzFlag()
	if c.Output != "table" {
		command += " --output " + c.Output
	}
	return command + fmt.Sprintf(" --limit %d --after %d", c.Limit, after)
}
