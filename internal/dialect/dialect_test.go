package dialect_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"myticket/internal/dialect"
	"myticket/internal/ticket"
)

const everything = `
# The tills of shop-1.
records:
  order: [Commande, "Ticket no"]
  vat: [TVA]
  total: [Montant]
columns: {product: [Désignation], product_id: [code], price: [prix]}
optional: [vat, total]
separator: "|"
decimal: ","
encoding: IBM850
pass_over:
  - "*** DUPLICATA ***"
  - begins: Merci
end:
  - begins: "--- "
`

const document = `
format: json
pointers: {order: /n, total: /sums/0, lines: /items, product: /a~1b, product_id: /id, price: /price}
optional: [vat]
decimal: "."
`

func TestParse_WhatIsWritten(t *testing.T) {
	t.Parallel()
	d, err := dialect.Parse([]byte(everything))
	require.NoError(t, err)
	assert.Equal(t, ticket.Dialect{
		Order: []string{"Commande", "Ticket no"}, VAT: []string{"TVA"}, Total: []string{"Montant"},
		Product: []string{"Désignation"}, ProductID: []string{"code"}, Price: []string{"prix"},
		VATOptional: true, TotalOptional: true, Separator: '|', Decimal: ',', Encoding: "IBM850",
		PassOver: []ticket.Match{{Text: "*** DUPLICATA ***"}, {Text: "Merci", Begins: true}},
		End:      []ticket.Match{{Text: "--- ", Begins: true}},
	}, d)
	d, err = dialect.Parse([]byte(document))
	require.NoError(t, err)
	assert.Equal(t, ticket.Dialect{VATOptional: true, Decimal: '.', JSON: &ticket.JSON{
		Order: "/n", Total: "/sums/0", Lines: "/items", Product: "/a~1b", ProductID: "/id", Price: "/price",
	}}, d)
}

// valid are dialects that the schema, too, takes.
var valid = map[string]string{
	"everything": everything, "a document": document, "nothing but an object": "{}", "text by name": "format: text",
	"JSON": `{"records": {"order": ["No"]}, "pass_over": [{"begins": "x"}, "y"]}`,
}

func TestJSONAndYAML_AreReadAgain(t *testing.T) {
	t.Parallel()
	for name, text := range valid {
		d, err := dialect.Parse([]byte(text))
		require.NoError(t, err, name)
		for _, write := range []func(ticket.Dialect) ([]byte, error){dialect.JSON, dialect.YAML} {
			content, err := write(d)
			require.NoError(t, err, name)
			again, err := dialect.Parse(content)
			require.NoError(t, err, "%s: %s", name, content)
			assert.Equal(t, d, again, "%s: %s", name, content)
		}
	}
}

// wrong are texts that neither Parse nor the schema takes, and what Parse says.
var wrong = map[string]string{
	"recods: {}":               "line 1: unknown key recods",
	"records: {ordr: [a]}":     "line 1: unknown key ordr",
	"pass_over: [{starts: x}]": "line 1: a line is a text, or has the one key begins",
	"format: xml":              `format is "xml"`,
	"format: json":             "belong together",
	"pointers: {order: /a}":    "belong together",
	"optional: [order]":        `optional names "order"`,
	"optional: [vat, vat]":     "optional names vat twice",
	"separator: ab":            "it must be one sign",
	"separator: a":             "cannot be the separator",
	"decimal: x":               "must be a point or a comma",
	"decimal: '..'":            "it must be . or ,",
	"records: {order: x}":      "cannot be a str",
	"records: {order: ['']}":   "cannot be a name of Order",
	"end: ['']":                "is not a line",
	"[]":                       "cannot be a seq",
	"format: json\npointers: {order: a, lines: ''}": "must be a JSON Pointer",
}

func TestParse_NamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	texts := map[string]string{
		"":                                       "the file says nothing",
		"# nothing":                              "the file says nothing",
		"{}\n---\n{}":                            "a second document",
		"format: text\nformat: text":             "already defined",
		"records: {order: [Total]}":              "is a name of Order and of Total",
		"encoding: klingon":                      "is not the name of an encoding",
		"a: &a [x,x]\nb: *a":                     "unknown key a",
		"\x00":                                   "control characters are not allowed",
		string(make([]byte, dialect.MaxBytes+1)): "more than 65536 bytes",
	}
	for text, says := range wrong {
		texts[text] = says
	}
	for text, says := range texts {
		_, err := dialect.Parse([]byte(text))
		require.ErrorIs(t, err, ticket.ErrDialect, "%.80q", text)
		require.ErrorContains(t, err, says, "%.80q", text)
	}
}

// The schema is for editors. It knows what Parse knows, except for names that contradict each other.
func TestSchema_AgreesWithParse(t *testing.T) {
	t.Parallel()
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "..", "docs", "dialect.schema.json"))
	require.NoError(t, err)
	validate := func(text string) error {
		var value any
		require.NoError(t, yaml.Unmarshal([]byte(text), &value))
		content, err := json.Marshal(value)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(content, &value))
		return schema.Validate(value)
	}
	for name, text := range valid {
		require.NoError(t, validate(text), name)
	}
	for text := range wrong {
		assert.Error(t, validate(text), text)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range valid {
		f.Add([]byte(text))
	}
	for text := range wrong {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		d, err := dialect.Parse(content)
		if err != nil {
			require.ErrorIs(t, err, ticket.ErrDialect)
			return
		}
		canonical, err := dialect.JSON(d)
		require.NoError(t, err)
		again, err := dialect.Parse(canonical)
		require.NoError(t, err, "%s", canonical)
		second, err := dialect.JSON(again)
		require.NoError(t, err)
		require.Equal(t, string(canonical), string(second))
	})
}
