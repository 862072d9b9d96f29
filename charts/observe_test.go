//go:build observe

package charts

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/lab"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// patience bounds every wait for a condition.
const patience = 90 * time.Second

func await(t *testing.T, what string, check func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !check(); time.Sleep(100 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "waited %s until %s", patience, what)
	}
}

// writeRules writes the chart's rules as a file for Prometheus.
func writeRules(t *testing.T, folder string) {
	t.Helper()
	text, err := yaml.Marshal(render(t, monitored()...).find(t, "PrometheusRule", "myticket")["spec"])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "rules.yaml"), text, 0o644))
}

// https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/
func TestAlerts_FireAndStaySilent(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	writeRules(t, folder)
	printed, err := output(t, "promtool", "check", "rules", "--lint-fatal", filepath.Join(folder, "rules.yaml"))
	require.NoError(t, err, printed)
	for _, file := range []string{"alerts.yaml", "alerts-of-days.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, file), text, 0o644))
		printed, err := output(t, "promtool", "test", "rules", filepath.Join(folder, file))
		require.NoError(t, err, printed)
	}
}

// start starts a program that writes its log to a file, and ends it after the test.
func start(t *testing.T, environment []string, name string, args ...string) (logged func() string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	command := exec.Command(name, args...)
	command.Env = append(os.Environ(), environment...)
	command.Stdout, command.Stderr = log, log
	process, err := lab.Start(command, syscall.SIGKILL)
	require.NoError(t, err)
	logged = func() string {
		text, err := os.ReadFile(log.Name())
		require.NoError(t, err)
		return string(text)
	}
	t.Cleanup(func() {
		assert.NoError(t, process.Stop(patience))
		if t.Failed() {
			t.Logf("%s:\n%s", name, logged())
		}
	})
	return logged
}

// listening is the server's addresses, as it logs them.
type listening struct {
	Message  string `json:"msg"`
	Webhook  string `json:"webhook"`
	Internal string `json:"internal"`
}

// observed is a real server under load, and a real Prometheus that scrapes it.
type observed struct {
	server     listening
	database   *pgx.Conn
	prometheus string // base URL
}

