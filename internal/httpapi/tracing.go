package httpapi

import (
	"context"
	"net/http"

	"github.com/gofiber/fiber/v2"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"myticket/internal/telemetry"
)

// serverSpan is what is said of a span when it begins. The rest is said only of those that are kept: most are not, and no
// sampler that OTEL_TRACES_SAMPLER can name looks at it.
var serverSpan = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}

// startSpan begins the span of a request, below the sender's where the request names one
// (https://opentelemetry.io/docs/specs/semconv/http/http-spans/). What senders choose freely, such as the path, is left out:
// it would be of any number of values, and may be secret.
func (s *Server) startSpan(c *fiber.Ctx) trace.Span {
	parent := context.Background()
	if s.tracer == nil {
		return trace.SpanFromContext(parent)
	}
	h := &c.Request().Header
	if sent := h.Peek("Traceparent"); len(sent) > 0 {
		parent = propagation.TraceContext{}.Extract(parent, propagation.MapCarrier{
			"traceparent": string(sent), "tracestate": string(h.Peek("Tracestate")),
		})
	}
	route := c.Route().Path
	_, span := s.tracer.Start(parent, "POST "+route, serverSpan...)
	if span.IsRecording() {
		span.SetAttributes(semconv.HTTPRequestMethodPost, semconv.HTTPRoute(route), semconv.URLScheme(c.Protocol()))
	}
	return span
}

// traceparentOf is what is stored with a ticket: the request's own span if that is sampled, or else what the sender sent.
func traceparentOf(span trace.Span, sent string) string {
	if !span.SpanContext().IsSampled() {
		return sent
	}
	return telemetry.Traceparent(span.SpanContext())
}

// describe adds what became of the request.
func describe(span trace.Span, r Response) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(r.Status))
	if r.Status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "")
	}
	if r.StoredBy != "" {
		span.AddLink(trace.Link{SpanContext: telemetry.SpanOf(r.StoredBy)})
	}
}
