package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// keysOf writes n keys of shop-1 into the database, some of another source, and some that have expired.
func keysOf(t *testing.T, b *operatorBundle, n int) {
	t.Helper()
	b.exec(t, `INSERT INTO deliveries SELECT 'shop-1', i || ' <&>"\~', sha256(i::text::bytea), gen_random_uuid(),
		now() - interval '1 us' * i, now() + interval '1 hour 1 us' FROM generate_series(1, $1) i`, n)
	b.exec(t, `INSERT INTO deliveries SELECT source, i::text, sha256(''), gen_random_uuid(), now() - interval '2 hours', expires
		FROM generate_series(1, 10) i, (VALUES ('shop-10', now() + interval '1 hour'), ('shop-1', now() - interval '1 s')) s (source, expires)`)
}

// importInto runs keys import with an input.
func importInto(t *testing.T, b *operatorBundle, input string) (code int, stderr string) {
	t.Helper()
	var errs logText
	code = run(t.Context(), []string{"keys", "import", "--database-url", b.url}, nil,
		streams{stdin: strings.NewReader(input), stdout: &errs, stderr: &errs})
	return code, errs.String()
}

const keysOfShop1 = `SELECT md5(string_agg(d::text, '|' ORDER BY key)) || count(*) FROM deliveries d WHERE source = 'shop-1' AND expires_at > now()`

func TestKeys_AreTheSameInTheOtherDatabase_HoweverOftenTheyAreImported(t *testing.T) {
	t.Parallel()
	const n = 5432 // more than a page, and several transactions
	from, to := setupOperator(t), setupOperator(t)
	keysOf(t, from, n)
	code, out, errs := from.myticket(t, "keys", "export", "--source", "shop-1")
	require.Zero(t, code, errs)
	assert.Equal(t, fmt.Sprintf("%d idempotency keys of shop-1 exported\n", n), errs)
	require.Equal(t, n+1, strings.Count(out, "\n"))
	require.True(t, strings.HasSuffix(out, fmt.Sprintf("{\"source\":\"shop-1\",\"keys\":%d}\n", n)))

	half := strings.Join(strings.SplitAfter(out, "\n")[:n/2], "")
	code, errs = importInto(t, to, half)
	assert.Equal(t, 1, code, "the export was cut")
	assert.Contains(t, errs, fmt.Sprintf("%d idempotency keys imported, 0 were already there", n/2))
	assert.Contains(t, errs, "the export was cut, or has failed")
	code, errs = importInto(t, to, out)
	require.Zero(t, code, errs)
	assert.Equal(t, fmt.Sprintf("%d idempotency keys imported, %d were already there, 0 are held by another ticket\n", n-n/2, n/2), errs)
	assert.Equal(t, from.text(t, keysOfShop1), to.text(t, keysOfShop1), "with all that is known of them, to the microsecond")

	file := write(t, "keys.jsonl", out+from.ok(t, "keys", "export", "--source=shop-10")+from.ok(t, "keys", "export", "--source=none"))
	code, _, errs = to.myticket(t, "keys", "import", file)
	require.Zero(t, code, errs)
	assert.Equal(t, fmt.Sprintf("10 idempotency keys imported, %d were already there, 0 are held by another ticket\n", n), errs)

	to.exec(t, `UPDATE deliveries SET expires_at = now() WHERE source = 'shop-1'`)
	assert.Contains(t, to.ok(t, "retention", "--keep=90d", "--apply"), fmt.Sprintf("%d expired idempotency keys deleted", n))
}

func TestKeys_ThatWereImported_MakeARepeatADuplicate(t *testing.T) {
	t.Parallel()
	from, to := setup(t), setup(t)
	first := from.submit(t, "/ticket/shop-1", sample(t), "Idempotency-Key", "k")
	unread := from.submit(t, "/ticket/shop-1", "no ticket", "webhook-id", strings.Repeat("long", 100))
	out := (&operatorBundle{url: from.databaseURL}).ok(t, "keys", "export", "--source=shop-1")
	code, errs := importInto(t, &operatorBundle{url: to.databaseURL}, out)
	require.Zero(t, code, errs)
	a := to.post(t, "/ticket/shop-1", sample(t), "Idempotency-Key", "k")
	require.Equal(t, `{"id":"`+first.ID.String()+`","status":"TREATED","duplicate":true}`, string(a.body))
	requireReceipt(t, a)
	again := to.submit(t, "/ticket/shop-1", "no ticket", "webhook-id", strings.Repeat("long", 100))
	require.True(t, again.Duplicate)
	require.Equal(t, unread.ID, again.ID)
	requireProblem(t, to.post(t, "/ticket/shop-1", "other", "Idempotency-Key", "k"), http.StatusUnprocessableEntity, "key_reused")
	require.False(t, to.submit(t, "/ticket/shop-2", sample(t), "Idempotency-Key", "k").Duplicate, "keys belong to their source")
	require.Equal(t, 1, to.count(t, `SELECT count(*) FROM tickets`))
}

