package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
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
