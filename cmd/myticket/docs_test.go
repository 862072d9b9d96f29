package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

var update = flag.Bool("update", false, "write docs/settings.md and docs/metrics.md anew")

// TestSettingsPage_IsWhatTheProgramSays keeps docs/settings.md true: the page is made from the model of the command line.
func TestSettingsPage_IsWhatTheProgramSays(t *testing.T) {
	t.Parallel()
	const page = "../../docs/settings.md"
	parser, err := kong.New(&cli{}, kong.Name("myticket"))
	require.NoError(t, err)
	serve, err := parser.Parse([]string{"serve"})
	require.NoError(t, err)
	var b strings.Builder
	b.WriteString("# Settings of `myticket serve`\n\nMade from `myticket serve --help` by `make docs`.\n" +
		"Every setting is a flag and an environment variable; the flag wins. An unknown `MYTICKET_` variable is an error.\n")
	var groups []string // as --help has them: each once, in the order of their first flags
	rows := map[string]*strings.Builder{}
	for _, flags := range serve.Selected().AllFlags(true) {
		for _, f := range flags {
			if f.Name == "help" {
				continue
			}
			require.NotNil(t, f.Group, f.Name)
			group := f.Group.Key
			if rows[group] == nil {
				groups, rows[group] = append(groups, group), &strings.Builder{}
			}
			value := f.Default
			if value != "" {
				value = "`" + value + "`"
			}
			help, _, _ := strings.Cut(f.Help, " Default: ")
			fmt.Fprintf(rows[group], "| `--%s` | `%s` | %s | %s |\n", f.Name, strings.Join(f.Envs, "`, `"), value, help)
		}
	}
	for _, group := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n| flag | variable | default | what |\n|---|---|---|---|\n%s", group, rows[group])
	}
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(b.String()), 0o644))
	}
	have, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(have), "docs/settings.md lags: run this test with -update")
}

// mendingSection returns a section of docs/mending.md, without its title.
func mendingSection(t *testing.T, title string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/mending.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(page), "\n## "+title+"\n")
	require.True(t, ok, title)
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// TestMendingPage_CommandsWork runs the commands of the section on dialects in docs/mending.md, with the file that it shows.
func TestMendingPage_CommandsWork(t *testing.T) {
	t.Parallel()
	section := mendingSection(t, "Dialects")
	file := ""
	if text := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(section); text != nil {
		file = dialectFile(t, text[1])
	}
	b := setupOperator(t)
	b.insert(t, ticket.Error, "shop-1", "1", "Ticket no: 7\nTotal: 1.234,50\n*** 1 ***\n\nlibellé,product_id,price\nCafé,c,\"2,00\"\nMerci de votre visite")
	commands := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(section, -1) {
		for line := range strings.Lines(block[1]) {
			line, _, _ = strings.Cut(line, "  #")
			var args []string
			for _, arg := range regexp.MustCompile(`"[^"]*"|'[^']*'|\S+`).FindAllString(line, -1) {
				args = append(args, strings.Trim(arg, `"'`))
				if arg == "shop-1.yaml" {
					args[len(args)-1] = file
				}
			}
			require.Equal(t, "myticket", args[0], line)
			if args[2] == "apply" || args[2] == "revert" || args[2] == "retry" { // there is no terminal to ask on
				args = append(args, "--yes")
			}
			out := b.ok(t, args[1:]...)
			commands++
			if args[2] == "try" {
				require.Contains(t, out, "of 1 tickets, 1 would become TREATED", "the file of the page mends its example")
			}
		}
	}
	require.Equal(t, 8, commands)
	require.Equal(t, "TO_TREAT", b.text(t, `SELECT status FROM tickets`))
}

// TestMendingPage_CommandsInBulkWork runs the commands of the other sections of docs/mending.md.
func TestMendingPage_CommandsInBulkWork(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insert(t, ticket.Error, "shop-1", "1", "x")
	b.insert(t, ticket.Error, "test", "2", "x")
	files := map[string]string{"ticket.txt": write(t, "ticket.txt", sample(t)), "shop-1.yaml": write(t, "shop-1.yaml", "optional: [vat]\n")}
	commands := 0
	one := b.insert(t, ticket.Dismissed, "shop-1", "3", "x").String()
	for _, title := range []string{"One ticket", "In bulk", "Finding and watching tickets", "Who did what", "Reading without storing"} {
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(mendingSection(t, title), -1) {
			for line := range strings.Lines(block[1]) {
				line, _, _ = strings.Cut(line, "  #")
				line, _, _ = strings.Cut(line, " > ")
				var args []string
				for _, arg := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1) {
					args = append(args, cmp.Or(files[arg], strings.Trim(arg, `"`)))
				}
				require.Equal(t, "myticket", args[0], line)
				if args[2] == "correct" || args[2] == "show" {
					args[3] = one
				}
				if len(args) == 4 && args[2] == "correct" { // there is no terminal for an editor
					commands++
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				switch args[2] {
				case "correct":
					args = append(args, "--wait", "0s", "--yes")
				case "retry", "dismiss", "reopen": // there is no terminal to ask on
					args = append(args, "--yes")
				case "follow": // until it is interrupted
					time.AfterFunc(time.Second, cancel)
				}
				var out bytes.Buffer
				code := run(ctx, append(args[1:], "--database-url", b.url), nil, streams{stdout: &out, stderr: &out})
				cancel()
				require.Zero(t, code, "%s: %s", line, &out)
				commands++
			}
		}
	}
	require.Equal(t, 16, commands)
	require.Equal(t, "ERROR TO_TREAT TO_TREAT", b.text(t, `SELECT string_agg(status, ' ' ORDER BY status) FROM tickets`), "dismissed, and reopened")
	require.Equal(t, "5", b.text(t, `SELECT count(*)::text FROM audit`))
}

// TestDocs_NoExampleOfRetry_TakesDismissedTicketsBack: a person has looked at them.
func TestDocs_NoExampleOfRetry_TakesDismissedTicketsBack(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insert(t, ticket.Dismissed, "shop-1", "1", "x")
	b.exec(t, `UPDATE tickets SET problems = '[{"line": 1, "code": "amount_invalid", "message": "m"},
		{"line": 1, "code": "new_products_limited", "message": "m"}, {"line": 0, "code": "dismissed", "message": "test till"}]'`)
	examples := 0
	for _, pattern := range []string{"../../README.md", "../../docs/*.md", "../../docs/runbooks/*.md"} {
		pages, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, name := range pages {
			page, err := os.ReadFile(name)
			require.NoError(t, err)
			for _, filter := range regexp.MustCompile(`myticket tickets retry( --[^#\n`+"`"+`]*)`).FindAllStringSubmatch(string(page), -1) {
				args := append([]string{"tickets", "retry"}, strings.Fields(filter[1])...)
				if !slices.Contains(args, "--dry-run") {
					args = append(args, "--dry-run")
				}
				require.Contains(t, b.ok(t, args...), "0 tickets would be sent back", "%s: %s", name, filter[0])
				examples++
			}
		}
	}
	require.GreaterOrEqual(t, examples, 6)
}
