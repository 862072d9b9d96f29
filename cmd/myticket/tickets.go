package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// ticketsCmd is `myticket tickets`.
type ticketsCmd struct {
	List    ticketsListCmd    `cmd:"" help:"List tickets, newest first."`
	Show    ticketsShowCmd    `cmd:"" help:"Show one ticket: what was sent, what was read, and what was not understood."`
	Retry   ticketsRetryCmd   `cmd:"" help:"Send ERROR and DISMISSED tickets back to treatment. A server reads them again from the bytes that were sent."`
	Dismiss ticketsDismissCmd `cmd:"" help:"Mark ERROR tickets as DISMISSED, with a reason. TO_TREAT tickets are not changed, because a server may be reading them."`
}

// filterFlags select tickets.
type filterFlags struct {
	Status  []string `group:"Filter" enum:"TO_TREAT,TREATED,ERROR,DISMISSED" placeholder:"STATUS" help:"TO_TREAT, TREATED, ERROR or DISMISSED. Separate several with commas, or repeat the flag."`
	Source  string   `group:"Filter" help:"Exact name of the source."`
	Order   string   `group:"Filter" placeholder:"NUMBER" help:"Exact order number."`
	Problem string   `group:"Filter" placeholder:"CODE" help:"Code of one of the ticket's problems, such as fields_count."`
	Since   moment   `group:"Filter" placeholder:"TIME" help:"Received at this time or later: 2026-11-23T08:00:00Z, 2026-11-23 (UTC), or 2h, 3d or 1w before now."`
	Until   moment   `group:"Filter" placeholder:"TIME" help:"Received before this time, written as in --since."`
}

func (f filterFlags) filter() postgres.TicketFilter {
	filter := postgres.TicketFilter{
		Source: f.Source, Order: f.Order, Problem: f.Problem, Since: time.Time(f.Since), Until: time.Time(f.Until),
	}
	for _, status := range f.Status {
		filter.Statuses = append(filter.Statuses, ticket.Status(status))
	}
	return filter
}

func (f filterFlags) isEmpty() bool {
	return len(f.Status) == 0 && f.Source == "" && f.Order == "" && f.Problem == "" &&
		time.Time(f.Since).IsZero() && time.Time(f.Until).IsZero()
}

type ticketsListCmd struct {
	databaseFlags
	filterFlags
	outputFlags
	Limit int       `default:"50" help:"Maximum number of tickets. Default: ${default}."`
	After uuid.UUID `placeholder:"ID" help:"Id of the last ticket of the previous page."`
}

// Validate is called by kong.
func (c ticketsListCmd) Validate() error {
	if c.Limit < 1 || c.Limit > 100_000 {
		return errors.New("--limit must be 1 to 100000")
	}
	return nil
}

func (c ticketsListCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, "tickets")
	if err != nil {
		return err
	}
	defer store.Close()
	tickets, err := store.Tickets(ctx, c.filter(), c.After, c.Limit+1) // if there is one more, there is a next page
	if err != nil {
		return err
	}
	if len(tickets) > c.Limit {
		tickets = tickets[:c.Limit]
		defer fmt.Fprintln(std.stderr, "Next page:", c.command(tickets[c.Limit-1].ID))
	}
	if c.Output == "json" {
		return printJSON(std.stdout, append([]postgres.StoredTicket{}, tickets...))
	}
	rows := make([][]string, 0, len(tickets))
	for _, t := range tickets {
		problem := ""
		if n := len(t.Problems); n > 0 {
			problem = describe(t.Problems[0])
			if n > 1 {
				problem += fmt.Sprintf(" (and %d more)", n-1)
			}
		}
		rows = append(rows, []string{
			t.ID.String(), stamp(t.ReceivedAt), t.Source, string(t.Status), t.OrderNumber, t.Total.String(),
			strconv.Itoa(len(t.Lines)), cut(problem, 80),
		})
	}
	header := []string{"ID", "RECEIVED", "SOURCE", "STATUS", "ORDER", "TOTAL", "LINES", "PROBLEM"}
	return printTable(std.stdout, header, rows)
}

