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

// startSpan begins the span of a request, below the sender's where that sent a traceparent
// (https://opentelemetry.io/docs/specs/semconv/http/http-spans/). What senders choose freely, such as the path, is left out:
// it would be of any number of values, and may be secret.
func (s *Server) startSpan(c *fiber.Ctx, sent string) trace.Span {
	parent := context.Background()
	if s.tracer == nil {
		return trace.SpanFromContext(parent)
	}
	if sent != "" {
		parent = propagation.TraceContext{}.Extract(parent, propagation.MapCarrier{
			"traceparent": sent, "tracestate": string(c.Request().Header.Peek("Tracestate")),
		})
	}
	route := c.Route().Path
	_, span := s.tracer.Start(parent, spanName(route), serverSpan...)
	if span.IsRecording() {
		span.SetAttributes(semconv.HTTPRequestMethodPost, semconv.HTTPRoute(route), semconv.URLScheme(c.Protocol()))
	}
	return span
}

// spanName is made of constants, for it is made for each request.
func spanName(route string) string {
	if route == defaultRoute {
		return "POST " + defaultRoute
	}
	return "POST " + sourceRoute
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
