package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// complete returns what may follow, without descriptions. The last word is completed.
func complete(t *testing.T, words ...string) (kind string, found []string) {
	t.Helper()
	o := runCommand(t, nil, append([]string{"complete", "--"}, words...)...)
	require.Zero(t, o.code, o.stderr)
	for i, line := range strings.Split(strings.TrimSuffix(o.stdout, "\n"), "\n") {
		if i == 0 {
			kind = line
			continue
		}
		word, _, ok := strings.Cut(line, "\t")
		require.True(t, ok, line)
		found = append(found, word)
	}
	return kind, found
}

func TestComplete_KnowsCommandsFlagsAndValues(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ line, want string }{
		{"t", "tickets"},
		{"tickets re", "retry reopen"},
		{"tickets list --st", "--status"},
		{"tickets list --status ", "TO_TREAT TREATED ERROR DISMISSED"},
		{"tickets list --status=T", "--status=TO_TREAT --status=TREATED"},
		{"tickets list --status ERROR,D", "ERROR,DISMISSED"},
		{"tickets list --status=ERROR,D", "--status=ERROR,DISMISSED"},
		{"tickets list --watch --out", "--output"}, // takes its value with = only
		{"tickets list -o ", "table json csv"},
		{"tickets list --since ", ""},
		{"tickets stats --by day,s", "day,source day,status"},
		{"completion ", "bash zsh fish"},
		{"completion bash ", ""},
		{"serve --no-order", "--no-order-lines"},
		{"nothing ", "serve migrate tickets dialects problems products read audit spool keys retention send version completion"},
		{"dialects show --v", "--version"},
	} {
		kind, found := complete(t, strings.Split(test.line, " ")...)
		assert.Equal(t, ":words", kind, test.line)
		if test.line == "nothing " { // an unknown word is no command, so any may follow
			for _, name := range strings.Fields(test.want) {
				assert.Contains(t, found, name)
			}
			assert.NotContains(t, found, "complete", "hidden")
			continue
		}
		assert.Equal(t, strings.Fields(test.want), append([]string{}, found...), test.line)
	}
	for line, want := range map[string]string{
		"read ": ":files", "read a b": ":files", "read --dialect ": ":files", "send --bearer-file=": ":files", "keys import ": ":files",
		"spool status ": ":dirs", "serve --spool-dir ": ":dirs", "spool export d --to ": ":dirs", "spool status d ": ":words",
		"read -- --x": ":files",
	} {
		kind, found := complete(t, strings.Split(line, " ")...)
		assert.Equal(t, want, kind, line)
		assert.Empty(t, found, line)
	}
}

func TestComplete_KnowsSubscriptionsAndTheirDeadLetters(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.exec(t, `INSERT INTO subscriptions (name, target) VALUES ('erp', 'https://erp.example/?token=hunter2'), ('desk', 'nats://n/t')`)
	b.exec(t, `INSERT INTO dead_letters (subscription, event, type, ticket_id, attempts, reason)
		SELECT 'erp', n || '.1', 'ticket.treated', gen_random_uuid(), 1, E'it said\tno\n' FROM generate_series(1, 3) n`)
	for line, want := range map[string]string{
		"subscriptions show DB ":                         "desk erp",
		"subscriptions pause DB e":                       "erp",
		"subscriptions replay-dead-letters DB ":          "desk erp",
		"subscriptions replay-dead-letters DB erp ":      "1 2 3",
		"subscriptions delete-dead-letters erp 1 DB -- ": "1 2 3",
		"subscriptions replay-dead-letters DB desk ":     "",
		"subscriptions replay-dead-letters DB none ":     "",
		"subscriptions create DB ":                       "",
		"subscriptions show DB erp ":                     "",
		"subscriptions create DB --type product":         "product.changed",
		"subscriptions create DB --type=ticket.error,p":  "--type=ticket.error,product.changed",
		"subscriptions show --database-url-file none ":   "",
	} {
		words := strings.Split(strings.ReplaceAll(line, "DB", "--database-url="+b.url), " ")
		kind, found := complete(t, words...)
		assert.Equal(t, ":words", kind, line)
		assert.ElementsMatch(t, strings.Fields(want), found, line)
	}
	o := runCommand(t, nil, "complete", "--", "subscriptions", "show", "--database-url", b.url, "")
	assert.Equal(t, ":words\ndesk\tnats://n/t\nerp\thttps://erp.example/?…\n", o.stdout)
}

func TestComplete_DoesNotDependOnTheEnvironment(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"complete", "--", "t"}, {"completion", "bash"}} {
		o := runCommand(t, []string{"MYTICKET_NOTHING=1"}, args...)
		assert.Zero(t, o.code, o.stderr)
		assert.NotEmpty(t, o.stdout)
	}
}
