package httpapi

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"myticket/internal/ticket"
)

// Sources says what each source must bring along, and how fast it may send.
type Sources struct {
	named map[string]*source
	other *source       // for every source without an entry of its own; nil if those may not send
	wrong *rate.Limiter // wrong credentials of all sources that are answered as such
	now   func() time.Time
}

// SignatureTolerance is by how much the time of a signature may differ from the server's, as Standard Webhooks has it. Within
// twice this time a signed request that somebody captured is known again by its webhook-id only.
const SignatureTolerance = 5 * time.Minute

// minSecret is the least length of a bearer token or a password, in bytes. There is no limit to how often somebody may try
// that would not also lock out the source itself, so they must not be guessable.
const minSecret = 16

// How many wrong credentials a second are answered as such. Beyond it they are answered 429, which says to back off; right
// ones are always taken.
const (
	wrongOfSource, wrongOfSourceBurst = 10, 50
	wrongOfAll, wrongOfAllBurst       = 100, 200
)

// maxRate is beyond what any source sends, in tickets a second.
const maxRate = 1_000_000

// otherSources is the entry for every source without one of its own. All of those share its rate.
const otherSources = "*"

// sourceConfig is one entry of the sources file. Any one of the credentials will do; several let them be rotated.
type sourceConfig struct {
	BearerTokens   []string    `json:"bearer_tokens"`   // Authorization: Bearer TOKEN (RFC 6750)
	BasicUsers     []basicUser `json:"basic_users"`     // Authorization: Basic (RFC 7617)
	WebhookSecrets []string    `json:"webhook_secrets"` // whsec_…: signatures of https://www.standardwebhooks.com
	Rate           float64     `json:"rate"`            // tickets a second; 0 for no limit
	Burst          int         `json:"burst"`           // tickets at once; defaults to the rate, rounded up

	NewProductsRate  *float64 `json:"new_products_rate"`  // products a second that its tickets may add; 0 for no limit
	NewProductsBurst *int     `json:"new_products_burst"` // products at once
}

type basicUser struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// source is an entry that was checked. Secrets are kept as hashes, so that comparing takes the same time for all.
type source struct {
	name       string              // empty for a source without an entry
	tokens     [][sha256.Size]byte // of the whole Authorization header's credentials
	basics     [][sha256.Size]byte
	signatures [][]byte // keys of HMAC-SHA256
	limiter    *rate.Limiter
	wrong      *rate.Limiter // wrong credentials that are answered as such
	products   ProductPolicy
}

// ProductPolicy is what an entry says about the products that tickets name. Nil is what it does not say.
type ProductPolicy struct {
	NewProductsRate  *float64 // products a second that tickets may add; 0 for no limit
	NewProductsBurst *int     // products at once; at least 1
	Authenticated    bool     // the entry asks for credentials
}

// OpenSources is what holds without a sources file: everybody may send, as fast as they can.
func OpenSources() *Sources {
	s := newSources()
	s.other = newSource()
	return s
}

func newSources() *Sources {
	return &Sources{named: map[string]*source{}, wrong: rate.NewLimiter(wrongOfAll, wrongOfAllBurst), now: time.Now}
}

func newSource() *source { return &source{wrong: rate.NewLimiter(wrongOfSource, wrongOfSourceBurst)} }

// ReadSources reads a sources file: a JSON object with an entry per source, and "*" for all others, which may not send
// without one. Keys that it does not know, a source that is there twice, names that no source can have, and credentials that
// cannot be used are errors.
func ReadSources(file string) (*Sources, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the sources file: %w", err)
	}
	sources := newSources()
	if err := sources.read(content); err != nil {
		return nil, fmt.Errorf("read the sources file %s: %w", file, err)
	}
	return sources, nil
}

// Open returns the names of the sources that take tickets from everybody, in order; "*" is every source without an entry.
func (s *Sources) Open() []string {
	if len(s.named) == 0 && s.other != nil {
		return []string{otherSources}
	}
	var open []string
	for _, name := range slices.Sorted(maps.Keys(s.named)) {
		if s.named[name].open() {
			open = append(open, name)
		}
	}
	return open
}

// None reports whether no source may send at all.
func (s *Sources) None() bool { return len(s.named) == 0 && s.other == nil }

// Others reports whether sources without an entry of their own may send.
func (s *Sources) Others() bool { return s.other != nil }

