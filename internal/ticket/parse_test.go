package ticket_test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func amount(tb testing.TB, s string) ticket.Amount {
	tb.Helper()
	a, err := ticket.ParseAmount(s)
	require.NoError(tb, err, s)
	return a
}

func readSample(tb testing.TB) string {
	tb.Helper()
	body, err := os.ReadFile("../../testdata/ticket.txt")
	require.NoError(tb, err)
	return string(body)
}

func sampleOrder(tb testing.TB) ticket.Order {
	tb.Helper()
	return ticket.Order{
		Number: "123456", VAT: amount(tb, "3.10"), Total: amount(tb, "16.90"),
		Lines: []ticket.Line{
			{Name: "Formule(s) midi", ProductID: "aZde", Price: amount(tb, "14.90")},
			{Name: "Café", ProductID: "IZ8z", Price: amount(tb, "2")},
		},
	}
}

// header is what a ticket's product list can be put behind.
const header = "Order: 1\nVAT: 3.10\nTotal: 16.90\n\n"

func TestParse_Sample_HoweverItIsWritten(t *testing.T) {
	t.Parallel()
	sample := readSample(t)
	require.False(t, strings.HasSuffix(sample, "\n"))
	top, products, ok := strings.Cut(sample, "product,product_id,price\n")
	require.True(t, ok)
	latin1 := strings.ReplaceAll(sample, "é", "\xe9")
	utf16le := "\xff\xfe"
	for _, u := range utf16.Encode([]rune(sample)) {
		utf16le += string([]byte{byte(u), byte(u >> 8)}) //nolint:perfsprint // a short loop
	}
	for name, text := range map[string]string{
		"as it is":             sample,
		"newline at the end":   sample + "\n",
		"CRLF":                 strings.ReplaceAll(sample, "\n", "\r\n"),
		"CR":                   strings.ReplaceAll(sample, "\n", "\r"),
		"BOM":                  "\ufeff" + sample,
		"Latin-1":              latin1,
		"BOM and Latin-1":      "\ufeff" + latin1,
		"UTF-16":               utf16le,
		"blank lines around":   "\n \n" + strings.ReplaceAll(sample, "\n", "\n\n") + "\n\t\n",
		"no blank line":        strings.ReplaceAll(sample, "\n\n", "\n"),
		"spaces":               strings.NewReplacer(":", "  :  ", ",", " , ", "\n", "  \n").Replace(sample),
		"no-break spaces":      strings.NewReplacer(": ", ":\u00a0").Replace(sample),
		"other case and order": "TOTAL: 16.90\nvat: 3.10\nORDER: 123456\n\nProduct,PRODUCT_ID,Price\n" + products,
		"reordered columns":    top + "price,product,product_id\n14.90,Formule(s) midi,aZde\n2,Café,IZ8z",
		"semicolons":           strings.ReplaceAll(sample, ",", ";"),
		"tabs":                 strings.ReplaceAll(sample, ",", "\t"),
		"quotes":               top + "\"product\",\"product_id\",\"price\"\n\"Formule(s) midi\", \"aZde\" ,\"14.90\"\n\"Café\",\"IZ8z\",\"2\"",
		"decimal comma":        strings.NewReplacer("3.10", "3,10", "16.90", "16,90", "14.90", `"14,90"`).Replace(sample),
		"record twice, equal":  "Order: 123456\nvat: 3.1\n" + strings.Replace(sample, "3.10", "3.1", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			order, problems := ticket.Parse([]byte(text))
			require.Empty(t, problems)
			want := sampleOrder(t)
			assert.True(t, order.VAT.Equal(want.VAT), order.VAT)
			order.VAT = want.VAT
			assert.Equal(t, want, order.Content())
		})
	}
}

func TestParse_KeepsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	order, problems := ticket.Parse([]byte("Till: 3: left\nOrder: 1\nVAT: 0\nTotal: 2\n\nqty,product,product_id,price,note\n1,Café,a,2,\"a, b\""))
	require.Empty(t, problems)
	assert.Equal(t, []ticket.Field{{Name: "Till", Value: "3: left"}}, order.Extra)
	assert.Equal(t, []string{"qty", "note"}, order.Columns)
	assert.Equal(t, []string{"1", "a, b"}, order.Lines[0].Extra)
}

