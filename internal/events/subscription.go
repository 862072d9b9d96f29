package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// Subscription says who gets which events.
type Subscription struct {
	Name     string   `json:"name"`   // 1 to 63 of a-z, 0-9 and -
	Target   string   `json:"target"` // the URL of the target, without a password
	Settings Settings `json:"settings"`
	Filter   Filter   `json:"filter"`
	Body     bool     `json:"body"` // events about tickets have the body
}

// Settings say how to speak to a target.
type Settings struct {
	// Secret and Authorities are references, file:PATH or env:NAME, to the secret of the Address and to its certificates. Only the
	// process that sends reads them. Empty for none.
	Secret      string `json:"secret,omitempty"`
	Authorities string `json:"authorities,omitempty"`

	// Options are further settings, by their names.
	Options map[string]string `json:"options,omitempty"`
}

// Filter selects events. An empty field selects all.
type Filter struct {
	Types    []string `json:"types,omitempty"`    // one of these
	Sources  []string `json:"sources,omitempty"`  // about a ticket of one of these, or a product that such a ticket named
	Statuses []string `json:"statuses,omitempty"` // of events about tickets: only those about a ticket with one of these
}

// Bounds of a subscription.
const (
	maxTarget   = 2048 // bytes of the URL
	maxFiltered = 1000 // values of each field of a filter
	maxOptions  = 50
	maxSetting  = 1000 // bytes of a reference, or of an option
)

// Types returns the types of events.
func Types() []string {
	return []string{TicketToTreat, TicketTreated, TicketError, TicketDismissed, ProductChanged}
}

// Schemes returns the schemes of the URLs of targets.
func Schemes() []string { return []string{"https", "http", "nats", "tls", "kafka", "amqps", "amqp"} }

var (
	nameForm   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	sourceForm = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
)

// CheckName returns an error if no subscription can have a name.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%q is no name of a subscription: use at most 63 of a-z, 0-9 and -, and no - at its beginning or end", name)
	}
	return nil
}

// Validate returns what is wrong with a subscription. It does not look at the options, which only the target knows.
func (s *Subscription) Validate() error {
	if err := CheckName(s.Name); err != nil {
		return err
	}
	if err := errors.Join(checkTarget(s.Target), s.Settings.validate(), s.Filter.validate()); err != nil {
		return fmt.Errorf("subscription %s: %w", s.Name, err)
	}
	return nil
}

func checkTarget(target string) error {
	if !plain(target) {
		return errors.New("the URL of the target has a character that is not printable: write it as %XX")
	}
	if len(target) > maxTarget {
		return fmt.Errorf("the URL of the target has %d bytes, and at most %d are allowed", len(target), maxTarget)
	}
	address, err := url.Parse(target)
	if err != nil { // the error of package url shows the URL, which may have a password
		return errors.New("the target is no URL")
	}
	if _, ok := address.User.Password(); ok {
		return errors.New("the URL of the target has a password, which would be stored in the database: give it by --secret")
	}
	if !slices.Contains(Schemes(), address.Scheme) {
		return fmt.Errorf("the URL of the target begins with %q: no events can be sent there, only to %s",
			address.Scheme+":", strings.Join(Schemes(), ", "))
	}
	if address.Host == "" {
		return errors.New("the URL of the target names no host")
	}
	if address.Fragment != "" {
		return errors.New("the URL of the target has a fragment (#), which means nothing to a target")
	}
	return nil
}

func (s *Settings) validate() error {
	var wrong []error
	for _, reference := range []struct{ name, value string }{{"secret", s.Secret}, {"authorities", s.Authorities}} {
		kind, rest, _ := strings.Cut(reference.value, ":")
		switch {
		case reference.value == "":
		case kind != "file" && kind != "env" || rest == "": // it is not shown, because it may be the secret itself
			wrong = append(wrong, fmt.Errorf("the %s must be file:PATH or env:NAME, so that it is not stored in the database",
				reference.name))
		case !plain(reference.value):
			wrong = append(wrong, fmt.Errorf("the reference to the %s has a character that is not printable", reference.name))
		case len(reference.value) > maxSetting:
			wrong = append(wrong, fmt.Errorf("the reference to the %s has more than %d bytes", reference.name, maxSetting))
		}
	}
	if len(s.Options) > maxOptions {
		wrong = append(wrong, fmt.Errorf("there are %d options, and at most %d are allowed", len(s.Options), maxOptions))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Options)) {
		if !plain(name) || !plain(s.Options[name]) {
			wrong = append(wrong, fmt.Errorf("the option %.40q has a character that is not printable", name))
		}
		if name == "" || len(name)+len(s.Options[name]) > maxSetting {
			wrong = append(wrong, fmt.Errorf("the option %.40q has no name, or more than %d bytes", name, maxSetting))
		}
	}
	return errors.Join(wrong...)
}