// Tills wait as long as the import does, so it says what it waits for.
func TestKeysImport_ThatWaits_SaysSo(t *testing.T) {
	t.Parallel()
	from, to := setupOperator(t), setupOperator(t)
	keysOf(t, from, 3)
	out := from.ok(t, "keys", "export", "--source=shop-1")
	tx, err := to.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `LOCK deliveries`)
	require.NoError(t, err)
	var errs logText
	ended := make(chan int, 1)
	go func() {
		ended <- run(context.Background(), []string{"keys", "import", "--database-url", to.url}, nil,
			streams{stdin: strings.NewReader(out), stdout: &errs, stderr: &errs})
	}()
	await(t, "the import says why it takes long", func() bool {
		return strings.Contains(errs.String(), "waiting until the database confirms 3 keys, after 0: ")
	})
	require.NoError(t, tx.Rollback(t.Context()))
	require.Zero(t, <-ended, errs.String())
	require.Contains(t, errs.String(), "3 idempotency keys imported, 0 were already there")
}

func TestKeysImport_LeavesKeysOfOtherTicketsAlone(t *testing.T) {
	t.Parallel()
	const n = 2*importBatch + 25
	from, to := setupOperator(t), setupOperator(t)
	keysOf(t, from, n)
	to.exec(t, `INSERT INTO deliveries SELECT 'shop-1', i || ' <&>"\~', sha256('other'), gen_random_uuid(), now(), now() + interval '1 hour'
		FROM generate_series(1, 25) i`)
	out := from.ok(t, "keys", "export", "--source=shop-1")
	for _, counts := range []string{fmt.Sprintf("%d idempotency keys imported, 0", n-25), fmt.Sprintf("0 idempotency keys imported, %d", n-25)} {
		code, errs := importInto(t, to, out)
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, counts+" were already there, 25 are held by another ticket\n")
		assert.Equal(t, maxKeysTaken, strings.Count(errs, ": the input has the ticket "))
		assert.Contains(t, errs, "\n  and 5 more\n")
		assert.Contains(t, errs, "25 keys were left alone, because this database has another ticket under the same key")
	}
	assert.Equal(t, "25", to.text(t, `SELECT count(*)::text FROM deliveries WHERE body_sha256 = sha256('other')`))
}

func TestKeysImport_NamesTheLineThatIsWrong(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	good := func(n int) string {
		return fmt.Sprintf(`{"source":"shop-1","key":"k%d","body_sha256":"%064x","ticket_id":"01a20763-46ee-7c43-b4d2-48ea8de705fe",`+
			`"received_at":"2026-11-29T05:13:45.000001Z","expires_at":"2026-12-06T05:13:45.000001Z"}`, n, n)
	}
	with := func(old, replacement string) string { return strings.Replace(good(2), old, replacement, 1) }
	for name, c := range map[string]struct{ line, why string }{
		"no JSON":                   {"k2", "invalid character"},
		"half a line":               {good(2)[:50], "its JSON is not complete"},
		"an empty line":             {"", "its JSON is not complete"},
		"two objects":               {good(2) + good(3), "more after the end"},
		"an unknown field":          {with(`"key"`, `"kei":1,"key"`), `unknown field "kei"`},
		"no source":                 {with(`"source":"shop-1",`, ""), `"" cannot be a source`},
		"a source that cannot be":   {with("shop-1", "Shop"), `"Shop" cannot be a source`},
		"no key":                    {with(`"k2"`, `""`), "key must have 1 to 255 bytes"},
		"a long key":                {with("k2", strings.Repeat("k", 256)), "key must have 1 to 255 bytes"},
		"a key that no server made": {with("k2", "é"), "printable ASCII"},
		"a short hash":              {with("000000", ""), "body_sha256 must be 32 bytes"},
		"no ticket":                 {with("01a20763-46ee-7c43-b4d2-48ea8de705fe", "00000000-0000-0000-0000-000000000000"), "ticket_id is missing"},
		"no time":                   {with(`"received_at":"2026-11-29T05:13:45.000001Z",`, ""), "received_at must be given"},
		"it expires too early":      {with("2026-12-06", "2025-12-06"), "expires_at must be later"},
		"nanoseconds":               {with("45.000001Z", "45.0000011Z"), "at most 6 decimals"},
		"a long line":               {with(`{`, "{"+strings.Repeat(" ", maxKeyLine)), "has more than"},
		"another source":            {with("shop-1", "shop-2"), `the line with the number of keys of "shop-1" is missing`},
		"too few keys":              {`{"source":"shop-1","keys":2}`, "says that shop-1 has 2 keys, but there are 1"},
		"the end of another source": {`{"source":"shop-2","keys":1}`, `of the source "shop-2"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, errs := importInto(t, b, good(1)+"\n"+c.line+"\n")
			require.Equal(t, 1, code, errs)
			require.Contains(t, errs, "line 2")
			require.Contains(t, errs, c.why)
			require.Contains(t, errs, "import all of them again")
		})
	}
	code, errs := importInto(t, b, "")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "the last line, with the number of keys, is missing")
	code, _, errs = b.myticket(t, "keys", "export", "--source=Shop")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "--source")
}
