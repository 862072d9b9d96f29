package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"

	"myticket/internal/dialect"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// dialectsCmd is `myticket dialects`.
type dialectsCmd struct {
	List    dialectsListCmd    `cmd:"" help:"List the dialects that count."`
	Show    dialectsShowCmd    `cmd:"" help:"Show the dialect of a source as a file, or any version of one."`
	History dialectsHistoryCmd `cmd:"" help:"List all versions of the dialect of a source, newest first."`
	Try     dialectsTryCmd     `cmd:"" help:"Read tickets of a source in the dialect of a file, and show what they would become. Nothing is changed."`
	Apply   dialectsApplyCmd   `cmd:"" help:"Make the dialect of a file count for a source, after showing what try shows."`
	Revert  dialectsRevertCmd  `cmd:"" help:"Make an earlier version of the dialect of a source count again."`
}

// sourceName is a source, or * for all that have no dialect of their own.
type sourceName string

var sourcePattern = regexp.MustCompile(`^([a-z0-9-]{1,63}|\*)$`)

// Validate is called by kong.
func (s sourceName) Validate() error {
	if s != "" && !sourcePattern.MatchString(string(s)) {
		return fmt.Errorf("%q is no source: it must have 1 to 63 of a-z, 0-9 and -, or be * for all sources that have no dialect of "+
			"their own", string(s))
	}
	return nil
}

type dialectsListCmd struct {
	databaseFlags
	outputFlags
}

func (c dialectsListCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "dialects")
	if err != nil {
		return err
	}
	defer store.Close()
	versions, err := store.Dialects(ctx)
	if err != nil {
		return err
	}
	return printVersions(std, c.outputFlags, versions)
}

type dialectsHistoryCmd struct {
	databaseFlags
	outputFlags
	Source sourceName `arg:"" help:"The source, or '*'."`
	Limit  int        `default:"50" help:"Maximum number of versions. Default: ${default}."`
}

// Validate is called by kong.
func (c dialectsHistoryCmd) Validate() error {
	if c.Limit < 1 || c.Limit > 1000 {
		return errors.New("--limit must be 1 to 1000")
	}
	return nil
}

func (c dialectsHistoryCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "dialects")
	if err != nil {
		return err
	}
	defer store.Close()
	versions, err := store.DialectHistory(ctx, string(c.Source), c.Limit)
	if err != nil {
		return err
	}
	return printVersions(std, c.outputFlags, versions)
}

func printVersions(std streams, output outputFlags, versions []postgres.DialectVersion) error {
	if output.Output == "json" {
		return printJSON(std.stdout, append([]postgres.DialectVersion{}, versions...))
	}
	rows := make([][]string, 0, len(versions))
	for _, v := range versions {
		says := string(v.Dialect)
		if v.Dialect == nil {
			says = "none: taken away"
		}
		rows = append(rows, []string{v.Source, strconv.Itoa(v.Version), stamp(v.CreatedAt), v.Who, cut(v.Why, 60), cut(says, 80)})
	}
	return printTable(std.stdout, []string{"SOURCE", "VERSION", "SINCE", "BY", "REASON", "DIALECT"}, rows)
}

type dialectsShowCmd struct {
	databaseFlags
	outputFlags
	Source  sourceName `arg:"" optional:"" help:"The source, or '*'."`
	Version int        `placeholder:"N" help:"Show this version instead of the one that counts."`
}

// Validate is called by kong.
func (c dialectsShowCmd) Validate() error {
	if (c.Source == "") == (c.Version == 0) {
		return errors.New("give a source or --version, and not both")
	}
	return nil
}

func (c dialectsShowCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "dialects")
	if err != nil {
		return err
	}
	defer store.Close()
	var v postgres.DialectVersion
	if c.Version != 0 {
		v, err = store.Dialect(ctx, c.Version)
	} else {
		v, err = newestVersion(ctx, store, string(c.Source))
		switch {
		case err != nil || v.Dialect != nil:
		case c.Source == postgres.OtherSources:
			err = fmt.Errorf("%q has no dialect: sources without one of their own are read in the dialect of everyone", string(c.Source))
		default:
			err = fmt.Errorf("the source %s has no dialect of its own: its tickets are read as %q says, or else in the dialect of "+
				"everyone", c.Source, postgres.OtherSources)
		}
	}
	switch {
	case err != nil:
		return err
	case c.Output == "json":
		return printJSON(std.stdout, v)
	}
	fmt.Fprintf(std.stdout, "# Version %d of %s, %s, by %s: %s\n",
		v.Version, v.Source, stamp(v.CreatedAt), printable(v.Who), printable(v.Why))
	if v.Dialect == nil {
		_, err = fmt.Fprintln(std.stdout, "# This version took the dialect away.")
		return err
	}
	d, err := dialect.Parse(v.Dialect)
	if err != nil { // a newer program applied it
		return fmt.Errorf("this program does not understand it; --output json shows it as it is: %w", err)
	}
	text, err := dialect.YAML(d)
	if err != nil {
		return err
	}
	if isTerminal(std.stdout) { // a file must be exact
		text = []byte(printableText(string(text)))
	}
	_, err = std.stdout.Write(text)
	return err
}

