package main

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/ticket"
)

func (b *operatorBundle) subscriptions(t *testing.T) (subs []events.SubscriptionState) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "subscriptions", "list", "-o", "json")), &subs))
	return subs
}

// A person goes through the life of a subscription, and each step is in the audit.
func TestSubscriptions_FromCreateToDelete(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	require.Contains(t, b.ok(t, "subscriptions", "list"), "NAME")
	out := b.ok(t, "subscriptions", "create", "erp", "https://erp.example.com/hook?token=hidden", "--type", "ticket.treated,product.changed",
		"--source", "shop-1", "--status", "TREATED", "--with-body", "--secret", "file:/etc/erp.key", "--option", "timeout=5s",
		"--by", "Anna", "--reason", "new ERP")
	require.Contains(t, out, "https://erp.example.com/hook")
	require.NotContains(t, out, "hidden")
	b.ok(t, "subscriptions", "create", "audit", "http://127.0.0.1:1/")
	subs := b.subscriptions(t)
	require.Len(t, subs, 2)
	require.Equal(t, events.Subscription{
		Name: "erp", Target: "https://erp.example.com/hook?token=hidden", Body: true,
		Settings: events.Settings{Secret: "file:/etc/erp.key", Options: map[string]string{"timeout": "5s"}},
		Filter:   events.Filter{Types: []string{"ticket.treated", "product.changed"}, Sources: []string{"shop-1"}, Statuses: []string{"TREATED"}},
	}, subs[1].Subscription)

	code, _, stderr := b.myticket(t, "subscriptions", "create", "erp", "https://other.example.com/")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "already")

	b.ok(t, "subscriptions", "pause", "erp", "--reason", "it is moved")
	require.Contains(t, b.ok(t, "subscriptions", "list"), "it is moved")
	require.Contains(t, b.ok(t, "subscriptions", "show", "erp"), "timeout=5s")
	b.ok(t, "subscriptions", "resume", "erp")
	require.Nil(t, b.subscriptions(t)[1].Paused)

	b.insert(t, ticket.Treated, "shop-1", "1", "x")
	require.Contains(t, b.ok(t, "subscriptions", "replay", "erp", "--from", "1d"), "again")
	require.NotNil(t, b.subscriptions(t)[1].Replay)
	require.Contains(t, b.ok(t, "subscriptions", "show", "erp"), "replay")
	code, _, stderr = b.myticket(t, "subscriptions", "replay", "erp", "--from", "1h", "--to", "2h")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "nothing was changed")

	b.exec(t, `INSERT INTO dead_letters (subscription, event, type, ticket_id, attempts, reason)
		SELECT 'erp', 'e' || n, 'ticket.treated', gen_random_uuid(), 1, 'no such product' FROM generate_series(1, 3) n`)
	shown := b.ok(t, "subscriptions", "dead-letters", "erp", "--limit", "2")
	require.Equal(t, 2, strings.Count(shown, "no such product"))
	require.Contains(t, b.ok(t, "subscriptions", "replay-dead-letters", "erp"), "3 dead letters")
	code, _, _ = b.myticket(t, "subscriptions", "delete-dead-letters", "erp")
	require.Equal(t, 1, code, "there is no terminal to ask on")
	require.Contains(t, b.ok(t, "subscriptions", "delete-dead-letters", "erp", "--yes"), "3 dead letters")

	b.ok(t, "subscriptions", "delete", "erp", "--yes")
	for _, command := range []string{"pause", "resume", "show", "dead-letters"} {
		code, _, stderr = b.myticket(t, "subscriptions", command, "erp")
		require.Equal(t, 1, code, command)
		require.Contains(t, stderr, "no ", command)
	}
	require.Equal(t, "dead_letters.delete dead_letters.replay subscriptions.create subscriptions.create subscriptions.delete "+
		"subscriptions.pause subscriptions.replay subscriptions.resume", b.text(t, `SELECT string_agg(action, ' ' ORDER BY action) FROM audit`))
	require.Equal(t, "Anna: new ERP", b.text(t, `SELECT who || ': ' || why FROM audit WHERE who = 'Anna'`))
}

