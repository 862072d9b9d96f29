package main

import "strings"

// group is a group of rules, and rule a rule, as Prometheus has them
// (https://prometheus.io/docs/prometheus/latest/configuration/recording_rules/).
type group struct {
	Name  string `yaml:"name"`
	Rules []rule `yaml:"rules"`
}

type rule struct {
	Record      string            `yaml:"record,omitempty"`
	Alert       string            `yaml:"alert,omitempty"`
	When        condition         `yaml:"when,omitempty"` // for the chart, not for Prometheus
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for,omitempty"`
	Labels      map[string]string `yaml:"labels,omitempty,flow"`
	Annotations *annotations      `yaml:"annotations,omitempty"`
}

type annotations struct {
	Summary      string `yaml:"summary"`
	Description  string `yaml:"description"`
	RunbookURL   string `yaml:"runbook_url"`
	DashboardURL string `yaml:"dashboard_url"`
}

// condition names the releases that a rule is for. templates/_alerts.tpl knows which ones they are.
type condition string

const (
	always       condition = ""
	hasCluster   condition = "cluster"               // the database is a Cluster of CloudNativePG
	required     condition = "synchronous-required"  // the Cluster has synchronous standbys, and dataDurability is required
	preferred    condition = "synchronous-preferred" // the same, and dataDurability is preferred
	hasStandbys  condition = "standbys"              // the Cluster has more than one instance
	archivesLogs condition = "backup"                // the Cluster has backups
	sendsEvents  condition = "events"                // events are sent
	archives     condition = "archive"               // old partitions are archived
)

const (
	critical = "critical" // tickets are refused, or may be lost: a person must act now
	warning  = "warning"  // a person must act soon
)

// alert is a rule that fires. Its runbook is docs/runbooks/NAME.md.
type alert struct {
	name     string
	severity string
	when     condition
	expr     string
	lasts    string // how long expr must hold before the alert fires; empty if it fires at once
	panel    string // the panel that shows it: the dashboard's uid, and the panel's id

	// What a person reads. {{ $value }} and {{ $labels }} are those of expr.
	summary     string
	description string
}

func alerts(list ...alert) []rule {
	rules := make([]rule, 0, len(list))
	for _, a := range list {
		board, panel, _ := strings.Cut(a.panel, "/")
		rules = append(rules, rule{
			Alert: a.name, When: a.when, Expr: a.expr, For: a.lasts, Labels: map[string]string{"severity": a.severity},
			Annotations: &annotations{
				Summary: a.summary, Description: a.description, RunbookURL: "${runbookURL}/" + a.name + ".md",
				DashboardURL: "${grafanaURL}/d/" + board + "?viewPanel=" + panel + "&var-namespace=${namespace}",
			},
		})
	}
	return rules
}

// lines makes one expression of several lines.
func lines(list ...string) string { return strings.Join(list, "\n") }
