package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

const frenchText = "Commande: 7\nVAT: 0\nTotal: 2\nTable: 4\n\nproduct,product_id,price,note\nCafé,a,2,hot\n"

func TestRead_ShowsWhatATextWouldBecome_WithoutADatabase(t *testing.T) {
	t.Parallel()
	file := write(t, "ticket.txt", strings.ReplaceAll(frenchText, "Commande", "Order")+"Thé,b\n\x1b[2J,c,x,\n")
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"read", file, "-"}, nil,
		streams{stdin: strings.NewReader(sample(t)), stdout: &out, stderr: &errs})
	assert.Equal(t, 1, code, "there are problems")
	assert.Contains(t, errs.String(), "1 of 2 tickets would be ERROR")
	assertHarmless(t, out.String())
	for _, want := range []string{
		`(?m)^File +` + file + `$`, `(?m)^Status +ERROR$`, `(?m)^Header Table +4$`, `(?m)^a +2 +Café +note=hot$`,
		`(?m)^  line 8: fields_count: .*\n    8 \| Thé,b$`, `(?m)^  line 9: .*\n    9 \| \\x1b\[2J,c,x,$`,
		`(?m)^File +-$`, `(?m)^Status +TREATED$`, `(?m)^aZde +14.90 +Formule\(s\) midi`,
	} {
		assert.Regexp(t, want, out.String())
	}

	out.Reset()
	code = run(t.Context(), []string{"read", file, "-o", "json"}, nil, streams{stdout: &out, stderr: &errs})
	assert.Equal(t, 1, code)
	var reports []readReport
	require.NoError(t, json.Unmarshal(out.Bytes(), &reports))
	require.Len(t, reports, 1)
	assert.Equal(t, ticket.Error, reports[0].Status)
	assert.Equal(t, "7", reports[0].OrderNumber)
	assert.Equal(t, 8, reports[0].Problems[0].Line)
	assert.Zero(t, run(t.Context(), []string{"read", "-"}, nil, streams{stdin: strings.NewReader(sample(t)), stdout: &out, stderr: &errs}))
}

func TestRead_InADialect(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	file, dialect := write(t, "ticket.txt", frenchText), write(t, "dialect.yaml", "records:\n  order: [Commande]\n")
	read := func(flags ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		code = run(t.Context(), append([]string{"read", file}, flags...), nil, streams{stdout: &out, stderr: &errs})
		return code, out.String(), errs.String()
	}
	code, stdout, _ := read()
	assert.Equal(t, 1, code)
	assert.Contains(t, stdout, "order_missing")
	code, stdout, stderr := read("--dialect", dialect)
	assert.Zero(t, code, stderr)
	assert.Regexp(t, `(?m)^Order +7$`, stdout)

	store, err := postgres.Open(t.Context(), postgres.Config{URL: b.url})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	version, err := store.ApplyDialect(t.Context(), postgres.DialectChange{Source: "shop-1", By: tester}, []byte(`{"records": {"order": ["Commande"]}}`))
	require.NoError(t, err)
	code, stdout, stderr = read("--source=shop-1", "--database-url", b.url, "-o", "json")
	assert.Zero(t, code, stderr)
	var reports []readReport
	require.NoError(t, json.Unmarshal([]byte(stdout), &reports))
	assert.Equal(t, version.Version, reports[0].Dialect)
	assert.Equal(t, "7", reports[0].OrderNumber)
	code, stdout, _ = read("--source=shop-2", "--database-url", b.url)
	assert.Equal(t, 1, code)
	assert.Regexp(t, `(?m)^Dialect +of everyone$`, stdout)

	for _, flags := range [][]string{{"--source=shop-1"}, {"--dialect", file}, {"--dialect", file + "-none"}, {"--source=shop-1", "--dialect", dialect}} {
		code, stdout, stderr = read(flags...)
		assert.NotZero(t, code, flags)
		assert.Empty(t, stdout, flags)
		assert.NotEmpty(t, stderr, flags)
	}
	require.NoError(t, os.Remove(file))
	code, _, stderr = read()
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, file)
}
