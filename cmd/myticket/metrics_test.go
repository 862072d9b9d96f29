package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/postgres"
)

const metricsPage = "../../docs/metrics.md"

// Dashboards and alerts depend on metrics, ours and those of operators. No metric changes without notice.
func TestMetricsPage_ListsWhatAServerExports(t *testing.T) {
	t.Parallel()
	sources := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(sources, []byte(`{"*": {}, "shop-1": {"hold": true}}`), 0o600))
	b := setup(t, "--spool-dir", t.TempDir(), "--sources-file", sources)
	b.exec(t, `INSERT INTO dialects (source, dialect, who, why) VALUES ('shop-1', '{}', 'tester', '')`)
	b.exec(t, `UPDATE archive_runs SET began_at = now(), succeeded_at = now()`)
	b.submit(t, "/ticket", sample(t))
	b.submit(t, "/ticket", "unreadable")
	var exposition answer
	await(t, "what waits was counted", func() bool { // one after the other
		exposition = b.get(t, b.internal+"/metrics")
		return strings.Contains(string(exposition.body), "myticket_backlog_tickets") &&
			strings.Contains(string(exposition.body), "myticket_order_lines_waiting_tickets") &&
			strings.Contains(string(exposition.body), "myticket_archive_lag_seconds") &&
			strings.Contains(string(exposition.body), "myticket_dialect_version")
	})
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(exposition.body)))
	require.NoError(t, err)
	maps.Copy(families, eventsMetrics(t, b))

	var page strings.Builder
	page.WriteString("# Metrics\n\nOf each server, on `/metrics` of both listeners; those that begin with `myticket_events_` are of `myticket events`.\n" +
		"Made by `make docs`; the labels of Prometheus are left out.\n" +
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

// eventsMetrics returns the metrics of `myticket events` with a subscription.
func eventsMetrics(t *testing.T, b *testBundle) map[string]*dto.MetricFamily {
	t.Helper()
	store, err := postgres.Open(t.Context(), postgres.Config{URL: b.databaseURL})
	require.NoError(t, err)
	defer store.Close()
	require.NoError(t, store.CreateSubscription(t.Context(), tester, events.Subscription{Name: "erp", Target: "https://erp.example/"}))
	require.NoError(t, store.PauseSubscription(t.Context(), tester, "erp"))
	registry := prometheus.NewRegistry()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		events.NewSender(events.SenderConfig{Store: store, Registry: registry}).Run(ctx)
	}()
	families := map[string]*dto.MetricFamily{}
	await(t, "what waits for subscriptions was counted", func() bool {
		gathered, err := registry.Gather()
		require.NoError(t, err)
		for _, family := range gathered {
			families[family.GetName()] = family
		}
		return families["myticket_events_lag_seconds"] != nil && families["myticket_events_snapshot_held_seconds"] != nil
	})
	cancel()
	<-done
	return families
}

// A Prometheus that understands native histograms gets them, and one that does not gets the buckets.
func TestMetrics_HistogramsAreNativeAndClassic(t *testing.T) {
	t.Parallel()
	b := setup(t, "--spool-dir", t.TempDir())
	b.submit(t, "/ticket", sample(t))
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	exposition, err := b.do(http.MethodGet, b.internal+"/metrics", nil, "Accept", string(format))
	require.NoError(t, err)
	decoder := expfmt.NewDecoder(bytes.NewReader(exposition.body), format)
	histograms := 0
	for {
		var family dto.MetricFamily
		err := decoder.Decode(&family)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if family.GetType() != dto.MetricType_HISTOGRAM || !strings.HasPrefix(family.GetName(), "myticket_") {
			continue
		}
		histograms++
		for _, m := range family.GetMetric() {
			require.NotNil(t, m.GetHistogram().Schema, family.GetName())
			require.NotEmpty(t, m.GetHistogram().GetBucket(), family.GetName())
			require.LessOrEqual(t, len(m.GetHistogram().GetBucket()), 12, "%s: each bucket is a series", family.GetName())
		}
	}
	require.Equal(t, 6, histograms)
}

