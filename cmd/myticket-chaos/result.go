package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// result is a line of the table.
type result struct {
	name, fault string
	skipped     string // why; empty when it was played

	sent, stored, spooled, refused, unanswered int
	checked                                    bool // what is stored was checked; otherwise what follows is unknown
	lost, doubled                              int
	longest, drained                           time.Duration

	failures []string // demands that did not hold
	notes    []string // sentences below the table
}

// count fills in what the answers say.
func (r *result) count(l *ledger) {
	other := map[int16]int{}
	r.sent = len(l.tickets)
	for i := range l.tickets {
		s := &l.tickets[i]
		r.longest = max(r.longest, s.took)
		switch s.status {
		case http.StatusOK:
			r.stored++
		case http.StatusAccepted:
			r.spooled++
		case http.StatusServiceUnavailable, http.StatusTooManyRequests:
			r.refused++
		case 0:
			r.unanswered++
		default:
			other[s.status]++
		}
	}
	for status, n := range other {
		r.failures = append(r.failures, fmt.Sprintf("%d tickets were answered with %d, which is wrong for a good ticket", n, status))
	}
}

func (r *result) word() string {
	switch {
	case r.skipped != "":
		return "skipped: " + r.skipped
	case len(r.failures) > 0:
		return "FAILED"
	}
	return "ok"
}

// err returns what was wrong, or nil.
func (r *result) err() error {
	var errs []error
	for _, failure := range r.failures {
		errs = append(errs, fmt.Errorf("%s: %s", r.name, failure))
	}
	return errors.Join(errs...)
}

var columns = []string{
	"fault", "sent", "200", "202", "refused (503 and 429)", "no answer", "lost", "doubled", "longest wait", "drained in",
}

func (r *result) cells(fault string) []string {
	if r.skipped != "" {
		return []string{fault, "skipped: " + r.skipped, "", "", "", "", "", "", "", ""}
	}
	cells := []string{fault}
	for _, n := range []int{r.sent, r.stored, r.spooled, r.refused, r.unanswered} {
		cells = append(cells, strconv.Itoa(n))
	}
	longest := fmt.Sprintf("%.2f s", r.longest.Seconds())
	if !r.checked {
		return append(cells, "?", "?", longest, "?")
	}
	return append(cells, strconv.Itoa(r.lost), strconv.Itoa(r.doubled), longest, fmt.Sprintf("%.2f s", r.drained.Seconds()))
}

// printResults prints the table, then the notes.
func printResults(w io.Writer, results []result, markdown bool) error {
	if markdown {
		printMarkdown(w, results)
	} else if err := printTable(w, results); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, r := range results {
		for _, note := range r.notes {
			if markdown {
				fmt.Fprint(w, "- ")
			}
			fmt.Fprintf(w, "%s: %s\n", r.name, note)
		}
	}
	return nil
}

func printTable(w io.Writer, results []result) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.Join(columns, "\t"))
	for _, r := range results {
		fmt.Fprintln(table, strings.Join(r.cells(r.name), "\t"))
	}
	return table.Flush()
}

func printMarkdown(w io.Writer, results []result) {
	fmt.Fprintf(w, "| %s |\n|---%s|\n", strings.Join(columns, " | "), strings.Repeat("|--:", len(columns)-1))
	for _, r := range results {
		fmt.Fprintf(w, "| %s |\n", strings.Join(r.cells(fmt.Sprintf("`%s`: %s", r.name, r.fault)), " | "))
	}
}
