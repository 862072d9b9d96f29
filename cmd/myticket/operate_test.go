package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// tester is who changes something.
var tester = postgres.Person{Who: "tester"}

// operatorBundle is a database with tickets, and the command line that works on it.
type operatorBundle struct {
	url  string
	pool *pgxpool.Pool
}

func setupOperator(t *testing.T) *operatorBundle {
	t.Helper()
	b := &operatorBundle{url: pgtest.New(t)}
	var err error
	b.pool, err = pgxpool.New(t.Context(), b.url)
	require.NoError(t, err)
	t.Cleanup(b.pool.Close)
	return b
}

func (b *operatorBundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

func (b *operatorBundle) text(t *testing.T, sql string) string {
	t.Helper()
	var s string
	require.NoError(t, b.pool.QueryRow(t.Context(), sql).Scan(&s), sql)
	return s
}

// insert puts a ticket into the database and returns its id.
func (b *operatorBundle) insert(t *testing.T, status ticket.Status, source, order, body string) uuid.UUID {
	t.Helper()
	id, at, err := ticket.NewID()
	require.NoError(t, err)
	var problems any
	if status == ticket.Error {
		problems = `[{"line": 2, "code": "fields_count", "message": "4 fields"}, {"line": 0, "code": "order_missing", "message": "none"}]`
	}
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, order_number, total, problems, lines)
		VALUES ($1, $2, $3, $4, $5, $6, 16.90, $7::jsonb, '[{"product": "Café", "product_id": "a", "price": 2.00}]')`,
		id, at, source, []byte(body), status, order, problems)
	return id
}

// myticket runs a command and returns its exit code and its output.
func (b *operatorBundle) myticket(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append(args, "--database-url", b.url), nil, streams{stdout: &out, stderr: &errs})
	return code, out.String(), errs.String()
}

// ok is myticket for a command that succeeds.
func (b *operatorBundle) ok(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := b.myticket(t, args...)
	require.Zero(t, code, "%s: %s%s", args, stdout, stderr)
	return stdout
}

func TestTicketsList_FiltersAndPages(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	var all []string
	for i := range 7 {
		all = append(all, b.insert(t, ticket.Treated, "shop-1", fmt.Sprint(100+i), "x").String())
	}
	bad := b.insert(t, ticket.Error, "shop-2", "999", "bad").String()

	assert.Contains(t, b.ok(t, "tickets", "list"), "line 2: fields_count: 4 fields (and 1 more)")
	for filter, want := range map[string]string{
		"--status=ERROR": bad, "--status=ERROR,DISMISSED": bad, "--source=shop-2": bad, "--order=999": bad,
		"--problem=order_missing": bad, "--order=103": all[3], "--status=DISMISSED": "", "--since=1h --order=103": all[3],
		"--until=1h": "", "--since=2999-01-01": "", "--problem=nothing": "",
	} {
		var got []postgres.StoredTicket
		args := append([]string{"tickets", "list", "--output=json"}, strings.Fields(filter)...)
		require.NoError(t, json.Unmarshal([]byte(b.ok(t, args...)), &got), filter)
		if want == "" {
			assert.Empty(t, got, filter)
			continue
		}
		if assert.Len(t, got, 1, filter) {
			assert.Equal(t, want, got[0].ID.String(), filter)
		}
	}

	// Page by page, each ticket once, newest first.
	var seen []string
	after := uuid.Nil.String()
	for range 10 {
		code, stdout, stderr := b.myticket(t, "tickets", "list", "--limit=3", "--after", after)
		require.Zero(t, code)
		for _, line := range strings.Split(strings.TrimSpace(stdout), "\n")[1:] {
			seen = append(seen, strings.Fields(line)[0])
		}
		if !strings.Contains(stderr, "--after") {
			break
		}
		after = strings.TrimSpace(stderr[strings.Index(stderr, "--after")+len("--after"):])
	}
	require.Len(t, seen, 8)
	assert.Equal(t, bad, seen[0])
	assert.Equal(t, all[0], seen[7])
}

func TestTicketsShow_TellsEverythingAndObeysNoEscapeSequence(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	body := "Order: 1\nCaf\xe9 \x1b[2J, midi,a,2\r\nlast"
	id := b.insert(t, ticket.Error, "shop-1", "\x1b]0;owned\a", body).String()

	shown := b.ok(t, "tickets", "show", id)
	assert.Contains(t, shown, "line 2: fields_count: 4 fields\n    2 | Café \\x1b[2J, midi,a,2\n", "as it is read")
	assert.Contains(t, shown, "a           2.00")
	assert.NotContains(t, shown, "\x1b")
	assert.NotContains(t, b.ok(t, "tickets", "list"), "\x1b")
	assert.Equal(t, body, b.ok(t, "tickets", "show", "--raw", id))

	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "tickets", "show", id, "-o", "json")), &got))
	assert.NotContains(t, got, "body", "it is no valid UTF-8")
	assert.Equal(t, "T3JkZXI6IDEKQ2Fm6SAbWzJKLCBtaWRpLGEsMg0KbGFzdA==", got["body_base64"])
	assert.Contains(t, b.ok(t, "tickets", "show", id, "-o", "json"), `"price": 2.00`, "amounts are exact")

	code, _, stderr := b.myticket(t, "tickets", "show", "0198c5a0-0000-7000-8000-000000000000")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "no such ticket in this database. If it was answered 202, it may still be in the spool")
	assert.Contains(t, stderr, "myticket spool status DIR")
	code, _, stderr = b.myticket(t, "tickets", "show", "12345")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "id")
}

func TestTicketsRetry_SendsBackWhatFailed_AndNothingElse(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	bad, fine := b.insert(t, ticket.Error, "s", "1", "x").String(), b.insert(t, ticket.Treated, "s", "2", "x").String()
	code, stdout, stderr := b.myticket(t, "tickets", "retry", bad, fine)
	assert.Equal(t, 1, code)
	assert.Contains(t, stdout, "1 of 2 tickets sent back")
	assert.Contains(t, stderr, fine+" is TREATED")
	assert.Equal(t, "TO_TREAT 0 true", b.text(t, `SELECT status || ' ' || attempts || ' ' || (next_attempt_at <= now()) FROM tickets
		WHERE order_number = '1'`))

	for _, args := range [][]string{{}, {bad, "--status=ERROR"}, {bad, "--dry-run"}, {"--status=WRONG"}} {
		code, _, stderr = b.myticket(t, append([]string{"tickets", "retry"}, args...)...)
		assert.Equal(t, 2, code, args)
		assert.NotEmpty(t, stderr, args)
	}
	code, _, stderr = b.myticket(t, "tickets", "retry", "--status=TREATED")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "TREATED cannot be sent back")
}

func TestTicketsRetry_ByFilter_InSeveralTransactions(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, attempts)
		SELECT gen_random_uuid(), now() - i * interval '1 s', 'shop-' || i % 2, '', 'ERROR', 3 FROM generate_series(1, 5000) i`)
	// The keyset goes by id, whose time is received_at.
	b.exec(t, `UPDATE tickets SET id = (lpad(to_hex((extract(epoch FROM received_at) * 1000)::bigint), 12, '0') ||
		substr(replace(id::text, '-', ''), 13))::uuid, received_at = date_trunc('milliseconds', received_at)`)
	assert.Contains(t, b.ok(t, "tickets", "retry", "--source=shop-1", "--dry-run"), "2500 tickets would be sent back")
	assert.Equal(t, "5000", b.text(t, `SELECT count(*)::text FROM tickets WHERE status = 'ERROR'`))
	assert.Contains(t, b.ok(t, "tickets", "retry", "--source=shop-1", "--yes"), "2500 tickets sent back")
	assert.Contains(t, b.ok(t, "tickets", "dismiss", "--all", "--yes", "--reason", "test till"), "2500 tickets dismissed")
	assert.Equal(t, "2500 2500", b.text(t, `SELECT count(*) FILTER (WHERE status = 'TO_TREAT') || ' ' ||
		count(*) FILTER (WHERE status = 'DISMISSED' AND problems -> 0 ->> 'message' = 'test till') FROM tickets`))
}