func TestParse_Products(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ lines, want string }{
		"the same one twice":              {"Café,a,2\nCafé,a,2", "a Café 2"},
		"twice, the last line wins":       {"Café,a,2\nThé,b,3\nGrand café,a,2.50", "a Grand café 2.50; b Thé 3"},
		"a comma in a quoted name":        {`"Menu, midi",a,2`, "a Menu, midi 2"},
		"quotes in a quoted name":         {`"Menu ""midi""",a,2`, `a Menu "midi" 2`},
		"a line break in a quoted name":   {"\"Menu\nmidi\",a,2\nThé,b,3", "a Menu\nmidi 2; b Thé 3"},
		"a refund":                        {"Café,a,-2.00", "a Café -2.00"},
		"blank lines between":             {"Café,a,2\n\n \nThé,b,3", "a Café 2; b Thé 3"},
		"a comma that separates nothing":  {"Café,a,\"1.234,50\"", "a Café 1234.50"},
		"many, and one of them twice":     {manyLines(40) + "\nLast,p3,9", ""},
		"a quote in the middle of a name": {`Café 5" large,a,2`, `a Café 5" large 2`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			order, problems := ticket.Parse([]byte(header + "product,product_id,price\n" + test.lines))
			require.Empty(t, problems)
			var got []string
			for _, p := range order.Products() {
				got = append(got, fmt.Sprintf("%s %s %s", p.ID, p.Name, p.Price))
			}
			if test.want == "" {
				require.Len(t, got, 40)
				assert.Equal(t, "p3 Last 9", got[3])
				return
			}
			assert.Equal(t, test.want, strings.Join(got, "; "))
		})
	}
}

func manyLines(n int) string {
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("Product %d,p%d,%d.%02d", i, i, i%50, i%100))
	}
	return strings.Join(lines, "\n")
}

func TestParse_TenThousandLines(t *testing.T) {
	t.Parallel()
	order, problems := ticket.Parse([]byte(header + "product,product_id,price\n" + manyLines(10_000)))
	require.Empty(t, problems)
	assert.Len(t, order.Lines, 10_000)
	assert.Len(t, order.Products(), 10_000)
}

func TestParse_EveryLineThatIsNotUnderstood_IsNamed(t *testing.T) {
	t.Parallel()
	const columns = "product,product_id,price\n"
	for name, test := range map[string]struct{ text, want string }{
		"nothing but blank lines":       {"\n\r\n \t\n", "0 empty"},
		"text with no newline":          {"hello world", "1 header_unreadable; 0 columns_missing; 0 order_missing; 0 vat_missing; 0 total_missing"},
		"comma in an unquoted name":     {header + columns + "Café,a,2\nMenu, midi,b,2", "7 fields_count"},
		"too few fields":                {header + columns + "Café,a", "6 fields_count"},
		"bad price":                     {header + columns + "Café,a,2\nThé,b,free\nEau,c,", "7 amount_invalid; 8 amount_invalid"},
		"bad VAT":                       {"Order: 1\nVAT: 3.1.0\nTotal: 2\n\n" + columns + "Café,a,2", "2 amount_invalid"},
		"bad total":                     {"Order: 1\nVAT: 3.10\nTotal: NaN\n\n" + columns + "Café,a,2", "3 amount_invalid"},
		"empty order":                   {"Order:\nVAT: 3.10\nTotal: 2\n\n" + columns + "Café,a,2", "1 order_missing"},
		"nothing of the header":         {columns + "Café,a,2", "0 order_missing; 0 vat_missing; 0 total_missing"},
		"two totals":                    {"Total: 3\n" + header + columns + "Café,a,2", "4 header_conflict"},
		"two orders":                    {"Order: 3\n" + header + columns + "Café,a,2", "2 header_conflict"},
		"a line that is no record":      {"Bonjour\n" + header + columns + "Café,a,2", "1 header_unreadable"},
		"NUL in the header":             {"Till: \x00\n" + header + columns + "Café,a,2", "1 nul_byte"},
		"NUL in a known record":         {"Order: \x001\nVAT: 3.10\nTotal: 2\n\n" + columns + "Café,a,2", "1 nul_byte"},
		"NUL in a line":                 {header + columns + "Ca\x00fé,a,2", "6 nul_byte"},
		"NUL in a quoted field":         {header + columns + "\"Ca\n\x00fé\",a,2\nThé,b,x", "7 nul_byte; 8 amount_invalid"},
		"no product":                    {header + columns, "0 no_products"},
		"no columns":                    {header, "0 columns_missing"},
		"columns with a wrong name":     {header + "product,id,price\nCafé,a,2\nThé,b,3", "5 columns_missing"},
		"lines without columns":         {header + "Café,a,2\nThé,b,3", "5 columns_missing"},
		"a column twice":                {header + "product,product_id,price,price\nCafé,a,2,3", "5 columns_conflict"},
		"no name":                       {header + columns + ",a,2", "6 field_missing"},
		"no id":                         {header + columns + "Café,\" \",2", "6 field_missing"},
		"quote without an end":          {header + columns + "Café,a,2\n\"Thé,b,2\nEau,c,2\n", "7 quote_unterminated"},
		"text behind a quote":           {header + columns + "\"Café\" x,a,2\nThé,b,2", "6 quote_invalid"},
		"long id":                       {header + columns + "Café," + strings.Repeat("é", ticket.MaxProductIDLength+1) + ",2", "6 text_too_long"},
		"long name":                     {header + columns + strings.Repeat("é", ticket.MaxNameLength+1) + ",a,2", "6 text_too_long"},
		"long number":                   {"Order: " + strings.Repeat("1", 65) + "\nVAT: 1\nTotal: 1\n\n" + columns + "Café,a,2", "1 text_too_long"},
		"UTF-16 without its order mark": {"O\x00r\x00d\x00e\x00r\x00", "1 nul_byte; 0 columns_missing; 0 order_missing; 0 vat_missing; 0 total_missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, problems := ticket.Parse([]byte(test.text))
			var got []string
			for _, p := range problems {
				got = append(got, fmt.Sprint(p.Line, " ", p.Code))
				assert.NotContains(t, p.Message, "\x00")
			}
			assert.Equal(t, test.want, strings.Join(got, "; "), problems)
		})
	}
}

