package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"myticket/internal/signature"
)

// SignatureTolerance is how much the time of a signature may differ from the server's time, as in Standard Webhooks. For twice
// this time, only its webhook-id shows that a captured signed request is sent again.
const SignatureTolerance = 5 * time.Minute

// minSecret is the minimum length of a bearer token or a password, in bytes. Any limit on attempts would also lock out the
// source itself, so the secrets must be too long to guess.
const minSecret = 16

// credentials are those of an entry. Secrets are kept as hashes, so that each comparison takes the same time.
type credentials struct {
	tokens     [][sha256.Size]byte // of the whole Authorization header's credentials
	basics     [][sha256.Size]byte
	signatures [][]byte // keys of HMAC-SHA256
}

// credentials reads and checks the credentials of an entry.
func (c sourceConfig) credentials() (credentials, error) {
	var s credentials
	if slices.Contains(c.BearerTokens, "") {
		return credentials{}, errors.New("a bearer token is empty")
	}
	for _, token := range c.BearerTokens {
		if len(token) < minSecret {
			return credentials{}, fmt.Errorf("a bearer token is too short: it must have at least %d characters, "+
				"so that it cannot be guessed", minSecret)
		}
		s.tokens = append(s.tokens, sha256.Sum256([]byte(token)))
	}
	for _, user := range c.BasicUsers {
		if user.Username == "" || user.Password == "" || strings.Contains(user.Username, ":") {
			return credentials{}, errors.New("a basic user needs a username without a colon, and a password")
		}
		if len(user.Password) < minSecret {
			return credentials{}, fmt.Errorf("the password of a basic user is too short: it must have at least %d characters, "+
				"so that it cannot be guessed", minSecret)
		}
		s.basics = append(s.basics, sha256.Sum256([]byte(user.Username+":"+user.Password)))
	}
	for _, secret := range c.WebhookSecrets {
		key, err := signature.Key(secret)
		if err != nil {
			return credentials{}, err
		}
		s.signatures = append(s.signatures, key)
	}
	return s, nil
}

// open reports whether no credentials are needed.
func (s *credentials) open() bool {
	return len(s.tokens) == 0 && len(s.basics) == 0 && len(s.signatures) == 0
}

// trust says how the sender of a request was authenticated.
type trust int

const (
	unauthenticated trust = iota // not at all: the source asks for no credentials
	byHeader                     // by credentials in Authorization
	bySigned                     // by a signature of the body, webhook-id and webhook-timestamp
)

// expected returns how a request must be authenticated.
func (s *credentials) expected(authorization string) trust {
	if s.open() {
		return unauthenticated
	}
	if bearer, basic := schemeOf(authorization); bearer || basic {
		return byHeader
	}
	return bySigned
}

// admits reports whether the headers of a request have valid credentials, or need none. Without the body it cannot verify a
// signature; it checks only the rest of a signed request.
func (s *credentials) admits(h Headers, now time.Time) bool {
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
		if len(s.signatures) == 0 || h.signed().ID == "" || len(signaturesIn(h.signed().Signature)) == 0 {
			return false
		}
		seconds, err := strconv.ParseInt(h.signed().Timestamp, 10, 64)
		if err != nil {
			return false
		}
		at := time.Unix(seconds, 0)
		return now.Sub(at) <= SignatureTolerance && at.Sub(now) <= SignatureTolerance
	case unauthenticated:
	}
	return true
}

// signed reports whether the request has a valid signature of the source.
func (s *credentials) signed(h Headers, body []byte) bool {
	given := h.signed()
	claimed := signaturesIn(given.Signature)
	for _, key := range s.signatures {
		sum := signature.Sum(key, given.ID, given.Timestamp, body)
		if slices.ContainsFunc(claimed, func(one []byte) bool { return hmac.Equal(one, sum) }) {
			return true
		}
	}
	return false
}

// signaturesIn returns the signatures of version 1 in a webhook-signature header.
func signaturesIn(header string) (found [][]byte) {
	for one := range strings.FieldsSeq(header) {
		encoded, v1 := strings.CutPrefix(one, "v1,")
		if sum, err := base64.StdEncoding.DecodeString(encoded); v1 && err == nil && len(sum) == sha256.Size {
			found = append(found, sum)
		}
	}
	return found
}

// schemeOf reports which of the two known schemes an Authorization header has.
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
func (s *credentials) challenge() string {
	switch {
	case len(s.tokens) > 0:
		return `Bearer realm="myticket"`
	case len(s.basics) > 0:
		return `Basic realm="myticket", charset="UTF-8"`
	}
	return `Signature realm="myticket"`
}
