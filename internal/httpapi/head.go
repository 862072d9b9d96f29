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

// headerReceived looks at the head of each request, before fasthttp reads anything of its body or says "100 Continue". Of a
// request that is refused it makes one without a body: the handler answers at once, and the connection is closed.
func (s *Server) headerReceived(h *fasthttp.RequestHeader) (none fasthttp.RequestConfig) {
	s.refusals.take(h) // what is left of a request that never came to a handler
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
	refused, ok := s.webhook.Admit(s.webhook.sources.name(name), headersBefore(h), length)
	if ok && s.bodies.full(length) {
		refused, ok = s.webhook.noBudget(), false
	}
	if !ok {
		s.refusals.put(h, refused)
		dropBody(h)
	}
	return none
}

// maxHeadParts bounds the headers of a request, with what they list. fasthttp keeps up to 80 bytes for each, and its
// connection holds those until it is closed: 8 KiB of headers without a value, of cookies or of trailers were 320 KiB.
const maxHeadParts = 128

func tooManyParts(h *fasthttp.RequestHeader) bool {
	raw := h.RawHeaders()
	return len(raw) > maxHeadParts && bytes.Count(raw, []byte{'\n'})+bytes.Count(raw, []byte{';'})+bytes.Count(raw, []byte{','}) > maxHeadParts
}

// headTooLarge refuses a request to the webhook, and gives the memory of its head back. Its connection is closed.
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

// forget gives back the memory of a head. Without that it would be the next connection's.
func forget(h *fasthttp.RequestHeader) { *h = fasthttp.RequestHeader{} }

func headerTooLarge() Response {
	return problem(http.StatusRequestHeaderFieldsTooLarge, "header_too_large",
		"The request's headers are too large, or too many. Nothing was stored.")
}

// dropBody makes a request one without a body, after which its connection is closed.
func dropBody(h *fasthttp.RequestHeader) {
	if length := h.ContentLength(); length == 0 || length == -2 {
		return
	}
	h.SetContentLength(0)
	h.Del(fiber.HeaderExpect)
	h.SetConnectionClose()
}

// refusals are the answers to requests that were refused by their head, on their way to the handler. fasthttp hands nothing
// from one to the other, so the place of the request's head stands for it: it is the same in both, and nobody else's
// meanwhile.
type refusals struct {
	made  atomic.Int64 // mostly 0: those who are not refused pay next to nothing
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

// sourceOf returns the name of the source that a request posts a ticket of, as written in its path, and whether it does. It
// is the only one to say so: what is let in as one source must not be stored as another's.
func sourceOf(h *fasthttp.RequestHeader) (name []byte, ok bool) {
	if !h.IsPost() {
		return nil, false
	}
	path := h.RequestURI()
	if string(path) == defaultRoute { // as most
		return nil, true
	}
	if len(path) > 1 && path[0] == '/' && path[1] != '/' {
		if i := bytes.IndexAny(path, "?#"); i >= 0 {
			path = path[:i]
		}
	} else { // the whole URL, and what else RFC 9112, section 3.2 allows
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

// name returns a source's name as a text of its own; mostly it is that of the sources file.
func (s *Sources) name(written []byte) string {
	if len(written) == 0 {
		return ticket.DefaultSource
	}
	if named := s.named[string(written)]; named != nil && named.name != "" {
		return named.name
	}
	return string(written)
}

// headersBefore returns the headers that are looked at before the body.
func headersBefore(h *fasthttp.RequestHeader) Headers {
	var found Headers
	var once uniqueHeaders
	for key, value := range h.All() {
		switch string(key) {
		case fiber.HeaderAuthorization:
			once.add(&found, &once.authorization, fiber.HeaderAuthorization, value)
		case "Idempotency-Key":
			once.add(&found, &once.idempotencyKey, "Idempotency-Key", value)
		case "Webhook-Id":
			once.add(&found, &once.webhookID, "webhook-id", value)
		case "Webhook-Signature":
			once.add(&found, &once.webhookSignature, "webhook-signature", value)
		case "Webhook-Timestamp":
			once.add(&found, &once.webhookTimestamp, "webhook-timestamp", value)
		case fiber.HeaderContentEncoding:
			// One that is more than the body itself decides, wherever it stands.
			if found.ContentEncoding == "" || strings.EqualFold(found.ContentEncoding, "identity") {
				found.ContentEncoding = string(value)
			}
		}
	}
	found.Authorization = string(once.authorization)
	found.WebhookID = string(once.webhookID)
	found.WebhookSignature = string(once.webhookSignature)
	found.WebhookTimestamp = string(once.webhookTimestamp)
	return found
}

// uniqueHeaders are the headers that must not come twice with two values: a proxy in front, and whoever signed, may have seen
// the other one.
type uniqueHeaders struct {
	authorization, idempotencyKey, webhookID, webhookSignature, webhookTimestamp []byte
}

func (*uniqueHeaders) add(found *Headers, seen *[]byte, name string, value []byte) {
	if *seen != nil && !bytes.Equal(*seen, value) {
		found.Repeated = name
	}
	*seen = value
}

// headersBehind returns the headers that are looked at when the body is there. Of Authorization it has the scheme only, which
// says how the request was authenticated.
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
				found.Traceparent = "" // https://www.w3.org/TR/trace-context/#traceparent-header: there is one, or none
			}
		case "Webhook-Id":
			found.WebhookID = string(value)
		case "Webhook-Signature":
			found.WebhookSignature = string(value)
		case "Webhook-Timestamp":
			found.WebhookTimestamp = string(value)
		}
	}
	return found
}

// contentType makes a text of a Content-Type; of those that nearly all senders use there is one already.
func contentType(b []byte) string {
	switch string(b) {
	case "text/plain":
		return "text/plain"
	case "text/plain; charset=utf-8":
		return "text/plain; charset=utf-8"
	case "application/x-www-form-urlencoded": // what curl says when nobody does
		return "application/x-www-form-urlencoded"
	}
	return string(b)
}
