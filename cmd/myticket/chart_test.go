package main

import (
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"
)

// TestChart_KnowsEverySetting keeps the lists of settings by which the chart refuses misspelled ones.
func TestChart_KnowsEverySetting(t *testing.T) {
	t.Parallel()
	knowsSettings(t, "serve", "../../charts/myticket/settings.txt")
	knowsSettings(t, "events", "../../charts/myticket/settings-events.txt")
}

func knowsSettings(t *testing.T, command, list string) {
	t.Helper()
	parser, err := kong.New(&cli{}, kong.Name("myticket"))
	require.NoError(t, err)
	parsed, err := parser.Parse([]string{command})
	require.NoError(t, err)
	var b strings.Builder
	for _, flags := range parsed.Selected().AllFlags(true) {
		for _, f := range flags {
			for _, name := range f.Envs {
				if strings.HasPrefix(name, "MYTICKET_") {
					b.WriteString(name + "\n")
				}
			}
		}
	}
	if *update {
		require.NoError(t, os.WriteFile(list, []byte(b.String()), 0o644))
	}
	have, err := os.ReadFile(list)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(have), "the list lags: go test ./cmd/myticket -run Chart -update")
}