// command returns the command line for the page after a ticket. Its times are absolute, so that "2h" is the same moment on
// every page. The database URL is left out, because it may hold a password.
func (c ticketsListCmd) command(after uuid.UUID) string {
	var b strings.Builder
	b.WriteString("myticket tickets list")
	if len(c.Status) > 0 {
		b.WriteString(" --status " + strings.Join(c.Status, ","))
	}
	for _, flag := range [][2]string{{"source", c.Source}, {"order", c.Order}, {"problem", c.Problem}} {
		if flag[1] != "" {
			b.WriteString(shellFlag(flag[0], flag[1]))
		}
	}
	if t := time.Time(c.Since); !t.IsZero() {
		b.WriteString(" --since " + t.UTC().Format(time.RFC3339Nano))
	}
	if t := time.Time(c.Until); !t.IsZero() {
		b.WriteString(" --until " + t.UTC().Format(time.RFC3339Nano))
	}
	if c.Output != "table" {
		b.WriteString(" --output " + c.Output)
	}
	fmt.Fprintf(&b, " --limit %d --after %s", c.Limit, after)
	return b.String()
}

// describe returns a problem as one line.
func describe(p ticket.Problem) string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.Code, p.Message)
	}
	return fmt.Sprintf("line %d: %s: %s", p.Line, p.Code, p.Message)
}

type ticketsShowCmd struct {
	databaseFlags
	outputFlags
	ID  uuid.UUID `arg:"" help:"The ticket's id."`
	Raw bool      `help:"Write only the bytes that were sent."`
}

func (c ticketsShowCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, "tickets")
	if err != nil {
		return err
	}
	defer store.Close()
	t, err := store.Ticket(ctx, c.ID)
	switch {
	case err != nil:
		return err
	case c.Raw:
		_, err = std.stdout.Write(t.Body)
		return err
	case c.Output == "json":
		shown := struct {
			postgres.StoredTicket
			Body       *string `json:"body,omitempty"` // if it is valid UTF-8
			BodyBase64 string  `json:"body_base64"`
		}{StoredTicket: t, BodyBase64: base64.StdEncoding.EncodeToString(t.Body)}
		if text := string(t.Body); utf8.ValidString(text) {
			shown.Body = &text
		}
		return printJSON(std.stdout, shown)
	}
	return showTicket(std.stdout, t)
}

// showTicket writes a ticket as text for a person.
func showTicket(w io.Writer, t postgres.StoredTicket) error {
	rows := [][]string{
		{"Received", t.ReceivedAt.Format("2006-01-02T15:04:05.000Z07:00")},
		{"Source", t.Source}, {"Status", string(t.Status)},
		{"Order", t.OrderNumber}, {"VAT", t.VAT.String()}, {"Total", t.Total.String()},
	}
	for _, f := range t.Extra {
		rows = append(rows, []string{"Header " + f.Name, f.Value}) // a sender may have named it Status
	}
	rows = append(rows, []string{"Content-Type", t.ContentType}, []string{"Traceparent", t.Traceparent},
		[]string{"Parser", strconv.Itoa(t.ParserVersion)}, []string{"Attempts", strconv.Itoa(t.Attempts)})
	if t.NextAttemptAt != nil {
		rows = append(rows, []string{"Next attempt", stamp(*t.NextAttemptAt)})
	}
	if err := printTable(w, []string{"Ticket", t.ID.String()}, rows); err != nil {
		return err
	}
	if len(t.Lines) > 0 {
		fmt.Fprintln(w)
		lines := make([][]string, 0, len(t.Lines))
		for _, line := range t.Lines {
			var extra []string
			for _, f := range line.Extra {
				extra = append(extra, f.Name+"="+f.Value)
			}
			lines = append(lines, []string{line.ProductID, line.Price.String(), line.Product, strings.Join(extra, " ")})
		}
		if err := printTable(w, []string{"PRODUCT_ID", "PRICE", "PRODUCT", ""}, lines); err != nil {
			return err
		}
	}
	if len(t.Problems) > 0 {
		fmt.Fprintln(w, "\nProblems:")
		body := bodyLines(t.Body)
		for _, p := range t.Problems {
			fmt.Fprintf(w, "  %s\n", printable(describe(p)))
			if p.Line > 0 && p.Line <= len(body) {
				fmt.Fprintf(w, "    %d | %s\n", p.Line, printable(cut(body[p.Line-1], 200)))
			}
		}
	}
	fmt.Fprintf(w, "\nBody (%d bytes; --raw writes them unchanged):\n", len(t.Body))
	_, err := fmt.Fprintln(w, printableText(strings.ReplaceAll(string(t.Body), "\r\n", "\n")))
	return err
}