// Each value of a label is a series that is never removed, so senders must not be able to make any.
func TestMetrics_SendersAddNoSeries(t *testing.T) {
	t.Parallel()
	sources := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(sources, []byte(`{"shop-1": {"bearer_tokens": ["`+bearerToken+`"]}, "*": {}}`), 0o600))
	b := setup(t, "--sources-file", sources)
	series := func() (names []string) {
		for line := range strings.Lines(string(b.get(t, b.internal+"/metrics").body)) {
			if strings.HasPrefix(line, "myticket_http_") || strings.HasPrefix(line, "myticket_intake_problems") {
				names = append(names, line[:strings.LastIndexByte(line, ' ')])
			}
		}
		return names
	}
	before := series()
	require.Contains(t, before, `myticket_http_requests_total{outcome="treated",source="shop-1"}`, "it is there before its first ticket")

	send := func(i int) {
		chosen := fmt.Sprintf("name%d", i)
		b.post(t, "/ticket/"+chosen, sample(t), "Traceparent", fmt.Sprintf("00-%032x-%016x-01", i+1, i+1))
		b.post(t, "/ticket/"+strings.ToUpper(chosen), sample(t))
		b.post(t, "/ticket/shop-1", sample(t), "Authorization", "Bearer "+chosen)
		b.post(t, "/ticket?"+chosen, sample(t))
		b.post(t, "/ticket", chosen+": 1\n"+chosen+",product_id,price\n"+chosen+",,x"+chosen, "Content-Type", chosen)
		b.post(t, "/"+chosen, sample(t), "Content-Encoding", chosen)
		_, err := b.do(strings.ToUpper(chosen), b.webhook+"/ticket/"+chosen, nil)
		require.NoError(t, err)
	}
	send(0)
	once := series()
	require.Greater(t, len(once), len(before), "what was sent is counted")
	for i := range 20 {
		send(i + 1)
	}
	require.Equal(t, once, series())
}

func TestMetrics_CountConnectionsThatAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, "--max-connections", "1")
	held, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.webhook, "http://"))
	require.NoError(t, err)
	defer held.Close()
	_, err = io.WriteString(held, "POST /ticket HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
	require.NoError(t, err)
	interim := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
	_, err = io.ReadFull(held, interim)
	require.NoError(t, err, "now a request is in progress")
	require.Contains(t, string(interim), "100 Continue")

	// The server refuses a connection before it reads a request, so this one sends none: net/http would take the answer for an
	// unsolicited one if it came before the request was written.
	other, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.webhook, "http://"))
	require.NoError(t, err)
	defer other.Close()
	response, err := http.ReadResponse(bufio.NewReader(other), nil)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	refused := answer{response.StatusCode, response.Header, content}
	requireProblem(t, refused, http.StatusServiceUnavailable, "too_many_connections")
	requireRetryAfter(t, refused)
	require.InDelta(t, 1, b.metric(t, "myticket_http_connections_refused_total"), 0)
	require.InDelta(t, 1, b.metric(t, "myticket_http_connections"), 0)
	require.InDelta(t, 1, b.metric(t, "myticket_http_max_connections"), 0)
}

// A line for each ticket would be most of the log, so it is written only at level debug.
func TestLog_NamesEachTicketAtDebugOnly(t *testing.T) {
	t.Parallel()
	quiet := setup(t)
	quiet.submit(t, "/ticket/shop-1", sample(t))
	quiet.post(t, "/ticket/NO", sample(t))
	require.NotContains(t, quiet.log.String(), "shop-1")

	b := setup(t, "--log-level", "debug")
	sent := b.submit(t, "/ticket/shop-1", "Café, unreadable", "Traceparent", "00-"+senderTrace+"-"+senderSpan+"-00")
	b.post(t, "/ticket/A-Secret", sample(t))
	lines := b.log.lines("answered")
	require.Len(t, lines, 2)
	delete(lines[0], "time")
	require.Equal(t, map[string]any{
		"level": "DEBUG", "msg": "answered", "ticket": sent.ID.String(), "source": "shop-1", "trace_id": senderTrace,
		"status": 200.0, "outcome": "error", "bytes": 17.0,
	}, lines[0])
	require.Equal(t, "source_invalid", lines[1]["outcome"])
	require.NotContains(t, b.log.String(), "A-Secret")
	require.NotContains(t, b.log.String(), "Café")
}

// labels returns the names of a family's labels.
func labels(family *dto.MetricFamily) string {
	var names []string
	for _, pair := range family.GetMetric()[0].GetLabel() {
		names = append(names, "`"+pair.GetName()+"`")
	}
	return strings.Join(names, ", ")
}
