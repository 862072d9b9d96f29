package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func TestAnswer_OfAStoredTicket(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("treated", func(t *testing.T) {
		t.Parallel()
		a := b.post(t, "/ticket/shop-1", sample(t))
		r := requireReceipt(t, a)
		require.Equal(t, `{"id":"`+r.ID.String()+`","status":"TREATED"}`, string(a.body))
		require.Equal(t, uuid.Version(7), r.ID.Version())
		require.Equal(t, "shop-1", b.ticket(t, r.ID).Source)
		require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE id = $1 AND received_at = $2`,
			r.ID, ticket.IDTime(r.ID)))
	})
	t.Run("error", func(t *testing.T) {
		t.Parallel()
		text := body("1", `Coffee,c,"two "" €"`)
		a := b.post(t, "/ticket", text)
		r := requireReceipt(t, a)
		require.Len(t, r.Problems, 1)
		message := r.Problems[0].Message
		require.NotEmpty(t, message)
		quoted, err := json.Marshal(message)
		require.NoError(t, err)
		require.Equal(t, `{"id":"`+r.ID.String()+`","status":"ERROR","problems":[`+
			`{"line":6,"code":"amount_invalid","message":`+string(quoted)+`}]}`, string(a.body))
		require.Equal(t, "default", b.ticket(t, r.ID).Source)
	})
	t.Run("with the trace that it came with", func(t *testing.T) {
		t.Parallel()
		const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		require.Equal(t, trace, b.ticket(t, b.submit(t, "/ticket", sample(t), "traceparent", trace).ID).Traceparent)
	})
	t.Run("identity is no encoding", func(t *testing.T) {
		t.Parallel()
		b.submit(t, "/ticket", sample(t), "Content-Encoding", "identity")
	})
	t.Run("source of 63 characters", func(t *testing.T) {
		t.Parallel()
		source := strings.Repeat("0-z", 21)
		require.Equal(t, source, b.ticket(t, b.submit(t, "/ticket/"+source, sample(t)).ID).Source)
	})
}

func TestAnswer_OfADeliveryAgain_IsTheFirstOnes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, key := range map[string]struct{ header, first, again string }{
		"raw":              {"Idempotency-Key", "raw", "raw"},
		"quoted":           {"Idempotency-Key", `"quoted"`, `"quoted"`},
		"quoted only once": {"Idempotency-Key", `"once"`, "once"},
		"very long":        {"Idempotency-Key", strings.Repeat("k", 4000), strings.Repeat("k", 4000)},
		"not ASCII":        {"Idempotency-Key", "caf\xe9", "caf\xe9"},
		"webhook-id":       {"webhook-id", "msg_1", "msg_1"},
	} {
		for what, text := range map[string]string{"treated": body("1", "Coffee,c,2"), "error": body("1", "Coffee,c,two")} {
			t.Run(name+", "+what, func(t *testing.T) {
				t.Parallel()
				path := "/ticket/" + what
				first := b.post(t, path, text, key.header, key.first)
				again := b.post(t, path, text, key.header, key.again)
				require.False(t, requireReceipt(t, first).Duplicate)
				require.Equal(t, strings.TrimSuffix(string(first.body), "}")+`,"duplicate":true}`, string(again.body))
				requireReceipt(t, again)

				requireProblem(t, b.post(t, path, text+" ", key.header, key.again),
					http.StatusUnprocessableEntity, "key_reused")
				other := b.submit(t, path+"-2", text+" ", key.header, key.first)
				require.False(t, other.Duplicate, "another source has keys of its own")
				require.Equal(t, text+" ", b.ticket(t, other.ID).Body)
			})
		}
	}
}

func TestKey_SentManyTimesAtOnce_IsOneTicket(t *testing.T) {
	t.Parallel()
	const posts = 50
	b := setup(t)
	for _, what := range []string{"the same batch", "batches of their own"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := b
			if what == "batches of their own" {
				b = setup(t, "--batch-tickets=1", "--batches-in-flight=8", "--database-max-conns=13")
			}
			text := body("1", "Coffee,c,2")
			receipts := make([]receipt, posts)
			start := make(chan struct{})
			var group sync.WaitGroup
			for i := range posts {
				group.Go(func() {
					<-start
					var err error
					receipts[i], err = b.trySubmit(text, "Idempotency-Key", "one")
					assert.NoError(t, err)
				})
			}
			close(start)
			group.Wait()
			fresh := 0
			for _, r := range receipts {
				assert.Equal(t, receipts[0].ID, r.ID)
				assert.Equal(t, ticket.Treated, r.Status)
				if !r.Duplicate {
					fresh++
				}
			}
			require.Equal(t, 1, fresh, "exactly one answer says that the ticket is new")
			require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets`))
			require.Equal(t, text, b.ticket(t, receipts[0].ID).Body)
		})
	}
}

