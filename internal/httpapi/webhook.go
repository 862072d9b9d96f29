package httpapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// Request is a request to the webhook, as far as it matters. It shares no memory with the connection's buffers.
type Request struct {
	Source  string // as in the path; empty for /ticket
	Headers Headers
	Body    []byte
}

// Headers are the request headers that the webhook uses, as sent.
type Headers struct {
	Authorization   string
	ContentEncoding string
	ContentType     string
	IdempotencyKey  string
	Traceparent     string
	TicketTime      string
	Signed          *Signed // nil if there is none of its headers

	Repeated  string // a header that was sent twice with two values and must not be; empty for none
	Parameter string // a parameter in the URL that the webhook does not know, in quotes; empty for none
}

// Signed are the headers of Standard Webhooks. Few requests have them, and the stack of each connection has the Headers.
type Signed struct{ ID, Timestamp, Signature string }

// signed returns the headers of Standard Webhooks, which are empty if there are none.
func (h *Headers) signed() Signed {
	if h.Signed == nil {
		return Signed{}
	}
	return *h.Signed
}

// Response is the answer to a request.
type Response struct {
	Status      int
	ContentType string
	Body        []byte
	RetryAfter  int    // seconds; 0 for no header
	Challenge   string // WWW-Authenticate; empty for no header

	ID       uuid.UUID // of the ticket; zero if it has none
	StoredBy string    // see intake.Receipt

	Source  string // for metrics: one of few values
	Outcome string // for metrics: the ticket's status in lower case, duplicate, or the code of the problem
}

// Accepter stores deliveries: an intake.Intake.
type Accepter interface {
	Accept(d intake.Delivery) (intake.Receipt, error)
}

// Webhook answers the requests of senders. It does not depend on the transport, so a test can call it.
type Webhook struct {
	accepter Accepter
	sources  *Sources
	maxBody  int
	logger   *slog.Logger
}

// NewWebhook returns a Webhook that takes bodies of at most maxBody bytes.
func NewWebhook(accepter Accepter, sources *Sources, maxBody int, logger *slog.Logger) *Webhook {
	return &Webhook{accepter: accepter, sources: sources, maxBody: maxBody, logger: logger}
}

// How long senders are asked to wait before they send again (Retry-After), in seconds.
const (
	retryOverloaded  = 1
	retryDraining    = 1
	retryUnavailable = 5
	retryWrong       = 5
	retryOnHold      = 5
)

// Ticket answers a POST to /ticket or /ticket/{source} whose body has been read.
func (w *Webhook) Ticket(r Request) Response {
	if r.Source == "" {
		r.Source = ticket.DefaultSource
	}
	response, ok := w.Admit(r.Source, r.Headers, len(r.Body))
	if ok {
		r, _, response, ok = w.verify(r)
	}
	if ok {
		response = w.store(r)
	}
	return w.answered(r, response)
}

// answered adds the source for the metrics to a response, and logs it.
func (w *Webhook) answered(r Request, response Response) Response {
	response.Source = w.sources.label(r.Source)
	if w.logger.Enabled(context.Background(), slog.LevelDebug) {
		w.logger.With(r.logAttr(response.ID)).
			Debug("answered", "status", response.Status, "outcome", response.Outcome, "bytes", len(r.Body))
	}
	return response
}

// logAttr returns what the log says of a request. It leaves out a source name that is not valid, because it may be anything,
// such as a secret.
func (r Request) logAttr(id uuid.UUID) slog.Attr {
	t := ticket.Ticket{ID: id, Traceparent: traceparent(r.Headers.Traceparent)}
	if ValidSource(r.Source) {
		t.Source = r.Source
	}
	return t.LogAttr()
}

