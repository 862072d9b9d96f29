package httpapi_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/httpapi"
	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// keeper is an Accepter that keeps every delivery, as intake does.
type keeper struct {
	err error // what it answers; nil for a receipt

	mu         sync.Mutex
	deliveries []intake.Delivery
}

var receiptID = uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")

func (k *keeper) Accept(d intake.Delivery) (intake.Receipt, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deliveries = append(k.deliveries, d)
	return intake.Receipt{ID: receiptID, Status: ticket.Treated}, k.err
}

const maxBody = 100

func newWebhook(accepter httpapi.Accepter, sources *httpapi.Sources) *httpapi.Webhook {
	return httpapi.NewWebhook(accepter, sources, maxBody, slog.New(slog.DiscardHandler))
}

// delivered returns the delivery that the webhook makes of a request.
func delivered(t *testing.T, r httpapi.Request) intake.Delivery {
	t.Helper()
	accepter := &keeper{}
	if r.Body == nil {
		r.Body = []byte("a ticket")
	}
	response := newWebhook(accepter, httpapi.OpenSources()).Ticket(r)
	require.Equal(t, http.StatusOK, response.Status, "%s", response.Body)
	require.Len(t, accepter.deliveries, 1)
	return accepter.deliveries[0]
}

func requireProblem(t *testing.T, r httpapi.Response, status int, code string) {
	t.Helper()
	var problem struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Code   string `json:"code"`
		Detail string `json:"detail"`
	}
	require.NoError(t, json.Unmarshal(r.Body, &problem), "%s", r.Body)
	require.Equal(t, status, r.Status, "%s", r.Body)
	require.Equal(t, "application/problem+json", r.ContentType)
	require.Equal(t, "about:blank", problem.Type)
	require.Equal(t, http.StatusText(status), problem.Title)
	require.Equal(t, status, problem.Status)
	require.Equal(t, code, problem.Code)
	require.NotEmpty(t, problem.Detail)
}

func hash(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", 256)
	for name, test := range map[string]struct{ key, webhookID, want string }{
		"none":                             {"", "", ""},
		"raw":                              {"8e03978e-40d5-43dd-bc93", "", "8e03978e-40d5-43dd-bc93"},
		"quoted, as in the draft":          {`"8e03978e"`, "", "8e03978e"},
		"one quote is part of the key":     {`"8e03978e`, "", `"8e03978e`},
		"nothing but a quote":              {`"`, "", `"`},
		"quotes around nothing are no key": {`""`, "msg_1", "msg_1"},
		"quotes inside":                    {`"a"b"`, "", `a"b`},
		"webhook-id":                       {"", "msg_1", "msg_1"},
		"webhook-id keeps its quotes":      {"", `"msg_1"`, `"msg_1"`},
		"Idempotency-Key goes first":       {"k", "msg_1", "k"},
		"a space and all printable signs":  {" !~", "", " !~"},
		"longest":                          {long[:255], "", long[:255]},
		"longest, quoted":                  {`"` + long[:255] + `"`, "", long[:255]},
		"too long":                         {long, "", hash(long)},
		"not ASCII":                        {"café", "", hash("café")},
		"not even UTF-8":                   {"caf\xe9", "", hash("caf\xe9")},
		"a control character":              {"a\tb", "", hash("a\tb")},
		"DEL":                              {"a\x7f", "", hash("a\x7f")},
		"webhook-id, not ASCII":            {"", "café", hash("café")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := delivered(t, httpapi.Request{Headers: httpapi.Headers{IdempotencyKey: test.key, Signed: &httpapi.Signed{ID: test.webhookID}}})
			require.Equal(t, test.want, d.IdempotencyKey)
			require.LessOrEqual(t, len(d.IdempotencyKey), 255)
		})
	}
}

func TestTraceparent_IsKeptWhenItIsOne(t *testing.T) {
	t.Parallel()
	const valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for traceparent, want := range map[string]string{
		valid:                                  valid,
		"":                                     "",
		valid + "-01":                          "", // of a later version, perhaps
		valid[:54]:                             "",
		strings.ToUpper(valid):                 "",
		strings.Replace(valid, "4", "g", 1):    "",
		strings.Replace(valid, "4", "\x00", 1): "",
		strings.Replace(valid, "-", "0", 1):    "",
		strings.Replace(valid, "4b", "é", 1):   "",
		"ff" + valid[2:]:                       "", // is no version
		"01" + valid[2:]:                       "", // is not understood
		strings.Replace(valid, "3577", "3-77", 1):                 "",
		"00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01":  "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": "",
		"4bf92f3577b34da6a3ce929d0e0e4736-00-00f067aa0ba902b7-01": "",
	} {
		d := delivered(t, httpapi.Request{Headers: httpapi.Headers{Traceparent: traceparent}})
		assert.Equal(t, want, d.Traceparent, "%q", traceparent)
	}
}

