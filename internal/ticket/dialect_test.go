package ticket_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func reader(tb testing.TB, d ticket.Dialect) *ticket.Reader {
	tb.Helper()
	r, err := ticket.NewReader(d)
	require.NoError(tb, err)
	return r
}

// jsonDialect is a JSON dialect with everything inside of other values.
func jsonDialect() ticket.Dialect {
	return ticket.Dialect{JSON: &ticket.JSON{
		Order: "/receipt/number", VAT: "/receipt/sums/0", Total: "/receipt/sums/1", Lines: "/receipt/items",
		Product: "/article/name", ProductID: "/article/a~1b", Price: "/price",
	}}
}

const sampleColumns = "product,product_id,price\nFormule(s) midi,aZde,14.90\nCafé,IZ8z,2"

func TestReader_ReadsTheSample_InManyDialects(t *testing.T) {
	t.Parallel()
	want := sampleOrder(t)
	for name, c := range map[string]struct {
		dialect ticket.Dialect
		body    string
	}{
		"that of everyone": {ticket.Dialect{}, readSample(t)},
		"other records": {
			ticket.Dialect{Order: []string{"Commande", "Ticket no"}, VAT: []string{"TVA"}, Total: []string{"Montant"}},
			"TICKET NO: 123456\nTVA: 3.10\nTotal: 16.90\n\n" + sampleColumns,
		},
		"other columns": {
			ticket.Dialect{Product: []string{"Désignation"}, ProductID: []string{"code"}, Price: []string{"prix"}},
			"Order: 123456\nVAT: 3.10\nTotal: 16.90\n\nPrix;CODE;désignation\n14.90;aZde;Formule(s) midi\n2;IZ8z;Café",
		},
		"another separator": {
			ticket.Dialect{Separator: '|'}, strings.ReplaceAll(readSample(t), ",", "|"),
		},
		"a decimal comma": {
			ticket.Dialect{Decimal: ',', Separator: ';'},
			"Order: 123456\nVAT: 3,10\nTotal: 16,90\n\nproduct;product_id;price\nFormule(s) midi;aZde;14,90\nCafé;IZ8z;2",
		},
		"another encoding": {
			ticket.Dialect{Encoding: "IBM850"}, strings.ReplaceAll(readSample(t), "é", "\x82"),
		},
		"UTF-16 without a mark": {
			ticket.Dialect{Encoding: "UTF-16LE"}, utf16le(readSample(t)),
		},
		"lines that say nothing": {
			ticket.Dialect{
				PassOver: []ticket.Match{{Text: "*** DUPLICATA ***"}, {Text: "Merci", Begins: true}, {Text: "--", Begins: true}},
				End:      []ticket.Match{{Text: "-- end", Begins: true}},
			},
			"  *** DUPLICATA ***\nOrder: 123456\n-----\nVAT: 3.10\nTotal: 16.90\n\nMerci de votre visite\n" +
				"product,product_id,price\nFormule(s) midi,aZde,14.90\nMerci, et à bientôt\nCafé,IZ8z,2\n-- end of it\nnothing, of \"this",
		},
		"JSON": {
			jsonDialect(),
			`{"till": 3, "receipt": {"number": 123456, "sums": ["3.10", 16.90, null], "items": [
				{"price": 14.90, "article": {"name": "Formule(s) midi", "a/b": "aZde", "tags": [{}]}},
				{"article": {"a/b": "IZ8z", "name": "Caf\u00e9"}, "price": "2"}]}}`,
		},
		"JSON, an array as a whole": {
			ticket.Dialect{VATOptional: true, TotalOptional: true, JSON: &ticket.JSON{
				Order: "/0", VAT: "/1", Total: "/2", Lines: "/3", Product: "/0", ProductID: "/1", Price: "/2",
			}},
			"\ufeff" + `["123456", 3.10, 16.90, [["Formule(s) midi", "aZde", 14.90], ["Café", "IZ8z", 2]]]`,
		},
	} {
		order, problems := reader(t, c.dialect).Parse([]byte(c.body))
		assert.Empty(t, problems, name)
		assert.Equal(t, want.Content(), order.Content(), name)
	}
}

