package main

import (
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func TestTicketsList_CSV_IsWhatRFC4180Says_AndNoFormula(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	assert.Equal(t, strings.Join(csvColumns, ",")+"\r\n", b.ok(t, "tickets", "list", "-o", "csv"), "a header also without tickets")
	texts := []string{"=1+1", "+33", "-5", "@SUM(A1)", "\tx", "'quoted", "a \"b\", c\nd", "7", hostile}
	for _, text := range texts {
		b.insert(t, ticket.Error, "-", ticket.CleanText(text, len(text)), "x")
	}
	b.exec(t, `UPDATE tickets SET total = -1.50, problems = jsonb_build_array(jsonb_build_object('line', 2, 'code', 'x', 'message', order_number))`)
	reader := csv.NewReader(strings.NewReader(b.ok(t, "tickets", "list", "-o", "csv", "--limit=100")))
	rows, err := reader.ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 1+len(texts))
	for i, text := range texts {
		row := rows[len(texts)-i]
		assert.Equal(t, "'-", row[2], "a source may begin with a minus sign")
		assert.Equal(t, "-1.50", row[6], "an amount is an amount")
		want := printable(ticket.CleanText(text, len(text)))
		for _, cell := range []string{row[4], row[11]} {
			assert.NotContains(t, "=+-@", cell[:1], text)
			assertHarmless(t, cell)
			assert.Equal(t, want, strings.TrimPrefix(cell, "'"), "without the apostrophe it is the text of the table")
		}
	}
	assert.Contains(t, b.ok(t, "tickets", "list", "-o", "csv"), "\r\n")
}

func TestTicketsList_CSV_OfMoreThanAPage_HasEachTicketOnce(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insertFailed(t, 2*csvPage+1)
	for limit, want := range map[string]int{"100000": 2*csvPage + 1, "1500": 1500, "2000": 2000} {
		code, stdout, stderr := b.myticket(t, "tickets", "list", "-o", "csv", "--limit", limit)
		require.Zero(t, code, stderr)
		rows, err := csv.NewReader(strings.NewReader(stdout)).ReadAll()
		require.NoError(t, err)
		ids := map[string]bool{}
		for _, row := range rows[1:] {
			ids[row[0]] = true
		}
		assert.Len(t, ids, want)
		assert.Len(t, rows, want+1)
		assert.Equal(t, want < 2*csvPage+1, strings.Contains(stderr, "Next page: myticket tickets list --output csv"), stderr)
	}
}

func TestTicketsList_TimesInAZone(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Treated, "s", "1", "x")
	b.exec(t, `UPDATE tickets SET received_at = '2026-11-22T23:30:00Z'`)
	for _, test := range []struct {
		flags string
		found bool
	}{
		{"--tz=Europe/Paris --since=2026-11-23 --until=2026-11-23T00:31", true},
		{"--tz=UTC --since=2026-11-23", false},
		{"--tz=America/New_York --since=2026-11-22T18:30:00 --until=2026-11-22T18:30:01", true},
		{"--tz=Europe/Paris --since=2026-11-22T23:30:01Z", false}, // a time with a zone is what it says
	} {
		stdout := b.ok(t, append([]string{"tickets", "list"}, strings.Fields(test.flags)...)...)
		assert.Equal(t, test.found, strings.Contains(stdout, id.String()), test.flags)
	}
	assert.Contains(t, b.ok(t, "tickets", "list", "--tz=Europe/Paris"), "2026-11-23T00:30:00+01:00")
	assert.Contains(t, b.ok(t, "tickets", "list", "--tz=Europe/Paris", "-o", "csv"), "2026-11-23T00:30:00+01:00")
	assert.Contains(t, b.ok(t, "tickets", "list", "--tz=Europe/Paris", "-o", "json"), `"2026-11-22T23:30:00Z"`, "programs read UTC")
	for _, zone := range []string{"Nowhere/City", ""} {
		code, _, stderr := b.myticket(t, "tickets", "list", "--tz="+zone)
		assert.Equal(t, 2, code, zone)
		assert.Contains(t, stderr, "--tz")
	}
}

func TestMoment_InAZoneThatChangesItsClocks(t *testing.T) {
	t.Parallel()
	paris, err := time.LoadLocation("Europe/Paris")
	require.NoError(t, err)
	for text, want := range map[string]string{
		"2026-03-29": "2026-03-28T23:00:00Z", "2026-03-30": "2026-03-29T22:00:00Z", "2026-07-01 12:00": "2026-07-01T10:00:00Z",
		"2026-11-23T08:00:05": "2026-11-23T07:00:05Z", "2026-11-23T08:00:00-05:00": "2026-11-23T13:00:00Z",
	} {
		var m moment
		require.NoError(t, m.UnmarshalText([]byte(text)))
		assert.Equal(t, want, m.in(paris).UTC().Format(time.RFC3339), text)
	}
	for _, text := range []string{"", "tomorrow", "2026-13-01", "2026-11-23T25:00"} {
		require.Error(t, new(moment).UnmarshalText([]byte(text)), text)
	}
	assert.True(t, new(moment).in(paris).IsZero())
}

