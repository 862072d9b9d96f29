package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// sendReport is what became of all tickets.
type sendReport struct {
	Tickets   int            `json:"tickets"` // to send
	Sent      int            `json:"sent"`
	Stored    int            `json:"stored"`
	Answers   map[string]int `json:"answers"` // tickets by the status code of their last answer, or "none"
	Seconds   float64        `json:"seconds"`
	PerSecond float64        `json:"per_second"` // stored
	Longest   float64        `json:"longest"`    // seconds of one ticket, with its retries
	Each      []sentTicket   `json:"each,omitempty"`
	Failed    []sentTicket   `json:"failed,omitempty"` // the first tickets that are not known to be stored
	unclear   int
	failure   string // the first
}

func (s *sentTicket) String() string {
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return printable(s)
	}
	code, status := "-", dash(s.Status)
	if s.Code != 0 {
		code = strconv.Itoa(s.Code)
	}
	if s.Duplicate {
		status += " (duplicate)"
	}
	line := fmt.Sprintf("%s  %s  %s  %s", code, dash(s.ID), status, seconds(s.Seconds))
	if s.Error != "" {
		line += "  " + printable(s.File+": "+s.Error)
	}
	return line
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Microsecond).String()
}

func (r *sendReport) add(s sentTicket) {
	r.Sent++
	answer := "none"
	if s.Code != 0 {
		answer = strconv.Itoa(s.Code)
	}
	r.Answers[answer]++
	r.Longest = max(r.Longest, s.Seconds)
	if r.Tickets <= maxSentLines {
		r.Each = append(r.Each, s)
	}
	if s.Error == "" {
		r.Stored++
		return
	}
	if s.unclear {
		r.unclear++
	}
	if r.failure == "" {
		r.failure = printable(s.File + ": " + s.Error)
	}
	if len(r.Failed) < maxSentLines {
		r.Failed = append(r.Failed, s)
	}
}

// err says how many tickets are not known to be stored, and whether they can be sent again.
func (r *sendReport) err(ctx context.Context) error {
	missing := r.Tickets - r.Stored
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
