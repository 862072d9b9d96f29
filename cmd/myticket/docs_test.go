package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"
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
	group := ""
	for _, flags := range serve.Selected().AllFlags(true) {
		for _, f := range flags {
			if f.Name == "help" {
				continue
			}
			if f.Group != nil && f.Group.Key != group {
				group = f.Group.Key
				fmt.Fprintf(&b, "\n## %s\n\n| flag | variable | default | what |\n|---|---|---|---|\n", group)
			}
			value := f.Default
			if value != "" {
				value = "`" + value + "`"
			}
			help, _, _ := strings.Cut(f.Help, " Default: ")
			fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s |\n", f.Name, strings.Join(f.Envs, "`, `"), value, help)
		}
	}
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(b.String()), 0o644))
	}
	have, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(have), "docs/settings.md lags: run this test with -update")
}