func TestParse_WithProblems_StillReturnsWhatItRead(t *testing.T) {
	t.Parallel()
	order, problems := ticket.Parse([]byte(header + "product,product_id,price\nCafé,a,2\nMenu, midi,b,2"))
	require.Len(t, problems, 1)
	assert.Equal(t, "1", order.Number)
	assert.Len(t, order.Lines, 1)
	assert.Contains(t, problems[0].Message, "4 fields")
	assert.Contains(t, problems[0].Message, "in quotes")
}

func TestParse_WhatTheTicketLacks_IsListed_HoweverManyLinesAreBad(t *testing.T) {
	t.Parallel()
	_, problems := ticket.Parse([]byte("VAT: 1\nTotal: 2\n\nproduct,product_id,price\n" + strings.Repeat("x\n", 200)))
	assert.Equal(t, ticket.ProblemOrderMissing, problems[0].Code)
}

func TestParse_ColumnsThatCannotBeUsed_SayWhatWasNotRead(t *testing.T) {
	t.Parallel()
	for _, columns := range []string{
		"product,product_id,price,price",
		"product,product_id,price" + strings.Repeat(",x", ticket.MaxFields),
		"product,product_id,price," + strings.Repeat("x", ticket.MaxFieldName+1),
	} {
		order, problems := ticket.Parse([]byte(header + columns + "\n" + manyLines(3)))
		require.Len(t, problems, 1, columns)
		assert.Equal(t, 5, problems[0].Line)
		assert.Contains(t, problems[0].Message, "lines 6 to 8 were not read")
		assert.Empty(t, order.Lines)
	}
}

// textOf returns an order in the form of the sample.
func textOf(o *ticket.Order) []byte {
	b := append([]byte("Order: "), o.Number...)
	b = o.VAT.AppendText(append(b, "\nVAT: "...))
	b = o.Total.AppendText(append(b, "\nTotal: "...))
	for _, record := range o.Extra {
		b = append(append(append(append(b, '\n'), record.Name...), ": "...), record.Value...)
	}
	b = append(b, "\n\nproduct,product_id,price"...)
	for _, column := range o.Columns {
		b = appendField(append(b, ','), column)
	}
	for _, line := range o.Lines {
		b = appendField(append(b, '\n'), line.Name)
		b = appendField(append(b, ','), line.ProductID)
		b = line.Price.AppendText(append(b, ','))
		for _, value := range line.Extra {
			b = appendField(append(b, ','), value)
		}
	}
	return b
}

