package events

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// The schemas of the data of events (docs/events). What a later program adds to the data keeps the name. A name with another
// version means data that a reader of this one cannot read.
const (
	TicketSchema  = "urn:myticket:events:ticket:v1"
	ProductSchema = "urn:myticket:events:product:v1"
)

// Ticket is what an event says of a ticket: what it is now.
type Ticket struct {
	ID         uuid.UUID
	Version    int // more with each change; from 1 on
	Status     ticket.Status
	Source     string
	ReceivedAt time.Time

	OrderNumber string // empty if it was not read, as are the amounts
	VAT, Total  string // decimal, as they were written
	Lines       []ticket.Line
	Problems    []ticket.Problem

	ContentType string // empty if there was none
	Corrected   bool   // a person's text was read, not the body
	Body        []byte // nil leaves it out
}

// Product is what an event says of a product: what it is now.
type Product struct {
	ID, Name, Price        string
	Ticket                 uuid.UUID // the ticket that says so
	Source                 string    // that ticket's
	ChangedAt, FirstSeenAt time.Time
}

// TicketType returns the type of an event about a ticket that has a status.
func TicketType(status ticket.Status) (string, error) {
	switch status {
	case ticket.ToTreat:
		return TicketToTreat, nil
	case ticket.Treated:
		return TicketTreated, nil
	case ticket.Error:
		return TicketError, nil
	case ticket.Dismissed:
		return TicketDismissed, nil
	default:
		return "", fmt.Errorf("a ticket with the status %q has no event", status)
	}
}

// EncodeTicket returns the event about a ticket that was stored or changed at a time. It fails if the status is not known.
//
// JSON is appended by hand, because the types of the CloudEvents SDK take about ten times as long (BenchmarkEncodeTicket). The
// tests read it back with that SDK.
func EncodeTicket(t *Ticket, at time.Time) (Event, error) {
	kind, err := TicketType(t.Status)
	if err != nil {
		return Event{}, err
	}
	subject := t.ID.String()
	e := Event{
		ID: subject + "." + strconv.Itoa(t.Version), Type: kind, Key: t.Source, Time: at, Ticket: t.ID,
	}
	b := make([]byte, 0, e.ticketSize(t))
	b = e.appendHead(b, subject, TicketSchema)
	b = append(append(append(b, `{"id":"`...), subject...), `","version":`...)
	b = strconv.AppendInt(b, int64(t.Version), 10)
	b = ticket.AppendJSON(append(b, `,"status":`...), string(t.Status))
	b = ticket.AppendJSON(append(b, `,"source":`...), t.Source)
	b = appendTime(append(b, `,"received_at":`...), t.ReceivedAt)
	b = appendUnlessEmpty(b, `,"order_number":`, t.OrderNumber)
	b = appendUnlessEmpty(b, `,"vat":`, t.VAT)
	b = appendUnlessEmpty(b, `,"total":`, t.Total)
	b = appendLines(append(b, `,"lines":`...), t.Lines)
	b = ticket.AppendProblems(append(b, `,"problems":`...), t.Problems)
	b = appendUnlessEmpty(b, `,"content_type":`, t.ContentType)
	b = strconv.AppendBool(append(b, `,"corrected":`...), t.Corrected)
	if t.Body != nil {
		b = base64.StdEncoding.AppendEncode(append(b, `,"body_base64":"`...), t.Body)
		b = append(b, '"')
	}
	b = append(b, "}}"...)
	e.JSON = b
	return e, nil
}

// ticketSize returns about the bytes of an event.
func (e *Event) ticketSize(t *Ticket) int {
	n := 640 + len(e.Key)*4 + len(t.OrderNumber) + len(t.ContentType) + base64.StdEncoding.EncodedLen(len(t.Body))
	for i := range t.Lines {
		n += 64 + len(t.Lines[i].Name) + len(t.Lines[i].ProductID)
	}
	for i := range t.Problems {
		n += 64 + len(t.Problems[i].Code) + len(t.Problems[i].Message)
	}
	return n
}

