package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

// received inserts a ticket of a time.
func (b *operatorBundle) received(t *testing.T, at, source string, status ticket.Status, body string, codes ...string) {
	t.Helper()
	when, err := time.Parse(time.RFC3339, at)
	require.NoError(t, err)
	id := uuid.New()
	for i := range 6 {
		id[i] = byte(when.UnixMilli() >> (8 * (5 - i)))
	}
	var problems any
	if len(codes) > 0 {
		var list []map[string]any
		for i, code := range codes {
			list = append(list, map[string]any{"line": i, "code": code, "message": "m"})
		}
		text, err := json.Marshal(list)
		require.NoError(t, err)
		problems = string(text)
	}
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, problems) VALUES ($1, $2, $3, $4, $5, $6::jsonb)`,
		id, when, source, []byte(body), status, problems)
}

// stats returns the groups as text, and the report.
func (b *operatorBundle) stats(t *testing.T, flags ...string) (groups []string, report statsReport) {
	t.Helper()
	out := b.ok(t, append([]string{"tickets", "stats", "-o", "json"}, flags...)...)
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	for _, g := range report.Groups {
		var words []string
		for _, key := range []*string{g.Day, g.Source, g.Status, g.Problem} {
			if key != nil {
				words = append(words, *key)
			}
		}
		if g.Hour != nil {
			words = append(words, g.Hour.Format(time.RFC3339))
		}
		groups = append(groups, fmt.Sprintf("%s %d", strings.Join(words, " "), g.Tickets))
	}
	return groups, report
}

func TestTicketsStats_CountsByAnyKeys(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.received(t, "2026-10-23T10:00:00Z", "shop-1", ticket.Treated, "12345")
	b.received(t, "2026-10-23T11:00:00Z", "shop-1", ticket.Error, "1", "order_missing", "fields_count", "fields_count")
	b.received(t, "2026-10-24T10:00:00Z", "shop-2", ticket.Error, "22", "order_missing")
	b.received(t, "2026-10-24T11:00:00Z", "shop-2", ticket.Treated, "")
	b.received(t, "2026-10-24T12:00:00Z", "shop-2", ticket.Treated, "", "dismissed")
	in := []string{"--since=2026-10-01", "--until=2026-11-01", "--tz=UTC"}

	for by, want := range map[string][]string{
		"day":            {"2026-10-24 3", "2026-10-23 2"},
		"source":         {"shop-2 3", "shop-1 2"},
		"status":         {"TREATED 3", "ERROR 2"},
		"problem":        {" 2", "order_missing 2", "dismissed 1", "fields_count 1"},
		"status,problem": {"ERROR order_missing 2", "TREATED  2", "ERROR fields_count 1", "TREATED dismissed 1"},
		"source,day":     {"2026-10-23 shop-1 2", "2026-10-24 shop-2 3"},
		"day,source,status,problem": {
			"2026-10-24 shop-2 ERROR order_missing 1", "2026-10-24 shop-2 TREATED  1", "2026-10-24 shop-2 TREATED dismissed 1",
			"2026-10-23 shop-1 ERROR fields_count 1", "2026-10-23 shop-1 ERROR order_missing 1", "2026-10-23 shop-1 TREATED  1",
		},
		"hour": {
			"2026-10-24T12:00:00Z 1", "2026-10-24T11:00:00Z 1", "2026-10-24T10:00:00Z 1", "2026-10-23T11:00:00Z 1",
			"2026-10-23T10:00:00Z 1",
		},
	} {
		groups, report := b.stats(t, append(in, "--by="+by)...)
		assert.Equal(t, want, groups, by)
		assert.Equal(t, []int64{5, 8, int64(len(want))}, []int64{report.Tickets, report.Bytes, report.Total}, "%s: each ticket once", by)
	}

	// The filters are those of tickets list.
	for filter, want := range map[string][]string{
		"--status=ERROR --by=source":                  {"shop-1 1", "shop-2 1"},
		"--status=ERROR,TREATED --source=shop-1":      {"2026-10-23 ERROR 1", "2026-10-23 TREATED 1"},
		"--problem=fields_count --by=problem":         {"fields_count 1", "order_missing 1"},
		"--source=nobody":                             nil,
		"--order=1":                                   nil,
		"--product=a --by=status":                     nil,
		"--min-total=1":                               nil,
		"--problem-group=91d2c6a01f6e7b3c":            nil,
		"--source=shop-2 --source=shop-1 --by=status": {"TREATED 3", "ERROR 2"},
	} {
		groups, report := b.stats(t, append(in, strings.Fields(filter)...)...)
		assert.Equal(t, want, groups, filter)
		assert.NotNil(t, report.Groups, "an array, also without groups")
	}

	table := b.ok(t, append([]string{"tickets", "stats", "--by=source,problem"}, in...)...)
	assert.Equal(t, `SOURCE  PROBLEM        TICKETS  BYTES
