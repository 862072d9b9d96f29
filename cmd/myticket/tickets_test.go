package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

// hostile is a text that tries to make a terminal or a shell do something.
const hostile = "\x1b[2J\x1b]0;owned\a\r\u202etxt.\u2028\u009b31m\x7f\xff $(touch owned) `touch owned` \"'; touch owned #\\!"

// assertHarmless fails if a terminal would obey a part of a text.
func assertHarmless(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && !unicode.IsPrint(r) {
			assert.Fail(t, "a terminal would obey this", "%U in %q", r, text)
			return
		}
	}
}

func TestTicketsAndProducts_WithHostileContent_AreHarmlessToRead(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	clean := ticket.CleanText(hostile, len(hostile))
	id := b.insert(t, ticket.Error, clean, clean, hostile+"\n"+hostile).String()
	b.insert(t, ticket.Error, clean, clean, hostile)
	problems, err := json.Marshal([]ticket.Problem{{Line: 2, Code: clean, Message: clean}, {Line: 99, Code: clean, Message: clean}})
	require.NoError(t, err)
	b.exec(t, `UPDATE tickets SET problems = $1, content_type = $2, traceparent = $2,
		extra = jsonb_build_array(jsonb_build_object('name', $2::text, 'value', $2::text)),
		lines = jsonb_build_array(jsonb_build_object('product', $2::text, 'product_id', $2::text, 'price', 2.00,
			'extra', jsonb_build_array(jsonb_build_object('name', $2::text, 'value', $2::text))))`, string(problems), clean)
	b.exec(t, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id)
		SELECT $1 || i, $1, 2, now(), now(), now(), gen_random_uuid() FROM generate_series(1, 2) i`, clean)
	for _, args := range [][]string{
		{"tickets", "list"},
		{"tickets", "list", "--limit=1", "--order", clean},
		{"tickets", "show", id},
		{"tickets", "dismiss", id, "--reason", clean},
		{"tickets", "show", id},
		{"products", "list"},
		{"products", "list", "--limit=1", "--name", "owned"},
	} {
		code, stdout, stderr := b.myticket(t, args...)
		require.Zero(t, code, "%q: %s", args, stderr)
		assertHarmless(t, stdout)
		assertHarmless(t, stderr)
		assert.Equal(t, strings.Contains(strings.Join(args, " "), "--limit=1"), strings.Contains(stderr, "Next page: "), "%q", args)
	}
	assert.Equal(t, hostile+"\n"+hostile, b.ok(t, "tickets", "show", "--raw", id), "byte for byte")
}

func TestTicketsShow_HeaderOfTheTicket_CannotPassForAField(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "s", "1", "x").String()
	b.exec(t, `UPDATE tickets SET extra = '[{"name": "Status", "value": "TREATED"}]'`)
	shown := b.ok(t, "tickets", "show", id)
	assert.Regexp(t, `(?m)^Status +ERROR$`, shown)
	assert.NotRegexp(t, `(?m)^Status +TREATED$`, shown)
	assert.Regexp(t, `(?m)^Header Status +TREATED$`, shown)
}

func TestShellFlag_IsTheSameTextInAShell_AndNothingMore(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"p3", "Café, 2", "-x", "--after", "a=b", "$HOME", "it's", `back\slash`, "tab\t1", "\x017", hostile} {
		flag := shellFlag("after", value)
		assertHarmless(t, flag)
		if bash, err := exec.LookPath("bash"); err == nil {
			shell := exec.CommandContext(t.Context(), bash, "-c", "printf '%s' "+flag)
			shell.Dir = t.TempDir()
			got, err := shell.CombinedOutput()
			require.NoError(t, err, flag)
			assert.Equal(t, "--after"+value, strings.Replace(string(got), "--after=", "--after", 1), flag)
		}
		// A shell that does not know $'…' takes another text, but expands nothing.
		shell := exec.CommandContext(t.Context(), "sh", "-c", "printf '%s' "+flag+"; ls")
		shell.Dir = t.TempDir()
		got, err := shell.CombinedOutput()
		require.NoError(t, err, flag)
		assert.False(t, strings.HasSuffix(string(got), "\nowned\n") || string(got) == "owned\n", "%s: %s", flag, got)
		entries, err := exec.CommandContext(t.Context(), "ls", shell.Dir).Output()
		require.NoError(t, err)
		assert.Empty(t, string(entries), flag)
	}
}

func TestTicketsList_PrintsTheCommandOfTheNextPage(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for range 5 {
		b.insert(t, ticket.Error, "shop-1", "7", "x")
	}
	b.insert(t, ticket.Error, "-2", "7", "x")
	b.insert(t, ticket.Error, "shop-3", "7", "x")
	seen := 0
	args := []string{
		"tickets", "list", "--limit=2", "--since=1h", "--until=2999-01-01", "--status=ERROR", "--status=TREATED",
		"--source=-2", "--source", "shop-1,shop-4", "--order=7", "--problem=nul_byte,order_missing", "-o", "json",
	}
	for {
		code, stdout, stderr := b.myticket(t, args...)
		require.Zero(t, code, stderr)
		var page []map[string]any
		require.NoError(t, json.Unmarshal([]byte(stdout), &page))
		seen += len(page)
		if stderr == "" {
			break
		}
		assert.Contains(t, stderr, " --until 2999-01-01T00:00:00Z")
		command, found := strings.CutPrefix(strings.TrimSpace(stderr), "Next page: myticket ")
		require.True(t, found, stderr)
		args = strings.Fields(strings.ReplaceAll(command, `"`, ""))
		assert.Contains(t, args, "--source=-2,shop-1,shop-4")
		for _, flag := range []string{"--status", "--order", "--problem", "--since", "--output", "--limit", "--after"} {
			assert.Contains(t, args, flag)
		}
	}
	assert.Equal(t, 6, seen)
	_, _, stderr := b.myticket(t, "tickets", "list", "--limit=7")
	assert.Empty(t, stderr, "the last page has no next one, even when it is full")
}

