package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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
	Follow  ticketsFollowCmd  `cmd:"" help:"Show tickets as they are stored, until it is interrupted."`
	Stats   ticketsStatsCmd   `cmd:"" help:"Count tickets by day, source, status or problem: what came in, and what went wrong."`
	Show    ticketsShowCmd    `cmd:"" help:"Show one ticket: what was sent, what was read, and what was not understood."`
	Correct ticketsCorrectCmd `cmd:"" help:"Have another text read instead of what was sent, which stays as it came."`
	Retry   ticketsRetryCmd   `cmd:"" help:"Send ERROR tickets back to treatment, and DISMISSED ones that are named. A server reads them again from the bytes that were sent, or from their correction."`
	Dismiss ticketsDismissCmd `cmd:"" help:"Mark ERROR tickets as DISMISSED, with a reason. TO_TREAT tickets are not changed, because a server may be reading them."`
	Reopen  ticketsReopenCmd  `cmd:"" help:"Undo a dismissal: DISMISSED tickets are ERROR again, with the problems that they had."`
}

// filterFlags select tickets.
type filterFlags struct {
	zoneFlags
	Status   []string     `group:"Filter" enum:"TO_TREAT,TREATED,ERROR,DISMISSED" placeholder:"STATUS" help:"TO_TREAT, TREATED, ERROR or DISMISSED. Separate several with commas, or repeat the flag."`
	Source   []source     `group:"Filter" placeholder:"NAME" help:"Exact name of the source. Several: as for --status."`
	Order    string       `group:"Filter" placeholder:"NUMBER" help:"Exact order number."`
	Problem  []problem    `group:"Filter" placeholder:"CODE" help:"Code of one of the ticket's problems, such as fields_count. Several: as for --status."`
	Group    ticket.Group `name:"problem-group" group:"Filter" placeholder:"GROUP" help:"Group of its problems, as myticket problems lists it."`
	Total    amount       `group:"Filter" placeholder:"AMOUNT" help:"Exact total, such as 16.90."`
	MinTotal amount       `group:"Filter" placeholder:"AMOUNT" help:"The total is this amount or more."`
	MaxTotal amount       `group:"Filter" placeholder:"AMOUNT" help:"The total is this amount or less."`
	Since    moment       `group:"Filter" placeholder:"TIME" help:"Received at this time or later: 2026-11-24T18:50:00Z; 2026-11-24, '2026-11-24 18:50', today, yesterday, 'monday 18:00' or 18:50 in the zone of --tz; or 2h, 1d or 1w before now."`
	Until    moment       `group:"Filter" placeholder:"TIME" help:"Received before this time, written as in --since."`
}

// amount is an amount of money, written as on a ticket.
type amount struct{ ticket.Amount }

// UnmarshalText reads an amount.
func (a *amount) UnmarshalText(text []byte) (err error) {
	if a.Amount, err = ticket.ParseAmount(string(text)); err != nil {
		return errors.New("write an amount, such as 16.90")
	}
	return nil
}

// text returns the amount, or nothing if there is none.
func (a *amount) text() string {
	if !a.IsSet() {
		return ""
	}
	return a.String()
}

// check is for the Validate of commands.
func (f filterFlags) check() error {
	if f.Total.IsSet() && (f.MinTotal.IsSet() || f.MaxTotal.IsSet()) {
		return errors.New("give --total, or --min-total and --max-total, not both")
	}
	since, until := f.Since.in(f.zone()), f.Until.in(f.zone())
	if !f.Since.isZero() && !f.Until.isZero() && !until.After(since) {
		return errors.New("--until must be later than --since: no ticket is in between")
	}
	return nil
}