func TestKey_ThatHasExpired_IsFree(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.submit(t, "/ticket", "first", "Idempotency-Key", "k")
	b.exec(t, `UPDATE deliveries SET expires_at = now() - interval '1 second'`)
	second := b.submit(t, "/ticket", "second", "Idempotency-Key", "k")
	require.False(t, second.Duplicate)
	require.NotEqual(t, first.ID, second.ID)
	again := b.submit(t, "/ticket", "second", "Idempotency-Key", "k")
	require.True(t, again.Duplicate)
	require.Equal(t, second.ID, again.ID, "the key is the second ticket's now")
	requireProblem(t, b.post(t, "/ticket", "first", "Idempotency-Key", "k"), http.StatusUnprocessableEntity, "key_reused")
	require.Equal(t, 2, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestAnswer_OfWhatIsNotTaken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tests := []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		code                     string
	}{
		{"an empty body", "POST", "/ticket", "", nil, 400, "body_empty"},
		{"gzip", "POST", "/ticket", "\x1f\x8b", []string{"Content-Encoding", "gzip"}, 415, "content_encoding"},
		{"deflate", "POST", "/ticket", "x", []string{"Content-Encoding", "deflate"}, 415, "content_encoding"},
		{"two encodings", "POST", "/ticket", "x", []string{"Content-Encoding", "identity, gzip"}, 415, "content_encoding"},
		{"large headers", "POST", "/ticket", "x", []string{"X-Large", strings.Repeat("x", 9000)}, 431, "header_too_large"},
		{"GET", "GET", "/ticket", "", nil, 405, "method_not_allowed"},
		{"PUT", "PUT", "/ticket", "x", nil, 405, "method_not_allowed"},
		{"DELETE with a source", "DELETE", "/ticket/shop-1", "", nil, 405, "method_not_allowed"},
		{"POST elsewhere", "POST", "/", "x", nil, 404, "not_found"},
		{"GET elsewhere", "GET", "/tickets", "", nil, 404, "not_found"},
		{"too deep", "POST", "/ticket/shop-1/till-2", "x", nil, 404, "not_found"},
		{"another case", "POST", "/Ticket", "x", nil, 404, "not_found"},
		{"what the internal listener has", "GET", "/readyz", "", nil, 404, "not_found"},
		{"source in upper case", "POST", "/ticket/Shop-1", "x", nil, 404, "source_invalid"},
		{"source of 64 characters", "POST", "/ticket/" + strings.Repeat("a", 64), "x", nil, 404, "source_invalid"},
		{"source with an underscore", "POST", "/ticket/shop_1", "x", nil, 404, "source_invalid"},
		{"source that is encoded", "POST", "/ticket/caf%C3%A9", "x", nil, 404, "source_invalid"},
		{"source with a NUL", "POST", "/ticket/a%00", "x", nil, 404, "source_invalid"},
	}
	t.Run("answers", func(t *testing.T) { // not parallel: it returns when all answers are known
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				a, err := b.do(test.method, b.webhook+test.path, strings.NewReader(test.body), test.headers...)
				require.NoError(t, err)
				requireProblem(t, a, test.status, test.code)
				if test.status == http.StatusMethodNotAllowed {
					require.Equal(t, "POST", a.header.Get("Allow"))
				}
			})
		}
		t.Run("HEAD", func(t *testing.T) {
			t.Parallel()
			a, err := b.do(http.MethodHead, b.webhook+"/ticket", nil)
			require.NoError(t, err)
			require.Equal(t, http.StatusMethodNotAllowed, a.status)
			require.Equal(t, "POST", a.header.Get("Allow"))
			require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
			require.Empty(t, a.body)
		})
	})
	require.Zero(t, b.count(t, `SELECT count(*) FROM tickets`), "nothing of this is stored")
}

