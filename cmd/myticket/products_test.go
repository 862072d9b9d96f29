package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func TestProductsList_PrintsTheCommandOfTheNextPage(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	assert.Equal(t, "[]\n", b.ok(t, "products", "list", "-o", "json"))
	b.exec(t, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id)
		SELECT '-p' || i, 'Café', 2.50, now(), now(), now(), gen_random_uuid() FROM generate_series(1, 7) i`)
	var seen []string
	args := []string{"products", "list", "--limit=3", "--name=CAFÉ", "--changed-since=1d", "-o", "json"}
	for {
		code, stdout, stderr := b.myticket(t, args...)
		require.Zero(t, code, stderr)
		var page []postgres.StoredProduct
		require.NoError(t, json.Unmarshal([]byte(stdout), &page))
		for _, p := range page {
			seen = append(seen, p.ProductID)
		}
		if stderr == "" {
			break
		}
		command, found := strings.CutPrefix(strings.TrimSpace(stderr), "Next page: myticket ")
		require.True(t, found, stderr)
		args = strings.Fields(strings.ReplaceAll(command, `"`, ""))
	}
	assert.Equal(t, []string{"-p1", "-p2", "-p3", "-p4", "-p5", "-p6", "-p7"}, seen)
}

func TestNewProducts_BeyondTheRateOfASource_AreAnsweredErrorAndCounted(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"free": {"new_products_rate": 0}, "till": {"new_products_burst": 1}, "*": {}}`), 0o600))
	b := setup(t, "--sources-file", file, "--new-products-rate", "0.00001", "--new-products-burst", "2")
	for i, test := range []struct {
		source string
		status ticket.Status
	}{
		{"till", ticket.Treated},
		{"till", ticket.Error}, // its entry says one
		{"a", ticket.Treated},
		{"b", ticket.Treated},
		{"c", ticket.Error}, // all others share two
		{"free", ticket.Treated},
		{"free", ticket.Treated},
	} {
		r := b.submit(t, "/ticket/"+test.source, body("1", fmt.Sprintf("Café,p%d,2", i)))
		require.Equal(t, test.status, r.Status, "ticket %d: %v", i, r.Problems)
		if test.status == ticket.Error {
			require.Equal(t, postgres.ProblemNewProducts, r.Problems[0].Code)
		}
	}
	require.Len(t, b.products(t), 5)
	metrics := string(b.get(t, b.internal+"/metrics").body)
	require.Contains(t, metrics, `myticket_new_products_limited_total{source="till"} 1`)
	require.Contains(t, metrics, `myticket_new_products_limited_total{source="other"} 1`)
	require.NotContains(t, metrics, `myticket_new_products_limited_total{source="c"}`)
}

func TestAuthenticatedProducts_AreNotOverruledByOtherSources(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "sources.json")
	const token = "a-long-random-token-of-a-till"
	require.NoError(t, os.WriteFile(file, []byte(`{"till": {"bearer_tokens": ["`+token+`"]}, "*": {}}`), 0o600))
	b := setup(t, "--sources-file", file, "--authenticated-products")
	post := func(path, price string, headers ...string) {
		require.Equal(t, http.StatusOK, b.post(t, path, body("1", "Café,a,"+price), headers...).status)
	}
	post("/ticket/anybody", "1")
	post("/ticket/till", "2", "Authorization", "Bearer "+token)
	post("/ticket/anybody", "9999")
	require.Equal(t, map[string]string{"a": "Café 2"}, b.products(t))
}

func TestProductsPrune_ShowsFirst_AndRemovesWithApply(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Treated, "junk", "1", body("1", "Café,a,2")).String()
	b.exec(t, `UPDATE tickets SET received_at = date_trunc('milliseconds', received_at)`)
	b.exec(t, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id)
		SELECT 'a', E'\x1b[31mowned', 2, received_at, received_at, received_at, id FROM tickets`)
	count := func() string { return b.text(t, `SELECT count(*)::text FROM products`) }

	assert.Contains(t, b.ok(t, "products", "prune", "--source=junk"), "0 would be removed", "it was named a moment ago")
	b.exec(t, `UPDATE tickets SET received_at = received_at - interval '1 hour'`)
	b.exec(t, `UPDATE products SET first_seen_at = t.received_at, last_seen_at = t.received_at, changed_at = t.received_at FROM tickets t`)
	shown := b.ok(t, "products", "prune", id)
	assert.Contains(t, shown, "1 would be removed; nothing was changed. Use --apply to remove them")
	assert.Contains(t, shown, "The first of them:\n  a\n")
	assert.Equal(t, "1", count())
	assert.JSONEq(t, `{"applied": true, "candidates": 1, "kept": 0, "products": 1, "changed": 0, "examples": ["a"], "more": false}`,
		b.ok(t, "products", "prune", "--source=junk", "--since=1d", "--apply", "-o", "json"))
	assert.Equal(t, "0", count())
	for _, args := range [][]string{{}, {id, "--source=junk"}, {"--source=junk", "--limit=0"}} {
		code, _, _ := b.myticket(t, append([]string{"products", "prune"}, args...)...)
		assert.NotZero(t, code, args)
	}
}