func (f filterFlags) filter() postgres.TicketFilter {
	filter := postgres.TicketFilter{
		Sources: texts(f.Source), Order: f.Order, Problems: texts(f.Problem), Group: f.Group,
		Since: f.Since.in(f.zone()), Until: f.Until.in(f.zone()),
		MinTotal: cmp.Or(f.Total.text(), f.MinTotal.text()), MaxTotal: cmp.Or(f.Total.text(), f.MaxTotal.text()),
	}
	for _, status := range f.Status {
		filter.Statuses = append(filter.Statuses, ticket.Status(status))
	}
	return filter
}

func (f filterFlags) isEmpty() bool {
	return len(f.Status) == 0 && len(f.Source) == 0 && f.Order == "" && len(f.Problem) == 0 && f.Group == 0 &&
		!f.Total.IsSet() && !f.MinTotal.IsSet() && !f.MaxTotal.IsSet() && f.Since.isZero() && f.Until.isZero()
}

// flags returns the flags as a command line has them. Times are absolute, so that "2h" is the same moment on every page.
func (f filterFlags) flags() string {
	var b strings.Builder
	if len(f.Status) > 0 {
		b.WriteString(" --status " + strings.Join(f.Status, ","))
	}
	for _, flag := range [][2]string{{"source", commas(f.Source)}, {"order", f.Order}, {"problem", commas(f.Problem)}} {
		if flag[1] != "" {
			b.WriteString(shellFlag(flag[0], flag[1]))
		}
	}
	if f.Group != 0 {
		b.WriteString(shellFlag("problem-group", f.Group.String()))
	}
	for _, flag := range []struct {
		name  string
		value amount
	}{{"total", f.Total}, {"min-total", f.MinTotal}, {"max-total", f.MaxTotal}} {
		if flag.value.IsSet() {
			b.WriteString(" --" + flag.name + "=" + flag.value.String()) // it may begin with a minus sign
		}
	}
	for _, flag := range []struct {
		name  string
		value moment
	}{{"since", f.Since}, {"until", f.Until}} {
		if !flag.value.isZero() {
			b.WriteString(" --" + flag.name + " " + flag.value.in(f.zone()).UTC().Format(time.RFC3339Nano))
		}
	}
	return b.String() + f.tzFlag()
}

// listFlags are for commands that show many tickets.
type listFlags struct {
	databaseFlags
	filterFlags
	Product string `group:"Filter" placeholder:"ID" help:"Exact id of a product on the ticket. It finds TREATED tickets by the view order_lines, which is behind by up to a minute, and looks at each ticket of the time: give --since."`
	Output  string `short:"o" default:"table" enum:"table,json,csv" help:"table for people, json for programs, csv (RFC 4180) for spreadsheets. Default: ${default}."`
}

type ticketsListCmd struct {
	listFlags
	watchFlags
	Limit int       `default:"50" help:"Maximum number of tickets. Default: ${default}."`
	After uuid.UUID `placeholder:"ID" help:"Id of the last ticket of the previous page."`
}

// Validate is called by kong.
func (c ticketsListCmd) Validate() error {
	if c.Limit < 1 || c.Limit > 100_000 {
		return errors.New("--limit must be 1 to 100000")
	}
	return c.check()
}

// csvPage is how many tickets are held in memory for CSV, which may be long.
const csvPage = 1000

func (c ticketsListCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "tickets")
	if err != nil {
		return err
	}
	defer store.Close()
	return c.repeat(ctx, std, func(std streams) error {
		c.Since, c.Until = c.Since.again(), c.Until.again()
		return c.list(ctx, std, store)
	})
}

func (c ticketsListCmd) list(ctx context.Context, std streams, store *postgres.Store) error {
	filter := c.filter()
	filter.Product = c.Product
	out := newTicketWriter(c.listFlags, std.stdout)
	for left, after := c.Limit, c.After; ; {
		page := left
		if c.Output == "csv" {
			page = min(left, csvPage)
		}
		tickets, err := store.Tickets(ctx, filter, after, page+1) // if there is one more, there is a next page
		if err != nil {
			return err
		}
		more := len(tickets) > page
		tickets = tickets[:min(len(tickets), page)]
		if err := out.write(tickets); err != nil {
			return err
		}
		if left -= len(tickets); !more {
			return out.end()
		}
		if after = tickets[len(tickets)-1].ID; left == 0 {
			if c.Watch == 0 {
				defer fmt.Fprintln(std.stderr, "Next page:", c.command(after))
			}
			return out.end()
		}
	}
}