func TestTicketsDismiss_KeepsTheReason(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "s", "1", "x").String()
	code, _, stderr := b.myticket(t, "tickets", "dismiss", id)
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "--reason")
	b.ok(t, "tickets", "dismiss", id, "--reason", "test till")
	assert.Contains(t, b.ok(t, "tickets", "show", id), "dismissed: test till")
	assert.Contains(t, b.ok(t, "tickets", "list", "--status=DISMISSED"), id)
	b.ok(t, "tickets", "retry", id)
}

func TestProductsList(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.exec(t, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id)
		SELECT 'p' || i, 'Café %_ ' || i, 2.50, now(), now(), now() - i * interval '1 day', gen_random_uuid()
		FROM generate_series(1, 5) i`)
	assert.Contains(t, b.ok(t, "products", "list", "--id=p3"), "Café %_ 3  2.50")
	assert.Equal(t, 2, strings.Count(b.ok(t, "products", "list", "--name=CAFÉ %_ 4"), "\n"))
	assert.Equal(t, 3, strings.Count(b.ok(t, "products", "list", "--changed-since=60h"), "\n"))
	_, stdout, stderr := b.myticket(t, "products", "list", "--limit=2", "--after=p1")
	assert.Contains(t, stdout, "p3")
	assert.NotContains(t, stdout, "p4")
	assert.Contains(t, stderr, `--after "p3"`)
	var got []postgres.StoredProduct
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "products", "list", "-o", "json")), &got))
	require.Len(t, got, 5)
	assert.Equal(t, json.Number("2.50"), got[0].Price)
}

func TestRetention_DropsWhatIsOldAndFinished(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	store, err := postgres.Open(t.Context(), postgres.Config{URL: b.url})
	require.NoError(t, err)
	defer store.Close()
	today := time.Now().UTC()
	for _, days := range []int{-100, -99, -50, 0} {
		_, err := store.EnsurePartitions(t.Context(), postgres.Day, 0, today.AddDate(0, 0, days))
		require.NoError(t, err)
		b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status)
			VALUES (gen_random_uuid(), $1, 's', '', $2)`, today.AddDate(0, 0, days), map[int]string{-99: "ERROR"}[days]+map[bool]string{true: "TREATED"}[days != -99])
	}
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status) VALUES (gen_random_uuid(), '2001-01-01', 's', '', 'TREATED')`)
	b.exec(t, `INSERT INTO deliveries VALUES ('s', 'old', '', gen_random_uuid(), now(), now() - interval '1 s'),
		('s', 'new', '', gen_random_uuid(), now(), now() + interval '1 hour')`)
	count := func() string { return b.text(t, `SELECT count(*)::text FROM tickets`) }
	name := func(days int) string {
		return "tickets_" + today.AddDate(0, 0, days).Format("20060102") + "_" + today.AddDate(0, 0, days+1).Format("20060102")
	}

	shown := b.ok(t, "retention", "--keep=90d")
	assert.Contains(t, shown, "1 expired idempotency keys would be deleted; nothing was changed. Use --apply to drop and delete")
	assert.Equal(t, "5", count())

	shown = b.ok(t, "retention", "--keep=90d", "--apply")
	assert.Regexp(t, name(-100)+` .* dropped\n`, shown)
	assert.Regexp(t, name(-99)+` .* kept: it holds TO_TREAT or ERROR tickets \(--drop-unfinished drops it too\)`, shown)
	assert.NotContains(t, shown, name(-50))
	assert.Contains(t, shown, "1 expired idempotency keys deleted")
	assert.Equal(t, "4", count(), "the default partition, the unfinished one and the young ones stay")
	assert.Equal(t, "new", b.text(t, `SELECT key FROM deliveries`))

	var report retentionReport
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "retention", "--keep=90d", "--apply", "--drop-unfinished", "-o", "json")), &report))
	require.Len(t, report.Partitions, 1)
	assert.True(t, report.Partitions[0].Dropped)
	assert.Equal(t, "3", count())

	code, _, stderr := b.myticket(t, "retention", "--keep=1h")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "--keep")
}

func TestRetention_TicketThatIsSentBackMeanwhile_KeepsItsPartition(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	store, err := postgres.Open(t.Context(), postgres.Config{URL: b.url})
	require.NoError(t, err)
	defer store.Close()
	old := time.Now().UTC().AddDate(0, 0, -100)
	made, err := store.EnsurePartitions(t.Context(), postgres.Day, 0, old)
	require.NoError(t, err)
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status) VALUES (gen_random_uuid(), $1, 's', '', 'TO_TREAT')`, old)
	require.ErrorIs(t, store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: made[0]}, postgres.DropEven{}), postgres.ErrUnfinished)
	assert.Equal(t, "1", b.text(t, `SELECT count(*)::text FROM tickets`))

	// Another transaction holds the table: the drop gives up in time, and says so.
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `LOCK TABLE tickets IN ROW EXCLUSIVE MODE`)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	require.ErrorIs(t, store.DropPartition(ctx, tester, postgres.OldPartition{Name: made[0]}, postgres.DropEven{Unfinished: true}), ticket.ErrUnavailable)
	assert.Equal(t, "1", b.text(t, `SELECT count(*)::text FROM tickets`))
}
