package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// SignatureTolerance is by how much the time of a signature may differ from the server's, as Standard Webhooks has it. Within
// twice this time a signed request that somebody captured is known again by its webhook-id only.
const SignatureTolerance = 5 * time.Minute

// minSecret is the least length of a bearer token or a password, in bytes. There is no limit to how often somebody may try
// that would not also lock out the source itself, so they must not be guessable.
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
				"so that nobody guesses it", minSecret)
		}
		s.tokens = append(s.tokens, sha256.Sum256([]byte(token)))
	}
	for _, user := range c.BasicUsers {
		if user.Username == "" || user.Password == "" || strings.Contains(user.Username, ":") {
			return credentials{}, errors.New("a basic user needs a username without a colon, and a password")
		}
		if len(user.Password) < minSecret {
			return credentials{}, fmt.Errorf("the password of a basic user is too short: it must have at least %d characters, "+
				"so that nobody guesses it", minSecret)
		}
		s.basics = append(s.basics, sha256.Sum256([]byte(user.Username+":"+user.Password)))
	}
	for _, secret := range c.WebhookSecrets {
		encoded := strings.TrimPrefix(secret, "whsec_")
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(encoded) < 24 {
			return credentials{}, errors.New("a webhook secret is \"whsec_\" and at least 24 characters of base64")
		}
		s.signatures = append(s.signatures, key)
	}
	return s, nil
}

// open reports whether the source takes tickets from everybody.
func (s *credentials) open() bool {
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
func (s *credentials) expected(authorization string) trust {
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
func (s *credentials) signed(h Headers, body []byte) bool {
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
func (s *credentials) challenge() string {
	switch {
	case len(s.tokens) > 0:
		return `Bearer realm="myticket"`
	case len(s.basics) > 0:
		return `Basic realm="myticket", charset="UTF-8"`
	}
	return `Signature realm="myticket"`
}
