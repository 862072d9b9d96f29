package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func TestDialectsApply_SaysInTheQuestionWhatItWouldBreak(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insert(t, ticket.Treated, "s", "1", body("1", "Café,a,2"))
	file := dialectFile(t, "format: json\npointers: {order: /a, vat: /b, total: /c, lines: /d, product: /e, product_id: /f, price: /g}\n")
	code, screen := b.onTerminal(t, "n\n", "dialects", "apply", "s", "--file", file)
	assert.Equal(t, 1, code)
	assert.Contains(t, screen, "\n1 of 1 TREATED tickets would be ERROR. Read the tickets of s in this dialect from now on? [y/N]")
}

// TestTicketsCorrect_InAnEditor is not parallel, because it looks at the folder for temporary files.
func TestTicketsCorrect_InAnEditor(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	left := func() []string {
		files, err := filepath.Glob(filepath.Join(os.TempDir(), "myticket-*"))
		require.NoError(t, err)
		return files
	}
	b := setupOperator(t)
	sent := "Commande: 7\r\nVAT: 3.10\r\nTotal: 16.90\r\n\r\nproduct,product_id,price\r\nCaf\xe9,c,2"
	id := b.insert(t, ticket.Error, "s", "1", sent)
	correct := func(answer, editor string) (code int, screen string) {
		t.Helper()
		return b.onTerminal(t, answer, "tickets", "correct", id.String(), "--wait=0s", "--editor", editor)
	}
	nothing := func() {
		t.Helper()
		assert.Equal(t, "0", b.text(t, `SELECT count(*)::text FROM corrections`))
	}

	t.Setenv("VISUAL", "")
	t.Setenv("EDITOR", "true")
	code, screen := b.onTerminal(t, "", "tickets", "correct", id.String())
	assert.Equal(t, 1, code)
	assert.Equal(t, "myticket: the text is what is read already; nothing was changed\n", screen, "EDITOR, because VISUAL says nothing")

	copied := filepath.Join(t.TempDir(), "copy")
	code, screen = correct("", `cp "$1" `+copied+`; true`)
	assert.Equal(t, 1, code)
	assert.Contains(t, screen, "what is read already; nothing was changed")
	assert.Empty(t, left())
	nothing()
	content, err := os.ReadFile(copied)
	require.NoError(t, err)
	comments, text, found := strings.Cut(string(content), textBelow+"\n")
	require.True(t, found)
	assert.Equal(t, "Commande: 7\r\nVAT: 3.10\r\nTotal: 16.90\r\n\r\nproduct,product_id,price\r\nCafé,c,2", text)
	for line := range strings.Lines(comments) {
		assert.True(t, strings.HasPrefix(line, "#"), line)
	}
	assert.Contains(t, comments, "line 2: fields_count: 4 fields\n#     2 | VAT: 3.10\n")

	code, screen = correct("", "false")
	assert.Equal(t, 1, code)
	assert.Contains(t, screen, `the editor "false" failed`)
	_, screen = correct("", `sed -i /------/d`)
	require.Len(t, left(), 1, "what a person has written is not thrown away")
	assert.Contains(t, screen, "the line above the text is missing in "+left()[0])
	require.NoError(t, os.Remove(left()[0]))
	_, screen = correct("", `sed -i '$a\' `) // what an editor does by itself
	assert.Contains(t, screen, "what is read already")
	assert.Empty(t, left())
	nothing()

	code, screen = correct("n\n", `sed -i s/Commande/Order/`)
	assert.Equal(t, 1, code)
	assert.Contains(t, screen, "-Commande: 7\n+Order: 7\n")
	assert.Regexp(t, `(?m)^Status +TREATED$`, screen)
	require.Len(t, left(), 1, "what a person has written is not thrown away")
	assert.Contains(t, screen, "The text is in "+left()[0])
	require.NoError(t, os.Remove(left()[0]))
	nothing()

	code, screen = correct("y\n", `sed -i s/Commande/Order/`)
	assert.Zero(t, code, screen)
	assert.Empty(t, left())
	assert.Equal(t, strings.ReplaceAll(text, "Commande", "Order"), b.ok(t, "tickets", "show", id.String(), "--raw", "--correction=1"))
	assert.Equal(t, sent, b.ok(t, "tickets", "show", id.String(), "--raw"))
}

// A problem quotes the line that it is about. That line may be the one that ends the comments.
func TestTicketsCorrect_InAnEditor_ATicketWithTheLineAboveTheText(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "s", "1", "Order: 7\n"+textBelow+"\nVAT: 1\n")
	b.exec(t, `UPDATE tickets SET problems = '[{"line": 2, "code": "header_unreadable", "message": "x"}, {"line": 3, "code": "y", "message": "y"}]'`)
	code, screen := b.onTerminal(t, "n\n", "tickets", "correct", id.String(), "--wait=0s", "--editor", "true")
	assert.Equal(t, 1, code)
	assert.Contains(t, screen, "what is read already; nothing was changed")
}