// newestVersion returns the newest version of the dialect of a source; the zero value if it never had one.
func newestVersion(ctx context.Context, store *postgres.Store, source string) (postgres.DialectVersion, error) {
	versions, err := store.DialectHistory(ctx, source, 1)
	if err != nil || len(versions) == 0 {
		return postgres.DialectVersion{}, err
	}
	return versions[0], nil
}

// tryFlags say what is tried, and on which tickets.
type tryFlags struct {
	Source  sourceName `arg:"" help:"The source, or '*' for all sources that have no dialect of their own."`
	File    string     `required:"" placeholder:"FILE" help:"File with the dialect, as YAML or JSON; - for standard input."`
	Limit   int        `default:"100000" help:"Maximum number of ERROR tickets to read, newest first. Default: ${default}."`
	Treated int        `default:"1000" help:"Maximum number of TREATED tickets to compare, newest first. Default: ${default}."`
}

// check is for the Validate of commands.
func (f tryFlags) check() error {
	if f.Limit < 0 || f.Limit > 10_000_000 || f.Treated < 0 || f.Treated > 10_000_000 {
		return errors.New("--limit and --treated must be 0 to 10000000")
	}
	return nil
}

// read returns the dialect of the file, and its form for the database.
func (f tryFlags) read(std streams) (reader *ticket.Reader, written []byte, err error) {
	from := std.stdin
	if f.File != "-" {
		file, err := os.Open(f.File)
		if err != nil {
			return nil, nil, fmt.Errorf("--file: %w", err)
		}
		defer file.Close()
		from = file
	}
	content, err := io.ReadAll(io.LimitReader(from, dialect.MaxBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("--file: %w", err)
	}
	d, err := dialect.Parse(content)
	if err != nil {
		return nil, nil, fmt.Errorf("--file: %s: %w", f.File, err)
	}
	if reader, err = ticket.NewReader(d); err != nil {
		return nil, nil, fmt.Errorf("--file: %s: %w", f.File, err)
	}
	written, err = dialect.JSON(d)
	return reader, written, err
}

// try reads tickets, with progress on a terminal.
func (f tryFlags) try(
	ctx context.Context, std streams, store *postgres.Store, reader *ticket.Reader,
) (postgres.DialectTrial, error) {
	shown := newProgress(std.stderr)
	defer shown.end()
	trial, err := store.TryDialect(ctx, postgres.DialectTry{
		Source: string(f.Source), Reader: reader, Errors: f.Limit, Treated: f.Treated,
		Show: func(read int) { shown.show(fmt.Sprintf("%d tickets read", read)) },
	})
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted: nothing was changed")
	}
	return trial, err
}

type dialectsTryCmd struct {
	databaseFlags
	outputFlags
	tryFlags
}

// Validate is called by kong.
func (c dialectsTryCmd) Validate() error { return c.check() }

func (c dialectsTryCmd) Run(ctx context.Context, std streams) error {
	reader, _, err := c.read(std)
	if err != nil {
		return err
	}
	store, err := c.open(ctx, std, "dialects")
	if err != nil {
		return err
	}
	defer store.Close()
	trial, err := c.try(ctx, std, store, reader)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(std.stdout, trial)
	}
	return printTrial(std.stdout, trial)
}

// printTrial writes a trial for a person.
func printTrial(w io.Writer, trial postgres.DialectTrial) error {
	newest := map[bool]string{true: "the newest ", false: ""}
	e, t := trial.Errors, trial.Treated
	fmt.Fprintf(w, "ERROR: of %s%d tickets, %d would become TREATED, and %d would stay ERROR\n",
		newest[e.More], e.Read, e.Treated, e.Read-e.Treated)
	rows := make([][]string, 0, len(e.Left))
	for _, l := range e.Left {
		rows = append(rows, []string{l.Code, strconv.Itoa(l.Tickets), l.Example.String(), cut(describe(l.Problem), 100)})
	}
	if len(rows) > 0 {
		if err := printTable(w, []string{"PROBLEM", "TICKETS", "EXAMPLE", ""}, rows); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "TREATED: of %s%d tickets, %d would say something else, and %d of them would be ERROR\n",
		newest[t.More], t.Read, t.Changed, t.Errors)
	for _, c := range t.Changes {
		fmt.Fprintf(w, "\n%s would be %s\n", c.ID, c.Status)
		for _, line := range c.Removed {
			fmt.Fprintf(w, "  - %s\n", printable(line))
		}
		for _, line := range c.Added {
			_, err = fmt.Fprintf(w, "  + %s\n", printable(line))
		}
	}
	return err
}

// versionFlags are for the commands that make another version count.
type versionFlags struct {
	databaseFlags
	outputFlags
	personFlags
	confirmFlags
}