// Admit checks everything that comes before the body, so that a body takes memory only if it will be used. It returns true, or
// the answer to a request whose body need not be read. A body of unknown length has length -1.
func (w *Webhook) Admit(name string, h Headers, length int) (Response, bool) {
	if !ValidSource(name) {
		return problem(http.StatusNotFound, "source_invalid",
			"The name of a source has 1 to 63 of the characters a-z, 0-9 and -. The ticket was not stored; correct the URL."), false
	}
	source := w.sources.find(name)
	if source == nil {
		return problem(http.StatusForbidden, "source_unknown",
			"The server accepts only tickets of sources that it knows, and it does not know this one. The ticket was not stored; "+
				"correct the URL, or ask the operator to add the source."), false
	}
	if h.Parameter != "" {
		return problem(http.StatusBadRequest, "parameter_unknown",
			"The webhook knows no parameter "+h.Parameter+" in the URL. The ticket was not stored; send it without the parameter, or "+
				"ask the operator to have it ignored (--ignore-parameters)."), false
	}
	if h.Repeated != "" {
		return problem(http.StatusBadRequest, "header_repeated",
			"The header "+h.Repeated+" was sent twice, with two values. The ticket was not stored; send the header once."), false
	}
	if !source.open() && !source.admits(h, w.sources.now()) {
		return w.unauthorized(source, h), false
	}
	if source.hold {
		return sourceOnHold(), false
	}
	// A signature is not verified yet. Such a request uses up no rate, so that others cannot use up the rate of the source.
	wait := source.over
	if source.expected(h.Authorization) != bySigned {
		wait = source.wait
	}
	if seconds := wait(); seconds > 0 {
		return rateLimited(seconds), false
	}
	if h.TicketTime != "" {
		if refused, ok := source.timed(h); !ok {
			return refused, false
		}
	}
	switch {
	case h.ContentEncoding != "" && !strings.EqualFold(h.ContentEncoding, "identity"):
		return problem(http.StatusUnsupportedMediaType, "content_encoding",
			"The body has a Content-Encoding, which the server does not take. The ticket was not stored; send it without."), false
	case length == 0:
		return bodyEmpty(), false
	case length > w.maxBody:
		return w.tooLarge(), false
	}
	return Response{}, true
}

func bodyEmpty() Response {
	return problem(http.StatusBadRequest, "body_empty", "The body is empty: there is no ticket to store.")
}

func rateLimited(seconds int) Response {
	return retryLater(http.StatusTooManyRequests, "rate_limited", seconds,
		"The source sends more tickets a second than it may. The ticket was not stored; send it again later.")
}

func sourceOnHold() Response {
	return retryLater(http.StatusServiceUnavailable, "source_on_hold", retryOnHold,
		"The source is on hold, because an operator is moving it. Nothing was stored; send the ticket again, with the same "+
			"Idempotency-Key.")
}

func requestTimeout() Response {
	return problem(http.StatusRequestTimeout, "request_timeout",
		"The request did not arrive in time. Nothing was stored; send it again.")
}

// unauthorized answers a request without credentials or with wrong ones. Too many requests with wrong ones are answered 429.
func (w *Webhook) unauthorized(s *source, h Headers) Response {
	given := h.Authorization != "" || h.signed().Signature != ""
	if given && (!s.wrong.Allow() || !w.sources.wrong.Allow()) {
		return retryLater(http.StatusTooManyRequests, "wrong_credentials", retryWrong,
			"Too many requests have wrong credentials. The ticket was not stored; send it with the credentials of the source.")
	}
	refused := problem(http.StatusUnauthorized, "unauthorized",
		"The source needs credentials, and the request has none or wrong ones. The ticket was not stored; send it with the "+
			"credentials of the source.")
	refused.Challenge = s.challenge()
	return refused
}

// verify checks what needs the body. It returns the request to store, how its sender was authenticated, and true. If a check
// fails, it returns the answer and false.
func (w *Webhook) verify(r Request) (Request, trust, Response, bool) {
	source := w.sources.find(r.Source)
	trusted := source.expected(r.Headers.Authorization)
	switch {
	case trusted == bySigned && !source.signed(r.Headers, r.Body):
		return r, unauthenticated, w.unauthorized(source, r.Headers), false
	case len(r.Body) == 0:
		return r, trusted, bodyEmpty(), false
	case len(r.Body) > w.maxBody:
		return r, trusted, w.tooLarge(), false
	}
	if trusted == bySigned {
		if seconds := source.wait(); seconds > 0 {
			return r, trusted, rateLimited(seconds), false
		}
		// The signature does not cover the header. With another key, an attacker who captured the request could send it again
		// as a new ticket, or use the key of a future ticket.
		r.Headers.IdempotencyKey = ""
	}
	return r, trusted, Response{}, true
}

// store hands the ticket of a verified request to the accepter.
func (w *Webhook) store(r Request) Response {
	at, _ := ticketTime(r.Headers.TicketTime) // Admit has refused what is no time
	receipt, err := w.accepter.Accept(intake.Delivery{
		Source: r.Source, Body: r.Body,
		ContentType:    ticket.CleanText(r.Headers.ContentType, 255),
		Traceparent:    traceparent(r.Headers.Traceparent),
		IdempotencyKey: idempotencyKey(r.Headers),
		Time:           at,
	})
	if err != nil {
		return w.failed(r, err)
	}
	response := Response{
		Status: http.StatusOK, ContentType: "application/json", Body: appendReceipt(nil, receipt),
		ID: receipt.ID, StoredBy: receipt.StoredBy, Outcome: outcome(receipt),
	}
	if receipt.Status == ticket.Spooled {
		response.Status = http.StatusAccepted
	}
	return response
}

// The outcomes of a request that stored its ticket.
const (
	outcomeTreated = "treated"
	outcomeError   = "error"
	outcomeToTreat = "to_treat"
	outcomeSpooled = "spooled"
)