func TestSubscriptionsCreate_RefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args     []string
		contains string
		code     int
	}{
		{[]string{"Erp", "https://host/"}, "no name of a subscription", 2},
		{[]string{"erp", "https://user:hunter2@host/"}, "password", 2},
		{[]string{"erp", "ftp://host/"}, "ftp:", 2},
		{[]string{"erp", "https://host/", "--type", "ticket.lost"}, "no type of event", 2},
		{[]string{"erp", "https://host/", "--status", "LOST"}, "--status", 2},
		{[]string{"erp", "https://host/", "--secret", "hunter2"}, "file:PATH or env:NAME", 2},
		{[]string{"erp", "https://host/", "--option", "colour=red"}, "colour", 1},
	} {
		o := runCommand(t, nil, append([]string{"subscriptions", "create", "--database-url", unreachable}, c.args...)...)
		require.Equal(t, c.code, o.code, "%v: %s", c.args, o.stderr)
		require.Contains(t, o.stderr, c.contains)
		require.NotContains(t, o.stderr, "hunter2")
	}
}

func TestSubscriptionsFile_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	subs, err := parseSubscriptions([]byte(`
subscriptions:
  - name: erp
    target: https://erp.example.com/hook
    secret: env:ERP_KEY
    options: {timeout: 5s}
    types: [ticket.treated]
    sources: [shop-1]
    body: true
  - {name: audit, target: "nats://nats:4222/tickets", statuses: [ERROR]}
`))
	require.NoError(t, err)
	require.Equal(t, []events.Subscription{{
		Name: "erp", Target: "https://erp.example.com/hook", Body: true,
		Settings: events.Settings{Secret: "env:ERP_KEY", Options: map[string]string{"timeout": "5s"}},
		Filter:   events.Filter{Types: []string{"ticket.treated"}, Sources: []string{"shop-1"}},
	}, {Name: "audit", Target: "nats://nats:4222/tickets", Filter: events.Filter{Statuses: []string{"ERROR"}}}}, subs)
	subs, err = parseSubscriptions([]byte(`{"subscriptions": []}`))
	require.NoError(t, err)
	require.Empty(t, subs)

	for text, contains := range map[string]string{
		"": "subscriptions: []", "# none\n": "subscriptions: []",
		"subscriptions:\n  - name: a\n    target: https://host/\n    colour: red\n":                  "line 4: field colour not found",
		"subscriptions:\n  - {name: a, target: 'ftp://host/'}":                                       "ftp:",
		"subscriptions:\n  - {name: a, target: 'https://h/'}\n  - {name: a, target: 'https://h/'}\n": "twice",
		"subscriptions: []\n---\nsubscriptions: []\n":                                                "more than one document",
		"subscriptions:\n  - {name: a, target: 'https://h/', secret: hunter2}":                       "file:PATH or env:NAME",
	} {
		_, err := parseSubscriptions([]byte(text))
		require.ErrorContains(t, err, contains, text)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestDereference_ReadsFilesAndVariables(t *testing.T) {
	file := write(t, "key", " secret\n")
	t.Setenv("MYTICKET_TEST_SECRET", "of the environment\n")
	for reference, want := range map[string]string{"": "", "file:" + file: "secret", "env:MYTICKET_TEST_SECRET": "of the environment"} {
		content, err := dereference(reference)
		require.NoError(t, err)
		require.Equal(t, want, string(content))
	}
	large := write(t, "large", strings.Repeat("x", maxReferenced+1))
	for reference, contains := range map[string]string{
		"file:" + file + "-missing": "no such file", "env:MYTICKET_TEST_NOT_SET": "not set or empty", "secret": "file:PATH or env:NAME",
		"file:" + large: "more than", "file:" + write(t, "empty", "\n"): "empty",
	} {
		_, err := dereference(reference)
		require.ErrorContains(t, err, contains)
	}
	require.NoError(t, os.Remove(file))
}

// TestEventsPage_CommandsWork runs the commands of docs/events.md, and reads the file that it shows.
func TestEventsPage_CommandsWork(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/events.md")
	require.NoError(t, err)
	b := setupOperator(t)
	b.insert(t, ticket.Treated, "shop-1", "1", "x")
	commands := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			line, _, _ = strings.Cut(line, "  #")
			if !strings.HasPrefix(line, "myticket subscriptions ") {
				continue
			}
			var args []string
			for _, arg := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1) {
				args = append(args, strings.Trim(arg, `"`))
			}
			if args[2] == "replay" { // a page cannot say a time at which there is a ticket
				args[5], args[7] = "1h", "now"
			}
			b.ok(t, args[1:]...)
			commands++
		}
	}
	require.Equal(t, 15, commands)
	require.Len(t, b.subscriptions(t), 6)
	file := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(string(page))
	require.NotNil(t, file)
	subs, err := parseSubscriptions([]byte(file[1]))
	require.NoError(t, err)
	require.Len(t, subs, 1)
}