// A parameter that MyTicket does not know must not look as if it had worked.
func TestParameter_ThatIsUnknown_IsNamed_AndNothingIsStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, name := range map[string]string{
		"/ticket?dry_run=true":                       `\"dry_run\"`,
		"/ticket/shop-1?dry_run":                     `\"dry_run\"`,
		"/ticket?&dry%5Frun=1":                       `\"dry_run\"`,
		"/ticket?=1":                                 `\"\"`,
		"/ticket?%zz":                                `\"%zz\"`,
		"/ticket?%22%3Cb%3E%00%C3%A9%FF":             `\"\\\"\u003cb\u003e\\x00\\u00e9\\xff\"`,
		"/ticket/?a&b":                               `\"a\"`,
		"/ticket?" + strings.Repeat("%61", 1000):     `\"` + strings.Repeat("a", 64) + `\"`,
		"/ticket?" + strings.Repeat("&", 1000) + "a": `\"a\"`,
	} {
		a := b.post(t, path, sample(t))
		requireProblem(t, a, http.StatusBadRequest, "parameter_unknown")
		require.Contains(t, string(a.body), "no parameter "+name+" in the URL", path)
	}
	require.Zero(t, b.count(t, `SELECT count(*) FROM tickets`))
	for _, path := range []string{"/ticket?", "/ticket/shop-1?&&"} { // no parameter
		require.Equal(t, ticket.Treated, b.submit(t, path, sample(t)).Status)
	}
}

func TestParameter_ThatIsIgnored_LosesNoTicket(t *testing.T) {
	t.Parallel()
	b := setup(t, "--ignore-parameters=utm_source,v")
	require.Equal(t, "shop-1", b.ticket(t, b.submit(t, "/ticket/shop-1?utm_source=till&utm%5Fsource=x&v", sample(t)).ID).Source)
	a := b.post(t, "/ticket?v=1&dry_run=1", sample(t))
	requireProblem(t, a, http.StatusBadRequest, "parameter_unknown")
	require.Contains(t, string(a.body), "dry_run")
	all := setup(t, "--ignore-parameters=*")
	require.Equal(t, ticket.Treated, all.submit(t, "/ticket?dry_run=1&x", sample(t)).Status)
}

const webhookSecret = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

const bearerToken = "token-0123456789"

const sourcesFile = `{
	"bearer": {"bearer_tokens": ["old-token-0123456789", "new-token-0123456789"]},
	"basic":  {"basic_users": [{"username": "till", "password": "pass:word-0123456789"}]},
	"signed": {"webhook_secrets": ["whsec_` + webhookSecret + `"]},
	"any":    {"bearer_tokens": ["` + bearerToken + `"], "basic_users": [{"username": "u", "password": "p-0123456789abcd"}]},
	"open":   {},
	"slow":   {"rate": 0.02, "burst": 2},
	"both":   {"bearer_tokens": ["` + bearerToken + `"], "rate": 0.02, "burst": 1}
}`

func setupSources(t *testing.T) *testBundle {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(sourcesFile), 0o600))
	return setup(t, "--sources-file", file)
}

// sign returns the headers of Standard Webhooks (https://www.standardwebhooks.com), made by hand.
func sign(t *testing.T, secret, id string, at time.Time, text string) []string {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(secret)
	require.NoError(t, err)
	timestamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, timestamp, text)
	return []string{
		"webhook-id", id, "webhook-timestamp", timestamp,
		"webhook-signature", "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)),
	}
}

