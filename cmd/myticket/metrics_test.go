package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

const metricsPage = "../../docs/metrics.md"

// Dashboards and alerts are made of metrics, ours and those of operators: none changes unannounced.
func TestMetricsPage_ListsWhatAServerExports(t *testing.T) {
	t.Parallel()
	b := setup(t, "--spool-dir", t.TempDir())
	b.submit(t, "/ticket", sample(t))
	b.submit(t, "/ticket", "unreadable")
	var exposition answer
	await(t, "what waits was counted", func() bool {
		exposition = b.get(t, b.internal+"/metrics")
		return strings.Contains(string(exposition.body), "myticket_backlog_tickets")
	})
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(exposition.body)))
	require.NoError(t, err)

	var page strings.Builder
	page.WriteString("# Metrics\n\nOf each server, on `/metrics` of both listeners. Made by `make docs`; the labels of Prometheus are left out.\n" +
		"Names that begin with `go_` and `process_` are those of\n" +
		"[client_golang](https://pkg.go.dev/github.com/prometheus/client_golang/prometheus/collectors).\n\n" +
		"| metric | type | labels | is |\n|---|---|---|---|\n")
	names := []string{}
	for name := range families {
		if strings.HasPrefix(name, "myticket_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		family := families[name]
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(family.GetType().String()), labels(family), family.GetHelp())
	}
	if *update {
		require.NoError(t, os.WriteFile(metricsPage, []byte(page.String()), 0o644))
	}
	documented, err := os.ReadFile(metricsPage)
	require.NoError(t, err)
	require.Equal(t, string(documented), page.String(), "make docs, and look whether a dashboard or an alert uses what changed")
}

// labels returns the names of a family's labels.
func labels(family *dto.MetricFamily) string {
	var names []string
	for _, pair := range family.GetMetric()[0].GetLabel() {
		names = append(names, "`"+pair.GetName()+"`")
	}
	return strings.Join(names, ", ")
}
