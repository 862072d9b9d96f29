package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMan_HasEverythingThatTheProgramHas looks at the pages as a person sees them, if groff is there, and at their text otherwise.
func TestMan_HasEverythingThatTheProgramHas(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "man1")
	o := runCommand(t, nil, "man", dir)
	require.Zero(t, o.code, o.stderr)
	parser, err := kong.New(&cli{}, kong.Name("myticket"))
	require.NoError(t, err)
	root := parser.Model.Node
	nodes := append([]*kong.Node{root}, root.Leaves(true)...)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, len(nodes))
	for _, node := range nodes {
		shown := render(t, filepath.Join(dir, pageName(node)+".1"))
		has := func(text string) {
			t.Helper()
			assert.Contains(t, shown, strings.Join(strings.Fields(text), " "), pageName(node))
		}
		has(pageName(node) + " - ")
		has(node.Help)
		has(node.Detail)
		for _, flag := range flagsOf(node) {
			has(flag.String())
			has(flag.Help)
			for _, env := range flag.Envs {
				has(env + " As --" + flag.Name)
			}
		}
		for _, argument := range node.Positional {
			has(argument.Help)
		}
		for _, leaf := range node.Leaves(true) {
			has(pageName(leaf) + "(1)")
			has(leaf.Help)
		}
		for _, section := range []string{"SYNOPSIS", "DESCRIPTION", "OPTIONS", "NO_COLOR", "EXIT STATUS 0", "SEE ALSO"} {
			has(section)
		}
	}
	assert.Contains(t, render(t, filepath.Join(dir, "myticket-send.1")), " 3 All are stored, but at least one is ERROR")
}

// render returns a page as a terminal shows it, without line breaks. Warnings of groff are errors.
func render(t *testing.T, file string) string {
	t.Helper()
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff is not installed on this machine, so the pages are not rendered")
	}
	command := exec.CommandContext(t.Context(), "groff", "-ww", "-b", "-man", "-Tutf8", "-P-cbou", "-rLL=1000n", "-rHY=0", file)
	var errs strings.Builder
	command.Stderr = &errs
	page, err := command.Output()
	require.NoError(t, err, errs.String())
	require.Empty(t, errs.String(), file)
	return strings.Join(strings.Fields(string(page)), " ")
}

func TestVersion_AsAFlag(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--version"}, {"version"}} {
		o := runCommand(t, nil, args...)
		assert.Equal(t, outcome{0, version + "\n", ""}, o, args)
	}
	assert.Contains(t, runCommand(t, nil, "--help").stdout, "--version")
}
