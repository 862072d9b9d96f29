package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"myticket/internal/postgres"
)

// ticketsStatsCmd is `myticket tickets stats`.
type ticketsStatsCmd struct {
	listFlags
	watchFlags
	By    []string `default:"day,status" enum:"day,hour,source,status,problem" placeholder:"KEYS" help:"What to count by, in this order: any of day, hour, source, status and problem (its code). By problem, a ticket with several counts once in each. Default: ${default}."`
	Limit int      `default:"100" help:"Maximum number of groups. Default: ${default}."`
}

// Help is shown by --help.
func (ticketsStatsCmd) Help() string {
	return "Without --since it counts the last seven days: today and six before, or as many before --until. Days and hours " +
		"are those of --tz. With day or hour the newest groups come first, otherwise the largest. It reads all tickets of the " +
		"time, and is stopped after a minute."
}

const (
	statsDays    = 7           // that are counted without --since
	statsTimeout = time.Minute // for counting
	mostStarts   = 20_000      // days or hours: hours of two years
)

// Validate is called by kong.
func (c ticketsStatsCmd) Validate() error {
	switch sorted := slices.Sorted(slices.Values(c.By)); {
	case len(sorted) == 0:
		return errors.New("--by needs one of day, hour, source, status and problem, or several")
	case len(slices.Compact(sorted)) < len(c.By):
		return errors.New("--by has a key twice")
	case slices.Contains(c.By, "day") && slices.Contains(c.By, "hour"):
		return errors.New("give --by day or hour, not both: an hour says its day")
	case c.Limit < 1 || c.Limit > 100_000:
		return errors.New("--limit must be 1 to 100000")
	}
	return c.check()
}

func (c ticketsStatsCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "tickets stats")
	if err != nil {
		return err
	}
	defer store.Close()
	return c.repeat(ctx, std, func(std streams) error {
		c.Since, c.Until = c.Since.again(), c.Until.again()
		query, err := c.query(time.Now().In(c.zone()))
		if err != nil {
			return err
		}
		found, err := store.Stats(ctx, query)
		if err != nil {
			return err
		}
		return c.print(std, query, found)
	})
}

// query returns what to count, with the times that are not given.
func (c ticketsStatsCmd) query(now time.Time) (postgres.StatsQuery, error) {
	filter := c.filter()
	filter.Product = c.Product
	if filter.Until.IsZero() { // the clock of a server may be ahead
		filter.Until = startOfDay(now, 2)
	}
	if c.Since.isZero() { // 0001-01-01 is not: it is all tickets
		last := now
		if !c.Until.isZero() {
			last = filter.Until.Add(-time.Nanosecond).In(now.Location())
		}
		filter.Since = startOfDay(last, 1-statsDays)
	}
	query := postgres.StatsQuery{Filter: filter, Limit: c.Limit, Timeout: statsTimeout}
	for _, key := range c.By {
		if key == "day" || key == "hour" {
			if query.Starts = starts(filter.Since.In(now.Location()), filter.Until, key); len(query.Starts) > mostStarts {
				return query, fmt.Errorf("there are more than %d days or hours to count by: give a later --since, or days", mostStarts)
			}
			query.By = append(query.By, postgres.StatsTime)
			continue
		}
		query.By = append(query.By, postgres.StatsKey(key))
	}
	return query, nil
}

// startOfDay returns when a day begins, a number of days after the day of t in its zone.
func startOfDay(t time.Time, after int) time.Time {
	return localTime(time.Date(t.Year(), t.Month(), t.Day()+after, 0, 0, 0, 0, time.UTC), t.Location())
}

// starts returns when the days or hours begin that are between two times, in the zone of the first, but not many more than
// mostStarts.
func starts(since, until time.Time, unit string) (all []time.Time) {
	start := startOfDay(since, 0)
	if unit == "hour" {
		start = since.Add(-pastHour(since))
	}
	for start.Before(until) && len(all) <= mostStarts {
		all = append(all, start)
		if unit == "hour" {
			start = start.Add(time.Hour - pastHour(start)) // a change by half an hour begins a short one
		} else {
			start = startOfDay(start, 1)
		}
	}
	return all
}

// pastHour returns how long ago the clocks showed a full hour.
func pastHour(t time.Time) time.Duration {
	return time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond())
}

// statsReport is what a program reads.
type statsReport struct {
	Since   time.Time    `json:"since"`
	Until   time.Time    `json:"until"`
	Groups  []statsGroup `json:"groups"`
	Total   int64        `json:"total_groups"` // with those that are not in Groups
	Tickets int64        `json:"total_tickets"`
	Bytes   int64        `json:"total_bytes"`
}

