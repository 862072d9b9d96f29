package httpapi

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"golang.org/x/time/rate"

	"myticket/internal/ticket"
)

// Sources says what each source must bring along, and how fast it may send. A source that is not named is open.
type Sources struct {
	named map[string]*source
	other *source // for every source without an entry of its own
}

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
	tokens     [][sha256.Size]byte // of the whole Authorization header's credentials
	basics     [][sha256.Size]byte
	signatures []*standardwebhooks.Webhook
	limiter    *rate.Limiter
	products   ProductPolicy
}

// ProductPolicy is what an entry says about the products that tickets name. Nil is what it does not say.
type ProductPolicy struct {
	NewProductsRate  *float64 // products a second that tickets may add; 0 for no limit
	NewProductsBurst *int     // products at once; at least 1
	Authenticated    bool     // the entry asks for credentials
}

// OpenSources is what holds without a sources file: everybody may send, as fast as they can.
func OpenSources() *Sources { return &Sources{named: map[string]*source{}, other: &source{}} }

// ReadSources reads a sources file: a JSON object with an entry per source, and "*" for all others. Keys that it does
// not know, a source that is there twice, names that no source can have, and credentials that cannot be used are errors.
func ReadSources(file string) (*Sources, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the sources file: %w", err)
	}
	sources := OpenSources()
	if err := sources.read(content); err != nil {
		return nil, fmt.Errorf("read the sources file %s: %w", file, err)
	}
	return sources, nil
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
	s.named[name] = checked
	if name == otherSources {
		s.other = checked
	}
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
	s := &source{}
	for _, token := range c.BearerTokens {
		if token == "" {
			return nil, errors.New("a bearer token is empty")
		}
		s.tokens = append(s.tokens, sha256.Sum256([]byte(token)))
	}
	for _, user := range c.BasicUsers {
		if user.Username == "" || user.Password == "" || strings.Contains(user.Username, ":") {
			return nil, errors.New("a basic user needs a username without a colon, and a password")
		}
		s.basics = append(s.basics, sha256.Sum256([]byte(user.Username+":"+user.Password)))
	}
	for _, secret := range c.WebhookSecrets {
		signature, err := standardwebhooks.NewWebhook(secret)
		if err != nil || len(strings.TrimPrefix(secret, "whsec_")) < 24 {
			return nil, errors.New("a webhook secret is \"whsec_\" and at least 24 characters of base64")
		}
		s.signatures = append(s.signatures, signature)
	}
	s.products = ProductPolicy{c.NewProductsRate, c.NewProductsBurst, !s.isOpen()}
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

func (s *Sources) find(name string) *source {
	if named := s.named[name]; named != nil {
		return named
	}
	return s.other
}

func (s *source) isOpen() bool {
	return len(s.tokens) == 0 && len(s.basics) == 0 && len(s.signatures) == 0
}

// authenticates tells whether the request has one of the credentials that the source asks for, if it asks for any.
func (s *source) authenticates(r Request) bool {
	if s.isOpen() {
		return true
	}
	scheme, credentials, _ := strings.Cut(r.Headers.Authorization, " ")
	credentials = strings.TrimSpace(credentials)
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return known(s.tokens, []byte(credentials))
	case strings.EqualFold(scheme, "Basic"):
		pair, err := base64.StdEncoding.DecodeString(credentials)
		return err == nil && known(s.basics, pair)
	}
	if r.Headers.WebhookSignature == "" {
		return false
	}
	header := http.Header{}
	header.Set(standardwebhooks.HeaderWebhookID, r.Headers.WebhookID)
	header.Set(standardwebhooks.HeaderWebhookTimestamp, r.Headers.WebhookTimestamp)
	header.Set(standardwebhooks.HeaderWebhookSignature, r.Headers.WebhookSignature)
	return slices.ContainsFunc(s.signatures, func(w *standardwebhooks.Webhook) bool { return w.Verify(r.Body, header) == nil })
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
	reservation := s.limiter.Reserve()
	delay := reservation.Delay()
	reservation.Cancel()
	return max(1, int(math.Ceil(delay.Round(time.Millisecond).Seconds())))
}
