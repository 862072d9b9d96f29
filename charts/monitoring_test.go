package charts

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// monitored are the values that turn on all monitoring.
func monitored() []string {
	return []string{
		"monitoring.podMonitor.enabled=true", "monitoring.dashboards.enabled=true", "monitoring.prometheusRule.enabled=true",
		"monitoring.runbookURL=https://git.example.com/runbooks", "monitoring.grafanaURL=https://grafana.example.com",
		"database.cluster.backup.enabled=true", "database.cluster.backup.destinationPath=s3://b/f",
		"autoscaling.maxReplicas=8", "events.enabled=true", strings.Join(archiving(), ","),
	}
}

// alerts are the alerts of a chart with all monitoring.
func alerts(t *testing.T) []object {
	t.Helper()
	found := alertsOf(at(render(t, monitored()...).find(t, "PrometheusRule", "myticket"), "spec"))
	require.NotEmpty(t, found)
	return found
}

func alertsOf(rules any) []object {
	var found []object
	for _, group := range at(rules, "groups").([]any) {
		for _, rule := range at(group, "rules").([]any) {
			if at(rule, "alert") != nil {
				found = append(found, rule.(object))
			}
		}
	}
	return found
}

// dashboards are the chart's dashboards, by uid. A field that Grafana's schema does not know is an error.
func dashboards(t *testing.T) map[string]dashboard.Dashboard {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("myticket", "dashboards", "*.json"))
	require.NoError(t, err)
	require.Len(t, paths, 4)
	boards := map[string]dashboard.Dashboard{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		var board dashboard.Dashboard
		require.NoError(t, board.UnmarshalJSONStrict(text), path)
		require.NoError(t, board.Validate(), path)
		require.Equal(t, strings.TrimSuffix(filepath.Base(path), ".json"), *board.Uid)
		boards[*board.Uid] = board
	}
	return boards
}

// panels are the panels of a dashboard, without its rows, by id.
func panels(t *testing.T, board dashboard.Dashboard) map[uint32]dashboard.Panel {
	t.Helper()
	found := map[uint32]dashboard.Panel{}
	for _, p := range board.Panels {
		if p.Panel == nil {
			continue
		}
		require.NotContains(t, found, *p.Panel.Id, *p.Panel.Title)
		found[*p.Panel.Id] = *p.Panel
	}
	return found
}

func TestDashboards_AreAsTheirSourceSays(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	printed, err := output(t, "go", "run", "./dashboards", folder)
	require.NoError(t, err, printed)
	for uid := range dashboards(t) {
		want, err := os.ReadFile(filepath.Join(folder, uid+".json"))
		require.NoError(t, err)
		have, err := os.ReadFile(filepath.Join("myticket", "dashboards", uid+".json"))
		require.NoError(t, err)
		require.Equal(t, string(want), string(have), "make chart")
	}
}

func TestAlerts_AreAsTheirSourceSays(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "alerts.yaml")
	printed, err := output(t, "go", "run", "./alerts", file)
	require.NoError(t, err, printed)
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	have, err := os.ReadFile(filepath.Join("myticket", "alerts.yaml"))
	require.NoError(t, err)
	require.Equal(t, string(want), string(have), "make chart")

	// The template knows every name and every condition in the file.
	severities := func(rules []object) map[string]bool {
		found := map[string]bool{}
		for _, rule := range rules {
			found[rule["alert"].(string)+" "+at(rule, "labels.severity").(string)] = true
		}
		return found
	}
	assert.Equal(t, severities(alertsOf(parse(t, string(want))[0])), severities(alerts(t)))
	assert.NotContains(t, renderText(t, monitored()...), "when: ")
	for _, set := range modes() {
		for _, rule := range render(t, append(monitored(), set...)...).all("PrometheusRule") {
			assert.NotContains(t, fmt.Sprint(rule), "${")
		}
	}
}

func TestDashboards_ExplainThemselves(t *testing.T) {
	t.Parallel()
	for uid, board := range dashboards(t) {
		var variables []string
		for _, v := range board.Templating.List {
			variables = append(variables, v.Name)
		}
		assert.Subset(t, variables, []string{"datasource", "namespace", "runbooks"}, uid)
		assert.Equal(t, uid == "myticket-tickets", slices.Contains(variables, "source"), uid)
		for id, p := range panels(t, board) {
			assert.NotEmpty(t, *p.Title, "%s/%d", uid, id)
			assert.NotEmpty(t, *p.Description, "%s/%d", uid, id)
			assert.NotEmpty(t, *p.FieldConfig.Defaults.Unit, "%s/%d", uid, id)
			assert.NotEmpty(t, p.FieldConfig.Defaults.Thresholds.Steps, "%s/%d", uid, id)
			assert.Equal(t, "${datasource}", *p.Datasource.Uid, "%s/%d", uid, id)
			assert.NotEmpty(t, p.Targets, "%s/%d", uid, id)
		}
	}
}

