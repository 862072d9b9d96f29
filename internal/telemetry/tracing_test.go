package telemetry

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"
)

// The sampler that is asked for holds also where the SDK is not asked. It is not parallel: the variables are those of the
// process.
func TestTracing_SamplesAsTheVariablesSay(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1") // no server is there
	const sampled, not = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	for _, c := range []struct {
		sampler, argument string
		roots             float64
		belowSampled      bool
		belowOther        bool
	}{
		{"", "", 1, true, false}, // the default of the specification: parentbased_always_on
		{"parentbased_always_on", "", 1, true, false},
		{"parentbased_always_off", "", 0, true, false},
		{"parentbased_traceidratio", "0.25", .25, true, false},
		{" ParentBased_TraceIDRatio ", " 0.25 ", .25, true, false},
		{"parentbased_traceidratio", "0", 0, true, false},
		{"parentbased_traceidratio", "", 1, true, false},
		{"parentbased_traceidratio", "2", 1, true, false},
		{"always_on", "", 1, true, true},
		{"always_off", "", 0, false, false},
		{"traceidratio", "0.25", .25, false, false}, // the id of these parents is above a quarter
	} {
		t.Run(c.sampler+" "+c.argument, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_SAMPLER", c.sampler)
			t.Setenv("OTEL_TRACES_SAMPLER_ARG", c.argument)
			tracing, err := NewTracing(t.Context(), "test", slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			start := func(ctx context.Context) bool {
				_, span := tracing.Requests().Start(ctx, "test")
				defer span.End()
				assert.Equal(t, span.SpanContext().IsSampled(), span.IsRecording())
				return span.SpanContext().IsSampled()
			}
			const n = 4000
			kept := 0
			for range n {
				if start(t.Context()) {
					kept++
				}
			}
			require.InDelta(t, c.roots*n, kept, 200, "seven standard deviations for a quarter")
			if c.roots == 0 || c.roots == 1 {
				require.InDelta(t, c.roots*n, kept, 0)
			}
			require.Equal(t, c.belowSampled, start(trace.ContextWithRemoteSpanContext(t.Context(), SpanOf(sampled))))
			require.Equal(t, c.belowOther, start(trace.ContextWithRemoteSpanContext(t.Context(), SpanOf(not))))
		})
	}
}
