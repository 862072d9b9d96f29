package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func TestFilters_OfSeveralValues_SelectAllOfThem(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for _, name := range []string{"shop-1", "shop-2", "shop-3"} {
		b.insert(t, ticket.Error, name, "1", "x")
	}
	b.exec(t, `UPDATE tickets SET problems = '[{"line": 0, "code": "vat_missing", "message": "m"}]' WHERE source = 'shop-3'`)
	for _, args := range [][]string{
		{"--source=shop-1", "--source=shop-2"}, {"--source=shop-1,shop-2"}, {"--source=shop-1,shop-2,shop-1"},
		{"--problem=nul_byte", "--problem=fields_count"}, {"--source=shop-2,shop-3,shop-1", "--problem=fields_count,nul_byte"},
	} {
		var listed []postgres.StoredTicket
		require.NoError(t, json.Unmarshal([]byte(b.ok(t, append([]string{"tickets", "list", "-o", "json"}, args...)...)), &listed))
		require.Len(t, listed, 2, args)
		assert.Equal(t, []string{"shop-2", "shop-1"}, []string{listed[0].Source, listed[1].Source}, args)
	}
	var found postgres.Problems
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "problems", "--source=shop-1", "--source=shop-3", "-o", "json")), &found))
	assert.Equal(t, 2, found.Tickets)
	assert.Contains(t, b.ok(t, "products", "prune", "--source=shop-1", "--source=shop-3"), "0 would be removed")

	assert.Equal(t, "2 tickets dismissed\n",
		b.ok(t, "tickets", "dismiss", "--source=shop-1", "--source=shop-2", "--reason=test tills", "--yes"))
	assert.Equal(t, "shop-3", b.text(t, `SELECT string_agg(source, ' ') FROM tickets WHERE status = 'ERROR'`))
	assert.JSONEq(t, `{"sources": ["shop-1", "shop-2"]}`, b.text(t, `SELECT filter::text FROM audit`))
}

func TestFlags_ThatWouldBeIgnored_AreErrorsThatNameThem(t *testing.T) {
	t.Parallel()
	for flag, args := range map[string][]string{
		"--limit is given more than once":  {"tickets", "list", "--limit=3", "--limit=3"},
		"--order is given more than once":  {"tickets", "list", "--order=1", "--order", "2"},
		"--output is given more than once": {"tickets", "list", "--output=json", "-o", "csv"},
		"--reason is given more than once": {"tickets", "dismiss", "--all", "--reason=a", "--reason=b"},
		"--yes is given more than once":    {"tickets", "retry", "--all", "-y", "--yes"},
		"--by is given more than once":     {"audit", "--by=a", "--by=b"},
		"--order-lines is given more":      {"serve", "--order-lines", "--no-order-lines"},
		"--url is given more than once":    {"send", "--url=http://a/ticket", "--url=http://b/ticket"},
		"--source has no value":            {"tickets", "retry", "--source=", "--since=1d"},
		"--order has no value":             {"tickets", "dismiss", "--order", "", "--since=1d", "--reason=a"},
		"--source: \"Shop 1\" cannot be":   {"tickets", "list", "--source=Shop 1"},
		"--source: \"\" cannot be":         {"problems", "--source=a,,b"},
		"--until must be later":            {"tickets", "retry", "--since=1d", "--until=2d"},
		"--problem: write the code":        {"tickets", "list", "--problem=fields count"},
	} {
		requireNotUnderstood(t, runCommand(t, nil, args...), flag)
	}
}
