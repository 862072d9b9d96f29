package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dustin/go-humanize"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/spool"
	"myticket/internal/telemetry"
)

// spoolCmd is `myticket spool`: for the spool folder of a server that will not start again.
type spoolCmd struct {
	Status spoolStatusCmd `cmd:"" help:"Show what a spool folder holds, and whether its files are whole. No server may be using the folder."`
	Drain  spoolDrainCmd  `cmd:"" help:"Store the tickets of a spool folder in the database. No server may be using the folder."`
	Export spoolExportCmd `cmd:"" help:"Copy the tickets of a spool folder to plain files. No server may be using the folder."`
}

// spoolFlags name the folder.
type spoolFlags struct {
	Dir string `arg:"" type:"existingdir" placeholder:"DIR" help:"The spool folder, or a copy of it."`
}

// open opens the folder and verifies its files. What is wrong with them is logged to stderr.
func (f spoolFlags) open(ctx context.Context, std streams, readOnly bool) (*spool.Spool, *slog.Logger, error) {
	logger, err := telemetry.NewLogger(std.stderr, "text", "info")
	if err != nil {
		return nil, nil, err
	}
	// A new disk is empty if no server has used it yet, which is no error for the job that drains it.
	switch isSpool, isEmpty, err := spool.Look(f.Dir); {
	case err != nil:
		return nil, nil, err
	case !isSpool && (readOnly || !isEmpty):
		return nil, nil, fmt.Errorf("%s is not a spool: it has neither the lock of one nor a file with tickets. The folder of a "+
			"server is its --spool-dir", f.Dir)
	}
	queue, err := spool.Open(spool.Config{Dir: f.Dir, ReadOnly: readOnly, Logger: logger})
	if errors.Is(err, spool.ErrInUse) {
		err = fmt.Errorf("%w; a running server drains its folder by itself, and shows what it holds on /readyz and /metrics", err)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := queue.Verify(ctx); err != nil {
		return nil, nil, errors.Join(err, queue.Close())
	}
	return queue, logger, nil
}

type spoolStatusCmd struct {
	spoolFlags
	outputFlags
}

// spoolReport is what a program reads.
type spoolReport struct {
	Tickets    int        `json:"tickets"`
	Bytes      int64      `json:"bytes"`
	Oldest     *time.Time `json:"oldest"`
	FilesAside int        `json:"files_aside"`
}

func (c spoolStatusCmd) Run(ctx context.Context, std streams) error {
	queue, _, err := c.open(ctx, std, true)
	if err != nil {
		return err
	}
	defer queue.Close()
	have := queue.Stats()
	report := spoolReport{Tickets: have.Tickets, Bytes: have.Bytes, FilesAside: have.Aside}
	if !have.Oldest.IsZero() {
		report.Oldest = &have.Oldest
	}
	if c.Output == "json" {
		return printJSON(std.stdout, report)
	}
	oldest := "-"
	if report.Oldest != nil {
		oldest = fmt.Sprintf("%s (%s)", stamp(have.Oldest), humanize.Time(have.Oldest))
	}
	return printTable(std.stdout, []string{"TICKETS", "SIZE", "OLDEST", "FILES ASIDE"},
		[][]string{{fmt.Sprint(have.Tickets), humanize.IBytes(uint64(have.Bytes)), oldest, fmt.Sprint(have.Aside)}})
}

type spoolDrainCmd struct {
	databaseFlags
	spoolFlags
	testSourcesFlag
}

func (c spoolDrainCmd) Run(ctx context.Context, std streams) (err error) {
	store, err := c.openWith(ctx, std, "spool drain", c.testSources())
	if err != nil {
		return err
	}
	defer store.Close()
	queue, logger, err := c.spoolFlags.open(ctx, std, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, queue.Close()) }()
	var drained intake.Drained
	dialects := postgres.NewLiveDialects(store, false)
	if err = dialects.Load(ctx); err == nil {
		drained, err = intake.Drain(ctx, intake.Config{Spool: queue, Logger: logger, Parse: dialects.Parse}, store)
	}
	left := queue.Stats().Tickets
	fmt.Fprintf(std.stdout, "%d tickets are in the database now, %d are left in the spool\n", drained.Stored, left)
	switch aside := queue.Stats().Aside; {
	case drained.Refused > 0:
		err = errors.Join(err, fmt.Errorf("the database refuses %d tickets in every form; they are kept in a .refused file in %s, "+
			"and the next drain tries them again. The log above says why (docs/durability.md)", drained.Refused, c.Dir))
	case aside > 0:
		fmt.Fprintf(std.stdout, "%d files were set aside in %s: see docs/durability.md\n", aside, c.Dir)
	}
	if err == nil && left > 0 {
		err = fmt.Errorf("%d tickets are left in the spool in %s: run the command again", left, c.Dir)
	}
	return interrupted(ctx, err)
}

type spoolExportCmd struct {
	spoolFlags
	To string `required:"" type:"path" placeholder:"DIR" help:"Folder to write to. Each ticket's bytes become a file named by the ticket's id; tickets.jsonl holds the rest. The folder is created, or must be empty and accessible to you alone."`
}

// exported is a line of tickets.jsonl.
type exported struct {
	ID             string    `json:"id"`
	ReceivedAt     time.Time `json:"received_at"`
	Source         string    `json:"source"`
	ContentType    string    `json:"content_type,omitempty"`
	Traceparent    string    `json:"traceparent,omitempty"`
	IdempotencyKey string    `json:"idempotency_key,omitempty"`
	File           string    `json:"file"`
	Bytes          int       `json:"bytes"`
}

func (c spoolExportCmd) Run(ctx context.Context, std streams) (err error) {
	queue, _, err := c.open(ctx, std, true)
	if err != nil {
		return err
	}
	defer queue.Close()
	root, err := newFolder(c.To)
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	list, err := createIn(root, "tickets.jsonl")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, list.Close()) }()
	encoder := json.NewEncoder(list)
	n := 0
	err = queue.All(func(e *intake.Entry) error {
		t := &e.Ticket
		line := exported{
			ID: t.ID.String(), ReceivedAt: t.ReceivedAt, Source: t.Source, ContentType: t.ContentType,
			Traceparent: t.Traceparent, IdempotencyKey: e.Key, File: t.ID.String() + ".txt", Bytes: len(t.Body),
		}
		if err := writeIn(root, line.File, t.Body); err != nil {
			return err
		}
		n++
		return errors.Join(encoder.Encode(line), ctx.Err())
	})
	fmt.Fprintf(std.stdout, "%d tickets were copied to %s; they are still in the spool\n", n, c.To)
	return err
}