// begin opens the store, and returns the newest version of a source and what a change of it begins with.
func (f versionFlags) begin(ctx context.Context, std streams, source sourceName) (
	store *postgres.Store, now postgres.DialectVersion, change postgres.DialectChange, err error,
) {
	change.Source = string(source)
	if change.By, err = f.person(); err != nil {
		return nil, now, change, err
	}
	if store, err = f.open(ctx, std, "dialects"); err != nil {
		return nil, now, change, err
	}
	if now, err = newestVersion(ctx, store, change.Source); err != nil {
		store.Close()
		return nil, now, change, err
	}
	change.Previous = now.Version
	return store, now, change, nil
}

type dialectsApplyCmd struct {
	versionFlags
	tryFlags
}

// Validate is called by kong.
func (c dialectsApplyCmd) Validate() error {
	return errors.Join(c.check(), c.personFlags.check())
}

// appliedReport is what a program reads.
type appliedReport struct {
	Applied postgres.DialectVersion `json:"applied"`
	Tried   postgres.DialectTrial   `json:"tried"`
}

func (c dialectsApplyCmd) Run(ctx context.Context, std streams) error {
	reader, written, err := c.read(std)
	if err != nil {
		return err
	}
	store, now, change, err := c.begin(ctx, std, c.Source)
	if err != nil {
		return err
	}
	defer store.Close()
	if same(now.Dialect, written) {
		return fmt.Errorf("nothing was changed: version %d of %s says the same", now.Version, c.Source)
	}
	trial, err := c.try(ctx, std, store, reader)
	if err != nil {
		return err
	}
	if c.Output == "table" {
		if err := printTrial(std.stdout, trial); err != nil {
			return err
		}
	}
	question := fmt.Sprintf("Read the tickets of %s in this dialect from now on?", c.Source)
	if t := trial.Treated; t.Errors > 0 { // what says so is far above on a screen that is full of examples
		question = fmt.Sprintf("\n%d of %d TREATED tickets would be ERROR. %s", t.Errors, t.Read, question)
	}
	if err := c.confirm(ctx, std, question); err != nil {
		return err
	}
	made, err := store.ApplyDialect(ctx, change, written)
	if err != nil {
		return interrupted(ctx, err)
	}
	if c.Output == "json" {
		return printJSON(std.stdout, appliedReport{made, trial})
	}
	fmt.Fprintf(std.stdout, "\nVersion %d counts for %s from now on; servers use it within seconds.\n", made.Version, c.Source)
	return printRetry(std.stdout, change.Source)
}

// printRetry names the command that has tickets read again.
func printRetry(w io.Writer, source string) error {
	command := "myticket tickets retry --status ERROR"
	if source != postgres.OtherSources {
		command += " --source " + source
	}
	_, err := fmt.Fprintf(w, "To have its ERROR tickets read again: %s\n", command)
	return err
}

// same reports whether a dialect that is kept says what another one does.
func same(kept json.RawMessage, written []byte) bool {
	if kept == nil {
		return false
	}
	d, err := dialect.Parse(kept)
	if err != nil {
		return false
	}
	content, err := dialect.JSON(d)
	return err == nil && bytes.Equal(content, written)
}

type dialectsRevertCmd struct {
	versionFlags
	Source sourceName `arg:"" help:"The source, or '*'."`
	To     int        `placeholder:"VERSION" help:"The version that is to count again. Default: the one before the present one; if there was none, the dialect is taken away."`
}

// Validate is called by kong.
func (c dialectsRevertCmd) Validate() error { return c.check() }

func (c dialectsRevertCmd) Run(ctx context.Context, std streams) error {
	store, now, change, err := c.begin(ctx, std, c.Source)
	if err != nil {
		return err
	}
	defer store.Close()
	if now.Version == 0 {
		return fmt.Errorf("nothing was changed: the source %s never had a dialect of its own", c.Source)
	}
	question := fmt.Sprintf("Replace version %d of %s by what version %d says?", now.Version, c.Source, now.Previous)
	switch {
	case c.To != 0:
		question = fmt.Sprintf("Replace version %d of %s by what version %d says?", now.Version, c.Source, c.To)
	case now.Previous == 0:
		question = fmt.Sprintf("Take version %d of %s away, so that it has no dialect of its own?", now.Version, c.Source)
	}
	if err := c.confirm(ctx, std, question); err != nil {
		return err
	}
	made, err := store.RevertDialect(ctx, change, c.To)
	if err != nil {
		return interrupted(ctx, err)
	}
	if c.Output == "json" {
		return printJSON(std.stdout, made)
	}
	says := fmt.Sprintf("the same as version %d", cmp.Or(c.To, now.Previous))
	if made.Dialect == nil {
		says = "that it has no dialect of its own"
	}
	fmt.Fprintf(std.stdout, "Version %d of %s says %s; servers use it within seconds.\n", made.Version, c.Source, says)
	return printRetry(std.stdout, change.Source)
}
