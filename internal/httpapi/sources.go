package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"myticket/internal/ticket"
)

// Sources says which credentials each source needs, and how fast it may send.
type Sources struct {
	named map[string]*source
	other *source       // for every source without an entry of its own; nil if such sources may not send
	wrong *rate.Limiter // requests with wrong credentials, over all sources, that are answered 401
	now   func() time.Time
}

// How many requests a second with wrong credentials are answered 401. More are answered 429, which tells the sender to back
// off. Right credentials are always accepted.
const (
	wrongOfSource, wrongOfSourceBurst = 10, 50
	wrongOfAll, wrongOfAllBurst       = 100, 200
)

// maxRate is more than any source sends, in tickets a second.
const maxRate = 1_000_000

// otherSources is the entry for all sources without an entry of their own. They share its rate.
const otherSources = "*"

// sourceConfig is one entry of the sources file. A request needs one of the credentials. With two, the old one can be replaced
// without a gap.
type sourceConfig struct {
	BearerTokens   []string    `json:"bearer_tokens"`   // Authorization: Bearer TOKEN (RFC 6750)
	BasicUsers     []basicUser `json:"basic_users"`     // Authorization: Basic (RFC 7617)
	WebhookSecrets []string    `json:"webhook_secrets"` // whsec_…: signatures of https://www.standardwebhooks.com
	Rate           float64     `json:"rate"`            // tickets a second; 0 for no limit
	Burst          int         `json:"burst"`           // tickets at once; defaults to the rate, rounded up

	NewProductsRate  *float64 `json:"new_products_rate"`  // products a second that its tickets may add; 0 for no limit
	NewProductsBurst *int     `json:"new_products_burst"` // products at once

	Hold bool `json:"hold"` // its tickets are not stored for now: it moves to another database
}

type basicUser struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// source is a checked entry.
type source struct {
	credentials

	name     string // empty for a source without an entry
	hold     bool
	limiter  *rate.Limiter
	wrong    *rate.Limiter // requests with wrong credentials that are answered 401
	products ProductPolicy
}

// ProductPolicy is what an entry says about the products that tickets name. Nil means that it does not say.
type ProductPolicy struct {
	NewProductsRate  *float64 // products a second that tickets may add; 0 for no limit
	NewProductsBurst *int     // products at once; at least 1
	Authenticated    bool     // the entry asks for credentials
}

// OpenSources returns the Sources of a server without a sources file: every source may send, without credentials and limits.
func OpenSources() *Sources {
	s := newSources()
	s.other = newSource()
	return s
}

func newSources() *Sources {
	return &Sources{named: map[string]*source{}, wrong: rate.NewLimiter(wrongOfAll, wrongOfAllBurst), now: time.Now}
}

func newSource() *source { return &source{wrong: rate.NewLimiter(wrongOfSource, wrongOfSourceBurst)} }

// ReadSources reads a sources file: a JSON object with an entry per source. The entry "*" is for all others, which otherwise may
// not send. Unknown keys, a source that is named twice, invalid names and unusable credentials are errors.
func ReadSources(file string) (*Sources, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the sources file: %w", err)
	}
	sources := newSources()
	if at, err := sources.read(content); err != nil {
		line, column := position(content, at)
		return nil, fmt.Errorf("read the sources file %s: line %d, column %d: %w", file, line, column, err)
	}
	return sources, nil
}

// Open returns the names of the sources that need no credentials and may send, in order. "*" stands for every source without an
// entry.
func (s *Sources) Open() []string {
	if len(s.named) == 0 && s.other != nil {
		return []string{otherSources}
	}
	return s.those(func(of *source) bool { return of.open() && !of.hold })
}

// OnHold returns the names of the sources that are on hold, in order. "*" stands for every source without an entry.
func (s *Sources) OnHold() []string { return s.those(func(of *source) bool { return of.hold }) }

// those returns the names of some entries, in order.
func (s *Sources) those(are func(*source) bool) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(s.named)) {
		if are(s.named[name]) {
			names = append(names, name)
		}
	}
	return names
}

// None reports whether no source may send at all.
func (s *Sources) None() bool { return len(s.named) == 0 && s.other == nil }

// Others reports whether sources without an entry of their own may send.
func (s *Sources) Others() bool { return s.other != nil }

// Signed reports whether a source accepts signed requests. Their keys must be remembered for 2 × SignatureTolerance.
func (s *Sources) Signed() bool {
	for _, source := range s.named {
		if len(source.signatures) > 0 {
			return true
		}
	}
	return false
}

// read reads entry by entry. Decoded as a whole, the second of two entries with one name would silently replace the first. With
// an error it returns how many bytes are before the mistake, or before its entry.
func (s *Sources) read(content []byte) (at int64, err error) {
	var whole json.RawMessage
	if err := json.Unmarshal(content, &whole); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = max(syntax.Offset-1, 0) // it counts the byte that is wrong
		}
		return at, fmt.Errorf("it is not valid JSON: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return 0, errors.Join(errors.New("it is not a JSON object"), err)
	}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return decoder.InputOffset(), err
		}
		name, _ := token.(string)
		at := decoder.InputOffset()
		var config *sourceConfig
		if err := decoder.Decode(&config); err != nil {
			if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
				colon := int64(bytes.IndexByte(content[at:], ':')) + 1
				return at + colon + wrong.Offset - 1, fmt.Errorf("source %q: %q cannot be a JSON %s", name, wrong.Field, wrong.Value)
			}
			return at, fmt.Errorf("source %q: %w", name, err)
		}
		if err := s.add(name, config); err != nil {
			return at, err
		}
	}
	return 0, nil
}