// appendField appends a field, in quotes where it needs them (RFC 4180, section 2).
func appendField(b []byte, field string) []byte {
	if !strings.ContainsAny(field, ",;\t\"\r\n") {
		return append(b, field...)
	}
	b = append(b, '"')
	b = append(b, strings.ReplaceAll(field, `"`, `""`)...)
	return append(b, '"')
}

func TestParse_ReadsTheSameOrder_FromTheFormOfTheSample(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"line ends in a name":          header + "product,product_id,price\n\"a\r\nb\rc\nd\",x,1",
		"separators of other formats":  header + "product;product_id;price;a,b\n\"x;y\";\"x\ty\";1;\"\"\"\"",
		"colons and quotes in records": "a: b: c\n\"d: \"e\"\nf:\n" + header + "product,product_id,price\n:,\"\"\":\"\"\",1",
		"columns that share a name":    header + "n,product,n,product_id,,price,\n1,a,2,b,3,4.00,\n,c,,d,,5,6",
		"decimal comma":                "Order: 1\nVAT: 3,10\nTotal: 1 234,50\n\nproduct;product_id;price\nCafé;a;-0,50",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			order, problems := ticket.Parse([]byte(text))
			require.Empty(t, problems)
			again, problems := ticket.Parse(textOf(&order))
			require.Empty(t, problems, "%s", textOf(&order))
			require.Equal(t, order.Content(), again.Content())
		})
	}
	sample := readSample(t)
	order, _ := ticket.Parse([]byte(sample))
	assert.Equal(t, sample, string(textOf(&order)), "the sample is the canonical form")
}

func TestParse_OneMistake_IsNotTenThousandProblems(t *testing.T) {
	t.Parallel()
	_, problems := ticket.Parse([]byte(header + "produit,id,prix\n" + manyLines(10_000)))
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].Message, "lines 6 to 10005 were not read")

	_, problems = ticket.Parse([]byte(header + "product,product_id,price\n" + strings.Repeat("x\n", 10_000)))
	require.Len(t, problems, ticket.MaxProblems+1)
	last := problems[ticket.MaxProblems]
	assert.Equal(t, ticket.ProblemTooMany, last.Code)
	assert.Contains(t, last.Message, "9900 more")
}

func TestParseAmount(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2": "2", "2.00": "2.00", "16.90": "16.90", "0": "0", "-0": "0", "-0.50": "-0.50", "+3.1": "3.1", "\u22123": "-3",
		"3,10": "3.10", "0,5": "0.5", "1.234": "1.234", "1,2345": "1.2345", "007": "7", "1.234,56": "1234.56",
		"1,234.56": "1234.56", "1 234,56": "1234.56", "1\u00a0234": "1234", "12\u202f345\u202f678,9": "12345678.9",
		"1,234,567": "1234567", "1.234.567": "1234567", "999999999999.999999": "999999999999.999999",
		"1 234,567": "1234.567",
	} {
		got, err := ticket.ParseAmount(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got.String(), text)
	}
	for _, text := range []string{
		"", " ", "-", "NaN", "Inf", "1e3", "0x1", "1_000", "3.", ".5", ",5", "3,", "1.2.3", "1,23,456", "1.234,5,6", "1,234",
		"€3", "3 EUR", "3 10", "1 2345", "--3", "+-3", "1234567890123", "1.1234567", "1.234 567,8", "٣", "3,10.20,4", "1 .5",
		strings.Repeat("1", 100), strings.Repeat("1,", 100) + "111",
	} {
		_, err := ticket.ParseAmount(text)
		require.ErrorIs(t, err, ticket.ErrAmount, text)
	}
}

func TestAmount_Equal(t *testing.T) {
	t.Parallel()
	assert.True(t, amount(t, "2").Equal(amount(t, "2.00")))
	assert.True(t, amount(t, "999999999999.999999").Equal(amount(t, "999999999999.999999")))
	assert.False(t, amount(t, "2").Equal(amount(t, "2.01")))
	assert.False(t, amount(t, "0").Equal(ticket.Amount{}), "not read is not 0")
}

