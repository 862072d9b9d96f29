package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name of the instrumentation, as OpenTelemetry calls whoever makes spans.
const scope = "myticket"

// Tracing makes spans and sends them away. A nil Tracing is off.
type Tracing struct {
	requests *sdktrace.TracerProvider // samples as OTEL_TRACES_SAMPLER says
	// work makes the spans of batches, which begin no trace of a sender's. They exist only for requests that are
	// sampled, so all of them are.
	work  *sdktrace.TracerProvider
	roots float64 // share of the requests without a parent that are sampled
}

// NewTracing sends spans where the standard variables say
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/), and returns nil where they name no
// endpoint: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. The protocol is http/protobuf or grpc.
func NewTracing(ctx context.Context, version string, logger *slog.Logger) (*Tracing, error) {
	if !traced() {
		return nil, nil //nolint:nilnil // off is no error
	}
	exporter, err := newExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("make the exporter of traces (the OTEL_* variables): %w", err)
	}
	attributes, err := resource.New(ctx, resource.WithAttributes(
		semconv.ServiceName("myticket"), semconv.ServiceVersion(version), semconv.ServiceInstanceID(instance()),
	), resource.WithTelemetrySDK(), resource.WithFromEnv()) // the last one wins
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	// It is how the SDK reports everything that goes wrong later, such as a receiver that is away.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.Warn("traces cannot be sent; tickets are not affected", "error", err)
	}))
	sender := sdktrace.NewBatchSpanProcessor(withoutTexts{exporter})
	return &Tracing{
		requests: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(sender), sdktrace.WithResource(attributes)),
		work: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(sender), sdktrace.WithResource(attributes),
			sdktrace.WithSampler(sdktrace.AlwaysSample())),
		roots: sampledRoots(),
	}, nil
}

// sampledRoots is the share of the traces that begin here which OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG ask for, as
// the SDK reads them: what it does not understand means all.
func sampledRoots() float64 {
	switch strings.ToLower(strings.TrimSpace(os.Getenv("OTEL_TRACES_SAMPLER"))) {
	case "always_off", "parentbased_always_off":
		return 0
	case "traceidratio", "parentbased_traceidratio":
		share, err := strconv.ParseFloat(strings.TrimSpace(os.Getenv("OTEL_TRACES_SAMPLER_ARG")), 64)
		if err == nil && share >= 0 && share <= 1 {
			return share
		}
	}
	return 1
}

// rootSampler spares the SDK the requests that nobody will see, which are nearly all of them: it would make an id for each,
// and a context, to find out. Nobody else knows the ids of traces that begin here, so that any die will do.
type rootSampler struct {
	trace.Tracer // for what has a parent

	always trace.Tracer
	share  float64
}

// Start implements trace.Tracer.
func (s rootSampler) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	switch {
	case trace.SpanContextFromContext(ctx).IsValid():
		return s.Tracer.Start(ctx, name, options...) //nolint:spancheck // who asked for it ends it
	case s.share < 1 && rand.Float64() >= s.share:
		return ctx, trace.SpanFromContext(ctx)
	}
	return s.always.Start(ctx, name, options...) //nolint:spancheck // who asked for it ends it
}

// withoutTexts leaves the texts of errors out of spans: otelpgx puts Postgres' there, which may quote a ticket. Their codes
// stay, as attributes.
type withoutTexts struct{ sdktrace.SpanExporter }

// ExportSpans implements sdktrace.SpanExporter.
func (e withoutTexts) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	for i, span := range spans {
		if span.Status().Code == codes.Error {
			spans[i] = textless{span}
		}
	}
	return e.SpanExporter.ExportSpans(ctx, spans) //nolint:wrapcheck // the SDK's error handler says what it means
}

type textless struct{ sdktrace.ReadOnlySpan }

// Events implements sdktrace.ReadOnlySpan: the only events are those of errors.
func (textless) Events() []sdktrace.Event { return nil }

// Status implements sdktrace.ReadOnlySpan.
func (textless) Status() sdktrace.Status { return sdktrace.Status{Code: codes.Error} }

func traced() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// instance tells the servers of a service apart: a pod's host name is its name.
func instance() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

func newExporter(ctx context.Context) (*otlptrace.Exporter, error) {
	if exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter != "" && exporter != "otlp" {
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER=%q: use otlp or none", exporter)
	}
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "", "http/protobuf": // the default of the specification
		return otlptracehttp.New(ctx)
	case "grpc":
		return otlptracegrpc.New(ctx)
	}
	return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%q: use http/protobuf or grpc", protocol)
}

// Requests returns the tracer of requests; nil when tracing is off.
func (t *Tracing) Requests() trace.Tracer {
	if t == nil {
		return nil
	}
	return rootSampler{Tracer: t.requests.Tracer(scope), always: t.work.Tracer(scope), share: t.roots}
}

// Work returns where spans below those of batches are made; nil when tracing is off.
func (t *Tracing) Work() trace.TracerProvider {
	if t == nil {
		return nil
	}
	return t.work
}

// lastSpans bounds how long a server that stops waits for its collector. They are 2,048 at most (OTEL_BSP_MAX_QUEUE_SIZE),
// and a pod that is late is killed.
const lastSpans = 3 * time.Second

// Shutdown sends the spans that are left, for 3 s at most, and ends tracing. An error means that some were not sent.
func (t *Tracing) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lastSpans)
	defer cancel()
	return errors.Join(t.requests.Shutdown(ctx), t.work.Shutdown(ctx))
}
