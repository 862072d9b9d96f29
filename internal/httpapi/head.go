package httpapi

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"myticket/internal/ticket"
)

// headerReceived checks the head of each request, before fasthttp reads any of its body or sends "100 Continue". It turns a
// refused request into one without a body: the handler answers it at once, and the connection is closed.
func (s *Server) headerReceived(h *fasthttp.RequestHeader) (none fasthttp.RequestConfig) {
	s.refusals.take(h) // left by a request that reached no handler
	defer func() {
		if p := recover(); p != nil {
			s.refusals.put(h, s.webhook.failed(Request{}, fmt.Errorf("panic: %v\n%s", p, debug.Stack())))
			dropBody(h)
		}
	}()
	if tooManyParts(h) {
		s.headTooLarge(h)
		return none
	}
	length := h.ContentLength() // -1 for a chunked body, -2 for none
	name, ok := sourceOf(h)
	if !ok { // no other route reads a body
		dropBody(h)
		return none
	}
	if length == -2 {
		length = 0
	}
	refused, ok := s.webhook.Admit(s.webhook.sources.name(name), s.headersBefore(h), length)
	if ok && s.bodies.full(length) {
		refused, ok = s.webhook.noBudget(), false
	}
	if !ok {
		s.refusals.put(h, refused)
		dropBody(h)
	}
	return none
}

// maxHeadParts bounds the number of headers and of their list elements. fasthttp keeps up to 80 bytes for each until the
// connection closes, so that 8 KiB of empty headers, cookies or trailers would take 320 KiB.
const maxHeadParts = 128

func tooManyParts(h *fasthttp.RequestHeader) bool {
	raw := h.RawHeaders()
	if len(raw) <= maxHeadParts {
		return false
	}
	return bytes.Count(raw, []byte{'\n'})+bytes.Count(raw, []byte{';'})+bytes.Count(raw, []byte{','}) > maxHeadParts
}

// headTooLarge refuses a request to the webhook, frees the memory of its head, and closes its connection.
func (s *Server) headTooLarge(h *fasthttp.RequestHeader) {
	method, uri := string(h.Method()), string(h.RequestURI())
	_, ours := sourceOf(h)
	forget(h)
	h.SetMethod(method)
	h.SetRequestURI(uri)
	h.SetConnectionClose()
	if ours {
		s.refusals.put(h, headerTooLarge())
	}
}

// forget frees the memory of a head. Otherwise the next connection would hold it.
func forget(h *fasthttp.RequestHeader) { *h = fasthttp.RequestHeader{} }

func headerTooLarge() Response {
	return problem(http.StatusRequestHeaderFieldsTooLarge, "header_too_large",
		"The request's headers are too large, or too many. Nothing was stored; send fewer headers.")
}

// dropBody turns a request into one without a body, and closes its connection afterwards.
func dropBody(h *fasthttp.RequestHeader) {
	if length := h.ContentLength(); length == 0 || length == -2 {
		return
	}
	h.SetContentLength(0)
	h.Del(fiber.HeaderExpect)
	h.SetConnectionClose()
}

// refusals are answers to requests that were refused by their head, until the handler takes them. fasthttp passes nothing from
// headerReceived to the handler, so the address of the request's head is the key: it is the same in both, and no other
// request has it in between.
type refusals struct {
	made  atomic.Int64 // mostly 0, so that other requests cost almost nothing
	heads sync.Map     // *fasthttp.RequestHeader → Response
}

func (r *refusals) put(h *fasthttp.RequestHeader, refused Response) {
	r.made.Add(1)
	if _, replaced := r.heads.Swap(h, refused); replaced {
		r.made.Add(-1)
	}
}

func (r *refusals) take(h *fasthttp.RequestHeader) (Response, bool) {
	if r.made.Load() == 0 {
		return Response{}, false
	}
	found, ok := r.heads.LoadAndDelete(h)
	if !ok {
		return Response{}, false
	}
	r.made.Add(-1)
	refused, _ := found.(Response)
	return refused, true
}

// sourceOf returns the name of a ticket's source, as written in the request's path. ok is false if the request posts no
// ticket. All code gets the source from here, so that a ticket is never admitted as one source and stored as another's.
func sourceOf(h *fasthttp.RequestHeader) (name []byte, ok bool) {
	if !h.IsPost() {
		return nil, false
	}
	path := h.RequestURI()
	if string(path) == defaultRoute { // the usual path
		return nil, true
	}
	if len(path) > 1 && path[0] == '/' && path[1] != '/' {
		if i := bytes.IndexAny(path, "?#"); i >= 0 {
			path = path[:i]
		}
	} else { // the whole URL, or another form that RFC 9112, section 3.2 allows
		uri := fasthttp.AcquireURI()
		defer fasthttp.ReleaseURI(uri)
		if err := uri.Parse(h.Host(), path); err != nil {
			return nil, false
		}
		path = bytes.Clone(uri.PathOriginal())
	}
	rest, ok := bytes.CutPrefix(bytes.TrimRight(path, "/"), []byte(defaultRoute))
	switch {
	case !ok:
		return nil, false
	case len(rest) == 0:
		return nil, true
	}
	return rest[1:], rest[0] == '/' && len(rest) > 1 && bytes.IndexByte(rest[1:], '/') < 0
}