// observe starts a server with a spool and traces, a web server with recorded metrics of CloudNativePG's instances, and a Prometheus.
func observe(t *testing.T) *observed {
	t.Helper()
	folder := t.TempDir()
	writeRules(t, folder)
	databaseURL := pgtest.New(t)
	o := &observed{}
	var err error
	o.database, err = pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, o.database.Close(context.Background())) })

	printed, err := output(t, "go", "build", "-o", filepath.Join(folder, "myticket"), "../cmd/myticket")
	require.NoError(t, err, printed)
	sources := filepath.Join(folder, "sources.json")
	require.NoError(t, os.WriteFile(sources, []byte(`{"shop-1": {}, "shop-2": {"bearer_tokens": ["a-long-random-token"]}, "shop-3": {"hold": true}, "*": {}}`), 0o600))
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(collector.Close)
	logged := start(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL}, filepath.Join(folder, "myticket"), "serve",
		"--database-url", databaseURL, "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--sources-file", sources,
		"--spool-dir", filepath.Join(folder, "spool"), "--database-timeout", "300ms", "--overflow-wait", "300ms")
	await(t, "the server serves", func() bool {
		for line := range strings.Lines(logged()) {
			if err := json.Unmarshal([]byte(line), &o.server); err == nil && o.server.Message == "serving" {
				return true
			}
		}
		return false
	})
	await(t, "the server is ready", func() bool {
		status, _ := get(t, "http://"+o.server.Internal+"/readyz")
		return status == http.StatusOK
	})

	sender := sendEvents(t, folder, databaseURL)
	// There is nothing to be archived yet, but a run is known from then on.
	kept := filepath.Join(folder, "archive")
	require.NoError(t, os.Mkdir(kept, 0o755))
	printed, err = output(t, filepath.Join(folder, "myticket"), "archive", "run", "--database-url", databaseURL, "--archive", "file://"+kept,
		"--keep", "30d", "--apply", "--by", "observe")
	require.NoError(t, err, printed)

	instances := httptest.NewServer(http.FileServer(http.Dir("testdata")))
	t.Cleanup(instances.Close)
	config := fmt.Sprintf(`
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: tickets/myticket
    static_configs: [{targets: [%q], labels: {namespace: tickets, pod: myticket-0}}]
  - job_name: tickets/myticket-events
    static_configs: [{targets: [%[3]q], labels: {namespace: tickets, pod: myticket-events-1}}]
  - job_name: tickets/myticket-db
    static_configs: [{targets: [%[2]q], labels: {namespace: tickets, pod: myticket-db-1}}]
    metrics_path: /cnpg-primary.prom
  - job_name: tickets/myticket-db-standby
    static_configs: [{targets: [%[2]q], labels: {namespace: tickets, pod: myticket-db-2}}]
    metrics_path: /cnpg-replica.prom
`, o.server.Internal, strings.TrimPrefix(instances.URL, "http://"), sender)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "prometheus.yml"), []byte(config), 0o644))
	addr, err := lab.FreeAddr(t.Context()) // Prometheus says nowhere which port it chose
	require.NoError(t, err)
	start(t, nil, "prometheus", "--config.file="+filepath.Join(folder, "prometheus.yml"), "--enable-feature=exemplar-storage",
		"--storage.tsdb.path="+filepath.Join(folder, "tsdb"), "--web.listen-address="+addr)
	o.prometheus = "http://" + addr
	await(t, "Prometheus is ready", func() bool {
		response, err := http.Get(o.prometheus + "/-/ready")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return o
}

// sendEvents starts a process that sends events, with a subscription whose target takes all of them, and returns its internal address.
func sendEvents(t *testing.T, folder, databaseURL string) string {
	t.Helper()
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(target.Close)
	file := filepath.Join(folder, "subscriptions.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"subscriptions": [{"name": "erp", "target": "`+target.URL+`/events", "secret": "env:SIGNING_KEY"}]}`), 0o600))
	logged := start(t, []string{"SIGNING_KEY=whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32))}, filepath.Join(folder, "myticket"), "events",
		"--database-url", databaseURL, "--admin-addr", "127.0.0.1:0", "--subscriptions-file", file)
	var sender listening
	await(t, "a process sends events", func() bool {
		for line := range strings.Lines(logged()) {
			if err := json.Unmarshal([]byte(line), &sender); err == nil && sender.Message == "sending events" {
				return true
			}
		}
		return false
	})
	return sender.Internal
}

func get(t *testing.T, address string) (int, []byte) {
	t.Helper()
	response, err := http.Get(address)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, body
}

// load posts requests of every kind until ctx ends: some hundred per second, at most 100,000.
func (o *observed) load(ctx context.Context) {
	requests := []struct{ path, body, key, token string }{
		{path: "/ticket", body: "Order: 1\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n"},
		{path: "/ticket/shop-1", body: "Order: 2\nVAT: 1\nTotal: 20\n\nproduct,product_id,price\nTea,t,10\nCoffee,c,10\n"},
		{path: "/ticket/shop-2", body: "Order: 3\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n", token: "a-long-random-token"},
		{path: "/ticket/shop-9", body: "Order: 4\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n"},
		{path: "/ticket/shop-1", body: "Order: 5\nVAT: one\nTotal: 10\n"},
		{path: "/ticket/shop-1", body: "Order: 6\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n", key: "again"},
		{path: "/ticket/shop-2", body: "no credentials"},
		{path: "/ticket/shop-1", body: ""},
	}
	var senders sync.WaitGroup
	for range 4 {
		senders.Go(func() {
			for i := range 25_000 {
				r := requests[i%len(requests)]
				request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+o.server.Webhook+r.path, strings.NewReader(r.body))
				if err != nil {
					return
				}
				if r.key != "" {
					request.Header.Set("Idempotency-Key", r.key)
				}
				if r.token != "" {
					request.Header.Set("Authorization", "Bearer "+r.token)
				}
				response, err := http.DefaultClient.Do(request)
				if ctx.Err() != nil {
					return
				}
				if err == nil {
					_ = response.Body.Close()
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	senders.Wait()
}

// result is what Prometheus answers.
type result struct {
	Status string          `json:"status"`
	Error  string          `json:"error"`
	Data   json.RawMessage `json:"data"`
}

func (o *observed) ask(t *testing.T, path string, parameters url.Values, into any) error {
	t.Helper()
	_, body := get(t, o.prometheus+path+"?"+parameters.Encode())
	var r result
	require.NoError(t, json.Unmarshal(body, &r), "%s", body)
	if r.Status != "success" {
		return errors.New(r.Error)
	}
	require.NoError(t, json.Unmarshal(r.Data, into), "%s", body)
	return nil
}

// values evaluates an expression now. It leaves out values that are not a number.
func (o *observed) values(t *testing.T, expression string) ([]float64, error) {
	t.Helper()
	var answer struct {
		ResultType string
		Result     []struct{ Value [2]any }
	}
	if err := o.ask(t, "/api/v1/query", url.Values{"query": {expression}}, &answer); err != nil {
		return nil, err
	}
	var numbers []float64
	for _, sample := range answer.Result {
		n, err := strconv.ParseFloat(sample.Value[1].(string), 64)
		require.NoError(t, err)
		if !math.IsNaN(n) {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

func (o *observed) positive(t *testing.T, expression string) bool {
	t.Helper()
	values, err := o.values(t, expression)
	require.NoError(t, err)
	return slices.ContainsFunc(values, func(v float64) bool { return v > 0 })
}

// exercise has the server do everything that the panels show: spool, drain and treat, under load.
func (o *observed) exercise(t *testing.T) {
	t.Helper()
	await(t, "tickets were scraped", func() bool {
		return o.positive(t, `sum(rate(myticket_intake_tickets_total{status="TREATED"}[5s]))`)
	})
	lock, err := o.database.Begin(t.Context())
	require.NoError(t, err)
	_, err = lock.Exec(t.Context(), `LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	await(t, "the spool has grown", func() bool { return o.positive(t, `rate(myticket_spool_tickets[5s])`) })
	require.NoError(t, lock.Rollback(t.Context()))
	await(t, "the spool is drained", func() bool {
		return o.positive(t, `sum(rate(myticket_spool_drained_total[5s])) and on () myticket_spool_tickets == 0`)
	})
	_, err = o.database.Exec(t.Context(), `UPDATE tickets SET status = 'TO_TREAT', next_attempt_at = now()
		WHERE id IN (SELECT id FROM tickets WHERE status = 'TREATED' LIMIT 3)`)
	require.NoError(t, err)
	await(t, "events were sent", func() bool { return o.positive(t, `sum(rate(myticket_events_sent_total[5s]))`) })
	await(t, "what subscriptions lack was counted", func() bool { return o.positive(t, `count(myticket_events_lag_seconds)`) })
	await(t, "what the archive has was scraped", func() bool { return o.positive(t, `count(myticket_archive_lag_seconds)`) })
	await(t, "tickets were treated", func() bool { return o.positive(t, `sum(rate(myticket_treatment_attempts_total[5s]))`) })
	_, err = o.database.Exec(t.Context(), `ANALYZE products`)
	require.NoError(t, err)
	await(t, "the estimate of products was scraped", func() bool { return o.positive(t, `myticket_products`) })
}

// withoutData matches expressions whose data this test does not have: of the kubelet, kube-state-metrics and backups.
var withoutData = regexp.MustCompile(`\b(kubelet_volume_stats_|kube_statefulset_|barman_cloud_)`)

func TestExpressions_AllHaveAnAnswer(t *testing.T) {
	t.Parallel()
	o := observe(t)
	loading, stop := context.WithCancel(t.Context())
	var loaded sync.WaitGroup
	loaded.Go(func() { o.load(loading) })
	defer loaded.Wait()
	defer stop()
	o.exercise(t)

	t.Run("panels", func(t *testing.T) { o.panels(t) })
	t.Run("variables", func(t *testing.T) { o.variables(t) })
	t.Run("rules", func(t *testing.T) { o.rules(t) })
	t.Run("a slow request leads to its trace", func(t *testing.T) {
		var found []struct {
			Exemplars []struct{ Labels map[string]string }
		}
		require.NoError(t, o.ask(t, "/api/v1/query_exemplars", url.Values{
			"query": {`myticket_http_request_duration_seconds_bucket`},
			"start": {strconv.FormatInt(time.Now().Add(-time.Hour).Unix(), 10)}, "end": {strconv.FormatInt(time.Now().Unix()+1, 10)},
		}, &found))
		require.NotEmpty(t, found)
		require.Len(t, found[0].Exemplars[0].Labels["trace_id"], 32)
	})
	t.Run("promtool finds nothing wrong with the metrics", func(t *testing.T) {
		_, exposition := get(t, "http://"+o.server.Internal+"/metrics")
		command := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
		command.Stdin = bytes.NewReader(exposition)
		printed, err := command.CombinedOutput()
		require.NoError(t, err, "%s", printed)
		require.Empty(t, printed)
	})
}

// panels evaluates every expression of every panel.
func (o *observed) panels(t *testing.T) {
	t.Helper()
	fill := strings.NewReplacer("$namespace", "tickets", "$source", ".*", "$servers", ".*",
		"$__rate_interval", "2m", "$__range", "2m")
	for uid, board := range dashboards(t) {
		for id, p := range panels(t, board) {
			for _, target := range p.Targets {
				query, err := json.Marshal(target)
				require.NoError(t, err)
				var asked prometheus.Dataquery
				require.NoError(t, json.Unmarshal(query, &asked))
				expression := fill.Replace(asked.Expr)
				require.NotContains(t, expression, "$", "%s/%d", uid, id)
				values, err := o.values(t, expression)
				t.Logf("%-17s %2d %-45s %v", uid, id, *p.Title, values)
				if assert.NoError(t, err, "%s/%d %s: %s", uid, id, *p.Title, expression) && !withoutData.MatchString(expression) {
					assert.NotEmpty(t, values, "%s/%d %s: %s", uid, id, *p.Title, expression)
				}
			}
		}
	}
}

// variables asks for the values that the dashboards' variables offer.
func (o *observed) variables(t *testing.T) {
	t.Helper()
	asks := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	for uid, board := range dashboards(t) {
		for _, v := range board.Templating.List {
			if v.Query == nil || v.Query.String == nil {
				continue
			}
			parts := asks.FindStringSubmatch(*v.Query.String)
			if parts == nil {
				continue
			}
			var values []string
			require.NoError(t, o.ask(t, "/api/v1/label/"+parts[2]+"/values",
				url.Values{"match[]": {strings.ReplaceAll(parts[1], "$namespace", "tickets")}}, &values), uid)
			t.Logf("%-17s %s: %v", uid, v.Name, values)
			assert.NotEmpty(t, values, "%s: %s", uid, v.Name)
		}
	}
}

// rules checks how Prometheus has evaluated the chart's rules: none fails, none fires, and every metric that they ask for exists.
func (o *observed) rules(t *testing.T) {
	t.Helper()
	var loaded struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError, State, Type string }
		}
	}
	await(t, "every rule was evaluated", func() bool {
		require.NoError(t, o.ask(t, "/api/v1/rules", nil, &loaded))
		for _, group := range loaded.Groups {
			for _, rule := range group.Rules {
				if rule.Health == "unknown" {
					return false
				}
			}
		}
		return len(loaded.Groups) > 0
	})
	metric := regexp.MustCompile(`\b(?:myticket|cnpg|up|kubelet|kube|barman)[a-z0-9_:]*(?:\{[^}]*\})?`)
	for _, group := range loaded.Groups {
		for _, rule := range group.Rules {
			t.Logf("%-45s %s %s", rule.Name, rule.Health, rule.State)
			assert.Equal(t, "ok", rule.Health, "%s: %s", rule.Name, rule.LastError)
			assert.NotEqual(t, "firing", rule.State, rule.Name)
			for _, selector := range metric.FindAllString(rule.Query, -1) {
				if withoutData.MatchString(selector) {
					continue
				}
				selector = strings.ReplaceAll(selector, `code=~"5..",`, "") // there are none of these, and should be none
				values, err := o.values(t, selector)
				if assert.NoError(t, err, "%s: %s", rule.Name, selector) {
					assert.NotEmpty(t, values, "%s asks for %s, which is not there", rule.Name, selector)
				}
			}
		}
	}
}