// An alert links to the panel that shows it, and both link to the runbook.
func TestAlerts_LeadToAPanelAndARunbook(t *testing.T) {
	t.Parallel()
	boards := dashboards(t)
	link := regexp.MustCompile(`^https://grafana\.example\.com/d/([a-z-]+)\?viewPanel=(\d+)&var-namespace=tickets$`)
	named := map[string]bool{}
	for _, alert := range alerts(t) {
		name := alert["alert"].(string)
		named[name] = true
		assert.Contains(t, []any{"critical", "warning"}, at(alert, "labels.severity"), name)
		for _, key := range []string{"summary", "description"} {
			assert.NotEmpty(t, at(alert, "annotations."+key), name)
		}
		assert.Equal(t, "https://git.example.com/runbooks/"+name+".md", at(alert, "annotations.runbook_url"))
		runbook, err := os.ReadFile(filepath.Join("..", "docs", "runbooks", name+".md"))
		if assert.NoError(t, err, "each alert has a runbook") {
			for _, part := range []string{"# " + name + "\n", "\n## What it means for tickets\n", "\n## Look\n", "\n## Do\n"} {
				assert.Contains(t, string(runbook), part, name)
			}
		}
		parts := link.FindStringSubmatch(at(alert, "annotations.dashboard_url").(string))
		if !assert.NotNil(t, parts, name) {
			continue
		}
		shown := false
		for id, p := range panels(t, boards[parts[1]]) {
			if strconv.Itoa(int(id)) == parts[2] {
				shown = true
				var links []string
				for _, l := range p.Links {
					links = append(links, *l.Url)
				}
				assert.Contains(t, links, "${runbooks}/"+name+".md", "panel %s", *p.Title)
			}
		}
		assert.True(t, shown, "%s leads to panel %s of %s, which is not there", name, parts[2], parts[1])
	}
	for uid, board := range boards {
		for _, p := range panels(t, board) {
			for _, l := range p.Links {
				name := strings.TrimSuffix(strings.TrimPrefix(*l.Url, "${runbooks}/"), ".md")
				assert.True(t, named[name], "%s: the panel %q links to %s, which is no alert", uid, *p.Title, name)
			}
		}
	}
	files, err := os.ReadDir(filepath.Join("..", "docs", "runbooks"))
	require.NoError(t, err)
	for _, file := range files {
		name := strings.TrimSuffix(file.Name(), ".md")
		assert.True(t, named[name] || name == "README", "there is a runbook for %s, which is no alert", name)
	}
}

func TestAlerts_AreTestedBothWays(t *testing.T) {
	t.Parallel()
	silent, firing := map[string]bool{}, map[string]bool{}
	for _, file := range []string{"alerts.yaml", "alerts-of-days.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", file))
		require.NoError(t, err)
		for _, test := range at(parse(t, string(text))[0], "tests").([]any) {
			name, _, _ := strings.Cut(at(test, "name").(string), " ")
			name = strings.TrimSuffix(name, ",")
			for _, moment := range at(test, "promql_expr_test").([]any) {
				samples := at(moment, "exp_samples").([]any)
				silent[name] = silent[name] || len(samples) == 0
				for _, sample := range samples {
					severity := regexp.MustCompile(`severity="(\w+)"`).FindStringSubmatch(at(sample, "labels").(string))[1]
					if strings.Contains(at(sample, "labels").(string), `alertname="`+name+`"`) {
						firing[name+" "+severity] = true
					}
				}
			}
		}
	}
	for _, alert := range alerts(t) {
		name := alert["alert"].(string)
		assert.True(t, silent[name], "nothing tests that %s is silent", name)
		assert.True(t, firing[name+" "+at(alert, "labels.severity").(string)], "nothing tests that %s fires as %s", name, at(alert, "labels.severity"))
	}
}

