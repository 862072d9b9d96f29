package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/dialect"
	"myticket/internal/ticket"
)

const ticketFormatPage = "../../docs/ticket-format.md"

// pageBlock is a code block of a page.
type pageBlock struct{ kind, text string }

var fencedBlock = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

func blocksOf(section string) (blocks []pageBlock) {
	for _, found := range fencedBlock.FindAllStringSubmatch(section, -1) {
		blocks = append(blocks, pageBlock{found[1], found[2]})
	}
	return blocks
}

// bytesOfExample returns the ticket that an example stands for. The page says what its signs mean.
func bytesOfExample(t *testing.T, text string) []byte {
	t.Helper()
	repeated := regexp.MustCompile(`‹([^‹›]*)×(\d+)›`)
	for repeated.MatchString(text) {
		text = repeated.ReplaceAllStringFunc(text, func(found string) string {
			parts := repeated.FindStringSubmatch(found)
			n, err := strconv.Atoi(parts[2])
			require.NoError(t, err)
			return strings.Repeat(parts[1], n)
		})
	}
	text = regexp.MustCompile(`‹([0-9A-F]{2})›`).ReplaceAllStringFunc(text, func(found string) string {
		value, err := strconv.ParseUint(strings.Trim(found, "‹›"), 16, 8)
		require.NoError(t, err)
		return string([]byte{byte(value)})
	})
	text = strings.NewReplacer("␀", "\x00", "⏎", "\n").Replace(text)
	require.NotContains(t, text, "‹")
	return []byte(text)
}

func TestTicketFormatPage_EachExampleGivesWhatItSays(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(ticketFormatPage)
	require.NoError(t, err)
	introduction, rest, ok := strings.Cut(string(page), "\n## Read liberally\n")
	require.True(t, ok)
	liberal, problems, ok := strings.Cut(rest, "\n## A problem, not a guess\n")
	require.True(t, ok)

	first := blocksOf(introduction)[0].text
	require.Equal(t, sample(t)+"\n", first)
	want, found := ticket.Parse([]byte(first))
	require.Empty(t, found)
	examples := blocksOf(liberal)
	require.Len(t, examples, 3)
	for _, example := range examples {
		order, found := ticket.Parse([]byte(example.text))
		require.Empty(t, found, example.text)
		require.True(t, order.VAT.Equal(want.VAT) && order.Total.Equal(want.Total), example.text)
		require.Equal(t, want.Number, order.Number)
		require.Len(t, order.Lines, len(want.Lines))
		for i := range order.Lines {
			require.True(t, order.Lines[i].Price.Equal(want.Lines[i].Price), example.text)
			order.Lines[i].Price = want.Lines[i].Price
		}
		require.Equal(t, want.Lines, order.Lines)
	}

	for _, section := range strings.Split(problems, "\n### `")[1:] {
		code, text, ok := strings.Cut(section, "`\n")
		require.True(t, ok, section)
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			var reader *ticket.Reader
			blocks := blocksOf(text)
			if blocks[0].kind == "yaml" {
				d, err := dialect.Parse([]byte(blocks[0].text))
				require.NoError(t, err)
				reader, err = ticket.NewReader(d)
				require.NoError(t, err)
				blocks = blocks[1:]
			}
			require.Len(t, blocks, 2)
			require.Equal(t, "text", blocks[0].kind)
			require.Equal(t, "problems", blocks[1].kind)
			_, problems := reader.Parse(bytesOfExample(t, blocks[0].text))
			var got strings.Builder
			has := false
			for i, p := range problems {
				has = has || p.Code == code
				switch {
				case i < 3 || i == len(problems)-1:
					fmt.Fprintf(&got, "%d  %s  %s\n", p.Line, p.Code, p.Message)
				case i == 3:
					got.WriteString("…\n")
				}
			}
			require.Equal(t, blocks[1].text, got.String())
			require.True(t, has, "the example shows the code")
		})
	}
}

// The codes are the constants of the program. One is written in SQL.
func TestTicketFormatPage_HasEveryProblem(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(ticketFormatPage)
	require.NoError(t, err)
	page := string(content)
	codes := []string{"dismissed"}
	constant := regexp.MustCompile(`(?m)^(?:const|\t) ?Problem\w+ += "(\w+)"`)
	files, err := filepath.Glob("../../internal/*/*.go")
	require.NoError(t, err)
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, found := range constant.FindAllSubmatch(source, -1) {
			codes = append(codes, string(found[1]))
		}
	}
	require.Contains(t, codes, ticket.ProblemEmpty)
	require.Contains(t, codes, "new_products_limited")
	require.Contains(t, codes, "attempts_used_up")
	for _, code := range codes {
		require.True(t, strings.Contains(page, "\n### `"+code+"`\n") || strings.Contains(page, "\n| `"+code+"` |"), code)
	}
	require.Len(t, regexp.MustCompile("(?m)^(### |\\| )`").FindAllString(page, -1), len(codes), "each code is on the page once, and no other")
}
