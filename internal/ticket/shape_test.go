package ticket_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func TestShape_HasNoValues(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		"there is no Order record":                     "there is no Order record",
		`price "12,5.0": not an amount`:                "price …: not an amount",
		`VAT "": not an amount`:                        "VAT …: not an amount",
		`"a \"b\" \\" is not a header record`:          "… is not a header record",
		`Total appears twice, as "1;0" and as "2"; x`:  "Total appears twice, as … and as …",
		"there are 512 more problems":                  "there are N more problems",
		"its source added as many as it may (1e+06/s)": "its source added as many as it may (N/s)",
		"it may add 0.25 a second, 3.":                 "it may add N a second, N.",
		`cut in the middle of "a text`:                 "cut in the middle of …",
		`cut behind a backslash "a\`:                   "cut behind a backslash …",
		"":                                             "",
	} {
		assert.Equal(t, want, ticket.Problem{Message: message}.Shape(), message)
	}
}

// FuzzShape makes up values. The formats are of the kind that problems have.
func FuzzShape(f *testing.F) {
	f.Add("a", "b\"\\", uint(1), 0.5)
	f.Add("", "…", uint(1<<63), 1e300)
	f.Add("Total; 3", "\xff\n\"", uint(0), 1e-9)
	f.Fuzz(func(t *testing.T, first, second string, n uint, rate float64) {
		if rate < 0 || rate != rate || rate > 1e308 {
			return
		}
		for _, format := range []string{"%[1]q", "price %[1]q: it has %[3]d digits", "%[1]q and %[2]q (%[4]g/s); %[3]d are not read"} {
			p := ticket.Problem{Message: fmt.Sprintf(format, first, second, n, rate)}
			require.Equal(t, ticket.Problem{Message: fmt.Sprintf(format, "x", "y", 7, 1.0)}.Shape(), p.Shape(), p.Message)
		}
		joined := ticket.Problem{Message: first + second}
		shape := joined.Shape()
		require.LessOrEqual(t, utf8.RuneCountInString(shape), utf8.RuneCountInString(joined.Message))
		require.NotContains(t, shape, `"`)
		require.False(t, strings.ContainsAny(shape, "0123456789;"), shape)
		_, problems := ticket.Parse([]byte(first + "\n" + second))
		kinds, _ := ticket.Kinds(problems)
		require.LessOrEqual(t, len(kinds), ticket.MaxKinds)
	})
}

func TestGroupOf_IsTheSameForTicketsThatFailInTheSameWay(t *testing.T) {
	t.Parallel()
	group := func(lines ...string) ticket.Group {
		_, problems := ticket.Parse([]byte(header + "product,product_id,price\n" + strings.Join(lines, "\n")))
		require.NotEmpty(t, problems)
		return ticket.GroupOf(problems)
	}
	price := group("Café,a,2 €")
	assert.Equal(t, price, group("Thé,b,2 $", "Thé,b,3 $", "Café,a,2"), "how often and with which values does not matter")
	assert.Equal(t, group("Café,a,2 €", "Café,a"), group("Café,a", "Café,a,1 $"), "nor does the order")
	assert.NotEqual(t, price, group("Café,a,2 €", "Café,a"))
	assert.NotEqual(t, price, group("Café,a"))

	var many []ticket.Problem
	for i := range 7 {
		many = append(many, ticket.Problem{Code: fmt.Sprintf("code_%c", 'a'+i), Message: "it is wrong"})
	}
	kinds, others := ticket.Kinds(many)
	assert.Len(t, kinds, ticket.MaxKinds)
	assert.True(t, others)
	assert.Equal(t, ticket.GroupOf(many[:6]), ticket.GroupOf(many), "those beyond the fifth are only others")
	assert.NotEqual(t, ticket.GroupOf(many[:5]), ticket.GroupOf(many))
	assert.NotZero(t, ticket.GroupOf(nil))
}

// The number is stored, so it must stay as it is from version to version.
func TestGroupOf_IsStable(t *testing.T) {
	t.Parallel()
	problems := []ticket.Problem{{Line: 6, Code: ticket.ProblemAmountInvalid, Message: `price "2 €": not an amount`}}
	group := ticket.GroupOf(problems)
	assert.Equal(t, "28f54dd35cb101b2", group.String())
	text, err := json.Marshal(group)
	require.NoError(t, err)
	var again ticket.Group
	require.NoError(t, json.Unmarshal(text, &again))
	assert.Equal(t, group, again)
	for _, wrong := range []string{"", "1", "0000000000000000", "zzzzzzzzzzzzzzzz", "00000000000000001"} {
		require.Error(t, again.UnmarshalText([]byte(wrong)), wrong)
	}
}

func BenchmarkGroupOf(b *testing.B) {
	for name, problems := range map[string][]ticket.Problem{
		"one": {{Line: 6, Code: ticket.ProblemAmountInvalid, Message: `price "2 €": not an amount`}},
		"100": func() []ticket.Problem {
			_, problems := ticket.Parse([]byte(header + "product,product_id,price\n" + strings.Repeat("Café,a,2 €\n", 100)))
			return problems
		}(),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ticket.GroupOf(problems)
			}
		})
	}
}