// statsGroup has the keys that were asked for.
type statsGroup struct {
	Day     *string    `json:"day,omitempty"` // of --tz
	Hour    *time.Time `json:"hour,omitempty"`
	Source  *string    `json:"source,omitempty"`
	Status  *string    `json:"status,omitempty"`
	Problem *string    `json:"problem,omitempty"` // empty for tickets without a problem
	Tickets int64      `json:"tickets"`
	Bytes   int64      `json:"bytes"`
}

func (c ticketsStatsCmd) print(std streams, query postgres.StatsQuery, found postgres.Stats) error {
	var err error
	switch c.Output {
	case "json":
		return printJSON(std.stdout, c.report(query, found))
	case "csv":
		err = c.writeCSV(std, found)
	default:
		err = c.table(std, query, found)
	}
	if more := found.Total - int64(len(found.Groups)); more > 0 {
		fmt.Fprintf(std.stderr, "Groups that are not listed: %d. Raise --limit, or count by less.\n", more)
	}
	return err
}

// cells returns the keys of a group as text, for people and CSV.
func (c ticketsStatsCmd) cells(g postgres.StatsGroup, none string) []string {
	cells := make([]string, 0, len(c.By)+2)
	for _, key := range c.By {
		switch key {
		case "day":
			cells = append(cells, g.Start.Format(time.DateOnly))
		case "hour":
			cells = append(cells, c.stamp(g.Start))
		case "source":
			cells = append(cells, g.Source)
		case "status":
			cells = append(cells, string(g.Status))
		case "problem":
			if g.Problem == "" {
				g.Problem = none
			}
			cells = append(cells, g.Problem)
		}
	}
	return cells
}

func (c ticketsStatsCmd) table(std streams, query postgres.StatsQuery, found postgres.Stats) error {
	count := func(tickets, bytes int64) []string {
		return []string{strconv.FormatInt(tickets, 10), humanize.IBytes(uint64(max(0, bytes)))}
	}
	rows := make([][]string, 0, len(found.Groups)+1)
	for _, g := range found.Groups {
		rows = append(rows, append(c.cells(g, "-"), count(g.Tickets, g.Bytes)...))
	}
	rows = append(rows, append(append([]string{"total"}, make([]string, len(c.By)-1)...), count(found.Tickets, found.Bytes)...))
	var header []string
	for _, key := range c.By {
		header = append(header, strings.ToUpper(key))
	}
	if err := printTable(std.stdout, append(header, "TICKETS", "BYTES"), rows); err != nil {
		return err
	}
	several := ""
	if slices.Contains(c.By, "problem") {
		several = " A ticket with several problems counts once in each, and once in the total."
	}
	_, err := fmt.Fprintf(std.stdout, "Received from %s until before %s.%s\n",
		c.stamp(query.Filter.Since), c.stamp(query.Filter.Until), several)
	return err
}

func (c ticketsStatsCmd) report(query postgres.StatsQuery, found postgres.Stats) statsReport {
	report := statsReport{
		Since: query.Filter.Since.UTC(), Until: query.Filter.Until.UTC(), Groups: []statsGroup{},
		Total: found.Total, Tickets: found.Tickets, Bytes: found.Bytes,
	}
	for _, g := range found.Groups {
		group := statsGroup{Tickets: g.Tickets, Bytes: g.Bytes}
		for i, cell := range c.cells(g, "") {
			switch c.By[i] {
			case "day":
				group.Day = &cell
			case "hour":
				start := g.Start.UTC()
				group.Hour = &start
			case "source":
				group.Source = &cell
			case "status":
				group.Status = &cell
			case "problem":
				group.Problem = &cell
			}
		}
		report.Groups = append(report.Groups, group)
	}
	return report
}

func (c ticketsStatsCmd) writeCSV(std streams, found postgres.Stats) error {
	w := csv.NewWriter(std.stdout)
	w.UseCRLF = true // RFC 4180
	rows := [][]string{append(slices.Clone(c.By), "tickets", "bytes")}
	for _, g := range found.Groups {
		cells := c.cells(g, "")
		for i := range cells {
			cells[i] = csvText(cells[i])
		}
		rows = append(rows, append(cells, strconv.FormatInt(g.Tickets, 10), strconv.FormatInt(g.Bytes, 10)))
	}
	return w.WriteAll(rows)
}