func TestSource_ThatAsksForCredentials_TakesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	text := sample(t)
	basic := func(pair string) []string {
		return []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}
	}
	// Signed when it is sent, because a signature is valid for a limited time and the test may have to wait. Requests that are
	// too old or too new are so by much more.
	signed := func(id string, from time.Duration, change func([]string) []string) func() []string {
		return func() []string {
			headers := sign(t, webhookSecret, id, time.Now().Add(from), text)
			if change != nil {
				headers = change(headers)
			}
			return headers
		}
	}
	fixed := func(headers ...string) func() []string { return func() []string { return headers } }
	for _, test := range []struct {
		name, source string
		headers      func() []string
		ok           bool
	}{
		{"bearer", "bearer", fixed("Authorization", "Bearer new-token-0123456789"), true},
		{"bearer, the other one", "bearer", fixed("authorization", "bearer old-token-0123456789"), true},
		{"bearer, wrong", "bearer", fixed("Authorization", "Bearer no-token-0123456789"), false},
		{"bearer, empty", "bearer", fixed("Authorization", "Bearer "), false},
		{"bearer, as basic", "bearer", fixed(basic("till:new-token-0123456789")...), false},
		{"bearer, missing", "bearer", fixed(), false},
		{"basic", "basic", fixed(basic("till:pass:word-0123456789")...), true},
		{"basic, wrong password", "basic", fixed(basic("till:pass")...), false},
		{"basic, wrong user", "basic", fixed(basic("Till:pass:word-0123456789")...), false},
		{"basic, not base64", "basic", fixed("Authorization", "Basic till:pass:word-0123456789"), false},
		{"basic, missing", "basic", fixed(), false},
		{"signature", "signed", signed("msg_1", 0, nil), true},
		{"signature, among others", "signed", signed("msg_2", 0, func(headers []string) []string {
			headers[5] = "v1,bm90IHRoaXMgb25l " + headers[5]
			return headers
		}), true},
		{"signature, without the id", "signed", signed("msg_3", 0, func(headers []string) []string { return headers[2:] }), false},
		{"signature, of another secret", "signed", fixed(sign(t, strings.ToLower(webhookSecret), "msg_4", time.Now(), text)...), false},
		{"signature, of another body", "signed", fixed(sign(t, webhookSecret, "msg_5", time.Now(), text+"\n")...), false},
		{"signature, expired", "signed", signed("msg_6", -6*time.Minute, nil), false},
		{"signature, from the future", "signed", signed("msg_7", time.Hour, nil), false},
		{"signature, missing", "signed", fixed("webhook-id", "msg_8"), false},
		{"any, bearer", "any", fixed("Authorization", "Bearer "+bearerToken), true},
		{"any, basic", "any", fixed(basic("u:p-0123456789abcd")...), true},
		{"any, missing", "any", fixed(), false},
		{"a source that asks for none", "open", fixed(), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := b.post(t, "/ticket/"+test.source, text, test.headers()...)
			if test.ok {
				require.Equal(t, text, b.ticket(t, requireReceipt(t, a).ID).Body)
				return
			}
			requireProblem(t, a, http.StatusUnauthorized, "unauthorized")
			challenge := a.header.Get("WWW-Authenticate")
			require.NotEmpty(t, challenge, "RFC 9110, 11.6.1")
			want := map[string]string{"bearer": "Bearer ", "basic": "Basic ", "any": "Bearer "}[test.source]
			require.True(t, strings.HasPrefix(challenge, want), challenge)
		})
	}
}

