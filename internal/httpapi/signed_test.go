package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

const (
	signingKey  = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secondKey   = "c2Vjb25kLWtleS10aGF0LWlzLWxvbmc="
	bearerToken = "0123456789abcdef"
)

// byKey is an Accepter that keeps a body for each source and key, as a store does.
type byKey map[string]string

func (k byKey) Accept(d intake.Delivery) (intake.Receipt, error) {
	key := d.Source + " " + d.IdempotencyKey
	before, known := k[key]
	switch {
	case d.IdempotencyKey == "":
		k[key+strconv.Itoa(len(k))] = string(d.Body)
	case known && before != string(d.Body):
		return intake.Receipt{}, intake.ErrKeyReused
	default:
		k[key] = string(d.Body)
	}
	return intake.Receipt{ID: uuid.Max, Status: ticket.Treated, Duplicate: known}, nil
}

// signedWebhook has two sources that sign. One of them may send a bearer token instead. Its clock stands still.
func signedWebhook(t *testing.T, now time.Time) (*Webhook, byKey) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"signed": {"webhook_secrets": ["whsec_`+signingKey+`"]},
		"both": {"webhook_secrets": ["`+secondKey+`"], "bearer_tokens": ["`+bearerToken+`"]}, "open": {}}`), 0o600))
	sources, err := ReadSources(file)
	require.NoError(t, err)
	sources.now = func() time.Time { return now }
	stored := byKey{}
	return NewWebhook(stored, sources, 1000, slog.New(slog.DiscardHandler)), stored
}

func signedHeaders(t *testing.T, key, id, at, body string) Headers {
	t.Helper()
	secret, err := base64.StdEncoding.DecodeString(key)
	require.NoError(t, err)
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
	return Headers{Signed: &Signed{id, at, "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))}}
}

// A header that is not signed must not decide whether a captured request is recognized.
func TestSignedRequest_TakesItsKeyFromWhatIsSigned(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	at := strconv.FormatInt(now.Unix(), 10)
	for source, key := range map[string]string{"signed": signingKey, "both": secondKey} {
		w, stored := signedWebhook(t, now)
		captured := Request{Source: source, Headers: signedHeaders(t, key, "msg_1", at, "ticket"), Body: []byte("ticket")}
		require.Equal(t, http.StatusOK, w.Ticket(captured).Status)
		for _, forged := range []string{"", "other", `"other"`, "msg_1", "msg_2", strings.Repeat("k", 300)} {
			replayed := captured
			replayed.Headers.IdempotencyKey = forged
			response := w.Ticket(replayed)
			require.Equal(t, http.StatusOK, response.Status)
			require.Contains(t, string(response.Body), `"duplicate":true`, "replayed with %q", forged)
		}
		require.Len(t, stored, 1, "a captured request is never a new ticket")

		// Nor does it take the key of a future one.
		next := Request{Source: source, Headers: signedHeaders(t, key, "msg_2", at, "the next"), Body: []byte("the next")}
		require.Equal(t, http.StatusOK, w.Ticket(next).Status)
		require.Equal(t, byKey{source + " msg_1": "ticket", source + " msg_2": "the next"}, stored)
	}

	w, stored := signedWebhook(t, now)
	r := Request{Source: "both", Headers: Headers{
		Authorization: "Bearer " + bearerToken, IdempotencyKey: "k", Signed: &Signed{ID: "msg_1", Signature: "v1,x"},
	}, Body: []byte("ticket")}
	require.Equal(t, http.StatusOK, w.Ticket(r).Status)
	require.Equal(t, byKey{"both k": "ticket"}, stored, "with a token, the Idempotency-Key counts")
}

// A captured request cannot be sent as another source's, nor with another ticket.
func TestSignature_IsOfOneSource_OneBody_AndOneMoment(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	stamp := func(from time.Duration) string { return strconv.FormatInt(now.Add(from).Unix(), 10) }
	good := signedHeaders(t, signingKey, "msg", stamp(0), "ticket")
	for name, test := range map[string]struct {
		source  string
		headers Headers
		body    string
		want    int
	}{
		"good":                   {"signed", good, "ticket", 200},
		"just not too old":       {"signed", signedHeaders(t, signingKey, "msg", stamp(-SignatureTolerance), "ticket"), "ticket", 200},
		"just not too far ahead": {"signed", signedHeaders(t, signingKey, "msg", stamp(SignatureTolerance), "ticket"), "ticket", 200},
		"too old":                {"signed", signedHeaders(t, signingKey, "msg", stamp(-SignatureTolerance-time.Second), "ticket"), "ticket", 401},
		"too far ahead":          {"signed", signedHeaders(t, signingKey, "msg", stamp(SignatureTolerance+time.Second), "ticket"), "ticket", 401},
		"the end of time":        {"signed", signedHeaders(t, signingKey, "msg", "9223372036854775807", "ticket"), "ticket", 401},
		"the beginning of it":    {"signed", signedHeaders(t, signingKey, "msg", "-9223372036854775808", "ticket"), "ticket", 401},
		"no time":                {"signed", signedHeaders(t, signingKey, "msg", "now", "ticket"), "ticket", 401},
		"another source":         {"both", good, "ticket", 401},
		"another body":           {"signed", good, "ticket ", 401},
		"another id": {"signed", Headers{
			Signed: &Signed{"other", good.Signed.Timestamp, good.Signed.Signature},
		}, "ticket", 401},
		"another time": {"signed", Headers{
			Signed: &Signed{"msg", stamp(time.Second), good.Signed.Signature},
		}, "ticket", 401},
		"among others": {"signed", Headers{
			Signed: &Signed{"msg", good.Signed.Timestamp, "v1,bm90 v2,x " + good.Signed.Signature + " v1a,y"},
		}, "ticket", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, _ := signedWebhook(t, now)
			require.Equal(t, test.want, w.Ticket(Request{Source: test.source, Headers: test.headers, Body: []byte(test.body)}).Status)
		})
	}
}

// Guesses are slowed down, and senders that know the secret are not affected.
func TestWrongCredentials_AreAskedToBackOff_RightOnesNever(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	w, _ := signedWebhook(t, now)
	post := func(source string, h Headers) Response {
		return w.Ticket(Request{Source: source, Headers: h, Body: []byte("x")})
	}
	answers := map[int]int{}
	for i := range 2 * wrongOfSourceBurst {
		r := post("both", Headers{Authorization: fmt.Sprintf("Bearer wrong-%d", i)})
		answers[r.Status]++
		if r.Status == http.StatusTooManyRequests {
			require.Contains(t, string(r.Body), `"code":"wrong_credentials"`)
			require.Positive(t, r.RetryAfter)
			require.Empty(t, r.Challenge)
		}
		require.Equal(t, http.StatusOK, post("both", Headers{Authorization: "Bearer " + bearerToken}).Status)
	}
	require.GreaterOrEqual(t, answers[http.StatusUnauthorized], wrongOfSourceBurst)
	require.GreaterOrEqual(t, answers[http.StatusTooManyRequests], wrongOfSourceBurst/2)
	require.Equal(t, http.StatusUnauthorized, post("both", Headers{}).Status, "no credentials are not a guess")
	require.Equal(t, http.StatusUnauthorized, post("signed", Headers{Authorization: "Bearer x"}).Status, "each source has its own")

	at := strconv.FormatInt(now.Unix(), 10)
	for range 2 * wrongOfSourceBurst {
		post("signed", signedHeaders(t, secondKey, "msg", at, "x"))
	}
	require.Equal(t, http.StatusTooManyRequests, post("signed", signedHeaders(t, secondKey, "msg", at, "x")).Status)
	require.Equal(t, http.StatusOK, post("signed", signedHeaders(t, signingKey, "msg", at, "x")).Status)
}
