package httpapi

import (
	"net/http"
	"strings"
	"time"
)

// timed checks the Ticket-Time of a request. Only credentials in a header make it count: who needs none could say anything, and a
// signature does not cover it. It is refused where it would not count, because its sender relies on it.
func (s *credentials) timed(h Headers) (Response, bool) {
	switch s.expected(h.Authorization) {
	case unauthenticated:
		return problem(http.StatusBadRequest, "ticket_time_unauthenticated",
			"Only a source that asks for credentials takes the header Ticket-Time, because it decides which price counts. The ticket "+
				"was not stored; send it without the header, or ask the operator to give the source credentials."), false
	case bySigned:
		return problem(http.StatusBadRequest, "ticket_time_unsigned",
			"A signature does not cover the header Ticket-Time. The ticket was not stored; send it without the header, or with a "+
				"token or a password."), false
	case byHeader:
	}
	if _, err := ticketTime(h.TicketTime); err != nil {
		return problem(http.StatusBadRequest, "ticket_time_invalid",
			"The header Ticket-Time must be a time as in RFC 3339, such as 2026-11-24T18:50:00+01:00. The ticket was not stored; "+
				"correct the header, or send the ticket without it."), false
	}
	return Response{}, true
}

// ticketTime reads the header Ticket-Time (RFC 3339, section 5.6), whose letters may be small. Empty is the zero Time. What the
// header says of the past and the future is bounded where the ticket gets its id.
func ticketTime(header string) (time.Time, error) {
	if header == "" {
		return time.Time{}, nil
	}
	text := strings.ToUpper(header)
	const seconds = len("2006-01-02T15:04:")
	if len(text) > seconds+2 && text[seconds:seconds+2] == "60" {
		text = text[:seconds] + "59" + text[seconds+2:] // a leap second, which package time does not know
	}
	at, err := time.Parse(time.RFC3339, text)
	if at.IsZero() { // the first second of the year 1, which is a time
		at = at.Add(1)
	}
	return at, err
}