// position returns the line and the column, counted from 1, of the byte after the first at bytes.
func position(content []byte, at int64) (line, column int) {
	before := content[:min(at, int64(len(content)))]
	return 1 + bytes.Count(before, []byte{'\n'}), len(before) - bytes.LastIndexByte(before, '\n')
}

func (s *Sources) add(name string, config *sourceConfig) error {
	switch {
	case name != otherSources && !ValidSource(name):
		return fmt.Errorf("%q cannot be a source: a name has 1 to 63 of the characters a-z, 0-9 and -", name)
	case config == nil:
		return fmt.Errorf("source %q: null is not an entry; {} is one for a source without credentials", name)
	case s.named[name] != nil:
		return fmt.Errorf("source %q is named twice", name)
	}
	checked, err := config.check()
	if err != nil {
		return fmt.Errorf("source %q: %w", name, err)
	}
	// A signature does not cover the source's name. An attacker who captured a delivery of one source could send it again as a
	// new one of the other.
	if name == otherSources && len(checked.signatures) > 0 {
		return errors.New(`source "*": it cannot have webhook secrets, because a signature does not say which source it is ` +
			"from, and a captured delivery could be sent again under any other name; give each source that signs an entry of its own")
	}
	for other, before := range s.named {
		if slices.ContainsFunc(checked.signatures, func(key []byte) bool {
			return slices.ContainsFunc(before.signatures, func(theirs []byte) bool { return bytes.Equal(key, theirs) })
		}) {
			return fmt.Errorf("sources %q and %q have the same webhook secret: a captured delivery of one could be sent again "+
				"as a delivery of the other; give each source a secret of its own", other, name)
		}
	}
	s.named[name] = checked
	if name == otherSources {
		s.other = checked
		return nil
	}
	checked.name = name
	return nil
}

// Entry returns the name of the entry that applies to a source: its own, or "*", which cannot be the name of a source.
func (s *Sources) Entry(source string) string {
	if s.named[source] != nil {
		return source
	}
	return otherSources
}

// ProductPolicies returns the policy of each entry, and one for "*" in any case.
func (s *Sources) ProductPolicies() map[string]ProductPolicy {
	policies := map[string]ProductPolicy{otherSources: {}}
	for name, source := range s.named {
		policies[name] = source.products
	}
	return policies
}

// EntryLabel is an entry's name in metrics.
func EntryLabel(entry string) string {
	if entry == otherSources {
		return otherLabel
	}
	return entry
}

// label is a source's name in metrics.
func (s *Sources) label(name string) string {
	if name == ticket.DefaultSource || name != otherSources && s.named[name] != nil {
		return name
	}
	return otherLabel
}

func (c sourceConfig) check() (*source, error) {
	s := newSource()
	s.hold = c.Hold
	var err error
	if s.credentials, err = c.credentials(); err != nil {
		return nil, err
	}
	s.products = ProductPolicy{c.NewProductsRate, c.NewProductsBurst, !s.open()}
	switch {
	case c.NewProductsRate != nil && (*c.NewProductsRate < 0 || *c.NewProductsRate > maxRate):
		return nil, fmt.Errorf("new_products_rate must be 0 to %d a second; 0 means no limit", maxRate)
	case c.NewProductsBurst != nil && *c.NewProductsBurst < 1:
		return nil, errors.New("new_products_burst must be at least 1; for no limit, set new_products_rate to 0")
	case c.Rate < 0 || c.Burst < 0:
		return nil, errors.New("rate and burst must not be negative")
	case c.Rate > maxRate:
		return nil, fmt.Errorf("rate must be at most %d a second; 0 means no limit", maxRate)
	case c.Rate == 0 && c.Burst > 0:
		return nil, errors.New("a burst needs a rate")
	case c.Rate > 0:
		burst := c.Burst
		if burst == 0 {
			burst = int(math.Ceil(c.Rate))
		}
		s.limiter = rate.NewLimiter(rate.Limit(c.Rate), burst)
	}
	return s, nil
}

// find returns the entry of a source, or nil if the source may not send.
func (s *Sources) find(name string) *source {
	if named := s.named[name]; named != nil {
		return named
	}
	return s.other
}

// wait takes a place in the source's rate and returns 0. If there is no place, it returns after how many seconds there will be
// one.
func (s *source) wait() int {
	if s.limiter == nil || s.limiter.Allow() {
		return 0
	}
	return s.delay()
}

// over returns after how many seconds the source's rate will have a place; 0 if it has one now. It takes no place.
func (s *source) over() int {
	if s.limiter == nil || s.limiter.Tokens() >= 1 {
		return 0
	}
	return s.delay()
}

func (s *source) delay() int {
	reservation := s.limiter.Reserve()
	delay := reservation.Delay()
	reservation.Cancel()
	return max(1, int(math.Ceil(delay.Round(time.Millisecond).Seconds())))
}
