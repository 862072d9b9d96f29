// Package events sends an event for each ticket that is stored, for each change of a ticket, and for each change of a product, to
// the targets of subscriptions, at least once.
package events

import (
	"context"
	"errors"
	"net/url"
	"time"

	"github.com/google/uuid"
)

// Types of events. That of a ticket says what it is now.
const (
	TicketToTreat   = "ticket.to_treat"
	TicketTreated   = "ticket.treated"
	TicketError     = "ticket.error"
	TicketDismissed = "ticket.dismissed"
	ProductChanged  = "product.changed"
)

// Event is an event as it is sent.
type Event struct {
	// ID is the same each time the same event is sent: the id of the ticket and its version, with a dot between. That of a product
	// also has the product's id.
	ID   string
	Type string

	// Key is the source of the ticket. Events of one key are sent in the order in which the tickets were stored.
	Key  string
	Time time.Time // when it was stored or changed

	// JSON is the whole event in CloudEvents' structured mode (application/cloudevents+json).
	JSON []byte

	Ticket  uuid.UUID // what it is about, or what says what the product is
	Product string    // the product's id; empty if it is about the ticket
}

// ContentType is the media type of Event.JSON.
const ContentType = "application/cloudevents+json; charset=UTF-8"

// Target takes events. Only one goroutine uses it at a time.
type Target interface {
	// Send sends events, and returns an error for each: nil if the target has it durably, ErrRejected (wrapped, with the reason) if
	// the target never takes this one, and any other error if it is to be sent again. It may send several at once, but those of one
	// key in their order: after one of them failed, it sends no later one of the same key (those have ErrNotSent).
	// A RetryAfter in an error says how long to wait. It returns soon after ctx ends.
	Send(ctx context.Context, events []Event) []error

	// Close ends its connections.
	Close()
}

var (
	// ErrRejected means that the target will never take this event, while it takes others.
	ErrRejected = errors.New("the target rejects this event")

	// ErrNotSent means that the event was not sent, because one before it was not.
	ErrNotSent = errors.New("not sent, because one before it was not")

	// ErrGone means that the target wants no more events, ever.
	ErrGone = errors.New("the target wants no more events")
)

// RetryAfter is an error of a target that says when to try again.
type RetryAfter struct { //nolint:errname // what it says is more than that something failed
	After time.Duration
	Err   error
}

func (r *RetryAfter) Error() string { return r.Err.Error() }

func (r *RetryAfter) Unwrap() error { return r.Err }

// Address says where a target is, and how to speak to it.
type Address struct {
	URL *url.URL // without credentials, except a user's name

	// Secret is what proves who sends: the key of signatures for https, a password for amqps and Kafka's SASL, the text of a
	// credentials file for NATS. Empty for none.
	Secret []byte

	// Authorities are certificates (PEM) to trust instead of those of the system. Empty for those.
	Authorities []byte

	// Options are further settings, by their names. An unknown one is an error of whoever opens the target.
	Options map[string]string
}