// name returns a source's name as a string that shares no memory with the request. Usually it is that of the sources file.
func (s *Sources) name(written []byte) string {
	if len(written) == 0 {
		return ticket.DefaultSource
	}
	if named := s.named[string(written)]; named != nil && named.name != "" {
		return named.name
	}
	return string(written)
}

// headersBefore returns the headers that are checked before the body is read.
func (s *Server) headersBefore(h *fasthttp.RequestHeader) Headers {
	var found Headers
	found.Parameter = unknownParameter(h, s.config.IgnoreParameters)
	var once uniqueHeaders
	for key, value := range h.All() {
		switch string(key) {
		case fiber.HeaderAuthorization:
			once.add(&found, &once.authorization, fiber.HeaderAuthorization, value)
		case "Idempotency-Key":
			once.add(&found, &once.idempotencyKey, "Idempotency-Key", value)
		case "Ticket-Time":
			once.add(&found, &once.ticketTime, "Ticket-Time", value)
		case "Webhook-Id":
			once.add(&found, &once.webhookID, "webhook-id", value)
		case "Webhook-Signature":
			once.add(&found, &once.webhookSignature, "webhook-signature", value)
		case "Webhook-Timestamp":
			once.add(&found, &once.webhookTimestamp, "webhook-timestamp", value)
		case fiber.HeaderContentEncoding:
			// If there are several, one other than "identity" decides, wherever it is.
			if found.ContentEncoding == "" || strings.EqualFold(found.ContentEncoding, "identity") {
				found.ContentEncoding = string(value)
			}
		}
	}
	found.Authorization = string(once.authorization)
	if found.TicketTime = string(once.ticketTime); once.ticketTime != nil && found.TicketTime == "" {
		found.TicketTime = " " // it is there and no time: its sender relies on it
	}
	if once.webhookID != nil || once.webhookSignature != nil || once.webhookTimestamp != nil {
		found.Signed = &Signed{string(once.webhookID), string(once.webhookTimestamp), string(once.webhookSignature)}
	}
	return found
}

// uniqueHeaders are the headers that must not come twice with two values, because a proxy in front, or the signer, may have
// used the other one.
type uniqueHeaders struct {
	authorization, idempotencyKey, ticketTime, webhookID, webhookSignature, webhookTimestamp []byte
}

func (*uniqueHeaders) add(found *Headers, seen *[]byte, name string, value []byte) {
	if *seen != nil && !bytes.Equal(*seen, value) {
		found.Repeated = name
	}
	*seen = value
}

// headersBehind returns the headers that are used after the body was read. Of Authorization it has only the scheme, which says
// how the request was authenticated.
func headersBehind(h *fasthttp.RequestHeader) Headers {
	found := Headers{ContentType: contentType(h.ContentType())}
	traceparents := 0
	for key, value := range h.All() {
		switch string(key) {
		case fiber.HeaderAuthorization:
			scheme, _, _ := bytes.Cut(value, []byte(" "))
			switch {
			case bytes.EqualFold(scheme, []byte("Bearer")):
				found.Authorization = "Bearer"
			case bytes.EqualFold(scheme, []byte("Basic")):
				found.Authorization = "Basic"
			}
		case "Idempotency-Key":
			found.IdempotencyKey = string(value)
		case "Traceparent":
			if traceparents++; traceparents == 1 {
				found.Traceparent = string(value)
			} else {
				found.Traceparent = "" // https://www.w3.org/TR/trace-context/#traceparent-header: at most one is valid
			}
		case "Ticket-Time":
			found.TicketTime = string(value)
		case "Webhook-Id":
			found.sign().ID = string(value)
		case "Webhook-Signature":
			found.sign().Signature = string(value)
		case "Webhook-Timestamp":
			found.sign().Timestamp = string(value)
		}
	}
	return found
}

// sign returns the headers of Standard Webhooks, to set them.
func (h *Headers) sign() *Signed {
	if h.Signed == nil {
		h.Signed = &Signed{}
	}
	return h.Signed
}

// contentType returns a Content-Type as a string. The most common ones need no allocation.
func contentType(b []byte) string {
	switch string(b) {
	case "text/plain":
		return "text/plain"
	case "text/plain; charset=utf-8":
		return "text/plain; charset=utf-8"
	case "application/x-www-form-urlencoded": // curl's default
		return "application/x-www-form-urlencoded"
	}
	return string(b)
}
