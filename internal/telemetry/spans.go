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

// maxLinks is how many requests a batch's span points to. Those beyond it still point to the batch.
const maxLinks = 128

// TraceStore returns a store whose transactions have a span each, where one of their tickets came with a request that is
// sampled. A batch has many requests and is nobody's child: the span and those of the requests are linked with each other.
func (t *Tracing) TraceStore(store intake.Store) intake.Store {
	if t == nil {
		return store
	}
	return tracedStore{store, t.work.Tracer(scope)}
}

// TraceSpool does for the spool what TraceStore does for the store.
func (t *Tracing) TraceSpool(spool intake.Spool) intake.Spool {
	if t == nil || spool == nil {
		return spool
	}
	return tracedSpool{spool, t.work.Tracer(scope)}
}

// TraceTreatment returns a store whose finished treatments have a span each, linked to the request that brought the
// ticket, where that was sampled.
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
	saved.StoredBy = Traceparent(span.SpanContext())
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
	request := SpanOf(c.Ticket.Traceparent) //nolint:contextcheck // it reads a text
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

// startBatch starts the span of a batch. Without a request that is sampled there is none.
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
	return tracer.Start(ctx, name, trace.WithNewRoot(), trace.WithLinks(links...),
		trace.WithAttributes(semconv.MessagingBatchMessageCount(len(entries))))
}

// end ends a span. What went wrong is named by its kind only: the text may quote a ticket.
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

// SpanOf returns the span that a W3C traceparent means (https://www.w3.org/TR/trace-context/); none for an empty one.
func SpanOf(traceparent string) trace.SpanContext {
	if traceparent == "" {
		return trace.SpanContext{}
	}
	carrier := propagation.MapCarrier{"traceparent": traceparent}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}

// Traceparent writes a span as a W3C traceparent; empty for none.
func Traceparent(span trace.SpanContext) string {
	if !span.IsValid() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), span), carrier)
	return carrier["traceparent"]
}
