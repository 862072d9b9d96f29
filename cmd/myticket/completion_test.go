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

func TestComplete_DoesNotDependOnTheEnvironment(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"complete", "--", "t"}, {"completion", "bash"}} {
		o := runCommand(t, []string{"MYTICKET_NOTHING=1"}, args...)
		assert.Zero(t, o.code, o.stderr)
		assert.NotEmpty(t, o.stdout)
	}
}