// TestParse_AllocatesInProportion shows that nothing grows faster than the body. Time is BenchmarkParse's.
// It runs alone, for it counts what the whole process allocates.
func TestParse_AllocatesInProportion(t *testing.T) { //nolint:paralleltest // see above
	allocated := func(text string) uint64 {
		var before, after runtime.MemStats
		body := []byte(text)
		runtime.ReadMemStats(&before)
		ticket.Parse(body)
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	small, large := hostileTexts(1<<14), hostileTexts(1<<17)
	for name := range small {
		of16KiB, of128KiB := allocated(small[name]), allocated(large[name])
		assert.Less(t, of128KiB, 24*of16KiB+1<<18, // slices double; anything quadratic would be 64 times
			"%s: %d bytes for 16 KiB, %d for 128 KiB", name, of16KiB, of128KiB)
	}
}

// TestParse_AllocatesNoMoreThanItCosts runs alone for the same reason. Garbage counts, too: it is memory until it is collected.
func TestParse_AllocatesNoMoreThanItCosts(t *testing.T) { //nolint:paralleltest // see above
	for name, text := range hostileTexts(1 << 20) {
		var before, after runtime.MemStats
		read := ticket.Ticket{Body: []byte(text)}
		runtime.ReadMemStats(&before)
		read.Order, read.Problems = ticket.Parse(read.Body)
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		assert.LessOrEqual(t, allocated, 4*uint64(read.Cost()), "%s: %d bytes of garbage are made of %d", name, allocated, len(text))
		assert.Less(t, read.Cost(), 12<<20, name)
	}
}

// hostileTexts are bodies of about size bytes that would be slow for a careless parser.
func hostileTexts(size int) map[string]string {
	lines := header + "product,product_id,price\n"
	return map[string]string{
		"quotes":       lines + strings.Repeat(`"`, size),
		"open quotes":  lines + strings.Repeat("\"a\n", size/3),
		"bad quotes":   lines + strings.Repeat("\"a\"b\n", size/5),
		"commas":       lines + strings.Repeat(",", size),
		"newlines":     lines + strings.Repeat("\n", size),
		"returns":      lines + strings.Repeat("\r", size),
		"colons":       strings.Repeat(":", size),
		"records":      strings.Repeat("a:b\n", size/4),
		"no records":   strings.Repeat("a\n", size/2),
		"columns":      strings.Repeat("product,product_id,", size/19),
		"short lines":  lines + strings.Repeat("a,b,1\n", size/6),
		"invalid UTF8": lines + strings.Repeat("\xff", size),
		"NULs":         strings.Repeat("\x00\n", size/2),

		"few fields":       lines + strings.Repeat("a\n", size/2),
		"bad prices":       lines + strings.Repeat("a,b,1 0\n", size/8),
		"ambiguous prices": strings.ReplaceAll(lines, ",", ";") + strings.Repeat("a;b;1,234\n", size/10),
		"no price":         lines + strings.Repeat("a,b,\n", size/5),
		"no id":            lines + strings.Repeat("a,,1\n", size/5),
		"long ids":         lines + strings.Repeat("a,"+strings.Repeat("b", 129)+",1\n", size/134),
		"doubled quotes":   lines + strings.Repeat(`"a""",b"",1`+"\n", size/12),
		"headers of CSV":   strings.Repeat("a:"+strings.Repeat(",", 98)+"\n", size/101),
		"quoted headers":   strings.Repeat("\"a\"\"\":"+strings.Repeat(",\"\"\"\"", 10)+"\n", size/58),
		"long records":     strings.Repeat("a:"+strings.Repeat("b", 1025)+"\n", size/1028),
		"bad VATs":         strings.Repeat("VAT:x\n", size/6),
		"conflicts":        strings.Repeat("VAT:1\nVAT:2\n", size/12),
		"97 columns":       wide(97) + strings.Repeat("a,b,1"+strings.Repeat(",", 97)+"\n", size/103),
		"one column more":  wide(1) + strings.Repeat("a,b,1,\n", size/7),
		"Windows-1252":     lines + strings.Repeat("\x80\x80,b,1\n", size/7),
		"UTF-16":           "\xff\xfe" + strings.Repeat("\xac\x20", size/2),
		"control":          lines + strings.Repeat("\x01"+strings.Repeat("\x02", 510)+"\x01,b,1\n", size/516),
	}
}

// wide is a header whose product list has unknown columns with the longest names.
func wide(columns int) string {
	var b strings.Builder
	b.WriteString(header + "product,product_id,price")
	for i := range columns {
		fmt.Fprintf(&b, ",%0*d", ticket.MaxFieldName, i)
	}
	return b.String() + "\n"
}

func TestParse_BeyondALimit_KeepsNoLine_AndSaysWhichLimit(t *testing.T) {
	t.Parallel()
	const columns = header + "product,product_id,price\n"
	control := strings.Repeat("\x01"+strings.Repeat("\x02", 510)+"\x01,b,1\n", 1400)
	for name, test := range map[string]struct{ text, code, message string }{
		"lines":           {columns + strings.Repeat("a,b,1\n", 10_001), "10006 too_many_lines", "more than 10000 lines"},
		"bad lines":       {columns + strings.Repeat("x\n", 10_001), "10006 too_many_lines", "more than 10000 lines"},
		"cells":           {wide(97) + strings.Repeat("a,b,1"+strings.Repeat(",", 97)+"\n", 1001), "1006 too_many_cells", "at most 100000 fields"},
		"bytes as stored": {columns + control, "", "more than 4194304 bytes"},
		"a long body":     {columns + strings.Repeat("\n", ticket.MaxTextBytes), "0 too_large", "at most 16777216 are read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			order, problems := ticket.Parse([]byte("Till: 3\n" + test.text))
			require.NotEmpty(t, problems)
			i := slices.IndexFunc(problems, func(p ticket.Problem) bool { return strings.Contains(p.Message, test.message) })
			require.GreaterOrEqual(t, i, 0, problems)
			if test.code != "" {
				require.Equal(t, test.code, fmt.Sprint(max(0, problems[i].Line-1), " ", problems[i].Code))
			}
			assert.Empty(t, order.Lines)
			assert.Empty(t, order.Columns)
			if problems[i].Line > 0 {
				assert.Equal(t, "1", order.Number, "the header was read")
				assert.Equal(t, []ticket.Field{{Name: "Till", Value: "3"}}, order.Extra)
				assert.Contains(t, problems[i].Message, "no product of the ticket is kept")
			}
		})
	}
	order, problems := ticket.Parse([]byte(wide(97) + strings.Repeat("a,b,1"+strings.Repeat(",", 97)+"\n", 1000)))
	require.Empty(t, problems, "a ticket at its limit is read")
	assert.Len(t, order.Lines, 1000)
}

