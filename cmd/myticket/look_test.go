package main

import (
	"strings"
	"testing"

	"github.com/mattn/go-runewidth"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// eastAsian are two characters that take two columns each.
const eastAsian = "\u65e5\u672c"

func tableText(t *testing.T, width int, header []string, rows ...[]string) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, newTable(header, rows).write(&b, looks{}, width))
	return b.String()
}

func TestTable_FitsTheTerminal(t *testing.T) {
	t.Parallel()
	header := []string{"ID", "SOURCE", "STATUS", "PROBLEM"}
	id := "01a225f8-c897-7c4c-8a42-38a0b923820d"
	rows := [][]string{{id, "shop-1", "ERROR", strings.Repeat(eastAsian, 30)}, {id, "s", "TREATED", ""}}

	whole := tableText(t, 0, header, rows...)
	assert.Contains(t, whole, strings.Repeat(eastAsian, 30), "nothing is cut where there is no terminal")
	assert.Equal(t, 3, strings.Count(whole, "\n"))

	for width := 1; width < 220; width++ {
		for line := range strings.Lines(tableText(t, width, header, rows...)) {
			if cell := strings.TrimSpace(line); len(strings.Fields(cell)) > 1 || strings.HasPrefix(cell, eastAsian) {
				require.LessOrEqual(t, runewidth.StringWidth(strings.TrimSuffix(line, "\n")), max(width, 3), "%d: %s", width, line)
			}
		}
		require.Equal(t, 2, strings.Count(tableText(t, width, header, rows...), id+"\n")+
			strings.Count(tableText(t, width, header, rows...), id+" "), "an id is whole on a terminal of %d columns", width)
		watched := newTable(header, rows)
		watched.cutsAll = true
		var b strings.Builder
		require.NoError(t, watched.write(&b, looks{}, width))
		for line := range strings.Lines(b.String()) {
			require.LessOrEqual(t, runewidth.StringWidth(strings.TrimSuffix(line, "\n")), max(width, 3), "%d: %s", width, line)
		}
	}
	assert.Equal(t, ""+
		"ID                                    SOURCE  STATUS   PROBLEM\n"+
		id+"  shop-1  ERROR    "+strings.Repeat(eastAsian, 6)+eastAsian[:len(eastAsian)/2]+"…\n"+
		id+"  s       TREATED\n", tableText(t, 82, header, rows...), "a text is cut by the columns that it takes")
	assert.Equal(t, ""+
		"ID                                    SOURCE  STATUS\n  PROBLEM\n"+
		id+"  shop-1  ERROR\n  "+strings.Repeat(eastAsian, 18)+eastAsian[:len(eastAsian)/2]+"…\n"+
		id+"  s       TREATED\n", tableText(t, 78, header, rows...), "an id never is, and a line that says nothing is left out")
}

func TestTable_AlignsWideCharacters(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "NAME   PRICE\n"+eastAsian+"   2.00\nCafé   1.00\nthé a  3.00\n",
		tableText(t, 0, []string{"NAME", "PRICE"}, []string{eastAsian, "2.00"}, []string{"Café", "1.00"}, []string{"thé a", "3.00"}))
}

func TestColours_AreOfWhatTheProgramSays(t *testing.T) {
	t.Parallel()
	on := looks{colour: true}
	var b strings.Builder
	require.NoError(t, newTable([]string{"STATUS", "ORDER"}, [][]string{{"ERROR", "ERROR"}, {"TREATED", "\x1b[2J"}}).write(&b, on, 0))
	assert.Equal(t, "\x1b[1mSTATUS\x1b[0m   \x1b[1mORDER\x1b[0m\n\x1b[31mERROR\x1b[0m    ERROR\n\x1b[32mTREATED\x1b[0m  \\x1b[2J\n", b.String(),
		"colours take no room, and what a ticket says stays escaped")
	assert.Equal(t, "\x1b[1m--- a\x1b[0m\n \x1b", on.diff("--- a\n \x1b")[:len("\x1b[1m--- a\x1b[0m\n \x1b")])
	assert.Equal(t, "\x1b[31m-x\x1b[0m\n\x1b[32m+y\x1b[0m\n z\n", on.diff("-x\n+y\n z\n"))
	assert.Equal(t, "-x\n", looks{}.diff("-x\n"))
	assert.Equal(t, "\x1b[2mDISMISSED\x1b[0m", on.status("DISMISSED"))
	assert.Equal(t, "\x1b[33mTO_TREAT \x1b[0m", on.status("TO_TREAT "))
	assert.Equal(t, "other", on.status("other"))
}
