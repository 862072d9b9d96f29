package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// runbooks stands for the address of the runbooks. The chart replaces it with `monitoring.runbookURL`.
const runbooks = "https://runbooks.example.com"

// Units, as Grafana names them (https://pkg.go.dev/github.com/grafana/grafana-foundation-sdk/go/units).
const (
	none      = "none"
	count     = "short"
	share     = "percentunit"
	bytes     = "bytes"
	seconds   = "s"
	perSecond = "cps"
	unixTime  = "dateTimeFromNow"
)

// look is how a panel shows its series.
type look int

const (
	curves  look = iota // over time
	stacked             // over time, one on top of the other
	value               // the newest, large
	sheet               // the newest of each series, as a table
)

// panel is one question and its answer. Its id is part of links, so it never changes, and is not reused after the panel is removed.
type panel struct {
	id      uint32
	title   string
	about   string // what it means, and when to act
	look    look
	unit    string
	queries []query
	warn    float64 // orange from this value on; 0 for never
	alarm   float64 // red from this value on; 0 for never. If it is below warn, small values are bad
	words   map[string]word
	alerts  []string // the alerts that it shows; it links to their runbooks
	wide    uint32   // of 24 columns; 0 for 8
}

// rows is added to the id of a row's first panel, which makes the id of the row.
const rows = 1000

// query is a PromQL expression, and the name of its series.
type query struct{ expr, legend string }

// word is shown instead of a number.
type word struct{ text, color string }

func source() common.DataSourceRef {
	return common.DataSourceRef{Type: new("prometheus"), Uid: new("${datasource}")}
}

// newDashboard returns a dashboard with what all have in common: the variables datasource and namespace, and links to the others.
func newDashboard(uid, title, about string) *dashboard.DashboardBuilder {
	return dashboard.NewDashboardBuilder(title).Uid(uid).Description(about).Tags([]string{"myticket"}).
		Time("now-3h", "now").Refresh("30s").Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Link(dashboard.NewDashboardLinkBuilder("MyTicket").Type(dashboard.DashboardLinkTypeDashboards).
			Tags([]string{"myticket"}).KeepTime(true).IncludeVars(true)).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		WithVariable(choice("namespace", "Namespace", `label_values(myticket_build_info, namespace)`)).
		WithVariable(dashboard.NewConstantVariableBuilder("runbooks").Value(text(runbooks)))
}

// choice is a variable with the values of a label.
func choice(name, label, values string) *dashboard.QueryVariableBuilder {
	return dashboard.NewQueryVariableBuilder(name).Label(label).Datasource(source()).Query(text(values)).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortAlphabeticalAsc)
}

func text(s string) dashboard.StringOrMap { return dashboard.StringOrMap{String: &s} }

// withRow adds a row: its title and its panels.
func withRow(board *dashboard.DashboardBuilder, title string, panels ...panel) {
	board.WithRow(dashboard.NewRowBuilder(title).Id(rows + panels[0].id))
	for _, p := range panels {
		switch p.look {
		case value:
			board.WithPanel(p.value())
		case sheet:
			board.WithPanel(p.sheet())
		case curves, stacked:
			board.WithPanel(p.curves())
		}
	}
}

func (p panel) curves() *timeseries.PanelBuilder {
	built := timeseries.NewPanelBuilder().Id(p.id).Title(p.title).Description(p.about).Datasource(source()).
		Span(p.span(8)).Height(8).Unit(p.unit).Min(0).Links(p.links()).Thresholds(p.thresholds()).
		FillOpacity(10).ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeTable).
			Placement(common.LegendPlacementBottom).ShowLegend(true).Calcs([]string{"lastNotNull", "max"})).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	if p.warn != 0 || p.alarm != 0 {
		built.ThresholdsStyle(common.NewGraphThresholdsStyleConfigBuilder().Mode(common.GraphThresholdsStyleModeDashed))
	}
	if p.look == stacked {
		built.Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal)).FillOpacity(40)
	}
	for i, q := range p.queries {
		built.WithTarget(q.as(i).Range().Exemplar(p.unit == seconds))
	}
	return built
}

func (p panel) value() *stat.PanelBuilder {
	built := stat.NewPanelBuilder().Id(p.id).Title(p.title).Description(p.about).Datasource(source()).
		Span(p.span(4)).Height(4).Unit(p.unit).Links(p.links()).Thresholds(p.thresholds()).Mappings(p.mappings()).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})).
		GraphMode(common.BigValueGraphModeNone).Orientation(common.VizOrientationAuto)
	for i, q := range p.queries {
		built.WithTarget(q.as(i).Instant())
	}
	return built
}

func (p panel) sheet() *table.PanelBuilder {
	built := table.NewPanelBuilder().Id(p.id).Title(p.title).Description(p.about).Datasource(source()).
		Span(p.span(8)).Height(8).Unit(p.unit).Links(p.links()).Thresholds(p.thresholds()).
		WithTransformation(dashboard.DataTransformerConfig{Id: "merge", Options: map[string]any{}}).
		WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{
			"excludeByName": map[string]any{"Time": true}, "renameByName": p.columns(),
		}})
	for i, q := range p.queries {
		built.WithTarget(q.as(i).Instant().Format(prometheus.PromQueryFormatTable))
	}
	return built
}

// as returns the query as number i of a panel.
func (q query) as(i int) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().RefId(refID(i)).Expr(q.expr).LegendFormat(q.legend)
}

func refID(i int) string { return string(rune('A' + i)) }

// columns names the values of a table's queries.
func (p panel) columns() map[string]any {
	names := map[string]any{}
	for i, q := range p.queries {
		names["Value #"+refID(i)] = q.legend
	}
	return names
}

func (p panel) span(usual uint32) uint32 {
	if p.wide > 0 {
		return p.wide
	}
	return usual
}

func (p panel) thresholds() *dashboard.ThresholdsConfigBuilder {
	steps := []dashboard.Threshold{{Color: "green"}}
	switch {
	case p.warn != 0 && p.alarm != 0 && p.alarm < p.warn: // small is bad
		steps = []dashboard.Threshold{{Color: "red"}, {Value: &p.alarm, Color: "orange"}, {Value: &p.warn, Color: "green"}}
	default:
		if p.warn != 0 {
			steps = append(steps, dashboard.Threshold{Value: &p.warn, Color: "orange"})
		}
		if p.alarm != 0 {
			steps = append(steps, dashboard.Threshold{Value: &p.alarm, Color: "red"})
		}
	}
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps)
}

func (p panel) mappings() []dashboard.ValueMapping {
	if len(p.words) == 0 {
		return nil
	}
	options := map[string]dashboard.ValueMappingResult{}
	for number, w := range p.words {
		options[number] = dashboard.ValueMappingResult{Text: &w.text, Color: &w.color}
	}
	return []dashboard.ValueMapping{{ValueMap: &dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: options}}}
}

// links lead from a panel to the runbooks of its alerts.
func (p panel) links() []cog.Builder[dashboard.DashboardLink] {
	links := []cog.Builder[dashboard.DashboardLink]{}
	for _, alert := range p.alerts {
		links = append(links, dashboard.NewDashboardLinkBuilder("Runbook: "+alert).
			Type(dashboard.DashboardLinkTypeLink).Url("${runbooks}/"+alert+".md").TargetBlank(true))
	}
	return links
}
