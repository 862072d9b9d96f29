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

// serverSpan holds the options of every span at its start. Attributes are set only on spans that are kept: most are not, and
// no sampler that OTEL_TRACES_SAMPLER can name looks at attributes.
var serverSpan = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}

// startSpan starts the span of a request (https://opentelemetry.io/docs/specs/semconv/http/http-spans/). Values that senders
// choose freely, such as the path, are left out: there may be any number of them, and they may be secret.
//
// If the sender is authenticated and sent a traceparent, the new span is a child of the sender's span, and its scheme is what
// the proxy in front says. Other senders could have every request traced that way, or add to the trace of another. So their
// span is only linked, and only if the request is traced anyway.
func (s *Server) startSpan(c *fiber.Ctx, sent string, trusted bool) trace.Span {
	parent := context.Background()
	if s.tracer == nil {
		return trace.SpanFromContext(parent)
	}
	if sent != "" && trusted {
		parent = propagation.TraceContext{}.Extract(parent, propagation.MapCarrier{
			"traceparent": sent, "tracestate": string(c.Request().Header.Peek("Tracestate")),
		})
	}
	route := c.Route().Path
	_, span := s.tracer.Start(parent, spanName(route), serverSpan...)
	if span.IsRecording() {
		scheme := "http"
		if trusted {
			scheme = c.Protocol()
		} else if link := telemetry.SpanOf(sent); link.IsValid() {
			span.AddLink(trace.Link{SpanContext: link})
		}
		span.SetAttributes(semconv.HTTPRequestMethodPost, semconv.HTTPRoute(route), semconv.URLScheme(scheme))
	}
	return span
}

// spanName returns a constant, so that no request allocates memory for it.
func spanName(route string) string {
	if route == defaultRoute {
		return "POST " + defaultRoute
	}
	return "POST " + sourceRoute
}

// traceparentOf returns the traceparent to store with a ticket: that of the request's own span if it is sampled, otherwise what
// the sender sent. If tracing is on and the sender is not authenticated, it is marked as not sampled. Otherwise the later work
// on the ticket would be traced.
func (s *Server) traceparentOf(span trace.Span, sent string, trusted bool) string {
	switch {
	case span.SpanContext().IsSampled():
		return telemetry.Traceparent(span.SpanContext())
	case s.tracer != nil && !trusted && len(sent) == traceparentLength:
		return sent[:traceparentLength-2] + "00"
	}
	return sent
}

// describe adds the result of the request to its span.
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
