package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func TestProblems_ListsGroups_AndTheCommandsThatGoOn(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	code, stdout, stderr := b.myticket(t, "problems")
	require.Zero(t, code, stderr)
	assert.Equal(t, 1, strings.Count(stdout, "\n"), "only the header")
	assert.Empty(t, stderr)
	assert.JSONEq(t, `{"groups": [], "total_groups": 0, "total_tickets": 0}`, b.ok(t, "problems", "-o", "json"))

	price := []ticket.Problem{{Line: 6, Code: "amount_invalid", Message: `price "2 €": not an amount`}}
	b.insertFailed(t, 5)
	b.exec(t, `UPDATE tickets SET source = '-shop', problem_group = `+groupSQL(price)+`,
		problems = '[{"line": 6, "code": "amount_invalid", "message": "price \"2 €\": not an amount"}]'
		WHERE id IN (SELECT id FROM tickets ORDER BY id LIMIT 3)`)
	code, stdout, stderr = b.myticket(t, "problems", "--since", "1d")
	require.Zero(t, code, stderr)
	lines := strings.Split(stdout, "\n")
	assert.Regexp(t, `^SOURCE +TICKETS +FIRST +LAST +EXAMPLE +GROUP +PROBLEM$`, lines[0])
	assert.Regexp(t, `^-shop +3 .* `+ticket.GroupOf(price).String()+` +amount_invalid: price …: not an amount$`, lines[1])
	assert.Regexp(t, ` 1 .* - +\(stored by the version before; a server will group them\)$`, lines[2])
	assert.Contains(t, stderr, "myticket dialects try --file FILE -- -shop\n")

	var found postgres.Problems
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "problems", "--sort=last", "-o", "json", "--limit=2")), &found))
	assert.Equal(t, []int{3, 5}, []int{found.Total, found.Tickets})
	assert.Contains(t, b.ok(t, "problems", "--source=-shop", "-o", "json"), `"group": "`+ticket.GroupOf(price).String()+`"`)

	for command := range strings.Lines(stderr) {
		if _, rest, ok := strings.Cut(command, "myticket tickets "); ok && !strings.HasPrefix(rest, "retry") {
			args := strings.Fields(strings.NewReplacer(`"`, "", "\n", "").Replace(rest))
			assert.Contains(t, b.ok(t, append([]string{"tickets"}, args...)...), "amount_invalid", command)
		}
	}
	assert.Equal(t, "3 tickets sent back\n", b.ok(t, "tickets", "retry", "--yes", "--problem-group", ticket.GroupOf(price).String()))
	code, _, stderr = b.myticket(t, "problems", "--limit=1")
	require.Zero(t, code)
	assert.Equal(t, "Groups that are not listed: 1. Raise --limit, or give --source or --since.\n", stderr, "no command goes on from what is not grouped yet")
	code, _, stderr = b.myticket(t, "tickets", "list", "--problem-group", "12")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "write the 16 hexadecimal digits of a group that `myticket problems` lists")
}

// groupSQL is the group of problems as an SQL literal.
func groupSQL(problems []ticket.Problem) string {
	return "('x" + ticket.GroupOf(problems).String() + "')::bit(64)::bigint"
}

// TestMendingPage_CommandsOfProblemsWork runs the commands of the section What goes wrong, on a ticket of its own.
func TestMendingPage_CommandsOfProblemsWork(t *testing.T) {
	t.Parallel()
	section := mendingSection(t, "What goes wrong")
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "shop-1", "1", "x")
	problems := []ticket.Problem{{Code: ticket.ProblemOrderMissing, Message: "there is no Order record"}}
	b.exec(t, `UPDATE tickets SET problem_group = `+groupSQL(problems))
	file := write(t, "shop-1.yaml", "optional: [vat]\n")
	commands := 0
	for line := range strings.Lines(section) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "  #")
		if !strings.HasPrefix(line, "myticket ") {
			continue
		}
		for name, value := range map[string]string{
			`--problem-group \S+`: "--problem-group " + ticket.GroupOf(problems).String(),
			`show \S+`:            "show " + id.String(), `shop-1\.yaml`: file,
		} {
			line = regexp.MustCompile(name).ReplaceAllString(line, value)
		}
		args := strings.Fields(line)[1:]
		if strings.Contains(line, " retry ") { // there is no terminal to ask on
			args = append(args, "--yes")
		}
		assert.Contains(t, b.ok(t, args...), "1", line)
		commands++
	}
	require.Equal(t, 7, commands)
	require.Equal(t, "TO_TREAT", b.text(t, `SELECT status FROM tickets`))
}
