package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"myticket/internal/dialect"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// readCmd is `myticket read`, for those who integrate a till.
type readCmd struct {
	databaseFlags
	Files   []string   `arg:"" name:"FILE" help:"Files with one ticket each. - is standard input."`
	Source  sourceName `group:"Dialect" help:"Read as the tickets of this source are read now. This asks the database, and changes nothing. Default: the dialect of everyone, without a database."`
	Dialect string     `group:"Dialect" type:"path" placeholder:"FILE" help:"Read in the dialect of a file, as YAML or JSON (docs/dialect.schema.json)."`
	Output  string     `short:"o" default:"text" enum:"text,json" help:"text for people, json for programs. Default: ${default}."`
}

// Validate is called by kong.
func (c readCmd) Validate() error {
	if c.Source != "" && c.Dialect != "" {
		return errors.New("give --source or --dialect, not both")
	}
	return nil
}

// readReport is what a program reads.
type readReport struct {
	File        string                 `json:"file"`
	Status      ticket.Status          `json:"status"` // that it would have
	OrderNumber string                 `json:"order_number,omitempty"`
	VAT         json.Number            `json:"vat,omitempty"`
	Total       json.Number            `json:"total,omitempty"`
	Lines       []postgres.StoredLine  `json:"lines"`
	Extra       []postgres.StoredField `json:"extra,omitempty"`
	Problems    []ticket.Problem       `json:"problems"`
	Dialect     int                    `json:"dialect,omitempty"` // version of the source's; 0 for any other
}

func (c readCmd) Run(ctx context.Context, std streams) error {
	with, err := c.reading(ctx, std)
	if err != nil {
		return err
	}
	reports, bad := []readReport{}, 0
	for i, name := range c.Files {
		body, err := readFile(name, std.stdin, ticket.MaxTextBytes+1) // one byte more is a problem of the ticket
		if err != nil {
			return err
		}
		order, problems, version := with.Parse(string(c.Source), body)
		t := postgres.AsRead(&order, problems)
		t.Dialect = version
		if len(problems) > 0 {
			bad++
		}
		if c.Output == "json" {
			reports = append(reports, readReport{
				name, t.Status, t.OrderNumber, t.VAT, t.Total, t.Lines, t.Extra, t.Problems, t.Dialect,
			})
			continue
		}
		if i > 0 {
			fmt.Fprintln(std.stdout)
		}
		if err := c.show(std.stdout, []string{"File", name}, t, with.Text(string(c.Source), body)); err != nil {
			return err
		}
	}
	if c.Output == "json" {
		err = printJSON(std.stdout, reports)
	}
	if bad > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d tickets would be %s", bad, len(c.Files), ticket.Error))
	}
	return err
}

// reading reads tickets of a source.
type reading interface {
	Parse(source string, body []byte) (ticket.Order, []ticket.Problem, int)
	Text(source string, body []byte) string
}

// readingFile reads all tickets in the dialect of a file; a nil reader in that of everyone.
type readingFile struct{ reader *ticket.Reader }

func (r readingFile) Parse(_ string, body []byte) (ticket.Order, []ticket.Problem, int) {
	order, problems := r.reader.Parse(body)
	return order, problems, 0
}

func (r readingFile) Text(_ string, body []byte) string { return r.reader.Text(body) }

// reading returns what reads the tickets.
func (c readCmd) reading(ctx context.Context, std streams) (reading, error) {
	switch {
	case c.Source != "":
		store, err := c.open(ctx, std, "read")
		if err != nil {
			return nil, err
		}
		defer store.Close()
		dialects := postgres.NewLiveDialects(store, false)
		if err := dialects.Load(ctx); err != nil {
			return nil, err
		}
		return dialects, nil
	case c.Dialect != "":
		content, err := readFile(c.Dialect, nil, dialect.MaxBytes+1)
		if err != nil {
			return nil, fmt.Errorf("read --dialect: %w", err)
		}
		d, err := dialect.Parse(content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Dialect, err)
		}
		reader, err := ticket.NewReader(d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Dialect, err)
		}
		return readingFile{reader}, nil
	}
	return readingFile{}, nil
}

// show writes what a ticket would become, for a person.
func (c readCmd) show(w io.Writer, title []string, t postgres.StoredTicket, text string) error {
	rows := [][]string{{"Status", string(t.Status)}}
	if c.Source != "" {
		of := "of everyone"
		if t.Dialect != 0 {
			of = "version " + strconv.Itoa(t.Dialect)
		}
		rows = append(rows, []string{"Dialect", of})
	}
	rows = append(rows, []string{"Order", t.OrderNumber}, []string{"VAT", t.VAT.String()}, []string{"Total", t.Total.String()})
	for _, f := range t.Extra {
		rows = append(rows, []string{"Header " + f.Name, f.Value})
	}
	if err := printFields(w, title, rows); err != nil {
		return err
	}
	if err := showLines(w, t.Lines); err != nil {
		return err
	}
	showProblems(w, problemsNow, t.Problems, text)
	return nil
}