func utf16le(text string) string {
	var b strings.Builder
	for _, c := range text {
		b.WriteByte(byte(c))
		b.WriteByte(byte(c >> 8))
	}
	return b.String()
}

func TestReader_NilAndZero_ReadAsParse(t *testing.T) {
	t.Parallel()
	texts := hostileTexts(2000)
	texts["sample"] = readSample(t)
	for name, text := range texts {
		order, problems := ticket.Parse([]byte(text))
		for _, r := range []*ticket.Reader{nil, reader(t, ticket.Dialect{})} {
			again, problemsAgain := r.Parse([]byte(text))
			assert.Equal(t, order, again, name)
			assert.Equal(t, problems, problemsAgain, name)
		}
	}
}

func TestReader_OptionalRecords_MayBeMissing_AndAreNotZero(t *testing.T) {
	t.Parallel()
	body := []byte("Order: 1\n\nproduct,product_id,price\na,b,1")
	order, problems := reader(t, ticket.Dialect{VATOptional: true, TotalOptional: true}).Parse(body)
	assert.Empty(t, problems)
	assert.False(t, order.VAT.IsSet() || order.Total.IsSet())
	_, problems = reader(t, ticket.Dialect{VATOptional: true}).Parse(body)
	assert.Equal(t, []string{ticket.ProblemTotalMissing}, codes(problems))
}

func codes(problems []ticket.Problem) []string {
	list := make([]string, 0, len(problems))
	for _, p := range problems {
		list = append(list, p.Code)
	}
	return list
}

func TestReader_DecimalSign_LeavesNoDoubt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		decimal    byte
		text, want string
	}{
		{',', "1,234", "1.234"},
		{',', "1.234", "1234"},
		{',', "1.234,5", "1234.5"},
		{',', "1 234,50", "1234.50"},
		{',', "-3,10", "-3.10"},
		{',', "2", "2"},
		{'.', "1,234", "1234"},
		{'.', "1,234.50", "1234.50"},
		{'.', "1.234", "1.234"},
		{',', "14.90", ""},
		{',', "0.234", ""},
		{',', "1,2,3", ""},
		{',', "1,234.5", ""},
		{'.', "3,10", ""},
		{'.', "0,234", ""},
		{'.', "1.2.3", ""},
		{',', ",5", ""},
		{',', "5,", ""},
	} {
		body := "Order: 1\nVAT: " + c.text + "\nTotal: 1\n\nproduct;product_id;price\na;b;1"
		order, problems := reader(t, ticket.Dialect{Decimal: c.decimal}).Parse([]byte(body))
		assert.Equal(t, c.want, order.VAT.String(), "%s with %c", c.text, c.decimal)
		assert.Equal(t, c.want == "", len(problems) > 0, "%s with %c: %v", c.text, c.decimal, problems)
	}
}

func TestReader_BytesThatTheEncodingLacks_AreAProblemOfTheirLine(t *testing.T) {
	t.Parallel()
	body := "Order: 1\nVAT: 1\nTotal: 1\n\nproduct,product_id,price\na,b,1\ncaf\x9d,c,1\n" // windows-1257 has no 0x9d
	_, problems := reader(t, ticket.Dialect{Encoding: "ISO-8859-3"}).Parse([]byte(strings.ReplaceAll(body, "\x9d", "\xa5")))
	require.Len(t, problems, 1)
	assert.Equal(t, ticket.ProblemEncoding, problems[0].Code)
	assert.Equal(t, 7, problems[0].Line)
}

