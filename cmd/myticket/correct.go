package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aymanbagabas/go-udiff"
	"github.com/google/uuid"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// ticketsCorrectCmd is `myticket tickets correct`.
type ticketsCorrectCmd struct {
	databaseFlags
	personFlags
	confirmFlags
	outputFlags
	ID     uuid.UUID     `arg:"" help:"The ticket's id."`
	File   string        `type:"path" placeholder:"FILE" help:"File with the text that is to be read instead of what was sent; - for standard input. Default: opens an editor on the text."`
	Revert bool          `help:"Read what was sent again."`
	DryRun bool          `help:"Only show what the ticket would become."`
	Wait   time.Duration `default:"10s" placeholder:"TIME" help:"How long to wait until a server has read the text. Default: ${default}."`
	Editor string        `env:"VISUAL,EDITOR" default:"vi" placeholder:"COMMAND" help:"The editor. A shell runs it, with a file as its argument. Default: ${default}."`
}

// Validate is called by kong.
func (c ticketsCorrectCmd) Validate() error {
	if c.Revert && c.File != "" {
		return errors.New("give --file or --revert, not both")
	}
	if c.Wait < 0 || c.Wait > time.Hour {
		return errors.New("--wait must be 0s to 1h")
	}
	return c.check()
}

// correctedReport is what a program reads.
type correctedReport struct {
	ID         uuid.UUID        `json:"id"`
	Applied    bool             `json:"applied"`
	Correction int              `json:"correction"` // its number; 0 if what was sent is read
	Status     ticket.Status    `json:"status"`     // that it has, or would have
	Problems   []ticket.Problem `json:"problems"`
}

func (c ticketsCorrectCmd) Run(ctx context.Context, std streams) (err error) {
	by, err := c.person()
	if err != nil {
		return err
	}
	store, err := c.open(ctx, std, "tickets")
	if err != nil {
		return err
	}
	defer store.Close()
	corrections, err := store.Corrections(ctx, c.ID) // before the text, so that none is overruled that is not seen
	if err != nil {
		return err
	}
	t, err := store.Ticket(ctx, c.ID)
	if err != nil {
		return err
	}
	dialects := postgres.NewLiveDialects(store, false)
	if err := dialects.Load(ctx); err != nil {
		return err
	}
	to := postgres.NewText{}
	if len(corrections) > 0 {
		to.Seen = corrections[0].Number
	}
	text := t.Body
	if c.Revert && t.Correction == 0 {
		return fmt.Errorf("ticket %s: %w", c.ID, postgres.ErrNotCorrected)
	}
	report := correctedReport{ID: c.ID}
	if !c.Revert {
		edited := ""
		if text, edited, err = c.text(ctx, std, t, dialects); err != nil {
			return err
		}
		to.Text, report.Correction = text, to.Seen+1
		defer func() {
			if edited != "" && err != nil && !report.Applied {
				err = fmt.Errorf("%w\nThe text is in %s", err, edited)
			} else if edited != "" {
				_ = os.Remove(edited)
			}
		}()
	}
	would, err := c.preview(std, t, dialects, text)
	if err != nil {
		return err
	}
	report.Status, report.Problems = would.Status, would.Problems
	if c.DryRun {
		return c.print(std, report)
	}
	if err := c.confirm(ctx, std, "Shall this be read instead of what is read now?"); err != nil {
		return err
	}
	if err := store.CorrectTicket(ctx, by, c.ID, to); err != nil {
		return interrupted(ctx, err)
	}
	report.Applied = true
	if t, err = c.await(ctx, store); err != nil {
		return fmt.Errorf("the ticket is corrected, but it is not known what it became: %w", interrupted(ctx, err))
	}
	report.Status, report.Problems = t.Status, t.Problems
	return c.print(std, report)
}

// text returns the new text: that of the file, or what a person made of the ticket in an editor, and the name of that file.
func (c ticketsCorrectCmd) text(
	ctx context.Context, std streams, t postgres.StoredTicket, dialects *postgres.LiveDialects,
) (text []byte, edited string, err error) {
	if c.File != "" {
		text, err = readFile(c.File, std.stdin, ticket.MaxTextBytes+1)
		if err != nil {
			return nil, "", fmt.Errorf("--file: %w", err)
		}
	} else {
		if !isTerminal(std.stdin) || !isTerminal(std.stdout) {
			return nil, "", errors.New("nothing was changed: there is no terminal for an editor; use --file")
		}
		if text, edited, err = c.edit(ctx, std, t, dialects); err != nil {
			return nil, "", err
		}
	}
	switch {
	case len(text) > ticket.MaxTextBytes:
		err = fmt.Errorf("the text has more than %d bytes, which no ticket may have; nothing was changed", ticket.MaxTextBytes)
	case len(bytes.TrimSpace(text)) == 0:
		err = errors.New("the text is empty; nothing was changed")
	case bytes.Equal(text, t.Text):
		err = errors.New("the text is what is read already; nothing was changed")
	}
	if err != nil && edited != "" {
		_ = os.Remove(edited)
	}
	return text, edited, err
}

// textBelow ends the comments in a file for an editor.
const textBelow = "# ------ The text of the ticket is below this line. Leave this line as it is. ------"