func TestTicketsList_ByAmountAndProduct(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := &operatorBundle{url: b.databaseURL, pool: b.pool}
	for _, text := range []string{
		"Order: 1\nVAT: 0\nTotal: 2.00\n\nproduct,product_id,price\nCafé,a,2",
		"Order: 2\nVAT: 0\nTotal: 16.90\n\nproduct,product_id,price\nThé,b,2",
		"Order: 3\nVAT: 0\nTotal: -2\n\nproduct,product_id,price\nThé,b,2",
	} {
		b.submit(t, "/ticket", text)
	}
	b.awaitOrderLines(t)
	for flags, want := range map[string][]string{
		"--total=2": {"1"}, "--total=2,00": {"1"}, "--total=-2": {"3"}, "--min-total=2 --max-total=17": {"2", "1"},
		"--max-total=1": {"3"}, "--product=b": {"3", "2"}, "--product=b --min-total=0": {"2"}, "--product=Thé": nil,
	} {
		var found []postgres.StoredTicket
		require.NoError(t, json.Unmarshal([]byte(o.ok(t, append([]string{"tickets", "list", "-o", "json"}, strings.Fields(flags)...)...)), &found))
		var orders []string
		for _, f := range found {
			orders = append(orders, f.OrderNumber)
		}
		assert.Equal(t, want, orders, flags)
	}
	for _, flags := range []string{"--total=x", "--total=2 --min-total=1"} {
		code, _, _ := o.myticket(t, append([]string{"tickets", "list"}, strings.Fields(flags)...)...)
		assert.Equal(t, 2, code, flags)
	}
	_, _, stderr := o.myticket(t, "tickets", "list", "--limit=1", "--max-total=-1", "--product=b", "--tz=Europe/Paris", "--status=ERROR,TREATED")
	assert.Empty(t, stderr)
	_, _, stderr = o.myticket(t, "tickets", "list", "--limit=1", "--min-total=-5", "--product=b", "--tz=Europe/Paris")
	assert.Contains(t, stderr, `--min-total=-5 --tz Europe/Paris --product "b" --limit 1 --after `)
}

func TestAudit_ShowsWhoChangedWhat(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "shop-1", "1", "x").String()
	b.insert(t, ticket.Error, "shop-1", "2", "x")
	assert.Equal(t, 1, strings.Count(b.ok(t, "audit"), "\n"), "only the header")
	assert.Equal(t, "[]\n", b.ok(t, "audit", "-o", "json"))
	b.ok(t, "tickets", "retry", id, "--by=Anna", "--reason", ticket.CleanText(hostile, len(hostile)))
	b.ok(t, "tickets", "dismiss", "--source=shop-1", "--since=1h", "--yes", "--by=Ben", "--reason=test till")
	b.exec(t, `INSERT INTO deliveries VALUES ('s', 'k', '', gen_random_uuid(), now(), now() - interval '1 s')`)
	b.ok(t, "retention", "--keep=90d", "--by=CronJob", "--apply")
	b.ok(t, "retention", "--keep=90d", "--by=CronJob") // changes nothing
	shown := b.ok(t, "audit")
	assertHarmless(t, shown)
	lines := strings.Split(strings.TrimSpace(shown), "\n")
	require.Len(t, lines, 4, shown)
	assert.Regexp(t, `CronJob +retention +0 .*"expired_keys":1`, lines[1])
	assert.Regexp(t, `Ben +tickets.dismiss +1 +test till +\{"since": ?".*", ?"sources": ?\["shop-1"\]\}`, lines[2])
	assert.Regexp(t, `Anna +tickets.retry +1 .*`+id, lines[3])
	for flags, want := range map[string]int{
		"--by=Ben": 1, "--action=tickets": 2, "--action=tickets.retry": 1, "--since=1h --tz=Asia/Tokyo": 3, "--until=1h": 0, "--since=2999-01-01": 0,
	} {
		var records []postgres.AuditRecord
		require.NoError(t, json.Unmarshal([]byte(b.ok(t, append([]string{"audit", "-o", "json"}, strings.Fields(flags)...)...)), &records))
		assert.Len(t, records, want, flags)
	}
	code, _, stderr := b.myticket(t, "audit", "--limit=2", "--since=1h")
	require.Zero(t, code)
	_, command, found := strings.Cut(strings.TrimSpace(stderr), "Next page: myticket ")
	require.True(t, found, stderr)
	assert.Contains(t, b.ok(t, strings.Fields(command)...), "Anna")
}