func TestReader_JSON_EveryValueThatIsNotUnderstood_IsNamed(t *testing.T) {
	t.Parallel()
	d := ticket.Dialect{JSON: &ticket.JSON{
		Order: "/n", VAT: "/v", Total: "/t", Lines: "/l", Product: "/p", ProductID: "/i", Price: "/e",
	}}
	const head, line = `{"n":"1","v":1,"t":2,` + "\n", `{"p":"a","i":"b","e":1}`
	for name, c := range map[string]struct {
		body string
		code string
		line int
	}{
		"not JSON":              {"Order: 1", ticket.ProblemJSONInvalid, 1},
		"cut off":               {head + `"l":[` + line, ticket.ProblemJSONInvalid, 2},
		"two documents":         {head + `"l":[` + line + "]}\n{}", ticket.ProblemJSONInvalid, 3},
		"invalid UTF-8":         {head + `"x":"` + "\xff" + `","l":[` + line + "]}", ticket.ProblemJSONInvalid, 2},
		"no list":               {head + `"x":1}`, ticket.ProblemNoProducts, 0},
		"an empty list":         {head + `"l":[]}`, ticket.ProblemNoProducts, 0},
		"a list that is none":   {head + `"l":{"p":1}}`, ticket.ProblemJSONUnexpected, 2},
		"a line that is none":   {head + `"l":[` + line + ",\n7]}", ticket.ProblemJSONUnexpected, 3},
		"a name that is none":   {head + `"l":[{"p":true,"i":"b","e":1},` + line + "]}", ticket.ProblemJSONUnexpected, 2},
		"a line without a name": {head + `"l":[` + line + ",\n" + `{"p":null,"i":"b","e":1}]}`, ticket.ProblemFieldMissing, 3},
		"a price that is none":  {head + `"l":[` + line + ",\n" + `{"p":"a","i":"b","e":1e2}]}`, ticket.ProblemAmountInvalid, 3},
		"no price":              {head + `"l":[` + line + ",\n" + `{"p":"a","i":"b"}]}`, ticket.ProblemAmountInvalid, 3},
		"two prices":            {head + `"l":[` + line + ",\n" + `{"p":"a","i":"b","e":1,"e":2}]}`, ticket.ProblemHeaderConflict, 3},
		"two lists":             {head + `"l":[` + line + "],\n" + `"l":[` + line + "]}", ticket.ProblemHeaderConflict, 3},
		"two order numbers":     {head + `"n":"2","l":[` + line + "]}", ticket.ProblemHeaderConflict, 2},
		"no order number":       {`{"v":1,"t":1,"l":[` + line + "]}", ticket.ProblemOrderMissing, 0},
		"no total":              {`{"n":1,"v":1,"t":null,"l":[` + line + "]}", ticket.ProblemTotalMissing, 0},
		"NUL":                   {head + `"l":[` + line + ",\n" + `{"p":"a\u0000","i":"b","e":1}]}`, ticket.ProblemNUL, 3},
		"too long":              {head + `"l":[` + line + ",\n" + `{"p":"` + strings.Repeat("x", 513) + `","i":"b","e":1}]}`, ticket.ProblemTooLong, 3},
		"only blanks":           {" \n", ticket.ProblemEmpty, 0},
		"very deep":             {strings.Repeat("[", 20_000), ticket.ProblemJSONInvalid, 1},
		"many lines":            {head + `"l":[` + strings.Repeat(line+",", ticket.MaxLines) + line + "]}", ticket.ProblemTooManyLines, 2},
	} {
		order, problems := reader(t, d).Parse([]byte(c.body))
		if assert.Equal(t, []string{c.code}, codes(problems), name) {
			assert.Equal(t, c.line, problems[0].Line, name)
		}
		requireBounded(t, &ticket.Ticket{Body: []byte(c.body), Order: order, Problems: problems})
	}
}

// What a body may become while it is read is known from its length alone: 32 times that (package intake).
func TestReader_JSON_FullOfBraces_CostsNoMoreThanItsLength(t *testing.T) {
	t.Parallel()
	d := ticket.Dialect{JSON: &ticket.JSON{
		Order: "/n", VAT: "/v", Total: "/t", Lines: "/l", Product: "/p", ProductID: "/i", Price: "/e",
	}}
	braces := strings.Repeat("{", 8000)
	for name, body := range map[string]string{
		"in a line":       `{"n":1,"v":1,"t":1,"l":[{"p":"a","i":"b","e":1,"x":"` + braces + `"}]}`,
		"behind the list": `{"n":1,"v":1,"t":1,"l":[{"p":"a","i":"b","e":1}],"x":"` + braces + `"}`,
	} {
		read := ticket.Ticket{Body: []byte(body)}
		read.Order, read.Problems = reader(t, d).Parse(read.Body)
		require.Empty(t, read.Problems, name)
		assert.Less(t, read.Cost(), 32*len(body), name)
	}
}