func TestTicketsList_JSON_HasArraysWhereNothingIs(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	assert.Equal(t, "[]\n", b.ok(t, "tickets", "list", "-o", "json"))
	b.insert(t, ticket.Treated, "s", "1", "x")
	b.exec(t, `UPDATE tickets SET lines = NULL, total = 16.90`)
	var got []map[string]any
	text := b.ok(t, "tickets", "list", "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(text), &got))
	assert.Equal(t, []any{}, got[0]["lines"])
	assert.Equal(t, []any{}, got[0]["problems"])
	assert.Contains(t, text, `"total": 16.90`, "as it is stored")
	assert.NotContains(t, got[0], "vat", "it was not read, which is not 0")
}

func TestTicketsRetry_ThatIsInterrupted_Fails(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insert(t, ticket.Error, "s", "1", "x")
	tx, err := b.pool.Begin(t.Context()) // the command waits for it
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `UPDATE tickets SET source = 'x'`)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs bytes.Buffer
	exited := make(chan int, 1)
	go func() {
		exited <- run(ctx, []string{"tickets", "retry", "--all", "--yes", "--database-url", b.url}, nil, streams{stdout: &out, stderr: &errs})
	}()
	await(t, "it waits for the lock", func() bool {
		return b.text(t, `SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == "1"
	})
	cancel()
	assert.Equal(t, 1, <-exited)
	assert.Contains(t, errs.String(), "interrupted")
	assert.Contains(t, out.String(), "0 tickets sent back")
}

func TestTicketsRetry_DatabaseAway_IsSaidOnce(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	id := "01a20763-46ee-7c43-b4d2-48ea8de705fe"
	code := run(t.Context(), []string{
		"tickets", "retry", id, id, id, "--database-url", "postgres://nobody:secret@127.0.0.1:1/none?connect_timeout=1",
	}, nil, streams{stdout: &out, stderr: &errs})
	assert.Equal(t, 1, code)
	assert.Equal(t, 1, strings.Count(errs.String(), "the store is unavailable"), errs.String())
	assert.NotContains(t, errs.String(), "secret")
}

func TestTicketsDismiss_NeedsAReasonThatIsOne(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "s", "1", "x").String()
	for _, reason := range []string{"", " \t", strings.Repeat("é", 501)} {
		code, _, stderr := b.myticket(t, "tickets", "dismiss", id, "--reason", reason)
		assert.Equal(t, 2, code, reason)
		assert.Contains(t, stderr, "--reason", reason)
	}
	code, _, stderr := b.myticket(t, "tickets", "dismiss", id, "--all", "--reason", "x")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "not both")
	b.exec(t, `UPDATE tickets SET status = 'TO_TREAT', next_attempt_at = now() + interval '1 minute'`)
	code, stdout, stderr := b.myticket(t, "tickets", "dismiss", id, "--reason", "x")
	assert.Equal(t, 1, code)
	assert.Contains(t, stdout, "0 of 1 tickets dismissed")
	assert.Contains(t, stderr, "is TO_TREAT")
}
