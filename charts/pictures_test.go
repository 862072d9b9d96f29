//go:build observe

package charts

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"maps"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/stretchr/testify/require"
)

var picturesFolder = flag.String("pictures", "", "draw the dashboards into this folder (make pictures)")

// A server is under load for as long as it is filmed, before its dashboards are drawn. After a third of it, Postgres takes no tickets for a while.
const filmed, away = 3 * time.Minute, 20 * time.Second

// drawn are the dashboards with a picture: those whose data come from a server. That of Postgres would show a record.
var drawn = []string{"myticket-tickets", "myticket-service"}

// TestPictures draws dashboards by their own definitions: places, titles, queries, units, thresholds and words. It is no Grafana: fonts,
// colours and ticks are this test's, and tables are left out.
func TestPictures(t *testing.T) {
	t.Parallel()
	if *picturesFolder == "" {
		t.Skip("only make pictures draws")
	}
	o := observe(t)
	loading, stop := context.WithCancel(t.Context())
	var loaded sync.WaitGroup
	loaded.Go(func() { o.load(loading) })
	defer loaded.Wait()
	defer stop()
	begin := time.Now()
	time.Sleep(filmed / 3)
	lock, err := o.database.Begin(t.Context())
	require.NoError(t, err)
	_, err = lock.Exec(t.Context(), `LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	time.Sleep(away)
	require.NoError(t, lock.Rollback(t.Context()))
	time.Sleep(time.Until(begin.Add(filmed)))
	end := time.Now().Truncate(time.Second)
	for _, uid := range drawn {
		picture := o.draw(t, uid, begin.Add(15*time.Second), end)
		require.Less(t, len(picture), 150_000, uid)
		require.NoError(t, os.WriteFile(filepath.Join(*picturesFolder, uid+".svg"), []byte(picture), 0o644))
	}
}

// Sizes are in pixels. A dashboard has 24 columns.
const (
	column, rowHeight = 50, 30
	titleHeight       = 26
	legendHeight      = 16
)

var colours = []string{"#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d"}

// line is a series of a panel.
type line struct {
	name   string
	values []float64 // one for each step; NaN where there is none
}

// definition is what is drawn of a panel.
type definition struct {
	Type, Title string
	Targets     []struct{ Expr, LegendFormat string }
	GridPos     struct{ H, W, X, Y float64 }
	FieldConfig struct {
		Defaults struct {
			Unit     string
			Mappings []struct {
				Options map[string]struct{ Text, Color string }
			}
			Thresholds struct {
				Steps []struct {
					Value *float64
					Color string
				}
			}
			Custom struct {
				FillOpacity float64
				Stacking    struct{ Mode string }
			}
		}
	}
}

// draw returns a dashboard as SVG.
func (o *observed) draw(t *testing.T, uid string, from, to time.Time) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("myticket", "dashboards", uid+".json"))
	require.NoError(t, err)
	var board struct {
		Title  string
		Panels []definition
	}
	require.NoError(t, json.Unmarshal(text, &board)) //nolint:musttag // the names are those of Grafana, but for their case
	var b strings.Builder
	bottom := 0.0
	for _, p := range board.Panels {
		x, y := p.GridPos.X*column, p.GridPos.Y*rowHeight
		w, h := p.GridPos.W*column-6, p.GridPos.H*rowHeight-6
		if p.Type == "table" {
			continue
		}
		bottom = max(bottom, y+h+6)
		fmt.Fprintf(&b, `<g transform="translate(%g,%g)">`, x+3, y+3)
		if p.Type == "row" {
			label(&b, 2, 18, "start", 14, "#ccccdc", p.Title)
			b.WriteString("</g>\n")
			continue
		}
		fmt.Fprintf(&b, `<rect width="%g" height="%g" rx="2" fill="#181b1f" stroke="#2c3235"/>`, w, h)
		label(&b, 8, 18, "start", 12, "#ccccdc", p.Title)
		lines := o.lines(t, p, from, to)
		if p.Type == "stat" {
			value, colour := p.words(lines)
			label(&b, w/2, h/2+22, "middle", 28, colour, value)
		} else {
			p.chart(&b, lines, w, h, from, to)
		}
		b.WriteString("</g>\n")
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %g" font-family="Inter, Helvetica, Arial, sans-serif">`+
		"\n<title>%s</title>\n"+`<rect width="100%%" height="100%%" fill="#111217"/>`+"\n%s</svg>\n", 24*column, bottom, html.EscapeString(board.Title), &b)
}