func TestParse_ColumnsThatAreRepeated_TakeTheirNamesOnce(t *testing.T) {
	t.Parallel()
	read := ticket.Ticket{Body: []byte(wide(97) + strings.Repeat("a,b,1"+strings.Repeat(",", 97)+"\n", 1000))}
	read.Order, read.Problems = ticket.Parse(read.Body)
	require.Empty(t, read.Problems)
	assert.Less(t, read.Cost(), 25*len(read.Body), "names of columns are repeated on every line")
	assert.Less(t, read.Order.StoredBytes(), len(read.Body))
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(readSample(f)))
	for _, text := range []string{
		header + "product,product_id,price,qty\n\"a \"\"b\"\"\n, c\",x,1.5,\" \"\n",
		"Till; 3: x\nOrder:1\nVAT:\u00a01\nTotal:1,5\nproduct;product_id;price;\"a;b\"\nx;y;z;w\n",
		"\ufeffOrder: 1\r\n\r\nVAT: 1\r\nTotal: 2\r\nprice\tproduct\tproduct_id\r\n1\ta\tb\r\n",
		"\xff\xfeO\x00r\x00", "Order: \xe9\nVAT: 1\nTotal: 1\n\nproduct,product_id,price\n\xe9,\xe8,1",
	} {
		f.Add([]byte(text))
	}
	for _, text := range hostileTexts(200) {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		order, problems := ticket.Parse(body)
		require.LessOrEqual(t, len(problems), ticket.MaxProblems+1)
		lines := strings.Count(string(body), "\n") + strings.Count(string(body), "\r") + 1
		for _, p := range problems {
			require.True(t, 0 <= p.Line && p.Line <= lines, "line %d of %d: %s", p.Line, lines, p.Message)
			require.NotEmpty(t, p.Code)
			require.Equal(t, p.Message, ticket.CleanText(p.Message, len(p.Message)), "a message is clean text")
		}
		requireClean(t, order)
		requireBounded(t, &ticket.Ticket{Body: body, Order: order, Problems: problems})
		if len(problems) > 0 {
			return
		}
		text := textOf(&order)
		again, problems := ticket.Parse(text)
		require.Empty(t, problems, "%q", text)
		require.Equal(t, order.Content(), again.Content(), "%q", text)
	})
}

