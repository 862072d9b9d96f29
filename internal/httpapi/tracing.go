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

// startSpan begins the span of a request, below the sender's where the request names one
// (https://opentelemetry.io/docs/specs/semconv/http/http-spans/). What senders choose freely, such as the path, is left out:
// it would be of any number of values, and may be secret.
func (s *Server) startSpan(c *fiber.Ctx) trace.Span {
	if s.tracer == nil {
		return trace.SpanFromContext(context.Background())
	}
	h := &c.Request().Header
	parent := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{
		"traceparent": string(h.Peek("Traceparent")), "tracestate": string(h.Peek("Tracestate")),
	})
	route := c.Route().Path
	_, span := s.tracer.Start(parent, "POST "+route, //nolint:spancheck // the caller ends it
		trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			semconv.HTTPRequestMethodPost, semconv.HTTPRoute(route), semconv.URLScheme(c.Protocol()),
		))
	return span //nolint:spancheck // as above
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