// bodyLines splits a body as the parser does: LF, CRLF and CR each end a line.
func bodyLines(body []byte) []string {
	text := strings.ReplaceAll(string(body), "\r\n", "\n")
	return strings.Split(strings.ReplaceAll(text, "\r", "\n"), "\n")
}

// selection says which tickets to change: by their ids, or by a filter.
type selection struct {
	databaseFlags
	filterFlags
	IDs    []uuid.UUID `arg:"" name:"id" optional:"" help:"Ids of tickets. Use a filter instead to select many."`
	All    bool        `group:"Filter" help:"Select all tickets, if there is no other filter."`
	DryRun bool        `help:"Only show how many tickets the filter selects."`
}

// Validate is called by kong.
func (s selection) Validate() error {
	switch {
	case len(s.IDs) > 0 && (!s.isEmpty() || s.All):
		return errors.New("give ids or a filter, not both")
	case len(s.IDs) > 0 && s.DryRun:
		return errors.New("--dry-run needs a filter, not ids")
	case len(s.IDs) == 0 && s.isEmpty() && !s.All:
		return errors.New("give ids, a filter such as --status ERROR, or --all")
	}
	return nil
}

// run changes the selected tickets. done is the word for the change, such as "dismissed".
func (s selection) run(
	ctx context.Context, std streams, done string, allowed []ticket.Status,
	one func(*postgres.Store, uuid.UUID) error, all func(*postgres.Store, postgres.TicketFilter) (int, error),
) error {
	filter := s.filter()
	for _, status := range filter.Statuses {
		if !slices.Contains(allowed, status) {
			return fmt.Errorf("a ticket that is %s cannot be %s", status, done)
		}
	}
	store, err := s.open(ctx, "tickets")
	if err != nil {
		return err
	}
	defer store.Close()
	if len(s.IDs) > 0 {
		changed := 0
		for _, id := range s.IDs {
			oneErr := one(store, id)
			if oneErr == nil {
				changed++
				continue
			}
			err = errors.Join(err, oneErr)
			if errors.Is(oneErr, ticket.ErrUnavailable) {
				break // the other ids would fail in the same way
			}
		}
		fmt.Fprintf(std.stdout, "%d of %d tickets %s\n", changed, len(s.IDs), done)
		return interrupted(ctx, err)
	}
	n, err := all(store, filter)
	if s.DryRun {
		fmt.Fprintf(std.stdout, "%d tickets would be %s\n", n, done)
	} else {
		fmt.Fprintf(std.stdout, "%d tickets %s\n", n, done)
	}
	return interrupted(ctx, err)
}

type ticketsRetryCmd struct{ selection }

func (c ticketsRetryCmd) Run(ctx context.Context, std streams) error {
	return c.run(ctx, std, "sent back", []ticket.Status{ticket.Error, ticket.Dismissed},
		func(store *postgres.Store, id uuid.UUID) error { return store.RetryTicket(ctx, id) },
		func(store *postgres.Store, filter postgres.TicketFilter) (int, error) {
			return store.RetryTickets(ctx, filter, c.DryRun)
		})
}

type ticketsDismissCmd struct {
	selection
	Reason string `required:"" placeholder:"TEXT" help:"The reason, at most 1000 bytes. It is stored with the ticket."`
}

// Validate is called by kong.
func (c ticketsDismissCmd) Validate() error {
	switch {
	case strings.TrimSpace(c.Reason) == "":
		return errors.New("--reason must not be empty")
	case len(c.Reason) > postgres.MaxReason:
		return fmt.Errorf("--reason has %d bytes, which is more than the limit of %d", len(c.Reason), postgres.MaxReason)
	}
	return c.selection.Validate()
}

func (c ticketsDismissCmd) Run(ctx context.Context, std streams) error {
	return c.run(ctx, std, "dismissed", []ticket.Status{ticket.Error},
		func(store *postgres.Store, id uuid.UUID) error { return store.DismissTicket(ctx, id, c.Reason) },
		func(store *postgres.Store, filter postgres.TicketFilter) (int, error) {
			return store.DismissTickets(ctx, filter, c.Reason, c.DryRun)
		})
}
