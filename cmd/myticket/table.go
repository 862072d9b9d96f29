package main

import (
	"io"
	"strings"

	"github.com/mattn/go-runewidth"
)

// textColumns are columns whose cells may be cut to fit a terminal. All others have ids, times and figures, which are of no use
// if a part is missing.
var textColumns = map[string]bool{
	"PROBLEM": true, "FIRST PROBLEM": true, "REASON": true, "FILTER": true, "DETAILS": true, "NAME": true, "DIALECT": true,
	"VERDICT": true, "": true,
}

const (
	leastText = 24 // columns of a terminal that a cell with a text gets
	indent    = "  "
	between   = "  "
)

// printTable writes rows in columns. Every cell is made safe for a terminal. On a terminal that is too narrow, texts are cut, and
// columns that do not fit go to a line of their own, below the others. Elsewhere nothing is cut.
func printTable(w io.Writer, header []string, rows [][]string) error {
	l := look(w)
	t := newTable(header, rows)
	_, t.cutsAll = w.(*page)
	return t.write(w, l, l.width)
}

// printFields is for one thing of which all is shown, with names and values as rows: nothing is cut.
func printFields(w io.Writer, header []string, rows [][]string) error {
	return newTable(header, rows).write(w, look(w), 0)
}

// table is a table whose cells are safe for a terminal. The first row is the header.
type table struct {
	rows   [][]string
	text   []bool // by column: may be cut
	status int    // the column with statuses; -1 if there is none
	widths []int  // by column: of the widest cell

	// cutsAll is for --watch, where a line is a line: an id that is wider than the terminal is cut there. Elsewhere the terminal
	// continues it on the next line.
	cutsAll bool
}

func newTable(header []string, rows [][]string) *table {
	t := &table{status: -1, widths: make([]int, len(header))}
	for i, name := range header {
		t.text = append(t.text, textColumns[name])
		if name == "STATUS" {
			t.status = i
		}
	}
	for _, row := range append([][]string{header}, rows...) {
		safe := make([]string, len(row))
		for i, cell := range row {
			safe[i] = printable(cell)
			t.widths[i] = max(t.widths[i], runewidth.StringWidth(safe[i]))
		}
		t.rows = append(t.rows, safe)
	}
	return t
}

// write writes the table. The width is that of the terminal, or 0 if there is none.
func (t *table) write(w io.Writer, l looks, width int) error {
	lines := t.lines(width)
	var b strings.Builder
	for n, row := range t.rows {
		for i, columns := range lines {
			line := t.line(row, columns, l, n == 0)
			if i > 0 && line == "" {
				continue
			}
			if i > 0 {
				line = indent + line
			}
			b.WriteString(line + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// line returns cells of a row, padded but for the last one.
func (t *table) line(row []string, columns []int, l looks, header bool) string {
	var b strings.Builder
	empty := true
	for n, column := range columns {
		cell := row[column]
		empty = empty && cell == ""
		if runewidth.StringWidth(cell) > t.widths[column] && (t.text[column] || t.cutsAll) {
			cell = runewidth.Truncate(cell, t.widths[column], "…")
		}
		pad := ""
		if n < len(columns)-1 {
			pad = strings.Repeat(" ", t.widths[column]-runewidth.StringWidth(cell)) + between
		}
		switch {
		case header:
			cell = l.bold(cell)
		case column == t.status, column == 1 && row[0] == "Status":
			cell = l.status(cell)
		}
		b.WriteString(cell + pad)
	}
	if empty {
		return ""
	}
	return strings.TrimRight(b.String(), " ")
}

// lines returns the columns of each line that a row takes, and makes the columns as narrow as the terminal needs them.
func (t *table) lines(width int) (lines [][]int) {
	used := 0
	for column := range t.widths {
		least := t.widths[column]
		if t.text[column] {
			least = min(least, leastText)
		}
		if width > 0 {
			least = min(least, max(width-len(indent), 1))
		}
		if len(lines) == 0 || width > 0 && used+len(between)+least > width {
			lines = append(lines, nil)
			used = least
			if len(lines) > 1 {
				used += len(indent)
			}
		} else {
			used += len(between) + least
		}
		last := len(lines) - 1
		lines[last] = append(lines[last], column)
	}
	if width > 0 {
		for i, columns := range lines {
			room := width - len(between)*(len(columns)-1)
			if i > 0 {
				room -= len(indent)
			}
			t.fit(columns, max(room, 1))
		}
	}
	return lines
}

// fit takes from the widest of the columns with texts until all columns have room.
func (t *table) fit(columns []int, room int) {
	for {
		sum, widest := 0, columns[0]
		for _, column := range columns {
			sum += t.widths[column]
			if t.text[column] && (!t.text[widest] || t.widths[column] > t.widths[widest]) {
				widest = column
			}
		}
		if sum <= room || t.widths[widest] == 1 {
			return
		}
		if !t.text[widest] { // one cell that is wider than the terminal, and alone on its line
			t.widths[widest] = max(room-sum+t.widths[widest], 1)
			return
		}
		t.widths[widest]--
	}
}