shop-1  -              1        5 B
shop-1  fields_count   1        1 B
shop-1  order_missing  1        1 B
shop-2  -              1        0 B
shop-2  dismissed      1        0 B
shop-2  order_missing  1        2 B
total                  5        8 B
Received from 2026-10-01T00:00:00Z until before 2026-11-01T00:00:00Z. A ticket with several problems counts once in each, and once `+
		"in the total.\n", table)

	rows, err := csv.NewReader(strings.NewReader(b.ok(t, append([]string{"tickets", "stats", "-o", "csv"}, in...)...))).ReadAll()
	require.NoError(t, err)
	assert.Equal(t, [][]string{
		{"day", "status", "tickets", "bytes"}, {"2026-10-24", "ERROR", "1", "2"}, {"2026-10-24", "TREATED", "2", "0"},
		{"2026-10-23", "ERROR", "1", "1"}, {"2026-10-23", "TREATED", "1", "5"},
	}, rows)

	code, stdout, stderr := b.myticket(t, append([]string{"tickets", "stats", "--limit=1", "--by=day"}, in...)...)
	require.Zero(t, code)
	assert.Regexp(t, `(?s)2026-10-24  3 .*total +5 `, stdout, "the total is that of all groups")
	assert.NotContains(t, stdout, "2026-10-23 ")
	assert.Contains(t, stderr, "Groups that are not listed: 1.")
}

func TestTicketsStats_DaysAreThoseOfTheZone(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for _, at := range []string{
		"2026-10-24T21:59:59Z",                                                                         // the day before in Paris
		"2026-10-24T22:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T22:59:59Z", // a day of 25 hours
		"2026-10-25T23:00:00Z",
	} {
		b.received(t, at, "s", ticket.Treated, "x")
	}
	in := []string{"--since=2026-10-20", "--until=2026-10-30", "--tz=Europe/Paris"}
	groups, _ := b.stats(t, append(in, "--by=day")...)
	assert.Equal(t, []string{"2026-10-26 1", "2026-10-25 4", "2026-10-24 1"}, groups)
	table := b.ok(t, append([]string{"tickets", "stats", "--by=hour"}, in...)...)
	assert.Regexp(t, `(?m)^2026-10-25T02:00:00\+01:00  1 .*\n2026-10-25T02:00:00\+02:00  1 `, table, "an hour that clocks show twice is two")
	groups, _ = b.stats(t, "--since=2026-10-20", "--until=2026-10-30", "--tz=UTC", "--by=day")
	assert.Equal(t, []string{"2026-10-25 4", "2026-10-24 2"}, groups)

	zone, err := time.LoadLocation("Asia/Kolkata")
	require.NoError(t, err)
	hours := starts(time.Date(2026, 10, 25, 1, 45, 7, 8, zone), time.Date(2026, 10, 25, 4, 0, 0, 0, zone), "hour")
	require.Len(t, hours, 3)
	assert.Equal(t, "2026-10-25T01:00:00+05:30", hours[0].Format(time.RFC3339Nano), "of a zone that is half an hour off")

	zone, err = time.LoadLocation("Australia/Lord_Howe") // its clocks change by half an hour
	require.NoError(t, err)
	for since, want := range map[string]string{
		"2026-04-04T14:10:00Z": "01:00+11:00 01:30+10:30 02:00+10:30 03:00+10:30",
		"2026-10-03T14:40:00Z": "01:00+10:30 02:30+11:00 03:00+11:00 04:00+11:00",
	} {
		at, err := time.Parse(time.RFC3339, since)
		require.NoError(t, err)
		var shown []string
		for _, hour := range starts(at.In(zone), at.Add(150*time.Minute), "hour") {
			shown = append(shown, hour.Format("15:04Z07:00"))
		}
		assert.Equal(t, want, strings.Join(shown, " "))
	}
}

func TestTicketsStats_WithoutATime_CountsSevenDays(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for _, at := range []time.Time{today, today.AddDate(0, 0, -6), today.AddDate(0, 0, -6).Add(-time.Second)} {
		b.received(t, at.Format(time.RFC3339), "s", ticket.Treated, "x")
	}
	groups, report := b.stats(t, "--tz=UTC", "--by=status")
	assert.Equal(t, []string{"TREATED 2"}, groups)
	assert.Equal(t, today.AddDate(0, 0, -6), report.Since)
	groups, report = b.stats(t, "--tz=UTC", "--by=status", "--until", today.Format(time.DateOnly))
	assert.Equal(t, []string{"TREATED 2"}, groups)
	assert.Equal(t, today.AddDate(0, 0, -7), report.Since)
	assert.Equal(t, today, report.Until)
	groups, report = b.stats(t, "--tz=UTC", "--by=status", "--since=0001-01-01")
	assert.Equal(t, []string{"TREATED 3"}, groups, "all tickets")
	assert.True(t, report.Since.IsZero())
}

func TestTicketsStats_RefusesWhatMeansNothing(t *testing.T) {
	t.Parallel()
	for flags, want := range map[string]string{
		"--by=week":                             "day",
		"--by=":                                 "--by",
		"--by=day,day":                          "twice",
		"--by=day,hour":                         "not both",
		"--limit=0":                             "--limit",
		"--since=soon":                          "yesterday",
		"--since=2026-11-24 --until=2026-11-23": "--until must be later",
	} {
		o := runCommand(t, nil, append([]string{"tickets", "stats", "--database-url", unreachable}, strings.Fields(flags)...)...)
		assert.Equal(t, 2, o.code, flags)
		assert.Contains(t, o.stderr, want, flags)
	}
	b := setupOperator(t)
	code, _, stderr := b.myticket(t, "tickets", "stats", "--by=hour", "--since=2000-01-01")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "later --since")
}

// TestServerPage_CommandsOfStatsWork runs the commands of the section in docs/server.md. The one that watches is interrupted.
func TestServerPage_CommandsOfStatsWork(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/server.md")
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(page), "\n## What came in\n\n```sh\n")
	section, _, _ = strings.Cut(section, "```")
	b := setupOperator(t)
	b.insert(t, ticket.Error, "shop-1", "1", "x")
	commands := 0
	for line := range strings.Lines(section) {
		line, _, _ = strings.Cut(line, " #")
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if strings.Contains(line, "--watch") {
			time.AfterFunc(time.Second, cancel)
		}
		var out bytes.Buffer
		args := slices.Concat(strings.Fields(line)[1:], []string{"--database-url", b.url})
		assert.Zero(t, run(ctx, args, nil, streams{stdout: &out, stderr: &out}), "%s: %s", line, &out)
		cancel()
		assert.Contains(t, out.String(), "TICKETS", line)
		commands++
	}
	require.Equal(t, 4, commands)
}
