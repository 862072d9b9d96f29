package httpapi

import (
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"myticket/internal/intake"
	"myticket/internal/telemetry"
	"myticket/internal/ticket"
)

type acceptsAll struct{}

func (acceptsAll) Accept(intake.Delivery) (intake.Receipt, error) {
	return intake.Receipt{ID: uuid.Max, Status: ticket.Treated}, nil
}

// BenchmarkTicket_Tracing measures what the span of a request adds to the handler, without the batch.
func BenchmarkTicket_Tracing(b *testing.B) {
	for _, c := range []struct{ name, endpoint, sampler string }{
		{"off", "", ""},
		{"not sampled", "http://127.0.0.1:1", "parentbased_always_off"},
		{"sampled", "http://127.0.0.1:1", "parentbased_always_on"},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.endpoint)
			b.Setenv("OTEL_TRACES_SAMPLER", c.sampler)
			logger := slog.New(slog.DiscardHandler)
			tracing, err := telemetry.NewTracing(b.Context(), "", logger)
			if err != nil {
				b.Fatal(err)
			}
			s := New(Config{Logger: logger, Tracer: tracing.Requests()}, acceptsAll{}, OpenSources())
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
