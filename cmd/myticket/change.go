package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// selection says which tickets to change, by their ids or by a filter, and who changes them.
type selection struct {
	databaseFlags
	filterFlags
	personFlags
	confirmFlags
	outputFlags
	IDs    []uuid.UUID `arg:"" name:"id" optional:"" help:"Ids of tickets. Use a filter instead to select many."`
	All    bool        `group:"Filter" help:"Select all tickets that can be changed, if there is no other filter."`
	DryRun bool        `help:"Only show which tickets would be changed."`
	After  uuid.UUID   `group:"Run" placeholder:"ID" help:"Only tickets after this one: where an interrupted run of the same filter ended. It says so, and so does myticket audit."`
	Share  int         `group:"Run" default:"25" placeholder:"PERCENT" help:"Share of the time in which the run works. Between its transactions it pauses, so that live tickets come first. Default: ${default}."`
}

// Validate is called by kong.
func (s selection) Validate() error {
	switch {
	case len(s.IDs) > 0 && (!s.isEmpty() || s.All):
		return errors.New("give ids or a filter, not both")
	case len(s.IDs) > 0 && s.DryRun:
		return errors.New("--dry-run needs a filter, not ids")
	case len(s.IDs) > 0 && s.After != uuid.Nil:
		return errors.New("--after needs a filter, not ids")
	case len(s.IDs) == 0 && s.isEmpty() && !s.All:
		return errors.New("give ids, a filter such as --status ERROR, or --all")
	case s.Share < 1 || s.Share > 100:
		return errors.New("--share must be 1 to 100")
	}
	return errors.Join(s.filterFlags.check(), s.personFlags.check())
}

// changing is a change as the command line speaks of it.
type changing struct {
	postgres.Change
	command, done string // such as "dismiss" and "dismissed"
}

// changed is what a program reads.
type changed struct {
	Applied bool              `json:"applied"`
	Preview *postgres.Preview `json:"preview,omitempty"` // of a filter
	Of      int               `json:"of,omitempty"`      // how many ids were given
	postgres.Done
}

// run makes a change of the selected tickets.
func (s selection) run(ctx context.Context, std streams, ch changing) error {
	bulk := postgres.Bulk{Filter: s.filter(), After: s.After, Share: float64(s.Share) / 100}
	for _, status := range bulk.Filter.Statuses {
		if !slices.Contains(ch.From(), status) {
			return fmt.Errorf("a ticket that is %s cannot be %s", status, ch.done)
		}
	}
	by, err := s.person()
	if err != nil {
		return err
	}
	store, err := s.open(ctx, std, "tickets")
	if err != nil {
		return err
	}
	defer store.Close()
	if len(s.IDs) > 0 {
		return s.changeEach(ctx, std, store, by, ch)
	}
	preview, err := store.PreviewChange(ctx, ch.Change, bulk)
	if err != nil {
		return interrupted(ctx, err)
	}
	bulk.Newest = preview.Newest // what is changed is what was shown
	if s.DryRun {
		if s.Output == "json" {
			return printJSON(std.stdout, changed{Preview: &preview})
		}
		return showPreview(std.stdout, preview, ch.done)
	}
	if preview.Tickets > 0 {
		if err := showPreview(std.stderr, preview, ch.done); err != nil {
			return err
		}
		if err := s.confirm(ctx, std, fmt.Sprintf("Shall these %d tickets be %s?", preview.Tickets, ch.done)); err != nil {
			return err
		}
	}
	line, start := newProgress(std.stderr), time.Now()
	bulk.Progress = func(done postgres.Done) {
		rate := float64(done.Tickets) / time.Since(start).Seconds()
		left := time.Duration(float64(preview.Tickets-done.Tickets) / max(rate, 1) * float64(time.Second))
		line.show(fmt.Sprintf("%d of %d tickets %s, %.0f a second, about %s left",
			done.Tickets, preview.Tickets, ch.done, rate, max(left, 0).Round(time.Second)))
	}
	done, err := store.ChangeTickets(ctx, by, ch.Change, bulk)
	line.end()
	if err != nil && done.Last != uuid.Nil {
		defer fmt.Fprintln(std.stderr, "To go on:", s.command(ch.command, done.Last))
	}
	if s.Output == "json" {
		return errors.Join(printJSON(std.stdout, changed{Applied: true, Preview: &preview, Done: done}), interrupted(ctx, err))
	}
	fmt.Fprintf(std.stdout, "%d tickets %s\n", done.Tickets, ch.done)
	return interrupted(ctx, err)
}

// changeEach changes the tickets whose ids are given.
func (s selection) changeEach(
	ctx context.Context, std streams, store *postgres.Store, by postgres.Person, ch changing,
) (err error) {
	n := 0
	for _, id := range s.IDs {
		oneErr := store.ChangeTicket(ctx, by, ch.Change, id)
		if oneErr == nil {
			n++
			continue
		}
		err = errors.Join(err, oneErr)
		if errors.Is(oneErr, ticket.ErrUnavailable) {
			break // the other ids would fail in the same way
		}
	}
	if s.Output == "json" {
		done := postgres.Done{Tickets: n, Ended: err == nil}
		return errors.Join(printJSON(std.stdout, changed{Applied: true, Of: len(s.IDs), Done: done}), interrupted(ctx, err))
	}
	fmt.Fprintf(std.stdout, "%d of %d tickets %s\n", n, len(s.IDs), ch.done)
	return interrupted(ctx, err)
}

// command returns the command line that goes on after a ticket. It asks again, because --yes is left out.
func (s selection) command(name string, after uuid.UUID) string {
	command := "myticket tickets " + name + s.flags()
	if s.All {
		command += " --all"
	}
	if s.Reason != "" {
		command += shellFlag("reason", s.Reason)
	}
	return command + fmt.Sprintf(" --share %d --after %s", s.Share, after)
}

// showPreview writes which tickets would be changed.
func showPreview(w io.Writer, preview postgres.Preview, done string) error {
	if preview.Tickets > 0 {
		rows := make([][]string, 0, len(preview.Groups))
		for _, g := range preview.Groups {
			rows = append(rows, []string{g.Source, string(g.Status), g.Problem, strconv.Itoa(g.Tickets)})
		}
		if preview.Others > 0 {
			rows = append(rows, []string{"(others)", "", "", strconv.Itoa(preview.Others)})
		}
		if err := printTable(w, []string{"SOURCE", "STATUS", "FIRST PROBLEM", "TICKETS"}, rows); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d tickets would be %s\n", preview.Tickets, done)
	return err
}

type ticketsRetryCmd struct{ selection }

func (c ticketsRetryCmd) Run(ctx context.Context, std streams) error {
	return c.run(ctx, std, changing{postgres.Retry, "retry", "sent back"})
}

type ticketsDismissCmd struct{ selection }

// Validate is called by kong.
func (c ticketsDismissCmd) Validate() error {
	if c.Reason == "" {
		return errors.New("--reason must not be empty: it is stored with the ticket")
	}
	return c.selection.Validate()
}

func (c ticketsDismissCmd) Run(ctx context.Context, std streams) error {
	return c.run(ctx, std, changing{postgres.Dismiss, "dismiss", "dismissed"})
}

type ticketsReopenCmd struct{ selection }

func (c ticketsReopenCmd) Run(ctx context.Context, std streams) error {
	return c.run(ctx, std, changing{postgres.Reopen, "reopen", "reopened"})
}