// command returns the command line for the page after a ticket. The database URL is left out, because it may hold a password.
func (c ticketsListCmd) command(after uuid.UUID) string {
	command := "myticket tickets list" + c.flags()
	if c.Product != "" {
		command += shellFlag("product", c.Product)
	}
	if c.Output != "table" {
		command += " --output " + c.Output
	}
	return command + fmt.Sprintf(" --limit %d --after %s", c.Limit, after)
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
	zoneFlags
	ID         uuid.UUID `arg:"" help:"The ticket's id."`
	Archive    string    `env:"MYTICKET_ARCHIVE" group:"Archive" placeholder:"URL" help:"The archive, where the ticket is looked for if it is not in Postgres any more (docs/archive.md)."`
	Raw        bool      `help:"Write only the bytes that were sent."`
	Correction int       `placeholder:"N" help:"With --raw: write the text of this correction instead."`
}

// Validate is called by kong.
func (c ticketsShowCmd) Validate() error {
	if c.Correction < 0 || c.Correction > 0 && !c.Raw {
		return errors.New("--correction needs --raw, and a number")
	}
	return nil
}

func (c ticketsShowCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "tickets")
	if err != nil {
		return err
	}
	defer store.Close()
	if c.Correction > 0 {
		text, err := store.CorrectionText(ctx, c.ID, c.Correction)
		if err != nil {
			if found, archiveErr := c.fromArchive(ctx, std, store); found || archiveErr != nil {
				return archiveErr
			}
			return err
		}
		_, err = std.stdout.Write(text)
		return err
	}
	t, err := store.Ticket(ctx, c.ID)
	if errors.Is(err, ticket.ErrNotFound) {
		t, err = store.DetachedTicket(ctx, c.ID)
	}
	if errors.Is(err, ticket.ErrNotFound) {
		if found, archiveErr := c.fromArchive(ctx, std, store); found || archiveErr != nil {
			return archiveErr
		}
	}
	switch {
	case errors.Is(err, ticket.ErrNotFound):
		return fmt.Errorf("%w in this database. If it was answered 202, it may still be in the spool of the server that took it: "+
			"myticket_spool_tickets and /readyz of each server say what is left there, and \"myticket spool status DIR\" says it of a "+
			"server that is gone (docs/durability.md). If it is older than what retention keeps, it was dropped", err)
	case err != nil:
		return err
	}
	if c.Raw {
		_, err = std.stdout.Write(t.Body)
		return err
	}
	corrections, err := store.Corrections(ctx, c.ID)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(std.stdout, shownTicket{
			StoredTicket: t, Body: validText(t.Body), BodyBase64: t.Body, Text: t.Readable(t.Text),
			Corrections: append([]postgres.Correction{}, corrections...),
		})
	}
	return c.show(std.stdout, t, corrections)
}

// shownTicket is what a program reads.
type shownTicket struct {
	postgres.StoredTicket
	Body        *string               `json:"body,omitempty"` // if it is valid UTF-8
	BodyBase64  []byte                `json:"body_base64"`
	Text        string                `json:"text"` // what is read: the body or a correction, in UTF-8
	Corrections []postgres.Correction `json:"corrections"`
}

func validText(body []byte) *string {
	if text := string(body); utf8.ValidString(text) {
		return &text
	}
	return nil
}

