package telemetry

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"myticket/internal/intake"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// maxLinks is the most requests that the span of a batch links to. Further requests still link to the batch.
const maxLinks = 128

// TraceStore returns a store that makes a span for each transaction if one of its tickets came with a sampled request. A batch
// has many requests, so its span has no parent. It is linked with the spans of the requests in both directions.
func (t *Tracing) TraceStore(store intake.Store) intake.Store {
	if t == nil {
		return store
	}
	return tracedStore{store, t.work.Tracer(scope)}
}

// TraceSpool does the same for the spool.
func (t *Tracing) TraceSpool(spool intake.Spool) intake.Spool {
	if t == nil || spool == nil {
		return spool
	}
	return tracedSpool{spool, t.work.Tracer(scope)}
}

// TraceTreatment returns a store that makes a span for each finished treatment if the request that brought the ticket was
// sampled. The span is linked to that request.
func (t *Tracing) TraceTreatment(store treatment.Store) treatment.Store {
	if t == nil {
		return store
	}
	return tracedTreatment{store, t.work.Tracer(scope)}
}

type tracedStore struct {
	intake.Store
	tracer trace.Tracer
}

// Save implements intake.Store.
func (s tracedStore) Save(ctx context.Context, b intake.Batch) (intake.Saved, error) {
	name := "store batch"
	if b.Drained {
		name = "drain spool"
	}
	ctx, span := startBatch(ctx, s.tracer, name, b.Entries)
	saved, err := s.Store.Save(ctx, b)
	end(span, err)
	saved.StoredBy = Traceparent(span.SpanContext()) //nolint:contextcheck // it only formats ids
	return saved, err
}

type tracedSpool struct {
	intake.Spool
	tracer trace.Tracer
}

// Put implements intake.Spool.
func (s tracedSpool) Put(entries []*intake.Entry) (intake.Saved, error) {
	_, span := startBatch(context.Background(), s.tracer, "spool batch", entries)
	saved, err := s.Spool.Put(entries)
	end(span, err)
	saved.StoredBy = Traceparent(span.SpanContext())
	return saved, err
}

type tracedTreatment struct {
	treatment.Store
	tracer trace.Tracer
}

// Finish implements treatment.Store.
func (s tracedTreatment) Finish(ctx context.Context, c treatment.Claim) (ticket.Status, []ticket.Problem, error) {
	request := SpanOf(c.Ticket.Traceparent) //nolint:contextcheck // it only parses a text
	if !request.IsSampled() {
		return s.Store.Finish(ctx, c)
	}
	ctx, span := s.tracer.Start(ctx, "treat ticket", trace.WithNewRoot(), //nolint:spancheck // end ends it
		trace.WithLinks(trace.Link{SpanContext: request}), trace.WithAttributes(
			attribute.Int("myticket.attempt", c.Attempt), attribute.String("myticket.status", string(c.Ticket.Status))))
	status, problems, err := s.Store.Finish(ctx, c)
	end(span, err)
	return status, problems, err //nolint:spancheck // as above
}

// startBatch starts the span of a batch. If no request is sampled, the span records nothing.
func startBatch(ctx context.Context, tracer trace.Tracer, name string, entries []*intake.Entry) (context.Context, trace.Span) {
	var links []trace.Link
	for _, e := range entries {
		if len(links) == maxLinks {
			break
		}
		if request := SpanOf(e.Ticket.Traceparent); request.IsSampled() {
			links = append(links, trace.Link{SpanContext: request})
		}
	}
	if links == nil {
		return ctx, trace.SpanFromContext(context.Background())
	}
	return tracer.Start(ctx, name, trace.WithNewRoot(), trace.WithLinks(links...), //nolint:spancheck // end ends it
		trace.WithAttributes(semconv.MessagingBatchMessageCount(len(entries))))
}

// end ends a span. It sets only the kind of an error, because the text may quote a ticket.
func end(span trace.Span, err error) {
	if err != nil {
		kind := "unavailable"
		switch {
		case errors.Is(err, ticket.ErrRefused):
			kind = "refused"
		case errors.Is(err, intake.ErrSpoolFull):
			kind = "spool_full"
		case errors.Is(err, treatment.ErrClaimLost):
			kind = "claim_lost"
		case errors.Is(err, context.DeadlineExceeded):
			kind = "timeout"
		}
		span.SetAttributes(semconv.ErrorTypeKey.String(kind))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// SpanOf returns the span of a W3C traceparent (https://www.w3.org/TR/trace-context/). An empty text is no span.
func SpanOf(traceparent string) trace.SpanContext {
	if traceparent == "" {
		return trace.SpanContext{}
	}
	carrier := propagation.MapCarrier{"traceparent": traceparent}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}

// Traceparent returns the W3C traceparent of a span; empty for no span.
func Traceparent(span trace.SpanContext) string {
	if !span.IsValid() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), span), carrier)
	return carrier["traceparent"]
}