// maxEscapedID is the most bytes of a product's id in the id of an event, which is a header of requests and in an index.
const maxEscapedID = 160

// EncodeProduct returns the event about a product that was changed at a time. Two events have the same id only if the product has
// the same name and price from the same ticket.
func EncodeProduct(p *Product, at time.Time) (Event, error) {
	subject := url.QueryEscape(p.ID)
	if len(subject) > maxEscapedID {
		cut := maxEscapedID
		if i := strings.LastIndexByte(subject[:cut], '%'); i > cut-len("%FF") {
			cut = i
		}
		subject = subject[:cut] + "~" // what is cut off still counts in the sum
	}
	sum := sha256.New()
	for _, text := range []string{p.ID, "\x00", p.Name, "\x00", p.Price} {
		_, _ = io.WriteString(sum, text)
	}
	said := p.Ticket.String()
	e := Event{
		ID:   said + "." + subject + "." + hex.EncodeToString(sum.Sum(nil)[:6]),
		Type: ProductChanged, Key: p.Source, Time: at, Ticket: p.Ticket, Product: p.ID,
	}
	b := make([]byte, 0, 640+len(e.ID)+len(e.Key)*4+len(subject)+len(p.ID)+len(p.Name))
	b = e.appendHead(b, subject, ProductSchema)
	b = ticket.AppendJSON(append(b, `{"product_id":`...), p.ID)
	b = ticket.AppendJSON(append(b, `,"name":`...), p.Name)
	b = ticket.AppendJSON(append(b, `,"price":`...), p.Price)
	b = ticket.AppendJSON(append(b, `,"source":`...), p.Source)
	b = append(append(append(b, `,"ticket_id":"`...), said...), '"')
	b = appendTime(append(b, `,"first_seen_at":`...), p.FirstSeenAt)
	b = appendTime(append(b, `,"changed_at":`...), p.ChangedAt)
	b = append(b, "}}"...)
	e.JSON = b
	return e, nil
}

// appendHead appends the attributes of an event, up to its data
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#context-attributes). The key is an extension
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/partitioning.md).
func (e *Event) appendHead(b []byte, subject, schema string) []byte {
	b = ticket.AppendJSON(append(b, `{"specversion":"1.0","id":`...), e.ID)
	b = ticket.AppendJSON(append(b, `,"source":`...), SourcePrefix+url.PathEscape(e.Key))
	b = ticket.AppendJSON(append(b, `,"type":`...), e.Type)
	b = ticket.AppendJSON(append(b, `,"subject":`...), subject)
	b = appendTime(append(b, `,"time":`...), e.Time)
	b = appendUnlessEmpty(b, `,"partitionkey":`, e.Key)
	b = append(append(b, `,"datacontenttype":"application/json","dataschema":"`...), schema...)
	return append(b, `","data":`...)
}

// SourcePrefix is what is before the ticket's source in the source of an event.
const SourcePrefix = "/myticket/"

func appendLines(b []byte, lines []ticket.Line) []byte {
	b = append(b, '[')
	for i := range lines {
		if i > 0 {
			b = append(b, ',')
		}
		b = ticket.AppendJSON(append(b, `{"product":`...), lines[i].Name)
		b = ticket.AppendJSON(append(b, `,"product_id":`...), lines[i].ProductID)
		if lines[i].Price.IsSet() {
			b = lines[i].Price.AppendText(append(b, `,"price":"`...))
			b = append(b, '"')
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendTime(b []byte, at time.Time) []byte {
	b = append(b, '"')
	return append(at.UTC().AppendFormat(b, time.RFC3339Nano), '"')
}

// appendUnlessEmpty appends a member, unless its value is empty.
func appendUnlessEmpty(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return ticket.AppendJSON(append(b, name...), value)
}
