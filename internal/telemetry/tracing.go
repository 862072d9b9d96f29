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

// scope is the name of the instrumentation scope, as OpenTelemetry calls it.
const scope = "myticket"

// Tracing makes spans and exports them. A nil Tracing is off.
type Tracing struct {
	requests *sdktrace.TracerProvider // with the sampler of OTEL_TRACES_SAMPLER
	// work makes the spans of batches. They exist only if a request is sampled, so all of them are sampled.
	work  *sdktrace.TracerProvider
	roots float64 // share of the requests without a parent that are sampled
}

// NewTracing exports spans as the standard variables say
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). It returns nil if they set no
// endpoint: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. The protocol is http/protobuf or grpc.
func NewTracing(ctx context.Context, version string, logger *slog.Logger) (*Tracing, error) {
	if !traced() {
		return nil, nil //nolint:nilnil // off is not an error
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
	// The SDK reports all later errors this way, for example a receiver that is away.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.Warn("traces cannot be exported; tickets are not affected", "error", err)
	}))
	sender := sdktrace.NewBatchSpanProcessor(withoutTexts{exporter})
	return &Tracing{
		requests: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(sender), sdktrace.WithResource(attributes)),
		work: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(sender), sdktrace.WithResource(attributes),
			sdktrace.WithSampler(sdktrace.AlwaysSample())),
		roots: sampledRoots(),
	}, nil
}

// sampledRoots returns the share of the traces that begin here and are sampled, by OTEL_TRACES_SAMPLER and
// OTEL_TRACES_SAMPLER_ARG. As in the SDK, a value that is not understood means all.
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

// rootSampler decides about requests without a parent before the SDK does, because most are not sampled, and the SDK would
// make an id and a context for each. No other service knows the ids of traces that begin here, so a random number is enough.
type rootSampler struct {
	trace.Tracer // for requests with a parent

	always trace.Tracer
	share  float64
}

// Start implements trace.Tracer.
func (s rootSampler) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	switch {
	case trace.SpanContextFromContext(ctx).IsValid():
		return s.Tracer.Start(ctx, name, options...) //nolint:spancheck // the caller ends it
	case s.share < 1 && rand.Float64() >= s.share:
		return ctx, trace.SpanFromContext(ctx)
	}
	return s.always.Start(ctx, name, options...) //nolint:spancheck // the caller ends it
}

// withoutTexts removes the texts of errors from spans, because otelpgx sets those of Postgres, which may quote a ticket.
// Their codes stay as attributes.
type withoutTexts struct{ sdktrace.SpanExporter }

// ExportSpans implements sdktrace.SpanExporter.
func (e withoutTexts) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	for i, span := range spans {
		if span.Status().Code == codes.Error {
			spans[i] = textless{span}
		}
	}
	return e.SpanExporter.ExportSpans(ctx, spans) //nolint:wrapcheck // the error handler of the SDK adds the context
}

type textless struct{ sdktrace.ReadOnlySpan }

// Events implements sdktrace.ReadOnlySpan. The only events are errors.
func (textless) Events() []sdktrace.Event { return nil }

// Status implements sdktrace.ReadOnlySpan.
func (textless) Status() sdktrace.Status { return sdktrace.Status{Code: codes.Error} }

func traced() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// instance returns the name of this server within the service: the host name, which in a pod is the name of the pod.
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

// Requests returns the tracer of requests; nil if tracing is off.
func (t *Tracing) Requests() trace.Tracer {
	if t == nil {
		return nil
	}
	return rootSampler{Tracer: t.requests.Tracer(scope), always: t.work.Tracer(scope), share: t.roots}
}

// Work returns the provider for spans below those of batches; nil if tracing is off.
func (t *Tracing) Work() trace.TracerProvider {
	if t == nil {
		return nil
	}
	return t.work
}

// lastSpans bounds how long a server that stops waits to export its last spans, at most 2,048 (OTEL_BSP_MAX_QUEUE_SIZE). A
// pod that stops too late is killed.
const lastSpans = 3 * time.Second

// Shutdown exports the remaining spans within at most 3 s, and ends tracing. An error means that some were not exported.
func (t *Tracing) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lastSpans)
	defer cancel()
	return errors.Join(t.requests.Shutdown(ctx), t.work.Shutdown(ctx))
}