// plain reports whether a text is UTF-8 without control characters, which the database can store.
func plain(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

func (f *Filter) validate() error {
	var statuses []string
	for _, status := range ticket.Statuses() {
		statuses = append(statuses, string(status))
	}
	return errors.Join(
		checkValues("type", f.Types, Types()), checkValues("status", f.Statuses, statuses), checkValues("source", f.Sources, nil))
}

// checkValues returns an error if one of some values is not known. Nil knows the form of sources.
func checkValues(what string, values, known []string) error {
	if len(values) > maxFiltered {
		return fmt.Errorf("the filter has %d values for the %s, and at most %d are allowed", len(values), what, maxFiltered)
	}
	for _, value := range values {
		switch {
		case known == nil && !sourceForm.MatchString(value):
			return fmt.Errorf("the filter has the source %q, which is none: a source has 1 to 63 of a-z, 0-9 and -", value)
		case known != nil && !slices.Contains(known, value):
			return fmt.Errorf("the filter has the %s %q, which there is not: use %s", what, value, strings.Join(known, ", "))
		}
	}
	return nil
}

// WantsTickets reports whether the filter may select an event about a ticket.
func (f *Filter) WantsTickets() bool {
	return len(f.Types) == 0 || slices.ContainsFunc(f.Types, func(kind string) bool { return kind != ProductChanged })
}

// WantsProducts reports whether the filter may select an event about a product.
func (f *Filter) WantsProducts() bool {
	return len(f.Types) == 0 || slices.Contains(f.Types, ProductChanged)
}

// TicketStatuses returns the statuses of the tickets whose events the filter selects.
func (f *Filter) TicketStatuses() (statuses []ticket.Status) {
	for status, kind := range map[ticket.Status]string{
		ticket.ToTreat: TicketToTreat, ticket.Treated: TicketTreated, ticket.Error: TicketError, ticket.Dismissed: TicketDismissed,
	} {
		if (len(f.Types) == 0 || slices.Contains(f.Types, kind)) &&
			(len(f.Statuses) == 0 || slices.Contains(f.Statuses, string(status))) {
			statuses = append(statuses, status)
		}
	}
	slices.Sort(statuses)
	return statuses
}

// SubscriptionState is a subscription, and how far it has come.
type SubscriptionState struct {
	Subscription
	Declared     bool          `json:"declared"` // it is from a file; a person made the others
	Paused       *time.Time    `json:"paused"`   // since when nothing is delivered; null if it is
	PausedWhy    string        `json:"paused_why,omitempty"`
	Behind       time.Duration `json:"-"`       // age of the oldest row of the outbox that was not delivered; 0 for none
	Waiting      int           `json:"waiting"` // tickets that were not delivered, of at most 10,000 batches, before the filter
	Delivered    int64         `json:"delivered"`
	DeliveredAt  *time.Time    `json:"delivered_at"`  // the last event; null for none
	FailingSince *time.Time    `json:"failing_since"` // since when the target takes no events; null if it does
	Failure      string        `json:"failure,omitempty"`
	DeadLetters  int           `json:"dead_letters"` // at most MaxDeadLetters
	Replay       *Replay       `json:"replay"`       // that is under way; null for none
}

// MarshalJSON implements json.Marshaler. Behind is in seconds.
func (s SubscriptionState) MarshalJSON() ([]byte, error) {
	type plain SubscriptionState
	return json.Marshal(struct {
		plain
		BehindSeconds float64 `json:"behind_seconds"`
	}{plain(s), s.Behind.Seconds()})
}

// Replay is a replay of the tickets that were received in a time.
type Replay struct {
	From  time.Time  `json:"from"`
	Until time.Time  `json:"until"` // received before this
	At    *time.Time `json:"at"`    // all that were received before this are delivered; null at the beginning
}

// DeadLetter is an event that a target refused. The ticket that it is about is stored.
type DeadLetter struct {
	ID       int64     `json:"id"`
	Event    string    `json:"event"` // the id of the event
	Type     string    `json:"type"`
	Ticket   uuid.UUID `json:"ticket"`
	Product  string    `json:"product,omitempty"`
	At       time.Time `json:"at"`       // when it was given up
	Attempts int       `json:"attempts"` // 0: it is to be sent again
	Reason   string    `json:"reason"`
}

// MaxDeadLetters is how many dead letters a subscription has at most before it is paused.
const MaxDeadLetters = 10_000