func TestContentType_IsKeptAsText(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]string{
		"":                                "",
		"text/plain; charset=latin1":      "text/plain; charset=latin1",
		"a\x00b\xffc":                     "a\ufffdb\ufffdc",
		strings.Repeat("x", 300):          strings.Repeat("x", 255),
		strings.Repeat("x", 254) + "é":    strings.Repeat("x", 254) + "\ufffd",
		strings.Repeat("\x00", 300) + "x": strings.Repeat("\ufffd", 255),
	} {
		d := delivered(t, httpapi.Request{Headers: httpapi.Headers{ContentType: contentType}})
		assert.Equal(t, want, d.ContentType, "%q", contentType)
	}
}

func TestSource_IsThatOfThePath(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{"": "default", "default": "default", "shop-1": "shop-1", "0": "0"} {
		assert.Equal(t, want, delivered(t, httpapi.Request{Source: source}).Source)
	}
	accepter := &keeper{}
	for _, source := range []string{"Shop", "a_b", "a b", "é", "*", "a\x00", "a/b", "..", strings.Repeat("a", 64)} {
		r := newWebhook(accepter, httpapi.OpenSources()).Ticket(httpapi.Request{Source: source, Body: []byte("x")})
		requireProblem(t, r, http.StatusNotFound, "source_invalid")
	}
	require.Empty(t, accepter.deliveries)
}

func TestTicket_ThatIsNotTaken_IsNotHandedOn(t *testing.T) {
	t.Parallel()
	accepter := &keeper{}
	webhook := newWebhook(accepter, httpapi.OpenSources())
	requireProblem(t, webhook.Ticket(httpapi.Request{}), http.StatusBadRequest, "body_empty")
	requireProblem(t, webhook.Ticket(httpapi.Request{Body: make([]byte, maxBody+1)}),
		http.StatusRequestEntityTooLarge, "body_too_large")
	for _, encoding := range []string{"gzip", "br", "identity, gzip", " identity", "x"} {
		requireProblem(t, webhook.Ticket(httpapi.Request{
			Headers: httpapi.Headers{ContentEncoding: encoding}, Body: []byte("x"),
		}), http.StatusUnsupportedMediaType, "content_encoding")
	}
	require.Empty(t, accepter.deliveries)
	require.Equal(t, http.StatusOK, webhook.Ticket(httpapi.Request{Body: make([]byte, maxBody)}).Status)
	require.Equal(t, http.StatusOK, webhook.Ticket(httpapi.Request{
		Headers: httpapi.Headers{ContentEncoding: "Identity"}, Body: []byte("x"),
	}).Status)
}

func TestErrorOfIntake_IsAnsweredAsWhatTheSenderShouldDo(t *testing.T) {
	t.Parallel()
	for code, test := range map[string]struct {
		err    error
		status int
	}{
		"key_reused":           {intake.ErrKeyReused, http.StatusUnprocessableEntity},
		"overloaded":           {intake.ErrOverloaded, http.StatusServiceUnavailable},
		"draining":             {intake.ErrDraining, http.StatusServiceUnavailable},
		"database_unavailable": {fmt.Errorf("wrapped: %w", ticket.ErrUnavailable), http.StatusServiceUnavailable},
		"internal_error":       {errors.New("secret"), http.StatusServiceUnavailable},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			r := newWebhook(&keeper{err: test.err}, httpapi.OpenSources()).Ticket(httpapi.Request{Body: []byte("x")})
			requireProblem(t, r, test.status, code)
			require.Equal(t, test.status == http.StatusServiceUnavailable, r.RetryAfter > 0, "Retry-After with 503 only")
			require.NotContains(t, string(r.Body), "secret", "what went wrong inside is for the log")
		})
	}
}

type receiptOf intake.Receipt

func (r receiptOf) Accept(intake.Delivery) (intake.Receipt, error) { return intake.Receipt(r), nil }

func TestReceipt(t *testing.T) {
	t.Parallel()
	id := receiptID.String()
	problems := []ticket.Problem{{Line: 6, Code: "c", Message: "say \"<é>\" \u2028"}, {Code: "d"}}
	for want, receipt := range map[string]intake.Receipt{
		`{"id":"` + id + `","status":"TREATED"}`:                  {Status: ticket.Treated},
		`{"id":"` + id + `","status":"TREATED","duplicate":true}`: {Status: ticket.Treated, Duplicate: true},
		`{"id":"` + id + `","status":"TO_TREAT"}`:                 {Status: ticket.ToTreat},
		`{"id":"` + id + `","status":"ERROR","problems":[` +
			`{"line":6,"code":"c","message":"say \"\u003cé\u003e\" \u2028"},{"line":0,"code":"d","message":""}]` +
			`,"duplicate":true}`: {Status: ticket.Error, Problems: problems, Duplicate: true},
	} {
		receipt.ID = receiptID
		r := newWebhook(receiptOf(receipt), httpapi.OpenSources()).Ticket(httpapi.Request{Body: []byte("x")})
		require.Equal(t, http.StatusOK, r.Status)
		require.Equal(t, "application/json", r.ContentType)
		require.Equal(t, want, string(r.Body))
	}
}