// Signed reports whether a source takes signed requests. Their keys must be remembered for 2 × SignatureTolerance.
func (s *Sources) Signed() bool {
	for _, source := range s.named {
		if len(source.signatures) > 0 {
			return true
		}
	}
	return false
}

// read reads entry by entry: decoded at once, the second of two entries of one name would silently replace the first.
func (s *Sources) read(content []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return errors.Join(errors.New("it is no JSON object"), err)
	}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		var config *sourceConfig
		if err := decoder.Decode(&config); err != nil {
			return fmt.Errorf("source %q: %w", name, err)
		}
		if err := s.add(name, config); err != nil {
			return err
		}
	}
	if _, err := decoder.Token(); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something comes after its end")
	}
	return nil
}

func (s *Sources) add(name string, config *sourceConfig) error {
	switch {
	case name != otherSources && !validSource(name):
		return fmt.Errorf("%q cannot be a source: a name has 1 to 63 of a-z, 0-9 and -", name)
	case config == nil:
		return fmt.Errorf("source %q: null is no entry; an open source is {}", name)
	case s.named[name] != nil:
		return fmt.Errorf("source %q is there twice", name)
	}
	checked, err := config.check()
	if err != nil {
		return fmt.Errorf("source %q: %w", name, err)
	}
	// What is signed does not name the source: whoever captured a delivery to one could send it to the other as a new one.
	if name == otherSources && len(checked.signatures) > 0 {
		return errors.New(`source "*": it cannot have webhook secrets, because a signature does not say whose it is, and a ` +
			"captured delivery could be sent again under any other name; give each source that signs an entry")
	}
	for other, before := range s.named {
		if slices.ContainsFunc(checked.signatures, func(key []byte) bool {
			return slices.ContainsFunc(before.signatures, func(theirs []byte) bool { return bytes.Equal(key, theirs) })
		}) {
			return fmt.Errorf("sources %q and %q have the same webhook secret: a captured delivery of one could be sent again "+
				"as one of the other; give each its own", other, name)
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

// Entry returns the name of the entry that holds for a source: its own, or else "*", which is no source's name.
func (s *Sources) Entry(source string) string {
	if s.named[source] != nil {
		return source
	}
	return otherSources
}

// ProductPolicies returns what holds for each entry, and for "*" whether there is one or not.
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
	if slices.Contains(c.BearerTokens, "") {
		return nil, errors.New("a bearer token is empty")
	}
	for _, token := range c.BearerTokens {
		if len(token) < minSecret {
			return nil, fmt.Errorf("a bearer token is too short: it must have at least %d characters, "+
				"so that nobody guesses it", minSecret)
		}
		s.tokens = append(s.tokens, sha256.Sum256([]byte(token)))
	}
	for _, user := range c.BasicUsers {
		if user.Username == "" || user.Password == "" || strings.Contains(user.Username, ":") {
			return nil, errors.New("a basic user needs a username without a colon, and a password")
		}
		if len(user.Password) < minSecret {
			return nil, fmt.Errorf("the password of a basic user is too short: it must have at least %d characters, "+
				"so that nobody guesses it", minSecret)
		}
		s.basics = append(s.basics, sha256.Sum256([]byte(user.Username+":"+user.Password)))
	}
	for _, secret := range c.WebhookSecrets {
		encoded := strings.TrimPrefix(secret, "whsec_")
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(encoded) < 24 {
			return nil, errors.New("a webhook secret is \"whsec_\" and at least 24 characters of base64")
		}
		s.signatures = append(s.signatures, key)
	}
	s.products = ProductPolicy{c.NewProductsRate, c.NewProductsBurst, !s.open()}
	switch {
	case c.NewProductsRate != nil && (*c.NewProductsRate < 0 || *c.NewProductsRate > maxRate):
		return nil, fmt.Errorf("new_products_rate must be 0 to %d a second; 0 is for no limit", maxRate)
	case c.NewProductsBurst != nil && *c.NewProductsBurst < 1:
		return nil, errors.New("new_products_burst must be at least 1; a new_products_rate of 0 is for no limit")
	case c.Rate < 0 || c.Burst < 0:
		return nil, errors.New("rate and burst must not be negative")
	case c.Rate > maxRate:
		return nil, fmt.Errorf("rate must be at most %d a second; 0 is for no limit", maxRate)
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

// find returns the entry of a source; nil for one that may not send.
func (s *Sources) find(name string) *source {
	if named := s.named[name]; named != nil {
		return named
	}
	return s.other
}

// open reports whether the source takes tickets from everybody.
func (s *source) open() bool {
	return len(s.tokens) == 0 && len(s.basics) == 0 && len(s.signatures) == 0
}

// trust is how the sender of a request showed who it is.
type trust int

const (
	nobody   trust = iota // the source asks for no credentials, so the sender may be anybody
	byHeader              // by credentials in Authorization
	bySigned              // by a signature of the body, webhook-id and webhook-timestamp
)

// expected is how a request has to show who sent it.
func (s *source) expected(authorization string) trust {
	if s.open() {
		return nobody
	}
	if bearer, basic := schemeOf(authorization); bearer || basic {
		return byHeader
	}
	return bySigned
}

// admits reports whether the headers of a request have one of the credentials that the source asks for, if it asks for any,
// as far as that can be seen without the body: of a signature everything but that it is right.
func (s *source) admits(h Headers, now time.Time) bool {
	switch s.expected(h.Authorization) {
	case byHeader:
		_, credentials, _ := strings.Cut(h.Authorization, " ")
		credentials = strings.TrimSpace(credentials)
		if bearer, _ := schemeOf(h.Authorization); bearer {
			return known(s.tokens, []byte(credentials))
		}
		pair, err := base64.StdEncoding.DecodeString(credentials)
		return err == nil && known(s.basics, pair)
	case bySigned:
		if len(s.signatures) == 0 || h.WebhookID == "" || len(signaturesIn(h.WebhookSignature)) == 0 {
			return false
		}
		seconds, err := strconv.ParseInt(h.WebhookTimestamp, 10, 64)
		if err != nil {
			return false
		}
		at := time.Unix(seconds, 0)
		return now.Sub(at) <= SignatureTolerance && at.Sub(now) <= SignatureTolerance
	case nobody:
	}
	return true
}

// signed reports whether the body and its headers have a signature of the source
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md). It takes no memory for the
// body, as the module of Standard Webhooks does.
func (s *source) signed(h Headers, body []byte) bool {
	claimed := signaturesIn(h.WebhookSignature)
	for _, key := range s.signatures {
		mac := hmac.New(sha256.New, key)
		for _, part := range []string{h.WebhookID, ".", h.WebhookTimestamp, "."} {
			_, _ = io.WriteString(mac, part)
		}
		_, _ = mac.Write(body)
		sum := mac.Sum(nil)
		if slices.ContainsFunc(claimed, func(signature []byte) bool { return hmac.Equal(signature, sum) }) {
			return true
		}
	}
	return false
}

// signaturesIn returns the signatures of version 1 in a webhook-signature header.
func signaturesIn(header string) (found [][]byte) {
	for one := range strings.FieldsSeq(header) {
		encoded, v1 := strings.CutPrefix(one, "v1,")
		if signature, err := base64.StdEncoding.DecodeString(encoded); v1 && err == nil && len(signature) == sha256.Size {
			found = append(found, signature)
		}
	}
	return found
}

// schemeOf returns which of the known schemes an Authorization header has.
func schemeOf(authorization string) (bearer, basic bool) {
	if authorization == "" {
		return false, false
	}
	scheme, _, _ := strings.Cut(authorization, " ")
	return strings.EqualFold(scheme, "Bearer"), strings.EqualFold(scheme, "Basic")
}

func known(hashes [][sha256.Size]byte, secret []byte) bool {
	hash := sha256.Sum256(secret)
	found := 0
	for i := range hashes {
		found |= subtle.ConstantTimeCompare(hashes[i][:], hash[:])
	}
	return found == 1
}

// challenge tells a sender how to authenticate (RFC 9110, section 11.6.1).
func (s *source) challenge() string {
	switch {
	case len(s.tokens) > 0:
		return `Bearer realm="myticket"`
	case len(s.basics) > 0:
		return `Basic realm="myticket", charset="UTF-8"`
	}
	return `Signature realm="myticket"`
}

// wait takes a place in the source's rate, and returns 0, or else after how many seconds there will be one.
func (s *source) wait() int {
	if s.limiter == nil || s.limiter.Allow() {
		return 0
	}
	return s.delay()
}

// over reports after how many seconds the source's rate has a place; 0 when it has one. It takes none.
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