// show writes a ticket as text for a person.
func (c ticketsShowCmd) show(w io.Writer, t postgres.StoredTicket, corrections []postgres.Correction) error {
	rows := [][]string{
		{"Received", t.ReceivedAt.In(c.zone()).Format("2006-01-02T15:04:05.000Z07:00")},
		{"Source", t.Source}, {"Status", string(t.Status)},
		{"Order", t.OrderNumber}, {"VAT", t.VAT.String()}, {"Total", t.Total.String()},
	}
	for _, f := range t.Extra {
		rows = append(rows, []string{"Header " + f.Name, f.Value}) // a sender may have named it Status
	}
	rows = append(rows, []string{"Content-Type", t.ContentType}, []string{"Traceparent", t.Traceparent},
		[]string{"Parser", strconv.Itoa(t.ParserVersion)})
	if t.Dialect != 0 {
		rows = append(rows, []string{"Dialect", "version " + strconv.Itoa(t.Dialect)})
	}
	rows = append(rows, []string{"Attempts", strconv.Itoa(t.Attempts)})
	for _, is := range corrections {
		says := "the text below"
		switch {
		case is.Bytes == nil:
			says = "back to what was sent"
		case is.Number != t.Correction:
			says = fmt.Sprintf("another text (--raw --correction %d)", is.Number)
		}
		says = strings.TrimSuffix(fmt.Sprintf("%s, by %s at %s: %s", says, is.Who, c.stamp(is.At), is.Why), ": ")
		rows = append(rows, []string{fmt.Sprintf("Correction %d", is.Number), says})
	}
	if t.NextAttemptAt != nil {
		rows = append(rows, []string{"Next attempt", c.stamp(*t.NextAttemptAt)})
	}
	if err := printFields(w, []string{"Ticket", t.ID.String()}, rows); err != nil {
		return err
	}
	if err := showLines(w, t.Lines); err != nil {
		return err
	}
	body, text := t.Readable(t.Body), t.Readable(t.Text)
	if t.Status == ticket.ToTreat {
		showProblems(w, "Problems, when it was read last:", t.Problems, "") // they may be of another text
	} else {
		showProblems(w, problemsNow, t.Problems, text)
	}
	if t.Correction != 0 {
		fmt.Fprintf(w, "\n%s\n", look(w).bold(
			fmt.Sprintf("Body (%d bytes; --raw writes them unchanged), and what is read instead:", len(t.Body))))
		showDiff(w, "body", body, "correction "+strconv.Itoa(t.Correction), text, wholeDiff)
		return nil
	}
	as := ""
	if body != string(t.Body) {
		as = ", shown as they are read"
	}
	fmt.Fprintf(w, "\n%s\n", look(w).bold(fmt.Sprintf("Body (%d bytes%s; --raw writes them unchanged):", len(t.Body), as)))
	_, err := fmt.Fprintln(w, printableText(strings.ReplaceAll(body, "\r\n", "\n")))
	return err
}

// showLines writes the lines of a ticket, if it has any.
func showLines(w io.Writer, lines []postgres.StoredLine) error {
	if len(lines) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	rows := make([][]string, 0, len(lines))
	for _, line := range lines {
		var extra []string
		for _, f := range line.Extra {
			extra = append(extra, f.Name+"="+f.Value)
		}
		rows = append(rows, []string{line.ProductID, line.Price.String(), line.Product, strings.Join(extra, " ")})
	}
	return printFields(w, []string{"PRODUCT_ID", "PRICE", "PRODUCT", ""}, rows)
}

const problemsNow = "Problems:"

// showProblems writes problems, if there are any, each with the line of the text that it is in.
func showProblems(w io.Writer, title string, problems []ticket.Problem, text string) {
	if len(problems) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n", look(w).bold(title))
	body := textLines(text)
	for _, p := range problems {
		fmt.Fprintf(w, "  %s\n", printable(describe(p)))
		if p.Line > 0 && p.Line <= len(body) {
			fmt.Fprintf(w, "    %d | %s\n", p.Line, printable(cut(body[p.Line-1], 200)))
		}
	}
}

// textLines splits a text as the parser does: LF, CRLF and CR each end a line.
func textLines(text string) []string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	return strings.Split(strings.ReplaceAll(text, "\r", "\n"), "\n")
}