func outcome(r intake.Receipt) string {
	switch {
	case r.Duplicate:
		return "duplicate"
	case r.Status == ticket.Treated:
		return outcomeTreated
	case r.Status == ticket.Error:
		return outcomeError
	case r.Status == ticket.Spooled:
		return outcomeSpooled
	}
	return outcomeToTreat
}

func (w *Webhook) tooLarge() Response {
	return problem(http.StatusRequestEntityTooLarge, "body_too_large",
		"The ticket has more than the limit of "+strconv.Itoa(w.maxBody)+" bytes. It was not stored.")
}

func (w *Webhook) failed(r Request, err error) Response {
	switch {
	case errors.Is(err, intake.ErrKeyReused):
		return problem(http.StatusUnprocessableEntity, "key_reused",
			"The idempotency key was used before for a ticket with another body. The ticket was not stored; "+
				"send it with a key of its own.")
	case errors.Is(err, intake.ErrOverloaded):
		return retryLater(http.StatusServiceUnavailable, "overloaded", retryOverloaded,
			"Too many tickets wait to be stored. This ticket was not stored; send it again.")
	case errors.Is(err, intake.ErrSpoolFull):
		return retryLater(http.StatusServiceUnavailable, "spool_full", retryUnavailable,
			"The database does not take tickets in time, and the spool is full. This ticket was not stored; send it again.")
	case errors.Is(err, intake.ErrDraining):
		return retryLater(http.StatusServiceUnavailable, "draining", retryDraining,
			"This server is shutting down. The ticket was not stored; send it again.")
	case errors.Is(err, ticket.ErrUnavailable):
		return retryLater(http.StatusServiceUnavailable, "database_unavailable", retryUnavailable,
			"Neither the database nor the disk has confirmed the ticket, so it is not known to be stored. Send it again. "+
				"With the same Idempotency-Key it is stored only once.")
	}
	w.logger.With(r.logAttr(uuid.Nil)).Error("a ticket could not be accepted; its sender is asked to send it again", "error", err)
	return retryLater(http.StatusServiceUnavailable, "internal_error", retryUnavailable,
		"An internal error occurred. The ticket is not known to be stored; send it again.")
}

// appendReceipt appends {"id":"…","status":"…"}, with "problems" and "duplicate" if there are any.
func appendReceipt(b []byte, r intake.Receipt) []byte {
	if b == nil {
		b = make([]byte, 0, 80)
	}
	b = append(b, `{"id":"`...)
	b = appendID(b, r.ID)
	b = append(b, `","status":"`...)
	b = append(b, r.Status...)
	b = append(b, '"')
	if len(r.Problems) > 0 {
		problems, err := json.Marshal(r.Problems)
		if err == nil { // strings and integers: there is no error
			b = append(append(b, `,"problems":`...), problems...)
		}
	}
	if r.Duplicate {
		b = append(b, `,"duplicate":true`...)
	}
	return append(b, '}')
}

// appendID appends an id as uuid.UUID.String writes it, without the memory for that string.
func appendID(b []byte, id uuid.UUID) []byte {
	for i, part := range [...][]byte{id[:4], id[4:6], id[6:8], id[8:10], id[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return b
}

// ValidSource reports whether a source can have a name: 1 to 63 of a-z, 0-9 and -.
func ValidSource(name string) bool {
	if name == "" || len(name) > 63 {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// traceparent returns a W3C trace context of version 00, or "" if s is not one
// (https://www.w3.org/TR/trace-context/#traceparent-header).
func traceparent(s string) string {
	if len(s) != traceparentLength || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return ""
	}
	trace, parent, flags := s[3:35], s[36:52], s[53:]
	if !isHex(trace) || !isHex(parent) || !isHex(flags) || strings.Trim(trace, "0") == "" || strings.Trim(parent, "0") == "" {
		return ""
	}
	return s
}

const traceparentLength = 55

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// maxKey is the longest idempotency key that is stored as it is, in bytes.
const maxKey = 255

// idempotencyKey returns the key of a delivery, from Idempotency-Key
// (https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/), or else from webhook-id
// (https://www.standardwebhooks.com). The draft's quotes around the key are optional. A key that is too long, or not printable
// ASCII, is replaced by its hash, because a ticket must not be lost for its key.
func idempotencyKey(h Headers) string {
	key := h.IdempotencyKey
	if n := len(key); n >= 2 && key[0] == '"' && key[n-1] == '"' {
		key = key[1 : n-1]
	}
	if key == "" {
		key = h.signed().ID
	}
	for i := range len(key) {
		if key[i] < 0x20 || key[i] > 0x7e {
			return hashed(key)
		}
	}
	if len(key) > maxKey {
		return hashed(key)
	}
	return key
}