// requireBounded looks for what a ticket becomes beyond its limits, or beyond what it is said to cost.
func requireBounded(t *testing.T, read *ticket.Ticket) {
	t.Helper()
	o := &read.Order
	require.LessOrEqual(t, len(o.Lines), ticket.MaxLines)
	require.LessOrEqual(t, len(o.Lines)*(len(o.Columns)+3), ticket.MaxCells)
	require.LessOrEqual(t, len(o.Extra), ticket.MaxFields)
	require.LessOrEqual(t, o.StoredBytes(), ticket.MaxStoredBytes)
	asJSON := func(texts ...string) (n int) {
		for _, s := range texts {
			n += len(s)
			for i := range len(s) {
				switch c := s[i]; {
				case c < ' ':
					n += len(`\u0000`) - 1
				case c == '"' || c == '\\':
					n++
				}
			}
		}
		return n
	}
	stored, memory := 0, len(read.Body)
	for _, f := range o.Extra {
		stored += len(`{"name":"","value":""},`) + asJSON(f.Name, f.Value)
		memory += len(f.Name) + len(f.Value)
	}
	for _, line := range o.Lines {
		stored += len(`{"product":"","product_id":"","price":},`) + asJSON(line.Name, line.ProductID, line.Price.String())
		memory += len(line.Name) + len(line.ProductID) + int(unsafe.Sizeof(line)) + int(unsafe.Sizeof(""))*cap(line.Extra)
		for _, value := range line.Extra {
			memory += len(value)
		}
	}
	for _, p := range read.Problems {
		stored += len(`{"line":,"code":"","message":""},`) + asJSON(strconv.Itoa(p.Line), p.Code, p.Message)
		memory += len(p.Message) + int(unsafe.Sizeof(p))
	}
	require.LessOrEqual(t, stored+memory, read.Cost())
}

func requireClean(t *testing.T, o ticket.Order) {
	t.Helper()
	texts := append([]string{o.Number}, o.Columns...)
	for _, f := range o.Extra {
		texts = append(texts, f.Name, f.Value)
	}
	for _, line := range o.Lines {
		texts = append(texts, line.Name, line.ProductID)
		texts = append(texts, line.Extra...)
		require.Len(t, line.Extra, len(o.Columns))
		require.True(t, line.Price.IsSet(), "a line without its price")
		require.NotEmpty(t, line.ProductID)
		require.NotEmpty(t, line.Name)
	}
	for _, s := range texts {
		require.Equal(t, ticket.CleanText(s, len(s)), s, "text that Postgres would refuse")
	}
}

func FuzzParseAmount(f *testing.F) {
	for _, s := range []string{"14.90", "3,10", "1 234,56", "-0.00", "1,234", "999999999999.999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ticket.ParseAmount(s)
		if err != nil {
			require.ErrorIs(t, err, ticket.ErrAmount)
			require.Equal(t, ticket.Amount{}, a)
			return
		}
		again, err := ticket.ParseAmount(a.String())
		require.NoError(t, err, a.String())
		require.Equal(t, a, again)
	})
}

func BenchmarkParse(b *testing.B) {
	texts := map[string]string{
		"sample":       readSample(b),
		"40 lines":     header + "product,product_id,price\n" + manyLines(40),
		"10,000 lines": header + "product,product_id,price\n" + manyLines(10_000),
	}
	for name, text := range hostileTexts(1 << 20) {
		texts["1 MiB of "+name] = text
	}
	for name, text := range texts {
		b.Run(name, func(b *testing.B) {
			body := []byte(text)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				ticket.Parse(body)
			}
		})
	}
}

func BenchmarkParseAmount(b *testing.B) {
	for _, text := range []string{"2", "14.90", "+14.90", "14,90", "1 234.50"} {
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ticket.ParseAmount(text) //nolint:errcheck // it is the time that counts
			}
		})
	}
}

func BenchmarkProducts(b *testing.B) {
	for _, lines := range []int{2, 8, 16, 24, 25, 40, 1000} {
		b.Run(strconv.Itoa(lines), func(b *testing.B) {
			order, _ := ticket.Parse([]byte(header + "product,product_id,price\n" + manyLines(lines)))
			b.ReportAllocs()
			for b.Loop() {
				order.Products()
			}
		})
	}
}