func TestNewReader_NamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	many := make([]string, ticket.MaxDialectNames+1)
	lines := make([]ticket.Match, ticket.MaxDialectLines+1)
	for i := range many {
		many[i] = fmt.Sprint("name ", i)
	}
	for i := range lines {
		lines[i].Text = fmt.Sprint("line ", i)
	}
	pointers := func(change func(*ticket.JSON)) ticket.Dialect {
		d := jsonDialect()
		change(d.JSON)
		return d
	}
	for says, d := range map[string]ticket.Dialect{
		`"total" is a name of Order and of Total`:   {Order: []string{"total"}},
		`"no" is given twice`:                       {Order: []string{"No", "no"}},
		`"ORDER" is given twice`:                    {Order: []string{"ORDER"}},
		`"" cannot be a name of VAT`:                {VAT: []string{""}},
		`" x" cannot be a name of product`:          {Product: []string{" x"}},
		`"a\nb" cannot be a name of price`:          {Price: []string{"a\nb"}},
		"product_id has 21 other names":             {ProductID: many},
		"at most 100 are allowed":                   {PassOver: lines},
		`"" is not a line to pass over`:             {PassOver: []ticket.Match{{Begins: true}}},
		`" x" is not a line`:                        {End: []ticket.Match{{Text: " x", Begins: true}}},
		`the line "x" is given twice`:               {PassOver: []ticket.Match{{Text: "x"}}, End: []ticket.Match{{Text: "x"}}},
		`'a' cannot be the separator`:               {Separator: 'a'},
		`'.' cannot be the separator`:               {Separator: '.'},
		`it is ';'`:                                 {Decimal: ';'},
		`"latin-17" is not the name of an encoding`: {Encoding: "latin-17"},
		`"UTF-8" is not the name`:                   {Encoding: "UTF-8"},
		"its tickets are JSON":                      {JSON: jsonDialect().JSON, Separator: ';'},
		`order is "number", which must be`:          pointers(func(j *ticket.JSON) { j.Order = "number" }),
		`vat is "", which must be`:                  pointers(func(j *ticket.JSON) { j.VAT = "" }),
		`price is "/article/name", where another`:   pointers(func(j *ticket.JSON) { j.Price = "/article/name" }),
		`price is "/article", where another`:        pointers(func(j *ticket.JSON) { j.Price = "/article" }),
		`is inside of another value`:                pointers(func(j *ticket.JSON) { j.Total = "/receipt/number/x" }),
	} {
		_, err := ticket.NewReader(d)
		require.ErrorIs(t, err, ticket.ErrDialect, says)
		require.ErrorContains(t, err, says)
	}
}

// dialects are made up from some bytes, so that a fuzzer finds its way to all of them.
func dialectOf(choice uint32, a, b string) ticket.Dialect {
	bit := func(n uint) bool { return choice>>n&1 == 1 }
	d := ticket.Dialect{VATOptional: bit(0), TotalOptional: bit(1)}
	if bit(2) {
		d.Decimal = ".,"[choice>>3&1]
	}
	if bit(4) {
		d.JSON = &ticket.JSON{Order: "/" + a, VAT: "/v", Total: "/t/0", Lines: "/" + b, Product: "/p", ProductID: "/i", Price: "/e/" + a}
		return d
	}
	if bit(5) {
		d.Order, d.ProductID = []string{a}, []string{a}
	}
	if bit(6) {
		d.Total, d.Price = []string{b}, []string{b}
	}
	if bit(7) {
		d.PassOver = []ticket.Match{{Text: a, Begins: bit(8)}}
	}
	if bit(9) {
		d.End = []ticket.Match{{Text: b, Begins: bit(10)}}
	}
	if bit(11) {
		d.Separator = ",;\t|#"[choice>>12&7%5]
	}
	if bit(16) {
		d.Encoding = []string{"IBM850", "Shift_JIS", "UTF-16BE", "ISO-8859-3"}[choice>>17&3]
	}
	return d
}