func TestSource_ThatSendsTooFast_IsAskedToWait(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	requireWait := func(a answer) {
		requireProblem(t, a, http.StatusTooManyRequests, "rate_limited")
		seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
		require.NoError(t, err, "%s", a)
		require.True(t, 1 <= seconds && seconds <= 50, "a place every 50 s: %s", a)
	}
	b.submit(t, "/ticket/slow", "1")
	b.submit(t, "/ticket/slow", "2")
	for range 5 {
		requireWait(b.post(t, "/ticket/slow", "3"))
	}
	b.submit(t, "/ticket/open", "4")

	for range 5 {
		requireProblem(t, b.post(t, "/ticket/both", "5"), http.StatusUnauthorized, "unauthorized")
	}
	b.submit(t, "/ticket/both", "a stranger does not use up the rate", "Authorization", "Bearer "+bearerToken)
	requireWait(b.post(t, "/ticket/both", "6", "Authorization", "Bearer "+bearerToken))
	require.Equal(t, 4, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestAnswer_WhenTooMuchWaits_Is503AtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, "--batches-in-flight=1", "--waiting-tickets=1", "--request-timeout=1m")
	release := b.lockTickets(t)
	var group sync.WaitGroup
	post := func() {
		_, err := b.trySubmit(sample(t))
		assert.NoError(t, err)
	}
	group.Go(post)
	b.awaitBlocked(t)
	group.Go(post)
	b.awaitWaiting(t, 1)
	for range 3 {
		a := b.post(t, "/ticket", sample(t))
		requireProblem(t, a, http.StatusServiceUnavailable, "overloaded")
		requireRetryAfter(t, a)
	}
	release()
	group.Wait()
	b.submit(t, "/ticket", sample(t))
	require.Equal(t, 3, b.count(t, `SELECT count(*) FROM tickets`))
}

// requireRetryAfter wants an integer. RFC 9110 also allows a date, but few senders understand it.
func requireRetryAfter(t *testing.T, a answer) {
	t.Helper()
	seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
	require.NoError(t, err, "%s", a)
	require.Positive(t, seconds, "%s", a)
}

func TestPing_IsPong(t *testing.T) {
	t.Parallel()
	a := setup(t)
	pong := a.get(t, a.webhook+"/ping")
	require.Equal(t, http.StatusOK, pong.status)
	require.Equal(t, "Pong", string(pong.body))
}

func TestMetrics_SayWhatHappened_OnBothListeners(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 3 {
		b.submit(t, "/ticket", sample(t), "Idempotency-Key", "k")
	}
	b.submit(t, "/ticket", "unreadable")
	requireProblem(t, b.post(t, "/ticket", ""), http.StatusBadRequest, "body_empty")
	requireProblem(t, b.get(t, b.webhook+"/ticket"), http.StatusMethodNotAllowed, "method_not_allowed")
	for name, url := range map[string]string{"public": b.webhook, "internal": b.internal} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exposition := b.get(t, url+"/metrics")
			require.Contains(t, exposition.header.Get("Content-Type"), "text/plain; version=0.0.4")
			complaints, err := promlint.New(strings.NewReader(string(exposition.body))).Lint()
			require.NoError(t, err, "it is not Prometheus' text format")
			for _, c := range complaints {
				if strings.HasPrefix(c.Metric, "myticket_") {
					assert.Fail(t, c.Text, c.Metric)
				}
			}
			for series, want := range map[string]float64{
				`myticket_intake_tickets_total{status="TREATED"}`:                           1,
				`myticket_intake_tickets_total{status="ERROR"}`:                             1,
				`myticket_intake_duplicates_total`:                                          2,
				`myticket_intake_batches_total{outcome="committed"}`:                        4,
				`myticket_intake_problems_total{code="columns_missing"}`:                    1,
				`myticket_intake_order_lines_total`:                                         2,
				`myticket_http_requests_total{outcome="treated",source="default"}`:          1,
				`myticket_http_requests_total{outcome="duplicate",source="default"}`:        2,
				`myticket_http_requests_total{outcome="error",source="default"}`:            1,
				`myticket_http_requests_total{outcome="body_empty",source="default"}`:       1,
				`myticket_http_requests_total{outcome="method_not_allowed",source="other"}`: 1,
				`myticket_intake_waiting_tickets`:                                           0,
				`myticket_intake_database_away`:                                             0,
				`myticket_http_request_duration_seconds_count{code="200"}`:                  4,
				`myticket_http_request_duration_seconds_count{code="400"}`:                  1,
				`myticket_http_request_duration_seconds_count{code="405"}`:                  1,
				`myticket_http_request_duration_seconds_bucket{code="200",le="+Inf"}`:       4,
			} {
				assert.Equal(t, want, metricIn(t, exposition, series), series) //nolint:testifylint // counters are whole
			}
			assert.Contains(t, string(exposition.body), "\nmyticket_build_info{")
			assert.Contains(t, string(exposition.body), "\ngo_goroutines ")
		})
	}
}