func TestMonitoring_IsWhatTheReleaseNeeds(t *testing.T) {
	t.Parallel()
	all := render(t, append(monitored(), "monitoring.dashboards.annotations.grafana_folder=MyTicket", "monitoring.prometheusRule.labels.release=prometheus")...)
	board := all.find(t, "ConfigMap", "myticket-service-dashboard")
	assert.Equal(t, "1", at(board, "metadata.labels.grafana_dashboard"))
	assert.Equal(t, "MyTicket", annotation(board, "grafana_folder"))
	text := board["data"].(object)["myticket-service.json"].(string)
	assert.Contains(t, text, `"query": "https://git.example.com/runbooks"`)
	assert.NotContains(t, text, "runbooks.example.com")
	assert.Equal(t, "prometheus", at(all.find(t, "PrometheusRule", "myticket"), "metadata.labels.release"))
	assert.Equal(t, true, at(all.find(t, "PodMonitor", "myticket"), "spec.scrapeClassicHistograms"), "rules ask for the buckets")

	names := func(set ...string) []string {
		text, err := tryTemplate(t, helm4, values(append(monitored(), set...)...)...)
		require.NoError(t, err)
		var found []string
		for _, match := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(text, -1) {
			found = append(found, match[1])
		}
		return found
	}
	assert.NotContains(t, names("monitoring.prometheusRule.exclude={MyticketServerDown}"), "MyticketServerDown")
	external := names(append(modes()["external"], "database.cluster.backup.enabled=false")...)
	assert.NotContains(t, external, "MyticketStandbyMissing", "there is no CloudNativePG to ask")
	assert.Contains(t, external, "MyticketDatabaseAway")
	assert.NotContains(t, names("database.cluster.backup.enabled=false"), "MyticketBackupFailed", "there are none")

	for alert, off := range map[string]string{"MyticketEventsDown": "events.enabled=false", "MyticketArchiveBehind": "archive.enabled=false"} {
		assert.Contains(t, names(), alert)
		assert.NotContains(t, names(off), alert, "it is off, so it would fire for ever, or never")
	}

	objectives := renderText(t, append(monitored(), "monitoring.objectives.availability=99.5")...)
	assert.Contains(t, objectives, "14.4 * (1 - 99.5 / 100)")
	assert.Contains(t, strings.Join(strings.Fields(objectives), " "), "The objective is that 99.5 % are not answered 5xx.")

	standbyMissing := func(set ...string) any {
		for _, rule := range alertsOf(at(render(t, append(monitored(), set...)...).find(t, "PrometheusRule", "myticket"), "spec")) {
			if rule["alert"] == "MyticketStandbyMissing" && at(rule, "labels.severity") == "critical" {
				return at(rule, "annotations.description")
			}
		}
		return nil
	}
	assert.Equal(t, "Commits wait for a standby, so tickets go to the spool.", standbyMissing())
	assert.Equal(t, "Tickets are committed on the primary alone. If the primary is lost now, they are lost.",
		standbyMissing("database.cluster.synchronous.dataDurability=preferred"))
	assert.Nil(t, standbyMissing("database.cluster.synchronous.enabled=false"))

	for says, set := range map[string]string{
		"set monitoring.runbookURL":             "monitoring.dashboards.enabled=true",
		"set monitoring.runbookURL ":            "monitoring.prometheusRule.enabled=true",
		"which is not an alert of this release": "monitoring.prometheusRule.exclude={MyticketDatabaseAwa}",
		"monitoring":                            "monitoring.runbookURL=docs",
	} {
		_, err := tryTemplate(t, helm4, values(set)...)
		require.ErrorContains(t, err, strings.TrimSpace(says))
	}
}

func TestTracing_IsOffWithoutAnEndpoint(t *testing.T) {
	t.Parallel()
	assert.NotContains(t, renderText(t), "OTEL_")
	variables := env(render(t, "tracing.endpoint=http://collector.observability:4317", "tracing.protocol=grpc", "tracing.ratio=0.25").server(t))
	assert.Equal(t, "http://collector.observability:4317", variables["OTEL_EXPORTER_OTLP_ENDPOINT"])
	assert.Equal(t, "grpc", variables["OTEL_EXPORTER_OTLP_PROTOCOL"])
	assert.Equal(t, "parentbased_traceidratio", variables["OTEL_TRACES_SAMPLER"])
	assert.Equal(t, "0.25", variables["OTEL_TRACES_SAMPLER_ARG"])
	assert.Equal(t, "k8s.namespace.name=tickets,k8s.statefulset.name=myticket,k8s.pod.name=$(POD_NAME)", variables["OTEL_RESOURCE_ATTRIBUTES"])
}
