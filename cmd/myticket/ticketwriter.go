package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"myticket/internal/postgres"
)

// ticketWriter writes tickets, page by page: as a table, as one array of JSON, or as CSV.
type ticketWriter struct {
	listFlags
	w    io.Writer
	csv  *csv.Writer
	json []postgres.StoredTicket
	rows [][]string
}

func newTicketWriter(flags listFlags, w io.Writer) *ticketWriter {
	t := &ticketWriter{listFlags: flags, w: w, csv: csv.NewWriter(w), json: []postgres.StoredTicket{}}
	t.csv.UseCRLF = true // RFC 4180
	return t
}

// ticketColumns are the columns of the table. Those of CSV are the same in lower case, but for its last ones.
var ticketColumns = []string{"ID", "RECEIVED", "SOURCE", "STATUS", "ORDER", "TOTAL", "LINES", "PROBLEM"}

var csvColumns = []string{
	"id", "received", "source", "status", "order", "vat", "total", "lines",
	"problems", "problem_line", "problem_code", "problem_message",
}

// write takes the next tickets.
func (t *ticketWriter) write(tickets []postgres.StoredTicket) error {
	switch t.Output {
	case "json":
		t.json = append(t.json, tickets...)
	case "csv":
		return t.writeCSV(tickets)
	default:
		for _, found := range tickets {
			t.rows = append(t.rows, t.row(found))
		}
	}
	return nil
}

// end writes what is left.
func (t *ticketWriter) end() error {
	switch t.Output {
	case "json":
		return printJSON(t.w, t.json)
	case "csv":
		return t.writeCSV(nil)
	}
	return printTable(t.w, ticketColumns, t.rows)
}

// row returns a ticket as a row of the table.
func (t *ticketWriter) row(found postgres.StoredTicket) []string {
	problem := ""
	if n := len(found.Problems); n > 0 {
		problem = describe(found.Problems[0])
		if n > 1 {
			problem += fmt.Sprintf(" (and %d more)", n-1)
		}
	}
	return []string{
		found.ID.String(), t.stamp(found.ReceivedAt), found.Source, string(found.Status), found.OrderNumber, found.Total.String(),
		strconv.Itoa(len(found.Lines)), problem,
	}
}

// writeCSV writes the header before the first ticket, or if there is none.
func (t *ticketWriter) writeCSV(tickets []postgres.StoredTicket) error {
	if t.rows == nil {
		t.rows = [][]string{csvColumns}
		if err := t.csv.Write(csvColumns); err != nil {
			return err
		}
	}
	for _, found := range tickets {
		line, code, message := "", "", ""
		if len(found.Problems) > 0 {
			p := found.Problems[0]
			line, code, message = strconv.Itoa(p.Line), p.Code, p.Message
		}
		err := t.csv.Write([]string{
			found.ID.String(), t.stamp(found.ReceivedAt), csvText(found.Source), string(found.Status), csvText(found.OrderNumber),
			found.VAT.String(), found.Total.String(), strconv.Itoa(len(found.Lines)), strconv.Itoa(len(found.Problems)),
			line, csvText(code), csvText(message),
		})
		if err != nil {
			return err
		}
	}
	t.csv.Flush()
	return t.csv.Error()
}

// csvText returns a text of a ticket so that a spreadsheet takes it for a text. A cell that begins with one of these characters
// may be a formula to it (https://owasp.org/www-community/attacks/CSV_Injection). Such a text gets an apostrophe before it, and
// so does one that begins with an apostrophe: whoever takes one apostrophe away from the beginning has the text as tables show
// it. Amounts and times are written by MyTicket, and have none. Characters that a terminal would obey are escaped as in tables.
func csvText(text string) string {
	text = printable(text)
	if first, _ := utf8.DecodeRuneInString(text); text != "" && strings.ContainsRune("=+-@'\uff1d\uff0b\uff0d\uff20", first) {
		return "'" + text
	}
	return text
}

// writeNow writes tickets at once, one in a line: for tickets that come one after the other.
func (t *ticketWriter) writeNow(tickets []postgres.StoredTicket) error {
	switch t.Output {
	case "csv":
		return t.writeCSV(tickets)
	case "json":
		for _, found := range tickets {
			line, err := json.Marshal(found)
			if err != nil {
				return err
			}
			if _, err := t.w.Write(append(escapeJSON(line), '\n')); err != nil {
				return err
			}
		}
		return nil
	}
	for _, found := range tickets {
		row := t.row(found)
		row[7] = cut(row[7], 80) // on any terminal, each ticket takes one line or two
		for i := range row {
			row[i] = printable(row[i])
		}
		status := look(t.w).status(fmt.Sprintf("%-9s", row[3]))
		if _, err := fmt.Fprintf(t.w, "%s  %s  %-12s  %s  %-10s  %10s  %5s  %s\n",
			row[0], row[1], row[2], status, row[4], row[5], row[6], row[7]); err != nil {
			return err
		}
	}
	return nil
}
