package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func textFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ticket.txt")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

func TestTicketsCorrect_IsRead_Shown_AndReverted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := b.operator()
	bad := body("1", "Café,a,2 €")
	id := b.submit(t, "/ticket/shop-1", bad).ID.String()
	file := textFile(t, body("1", "Café,a,2"))

	code, stdout, stderr := o.myticket(t, "tickets", "correct", id, "--file", file)
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "-Café,a,2 €\n+Café,a,2\n")
	assert.Regexp(t, `(?m)^Status +TREATED$`, stderr)
	assert.Contains(t, stderr, "--yes")
	assert.Contains(t, o.ok(t, "tickets", "correct", id, "--file", file, "--dry-run"), "It would be TREATED. Nothing was changed.")
	require.Equal(t, ticket.Error, b.ticket(t, b.submit(t, "/ticket/shop-1", bad).ID).Status)

	assert.Equal(t, "It is corrected, and TREATED.\n",
		o.ok(t, "tickets", "correct", id, "--file", file, "--yes", "--wait=1m", "--by=ann", "--reason=no sign"))
	shown := o.ok(t, "tickets", "show", id)
	assert.Regexp(t, `(?m)^Status +TREATED$`, shown)
	assert.Regexp(t, `(?m)^Correction 1 +the text below, by ann at .*: no sign$`, shown)
	assert.Contains(t, shown, "--- body\n+++ correction 1\n")
	assert.Contains(t, shown, " Order: 1\n", "both are shown as a whole")
	assert.Contains(t, shown, "-Café,a,2 €\n+Café,a,2\n")
	assert.Equal(t, bad, o.ok(t, "tickets", "show", id, "--raw"))
	assert.Equal(t, body("1", "Café,a,2"), o.ok(t, "tickets", "show", id, "--raw", "--correction=1"))
	var read shownTicket
	require.NoError(t, json.Unmarshal([]byte(o.ok(t, "tickets", "show", id, "-o", "json")), &read))
	assert.Equal(t, []any{1, bad, body("1", "Café,a,2"), 1},
		[]any{read.Correction, *read.Body, read.Text, len(read.Corrections)})

	code, _, stderr = o.myticket(t, "tickets", "correct", id, "--file", file, "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "what is read already")
	var report correctedReport
	require.NoError(t, json.Unmarshal([]byte(o.ok(t, "tickets", "correct", id, "--revert", "--yes", "--wait=1m", "-o", "json")), &report))
	assert.Equal(t, []any{ticket.Error, true, 0, 1}, []any{report.Status, report.Applied, report.Correction, len(report.Problems)})
	code, _, stderr = o.myticket(t, "tickets", "correct", id, "--revert")
	assert.Equal(t, 1, code)
	assert.Regexp(t, `^myticket: ticket .* nothing to revert\n$`, stderr, "without a question")
	shown = o.ok(t, "tickets", "show", id)
	assert.Regexp(t, `(?m)^Correction 2 +back to what was sent, by `, shown)
	assert.Regexp(t, `(?m)^Correction 1 +another text \(--raw --correction 1\), by ann`, shown)
	assert.Contains(t, o.ok(t, "audit", "--action=tickets.correct"), "no sign")
}

func TestTicketsCorrect_InADialect_AndAnotherEncoding(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := b.operator()
	o.ok(t, "dialects", "apply", "shop-1", "--file", dialectFile(t, "encoding: windows-1252\nrecords: {order: [Commande]}\n"), "--yes")
	b.awaitVersion(t, "shop-1", 1)
	sent := "Commande: 1\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\nCaf\xe9,a,2 \x80"
	id := b.submit(t, "/ticket/shop-1", sent).ID.String()
	shown := o.ok(t, "tickets", "show", id)
	assert.Contains(t, shown, "Café,a,2 €", "as a person reads it")
	assert.Equal(t, sent, o.ok(t, "tickets", "show", id, "--raw"))
	o.ok(t, "tickets", "correct", id, "--yes", "--wait=1m", "--file", textFile(t, "Commande: 1\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\nCaf\xe9,a,2"))
	b.awaitOrderLines(t)
	assert.Equal(t, []storedLine{{"Café", "a", "2"}}, b.ticket(t, uuid.MustParse(id)).Lines)
}

func TestTicketsCorrect_BadInput_ChangesNothing(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "s", "1", "x").String()
	long := textFile(t, string(make([]byte, ticket.MaxTextBytes+1)))
	for _, c := range []struct {
		want string
		args []string
	}{
		{"not both", []string{id, "--revert", "--file", long}},
		{"--wait", []string{id, "--revert", "--wait=-1s"}},
		{"no terminal", []string{id, "--yes"}},
		{"is empty", []string{id, "--yes", "--file", textFile(t, " \n")}},
		{"more than 16777216 bytes", []string{id, "--yes", "--file", long}},
		{"what is read already", []string{id, "--yes", "--file", textFile(t, "x")}},
		{"no such file", []string{id, "--yes", "--file", "/nowhere/at/all"}},
		{"no such ticket", []string{"01a20763-46ee-7c43-b4d2-48ea8de705fe", "--yes", "--revert"}},
		{"nothing to revert", []string{id, "--yes", "--revert"}},
	} {
		code, stdout, stderr := b.myticket(t, append([]string{"tickets", "correct"}, c.args...)...)
		assert.NotZero(t, code, c.args)
		assert.Empty(t, stdout, c.args)
		assert.Contains(t, stderr, c.want)
	}
	assert.Equal(t, "0 0", b.text(t, `SELECT concat_ws(' ', (SELECT count(*) FROM corrections), (SELECT count(*) FROM audit))`))
	code, _, stderr := b.myticket(t, "tickets", "show", id, "--correction=1")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "--raw")

	// Nobody reads it, because no server runs.
	b.exec(t, `UPDATE tickets SET problems = '[{"line": 1, "code": "nul_byte", "message": "m"}]'`)
	assert.Equal(t, "It is corrected, and TO_TREAT until a server has read it.\n",
		b.ok(t, "tickets", "correct", id, "--yes", "--wait=0s", "--file", textFile(t, "y")))
	shown := b.ok(t, "tickets", "show", id)
	assert.Contains(t, shown, "Problems, when it was read last:\n  line 1: nul_byte: m\n")
	assert.NotContains(t, shown, "1 | y", "the problem is not of this text")
	assert.Equal(t, "It is as it was sent, and TO_TREAT until a server has read it.\n",
		b.ok(t, "tickets", "correct", id, "--yes", "--wait=0s", "--revert"))
}

func TestTicketsCorrect_HostileTexts_AreHarmlessToRead(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "s", "1", hostile+"\n"+hostile).String()
	code, stdout, stderr := b.myticket(t, "tickets", "correct", id, "--yes", "--wait=0s", "--reason", ticket.CleanText(hostile, 200),
		"--file", textFile(t, hostile+"\nx\n"+hostile))
	require.Zero(t, code, stderr)
	assertHarmless(t, stdout)
	assertHarmless(t, stderr)
	assertHarmless(t, b.ok(t, "tickets", "show", id))
	assertHarmless(t, b.ok(t, "audit"))
}
