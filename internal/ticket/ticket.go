// Package ticket is the domain: what a ticket (a till receipt sent as text) is, what can be read from it, and what it says about
// products. It imports no other package of MyTicket.
package ticket

import (
	"log/slog"
	"time"

	"github.com/google/uuid"
)

// Status is the status of a stored ticket. Users see these words in SQL, in answers and on the command line.
type Status string

// The statuses of a ticket. Only a person sets Dismissed.
const (
	ToTreat   Status = "TO_TREAT"  // stored, not read yet
	Treated   Status = "TREATED"   // read as a whole; its products are in the product base
	Error     Status = "ERROR"     // stored, could not be read or kept; Problems says why
	Dismissed Status = "DISMISSED" // an ERROR that a person set aside, with a reason
)

// Spooled is the status in the answer to a sender whose ticket is durable on disk and not in the database yet. It is never in
// the database, so it is not one of Statuses.
const Spooled Status = "SPOOLED"

// Statuses lists every status, in the order of a ticket's life.
func Statuses() []Status { return []Status{ToTreat, Treated, Error, Dismissed} }

// DefaultSource is the source of a ticket posted to /ticket without a name.
const DefaultSource = "default"

// Ticket is one delivery: the bytes that were sent, and what became of them.
type Ticket struct {
	ID          uuid.UUID // UUIDv7 (RFC 9562, section 5.7); its time is ReceivedAt
	Source      string    // which shop or till sent it: [a-z0-9-]{1,63}
	ReceivedAt  time.Time // to the millisecond: exactly the time inside ID
	Body        []byte    // byte for byte what was sent
	ContentType string    // as sent, made valid UTF-8; empty if there was none
	Traceparent string    // W3C trace context of the request that sent it; empty if there was none

	Status   Status
	Problems []Problem // why Status is Error; empty otherwise
	Order    Order     // what was read; on an ERROR ticket what could be read
	Dialect  int       // version of the dialect that it was read with; 0 for the dialect of everyone
}

// LogAttr returns what a log says of a ticket: "ticket" (the id), "source", and "trace_id" (that of the request;
// https://www.w3.org/TR/trace-context/#trace-id), if they are known. It never returns content of the ticket.
func (t *Ticket) LogAttr() slog.Attr {
	var attrs []slog.Attr
	if t.ID != uuid.Nil {
		attrs = append(attrs, slog.String("ticket", t.ID.String()))
	}
	if t.Source != "" {
		attrs = append(attrs, slog.String("source", t.Source))
	}
	if len(t.Traceparent) >= 35 {
		attrs = append(attrs, slog.String("trace_id", t.Traceparent[3:35]))
	}
	return slog.Attr{Value: slog.GroupValue(attrs...)} // a group without a key adds its attributes by themselves
}

// Problem is one thing on a ticket that was not understood.
type Problem struct {
	Line    int    `json:"line"`    // 1-based line of the body; 0 means the ticket as a whole
	Code    string `json:"code"`    // stable and from a fixed set, for filters and metrics
	Message string `json:"message"` // for the person who will correct it
}

// Order is what a ticket says.
type Order struct {
	Number string
	VAT    Amount
	Total  Amount
	Extra  []Field // header records that MyTicket does not know, in their order

	Columns []string // names of the columns that MyTicket does not know, in their order; once for all lines
	Lines   []Line

	size size // what Cost counts; set by Parse
}

// Line is one product line of an order.
type Line struct {
	Name      string
	ProductID string
	Price     Amount
	Extra     []string // values of the Order's Columns, one for each
}

// Field is a named text that MyTicket keeps without understanding it.
type Field struct {
	Name  string
	Value string
}

// Product is one product of the product base, as the newest ticket that names it says.
type Product struct {
	ID    string
	Name  string
	Price Amount
}
