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

// startSpan begins the span of a request (https://opentelemetry.io/docs/specs/semconv/http/http-spans/). What senders choose
// freely, such as the path, is left out: it would be of any number of values, and may be secret.
//
// Of a sender that showed who it is, the span is below the sender's where that sent a traceparent, and its scheme is what the
// proxy in front says. Anybody else could have every request traced that way, or hide in somebody's trace: there the
// sender's span is only linked, if the request is traced anyway.
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

// spanName is made of constants, for it is made for each request.
func spanName(route string) string {
	if route == defaultRoute {
		return "POST " + defaultRoute
	}
	return "POST " + sourceRoute
}

// traceparentOf is what is stored with a ticket: the request's own span if that is sampled, or else what the sender sent. Where
// there are traces and the sender may be anybody, it is marked as not sampled: what is done with the ticket later would be
// traced otherwise.
func (s *Server) traceparentOf(span trace.Span, sent string, trusted bool) string {
	switch {
	case span.SpanContext().IsSampled():
		return telemetry.Traceparent(span.SpanContext())
	case s.tracer != nil && !trusted && len(sent) == traceparentLength:
		return sent[:traceparentLength-2] + "00"
	}
	return sent
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