// edit opens an editor on the text that is read now, with the problems as comments on top.
func (c ticketsCorrectCmd) edit(
	ctx context.Context, std streams, t postgres.StoredTicket, dialects *postgres.LiveDialects,
) (text []byte, name string, err error) {
	shown := t.Readable(t.Text)
	if !utf8.ValidString(shown) {
		return nil, "", errors.New("the ticket cannot be shown as text; nothing was changed: use --file")
	}
	file, err := os.CreateTemp("", "myticket-"+c.ID.String()+"-*.txt") // only this user can read it
	if err != nil {
		return nil, "", err
	}
	name = file.Name()
	_, err = file.WriteString(comments(t, shown) + textBelow + "\n" + shown)
	if err = errors.Join(err, file.Close()); err != nil {
		_ = os.Remove(name)
		return nil, "", err
	}
	command := cmp.Or(c.Editor, os.Getenv("EDITOR"), "vi") // VISUAL or EDITOR may be set to nothing
	// As git does it, so that the command may have arguments. An interrupt is for the editor.
	//nolint:gosec // the command is the person's own
	editor := exec.CommandContext(context.WithoutCancel(ctx), "sh", "-c", command+` "$@"`, command, name)
	editor.Stdin, editor.Stdout, editor.Stderr = std.stdin, std.stdout, std.stderr
	if err := editor.Run(); err != nil {
		_ = os.Remove(name)
		return nil, "", fmt.Errorf("the editor %q failed (%w); nothing was changed: set EDITOR, or use --file", command, err)
	}
	content, err := readFile(name, nil, ticket.MaxTextBytes+1<<20)
	if err != nil {
		return nil, "", err
	}
	// Only at the beginning of a line: a comment may quote the same line of the ticket.
	_, below, found := strings.Cut("\n"+string(content), "\n"+textBelow)
	below, isLine := strings.CutPrefix(strings.TrimPrefix(below, "\r"), "\n")
	if !found || !isLine && below != "" {
		return nil, "", fmt.Errorf("the line above the text is missing in %s, so it is not clear where the text begins; nothing was "+
			"changed: remove what is above the text, and use --file", name)
	}
	if !strings.HasSuffix(shown, "\n") && strings.TrimSuffix(below, "\n") == shown { // editors end the last line
		return t.Text, name, nil
	}
	if text = []byte(below); dialects.Text(t.Source, text) != below { // the dialect says that it is not UTF-8
		text = []byte("\ufeff" + below)
	}
	return text, name, nil
}

// comments says what is wrong with a ticket, for an editor.
func comments(t postgres.StoredTicket, shown string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Ticket %s of %s, received at %s, is %s.\n", t.ID, t.Source, stamp(t.ReceivedAt), t.Status)
	b.WriteString("Correct the text below. What was sent is kept. To change nothing, leave the text as it is.\n")
	showProblems(&b, problemsNow, t.Problems, shown)
	var commented strings.Builder
	for line := range strings.Lines(b.String()) {
		commented.WriteString(strings.TrimRight("# "+line, " \n") + "\n")
	}
	return commented.String()
}

// preview shows what a ticket would become.
func (c ticketsCorrectCmd) preview(
	std streams, t postgres.StoredTicket, dialects *postgres.LiveDialects, text []byte,
) (postgres.StoredTicket, error) {
	order, problems, version := dialects.Parse(t.Source, text)
	would := postgres.AsRead(&order, problems)
	would.Dialect = version
	if c.Output == "json" {
		return would, nil
	}
	becomes := dialects.Text(t.Source, text)
	showDiff(std.stderr, "is read now", t.Readable(t.Text), "would be read", becomes, shortDiff)
	fmt.Fprintln(std.stderr)
	show := readCmd{Source: sourceName(t.Source)}
	return would, show.show(std.stderr, []string{"It would be", ""}, would, becomes)
}

// await returns the ticket once a server has read it, or after a while as it is.
func (c ticketsCorrectCmd) await(ctx context.Context, store *postgres.Store) (postgres.StoredTicket, error) {
	for end := time.Now().Add(c.Wait); ; {
		t, err := store.Ticket(ctx, c.ID)
		if err != nil || t.Status != ticket.ToTreat || time.Now().After(end) {
			return t, err
		}
		select {
		case <-ctx.Done():
			return t, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c ticketsCorrectCmd) print(std streams, report correctedReport) error {
	if c.Output == "json" {
		return printJSON(std.stdout, report)
	}
	if !report.Applied {
		_, err := fmt.Fprintf(std.stdout, "It would be %s. Nothing was changed.\n", report.Status)
		return err
	}
	is, until := "corrected", ""
	if c.Revert {
		is = "as it was sent"
	}
	if report.Status == ticket.ToTreat {
		until = " until a server has read it"
	}
	_, err := fmt.Fprintf(std.stdout, "It is %s, and %s%s.\n", is, report.Status, until)
	return err
}

// How much of a diff is shown around what differs, in lines, and the longest texts that are compared, in bytes.
const (
	shortDiff   = 3
	wholeDiff   = ticket.MaxTextBytes
	maxDiffText = 1 << 20
)

// showDiff writes what differs between two texts, for a person.
func showDiff(w io.Writer, oldName, before, newName, after string, context int) {
	if len(before) > maxDiffText || len(after) > maxDiffText {
		fmt.Fprintf(w, "%s: %d bytes; %s: %d bytes. That is too long to show what differs.\n",
			oldName, len(before), newName, len(after))
		return
	}
	before, after = wholeLines(before), wholeLines(after)
	diff, err := udiff.ToUnified(oldName, newName, before, udiff.Lines(before, after), context)
	if err != nil { // only for edits that are not of this text
		diff = err.Error()
	}
	fmt.Fprint(w, look(w).diff(printableText(cmp.Or(diff, "Only line ends or the encoding differ.\n"))))
}

// wholeLines ends each line of a text by LF.
func wholeLines(text string) string {
	return strings.TrimSuffix(strings.ReplaceAll(text, "\r\n", "\n"), "\n") + "\n"
}