func FuzzReader(f *testing.F) {
	f.Add(uint32(0), "Commande", "prix", []byte(readSample(f)))
	f.Add(uint32(1<<4), "n", "l", []byte(`{"n":1,"v":2,"t":[3],"l":[{"p":"a","i":"b","e":{"n":1}}]}`))
	f.Add(uint32(1<<7|1<<8|1<<9|1<<5), "Me", "end", []byte("Me: 1\nVAT: 1\nTotal: 1\n\nproduct,product_id,price\nMerci\na,b,1\nend\nx"))
	f.Add(uint32(1<<16|1<<11|1<<13), "x", "y", []byte("Order: \x82\nVAT: 1\nTotal: 1\n\nproduct;product_id;price\n\x82;\x81;1"))
	for _, text := range hostileTexts(200) {
		f.Add(uint32(1<<2|1<<7|1<<6), "0", "prix", []byte(text))
		f.Add(uint32(1<<4), "n", "l", []byte(text))
	}
	f.Fuzz(func(t *testing.T, choice uint32, a, b string, body []byte) {
		d := dialectOf(choice, a, b)
		r, err := ticket.NewReader(d)
		if err != nil {
			require.ErrorIs(t, err, ticket.ErrDialect)
			return
		}
		order, problems := r.Parse(body)
		require.LessOrEqual(t, len(problems), ticket.MaxProblems+1)
		for _, p := range problems {
			require.NotEmpty(t, p.Code)
			require.Equal(t, p.Message, ticket.CleanText(p.Message, len(p.Message)), "a message is clean text")
		}
		requireClean(t, order)
		requireBounded(t, &ticket.Ticket{Body: body, Order: order, Problems: problems})
		again, problemsAgain := r.Parse(slices.Clone(body))
		require.Equal(t, order, again)
		require.Equal(t, problems, problemsAgain)
		if len(problems) == 0 {
			require.NotEmpty(t, order.Lines, "a ticket without problems lists products")
			require.NotEmpty(t, order.Number)
			require.True(t, d.VATOptional || order.VAT.IsSet())
		}
	})
}

func BenchmarkReader(b *testing.B) {
	text := header + "product,product_id,price\n" + manyLines(40)
	named := strings.NewReplacer("Order", "Commande", "product_id", "code").Replace(text)
	var j strings.Builder
	j.WriteString(`{"n":"123456","v":3.10,"t":16.90,"l":[`)
	order, _ := ticket.Parse([]byte(text))
	for i, line := range order.Lines {
		if i > 0 {
			j.WriteByte(',')
		}
		fmt.Fprintf(&j, `{"p":%q,"i":%q,"e":%s}`, line.Name, line.ProductID, line.Price)
	}
	j.WriteString("]}")
	for _, c := range []struct {
		name    string
		dialect *ticket.Dialect
		body    string
	}{
		{"none", nil, text},
		{"names", &ticket.Dialect{Order: []string{"Commande"}, ProductID: []string{"code"}}, named},
		{"lines", &ticket.Dialect{PassOver: []ticket.Match{{Text: "*** DUPLICATA ***"}, {Text: "Merci", Begins: true}}}, text},
		{"json", &ticket.Dialect{JSON: &ticket.JSON{
			Order: "/n", VAT: "/v", Total: "/t", Lines: "/l", Product: "/p", ProductID: "/i", Price: "/e",
		}}, j.String()},
	} {
		b.Run(c.name, func(b *testing.B) {
			var r *ticket.Reader
			if c.dialect != nil {
				r = reader(b, *c.dialect)
			}
			body := []byte(c.body)
			_, problems := r.Parse(body)
			require.Empty(b, problems)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				r.Parse(body)
			}
		})
	}
}
