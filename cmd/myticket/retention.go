package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// retentionCmd is `myticket retention`.
type retentionCmd struct {
	databaseFlags
	outputFlags
	personFlags
	Keep           span `required:"" env:"MYTICKET_RETENTION_KEEP" placeholder:"TIME" help:"How long to keep tickets, in days or weeks: 90d, 12w; at least 1d. There is no default. A partition is dropped when its whole period is older."`
	Apply          bool `help:"Drop and delete. Without this flag, only show what would be dropped and deleted."`
	DropUnfinished bool `help:"Also drop partitions that hold TO_TREAT or ERROR tickets."`
	Undelivered    bool `help:"Also drop partitions of a time that a subscription has not got all events about. It never gets those."`
}

// Validate is called by kong.
func (c retentionCmd) Validate() error {
	if time.Duration(c.Keep) < 24*time.Hour {
		return errors.New("--keep must be at least 1d")
	}
	return c.check()
}

// retentionReport is what a program reads.
type retentionReport struct {
	Applied     bool              `json:"applied"`
	Partitions  []partitionReport `json:"partitions"`
	ExpiredKeys int64             `json:"expired_keys"`
}

type partitionReport struct {
	postgres.OldPartition
	Unfinished int64  `json:"unfinished"` // of its tickets: TO_TREAT and ERROR
	Dropped    bool   `json:"dropped"`
	Verdict    string `json:"verdict"` // for people
}

func (c retentionCmd) Run(ctx context.Context, std streams) error {
	by, err := c.person()
	if err != nil {
		return err
	}
	store, err := c.open(ctx, std, "retention")
	if err != nil {
		return err
	}
	defer store.Close()
	before := time.Now().Add(-time.Duration(c.Keep))
	partitions, err := store.OldPartitions(ctx, before)
	if err != nil {
		return err
	}
	report := retentionReport{Applied: c.Apply, Partitions: []partitionReport{}}
	for _, p := range partitions {
		done, dropErr := c.drop(ctx, store, by, p)
		report.Partitions = append(report.Partitions, done)
		err = errors.Join(err, dropErr)
	}
	var keysErr error
	if c.Apply {
		if _, linesErr := store.DropOldLines(ctx); linesErr != nil {
			linesErr = fmt.Errorf("order_lines still shows lines of dropped partitions, until a server drops them: %w", linesErr)
			err = errors.Join(err, linesErr)
		}
		err = errors.Join(err, store.DeleteOldCorrections(ctx, before))
		report.ExpiredKeys, keysErr = store.DeleteExpiredKeys(ctx, by)
	} else {
		report.ExpiredKeys, keysErr = store.ExpiredKeys(ctx)
	}
	return errors.Join(interrupted(ctx, errors.Join(err, keysErr)), c.print(std, report))
}

// drop drops one partition, or says what would be done with it.
func (c retentionCmd) drop(
	ctx context.Context, store *postgres.Store, by postgres.Person, p postgres.OldPartition,
) (partitionReport, error) {
	const unfinished = "kept: it holds TO_TREAT or ERROR tickets (--drop-unfinished drops it too)"
	const undelivered = "kept: not all its events are delivered (--undelivered drops it too)"
	report := partitionReport{OldPartition: p, Unfinished: p.Unfinished()}
	switch {
	case report.Unfinished > 0 && !c.DropUnfinished:
		report.Verdict = unfinished
		return report, nil
	case len(p.Undelivered) > 0 && !c.Undelivered:
		report.Verdict = undelivered + ": " + strings.Join(p.Undelivered, ", ")
		return report, nil
	case !c.Apply:
		report.Verdict = "would be dropped"
		return report, nil
	}
	switch err := store.DropPartition(ctx, by, p, postgres.DropEven{Unfinished: c.DropUnfinished, Undelivered: c.Undelivered}); {
	case errors.Is(err, postgres.ErrUnfinished): // one was added in the meantime
		report.Verdict = unfinished
		return report, nil
	case errors.Is(err, postgres.ErrUndelivered): // a subscription was made or restored in the meantime
		report.Verdict = undelivered
		return report, nil
	case errors.Is(err, postgres.ErrNoPartition):
		report.Verdict = "gone: another process has dropped it"
		return report, nil
	case err != nil:
		report.Verdict = "kept: it could not be dropped"
		return report, err
	}
	report.Dropped, report.Verdict = true, "dropped"
	return report, nil
}

func (c retentionCmd) print(std streams, report retentionReport) error {
	if c.Output == "json" {
		return printJSON(std.stdout, report)
	}
	rows := make([][]string, 0, len(report.Partitions))
	for _, p := range report.Partitions {
		from := "the first"
		if p.From != nil {
			from = day(*p.From)
		}
		row := []string{p.Name, from, day(p.To)}
		for _, status := range ticket.Statuses() {
			row = append(row, strconv.FormatInt(p.Tickets[status], 10))
		}
		rows = append(rows, append(row, humanize.IBytes(uint64(max(p.Bytes, 0))), p.Verdict))
	}
	header := []string{"PARTITION", "FROM", "TO"}
	for _, status := range ticket.Statuses() {
		header = append(header, string(status))
	}
	header = append(header, "SIZE", "VERDICT")
	if err := printTable(std.stdout, header, rows); err != nil {
		return err
	}
	what := "expired idempotency keys deleted"
	if !c.Apply {
		what = "expired idempotency keys would be deleted; nothing was changed. Use --apply to drop and delete"
	}
	_, err := fmt.Fprintf(std.stdout, "%d %s\n", report.ExpiredKeys, what)
	return err
}

// day returns a bound of a partition: a date if it is midnight UTC, otherwise a time.
func day(t time.Time) string {
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format(time.DateOnly)
	}
	return stamp(t)
}