func label(b *strings.Builder, x, y float64, anchor string, size int, colour, text string) {
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="%s" font-size="%d" fill="%s">%s</text>`,
		x, y, anchor, size, colour, html.EscapeString(text))
}

// lines asks Prometheus for the series of a panel, one value for each hundredth of the time.
func (o *observed) lines(t *testing.T, p definition, from, to time.Time) []line {
	t.Helper()
	const steps = 100
	step := to.Sub(from).Seconds() / steps
	fill := strings.NewReplacer("$namespace", "tickets", "$source", ".*", "$servers", ".*",
		"$__rate_interval", "10s", "$__range", strconv.Itoa(int(to.Sub(from).Seconds()))+"s")
	var lines []line
	for _, target := range p.Targets {
		var answer struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
		require.NoError(t, o.ask(t, "/api/v1/query_range", url.Values{
			"query": {fill.Replace(target.Expr)}, "start": {strconv.FormatInt(from.Unix(), 10)}, "end": {strconv.FormatInt(to.Unix(), 10)},
			"step": {strconv.FormatFloat(step, 'f', 3, 64)},
		}, &answer), p.Title)
		for _, series := range answer.Result {
			name := regexp.MustCompile(`{{(\w+)}}`).ReplaceAllStringFunc(target.LegendFormat, func(label string) string {
				return series.Metric[strings.Trim(label, "{}")]
			})
			l := line{name: name, values: slices.Repeat([]float64{math.NaN()}, steps+1)}
			for _, sample := range series.Values {
				v, err := strconv.ParseFloat(sample[1].(string), 64)
				require.NoError(t, err)
				at := int(math.Round((sample[0].(float64) - float64(from.Unix())) / step))
				l.values[min(max(at, 0), steps)] = v
			}
			lines = append(lines, l)
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return strings.Compare(a.name, b.name) })
	return lines
}

// words returns what a stat panel says, and its colour.
func (p definition) words(lines []line) (text, colour string) {
	if len(lines) == 0 {
		return "No data", "#9fa7b3"
	}
	v := lines[0].values[len(lines[0].values)-1]
	for _, m := range p.FieldConfig.Defaults.Mappings {
		if option, ok := m.Options[strconv.FormatFloat(v, 'f', -1, 64)]; ok {
			return option.Text, shade(option.Color)
		}
	}
	colour = "green"
	for _, step := range p.FieldConfig.Defaults.Thresholds.Steps {
		if step.Value == nil || v >= *step.Value {
			colour = step.Color
		}
	}
	return p.number(v), shade(colour)
}

func shade(name string) string {
	return cmp.Or(map[string]string{"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "yellow": "#f2cc0c", "text": "#ccccdc"}[name], "#ccccdc")
}

// number writes a value in the unit of its panel.
func (p definition) number(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	switch p.FieldConfig.Defaults.Unit {
	case "percentunit":
		return strconv.FormatFloat(100*v, 'g', 4, 64) + "%"
	case "bytes":
		return humanize.IBytes(uint64(v))
	case "s":
		return (time.Duration(v * float64(time.Second))).Round(10 * time.Microsecond).String()
	case "cps":
		return strconv.FormatFloat(v, 'g', 3, 64) + " c/s"
	default:
		return humanize.SIWithDigits(v, 2, "")
	}
}

// chart draws lines over time, as areas where they are stacked, with the newest value of each in the legend.
func (p definition) chart(b *strings.Builder, lines []line, w, h float64, from, to time.Time) {
	if len(lines) == 0 {
		label(b, w/2, h/2, "middle", 14, "#9fa7b3", "No data")
		return
	}
	custom := p.FieldConfig.Defaults.Custom
	stacked := custom.Stacking.Mode == "normal"
	left, top, right := 62.0, titleHeight+8.0, w-10
	legendRows := (min(len(lines), 8) + 1) / 2
	bottom := h - 22 - float64(legendRows)*legendHeight
	below := make([]float64, len(lines[0].values))
	tops := map[int][]float64{}
	highest := 0.0
	for i, l := range lines {
		tops[i] = make([]float64, len(l.values))
		for at, v := range l.values {
			tops[i][at] = v
			if stacked && !math.IsNaN(v) {
				tops[i][at] += below[at]
				below[at] = tops[i][at]
			}
			if !math.IsNaN(tops[i][at]) {
				highest = max(highest, tops[i][at])
			}
		}
	}
	highest = cmp.Or(highest*1.1, 1)
	for i := range 4 {
		y := bottom - float64(i)/3*(bottom-top)
		fmt.Fprintf(b, `<path d="M%g %.1fH%g" stroke="#2c3235"/>`, left, y, right)
		label(b, left-6, y+4, "end", 10, "#9fa7b3", p.number(float64(i)/3*highest))
		at := from.Add(to.Sub(from) * time.Duration(i) / 3)
		label(b, left+float64(i)/3*(right-left), bottom+14, []string{"start", "middle", "middle", "end"}[i], 10, "#9fa7b3", at.UTC().Format("15:04:05"))
	}
	for _, i := range slices.Backward(slices.Sorted(maps.Keys(tops))) { // the lowest of a stack is drawn last
		var path strings.Builder
		move, first, last := "M", -1.0, 0.0
		for at, v := range tops[i] {
			if math.IsNaN(v) {
				move = "M"
				continue
			}
			last = left + float64(at)/float64(len(tops[i])-1)*(right-left)
			if first < 0 {
				first = last
			}
			fmt.Fprintf(&path, "%s%.0f %.0f", move, last, bottom-v/highest*(bottom-top))
			move = "L"
		}
		colour := colours[i%len(colours)]
		if stacked && first >= 0 {
			fmt.Fprintf(b, `<path d="%sL%.0f %.0fL%.0f %.0fZ" fill="#181b1f"/>`, &path, last, bottom, first, bottom)
			fmt.Fprintf(b, `<path d="%sL%.0f %.0fL%.0f %.0fZ" fill="%s" fill-opacity="%g"/>`, &path, last, bottom, first, bottom, colour, custom.FillOpacity/100)
		}
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`, &path, colour)
	}
	for i, l := range lines[:min(len(lines), 8)] {
		x, y := 10+float64(i%2)*(w-16)/2, bottom+32+float64(i/2)*legendHeight
		fmt.Fprintf(b, `<rect x="%.0f" y="%.0f" width="10" height="3" fill="%s"/>`, x, y-5, colours[i%len(colours)])
		label(b, x+14, y, "start", 10, "#ccccdc", l.name+"  "+p.number(l.values[len(l.values)-1]))
	}
}
