package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"myticket/internal/ticket"
)

// sendReport is what became of all tickets.
type sendReport struct {
	Tickets   int            `json:"tickets"` // to send
	Sent      int            `json:"sent"`    // by this run
	Stored    int            `json:"stored"`
	Before    int            `json:"before"`   // of those that are stored: by the runs before with the same --resume
	Statuses  map[string]int `json:"statuses"` // tickets that are stored, by their status
	Answers   map[string]int `json:"answers"`  // tickets that were sent, by the status code of their last answer, or "none"
	Seconds   float64        `json:"seconds"`
	PerSecond float64        `json:"per_second"` // stored
	Longest   float64        `json:"longest"`    // seconds of one ticket, with its retries
	Each      []sentTicket   `json:"each,omitempty"`
	Failed    []sentTicket   `json:"failed,omitempty"` // not known to be stored, or ERROR
	listed    bool           // each ticket is listed
	resume    string         // the file of --resume
	unclear   int
	failure   string // the first that is not known to be stored
}

func (s *sentTicket) String() string {
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return printable(s)
	}
	code, status, took := "-", dash(s.Status), seconds(s.Seconds)
	if s.Code != 0 {
		code = strconv.Itoa(s.Code)
	}
	if s.Duplicate {
		status += " (duplicate)"
	}
	if s.Before {
		status, took = status+" (before)", "-"
	}
	line := fmt.Sprintf("%s  %s  %s  %s  %s", code, dash(s.ID), status, took, printable(s.File))
	if s.Error != "" {
		line += ": " + printable(s.Error)
	}
	return line
}

// String returns the summary.
func (r *sendReport) String() string {
	line := fmt.Sprintf("%d tickets sent, %d stored", r.Sent, r.Stored)
	if r.Before > 0 {
		line += fmt.Sprintf(" with the %d of before", r.Before)
	}
	line += counts(r.Statuses)
	if missing := r.Tickets - r.Stored; missing > 0 {
		line += fmt.Sprintf(", %d not stored", missing)
	}
	return fmt.Sprintf("%s, answers%s, in %s: %.0f tickets/s, the longest took %s",
		line, counts(r.Answers), seconds(r.Seconds), r.PerSecond, seconds(r.Longest))
}

// counts returns how many there are of each, or nothing.
func counts(of map[string]int) string {
	if len(of) == 0 {
		return ""
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		all = append(all, fmt.Sprintf("%s: %d", printable(name), of[name]))
	}
	return " (" + strings.Join(all, ", ") + ")"
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Microsecond).String()
}

func (r *sendReport) add(s sentTicket) {
	if s.Before {
		r.Before++
	} else {
		r.Sent++
		answer := "none"
		if s.Code != 0 {
			answer = strconv.Itoa(s.Code)
		}
		r.Answers[answer]++
	}
	r.Longest = max(r.Longest, s.Seconds)
	if r.listed {
		r.Each = append(r.Each, s)
	}
	if s.Error != "" || s.Status == string(ticket.Error) {
		r.Failed = append(r.Failed, s)
	}
	if s.Error == "" {
		r.Stored++
		r.Statuses[s.Status]++
		return
	}
	if s.unclear {
		r.unclear++
	}
	if r.failure == "" {
		r.failure = strings.TrimRight(printable(s.File+": "+s.Error), ".") // a sentence goes on after it
	}
}

// exitUnread is the exit code of a run whose tickets are all stored, but not all were understood. To send them again would be
// wrong then, and right after the exit code 1.
const exitUnread = 3

// err says how many tickets are not known to be stored, and whether they can be sent again; or how many became ERROR.
func (r *sendReport) err(ctx context.Context) error {
	missing := r.Tickets - r.Stored
	if unread := r.Statuses[string(ticket.Error)]; missing == 0 && unread > 0 {
		return &exitError{exitUnread, fmt.Sprintf("%d of %d tickets are stored, but could not be read as a whole (ERROR). Do not send "+
			"them again: \"myticket tickets show ID\" says what is wrong with one", unread, r.Tickets)}
	}
	if missing == 0 {
		return nil
	}
	text := fmt.Sprintf("%d of %d tickets were not stored", missing, r.Tickets)
	if ctx.Err() != nil {
		text = "interrupted: " + text
	}
	if r.failure != "" {
		text += "; the first was " + r.failure
	}
	switch {
	case r.resume != "":
		text += ". Run the same command again: it sends only the others, and those that may be stored with the same keys, so that " +
			"none is stored twice"
	case r.Stored > 0:
		text += fmt.Sprintf(". A second run sends all tickets with new keys, so the %d that were stored would be stored twice: "+
			"send only the others", r.Stored)
		if r.unclear > 0 {
			text += fmt.Sprintf("; up to %d of the others may be stored too, because no answer says that they are not", r.unclear)
		}
	case r.unclear > 0:
		text += fmt.Sprintf(". Up to %d of them may be stored all the same, because no answer says that they are not; "+
			"a second run sends all tickets with new keys, so these would be stored twice", r.unclear)
	default:
		text += ". It is safe to run it again, because nothing was stored"
	}
	return errors.New(text)
}
