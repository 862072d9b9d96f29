package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/prometheus/common/model"
)

// outputFlags choose who reads the answer.
type outputFlags struct {
	Output string `short:"o" default:"table" enum:"table,json" help:"table for people, json for programs. Default: ${default}."`
}

// printJSON writes a value for programs.
func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// printTable writes rows in columns. Every cell is made safe for a terminal.
func printTable(w io.Writer, header []string, rows [][]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(table, "\t")
			}
			fmt.Fprint(table, printable(cell))
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

// printable escapes what a terminal would obey instead of showing: a ticket's text comes from anybody.
func printable(s string) string { return escape(s, false) }

// printableText is printable for a text of several lines.
func printableText(s string) string { return escape(s, true) }

func escape(s string, lines bool) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\ufffd") {
		switch {
		case lines && (r == '\n' || r == '\t'), unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// cut shortens a text for a table.
func cut(s string, most int) string {
	n := 0
	for i := range s {
		if n++; n > most {
			return s[:i] + "…"
		}
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// span is a length of time, written as 90d, 2w, 36h or 1h30m.
type span time.Duration

// UnmarshalText reads a span.
func (s *span) UnmarshalText(text []byte) error {
	d, err := model.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no length of time: write 90d, 2w, 36h or 1h30m", text)
	}
	*s = span(d)
	return nil
}

// moment is a point in time, written as a time, as a day (UTC), or as a span back from now.
type moment time.Time

// UnmarshalText reads a moment.
func (m *moment) UnmarshalText(text []byte) error {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, string(text)); err == nil {
			*m = moment(t)
			return nil
		}
	}
	d, err := model.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no time: write 2026-11-23T08:00:00Z, 2026-11-23, or 2h or 3d for so long ago", text)
	}
	*m = moment(time.Now().Add(-time.Duration(d)))
	return nil
}
