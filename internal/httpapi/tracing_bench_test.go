package httpapi

import (
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

type acceptsAll struct{}

func (acceptsAll) Accept(intake.Delivery) (intake.Receipt, error) {
	return intake.Receipt{ID: uuid.Max, Status: ticket.Treated}, nil
}

// BenchmarkTicket_Tracing is what the span of a request costs beside the rest of the handler.
func BenchmarkTicket_Tracing(b *testing.B) {
	traced := func(sampler sdktrace.Sampler) trace.Tracer {
		return sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler),
			sdktrace.WithSyncer(tracetest.NewNoopExporter())).Tracer("")
	}
	for _, c := range []struct {
		name   string
		tracer trace.Tracer
	}{
		{"off", nil},
		{"not sampled", traced(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(0)))},
		{"sampled", traced(sdktrace.ParentBased(sdktrace.AlwaysSample()))},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := New(Config{Logger: slog.New(slog.DiscardHandler), Tracer: c.tracer}, acceptsAll{}, OpenSources())
			handle := s.app.Handler()
			var request fasthttp.RequestCtx
			request.Request.Header.SetMethod(fasthttp.MethodPost)
			request.Request.SetRequestURI("/ticket")
			request.Request.SetBodyString("Order: 1\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n")
			b.ReportAllocs()
			for b.Loop() {
				request.Response.Reset()
				handle(&request)
			}
			if status := request.Response.StatusCode(); status != fasthttp.StatusOK {
				b.Fatalf("it answered %d", status)
			}
		})
	}
}
