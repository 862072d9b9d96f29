package ticket

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// JSON says where a JSON document has what a ticket says, in JSON Pointers (RFC 6901). Those of a product begin at an element of
// the array at Lines. VAT and Total may be empty if the dialect lets them be missing. All else in the document is passed over.
type JSON struct {
	Order, VAT, Total         string
	Lines                     string
	Product, ProductID, Price string
}

// place is where a document leads from some value on: to what is read, or further.
type place struct {
	is      what
	members []member // at most one for each pointer
}

// member is where a place leads to by the name or the index of a value.
type member struct {
	name string
	to   *place
}

// to returns where a place leads to, or nil.
func (p *place) to(name string) *place {
	for i := range p.members {
		if m := &p.members[i]; m.name == name {
			return m.to
		}
	}
	return nil
}

// what is read at a place.
type what uint8

const (
	nothing what = iota
	orderNumber
	vatAmount
	totalAmount
	productList
	productName
	productID
	productPrice
)

// places are the places of a dialect: from the document on, and from an element of the product list on.
type places struct{ document, line *place }

func newPlaces(d Dialect) (*places, error) {
	p := &places{&place{}, &place{}}
	j := d.JSON
	for _, one := range []struct {
		from     *place
		is       what
		name     string
		pointer  string
		optional bool
	}{
		{p.document, orderNumber, "order", j.Order, false}, {p.document, vatAmount, "vat", j.VAT, d.VATOptional},
		{p.document, totalAmount, "total", j.Total, d.TotalOptional}, {p.document, productList, "lines", j.Lines, false},
		{p.line, productName, "product", j.Product, false}, {p.line, productID, "product_id", j.ProductID, false},
		{p.line, productPrice, "price", j.Price, false},
	} {
		if one.pointer == "" && one.optional {
			continue
		}
		path, ok := pathOf(one.pointer)
		if !ok || len(one.pointer) > MaxDialectText {
			return nil, fmt.Errorf("%w: %s is %q, which must be a JSON Pointer (RFC 6901) such as /receipt/number, of at most %d bytes",
				ErrDialect, one.name, one.pointer, MaxDialectText)
		}
		if err := one.from.add(path, one.is); err != nil {
			return nil, fmt.Errorf("%w: %s is %q, %w", ErrDialect, one.name, one.pointer, err)
		}
	}
	return p, nil
}

// pathOf returns the names of a JSON Pointer (RFC 6901, section 3), of which there is at least one.
func pathOf(pointer string) (path []string, ok bool) {
	escapes := strings.NewReplacer("~0", "~", "~1", "/")
	names := strings.Split(pointer, "/")
	for _, name := range names[1:] {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(name), "~") {
			return nil, false
		}
		path = append(path, escapes.Replace(name))
	}
	return path, names[0] == "" && len(path) > 0 && utf8.ValidString(pointer)
}

// add adds what is read at the end of a path.
func (p *place) add(path []string, is what) error {
	for _, name := range path {
		if p.is != nothing {
			return errors.New("which is inside of another value that is read")
		}
		next := p.to(name)
		if next == nil {
			next = &place{}
			p.members = append(p.members, member{name, next})
		}
		p = next
	}
	if p.is != nothing || len(p.members) > 0 {
		return errors.New("where another value is read, too")
	}
	p.is = is
	return nil
}

// jsonReader reads a document once, value by value, and keeps only what is read.
type jsonReader struct {
	parser

	json    jsonText
	places  *places
	counted int  // bytes of the text whose lines are counted in parser.line
	found   bool // there is a product list
	noArray bool // it is no array, which is a problem already
	lines   int
	gaveUp  bool // nothing more is read

	texts [productPrice + 1]string // what the product line has
	has   [productPrice + 1]bool
}

// parseJSON reads a ticket that is JSON.
func (r *Reader) parseJSON(body []byte) (Order, []Problem) {
	text := strings.TrimPrefix(string(body), "\ufeff")
	j := &jsonReader{parser: parser{reader: r, line: 1}, json: newJSONText(text), places: r.json}
	if j.json.peek() == 0 && j.json.at == len(text) {
		return Order{}, []Problem{{Code: ProblemEmpty, Message: "the ticket has only blank lines"}}
	}
	j.order.size.text = len(text)
	err := j.value(r.json.document)
	if err == nil && !j.gaveUp && (j.json.peek() != 0 || j.json.at < len(text)) {
		err = j.json.unexpected("nothing more")
	}
	switch {
	case err != nil:
		j.problemf(j.here(), ProblemJSONInvalid, "the ticket is not JSON from here on, and nothing more was read: %v", err)
	default:
		j.missing()
		if !j.gaveUp && !j.noArray && j.lines == 0 {
			j.problemf(0, ProblemNoProducts, "the ticket lists no product at %s", quote(r.dialect.JSON.Lines))
		}
	}
	if len(j.order.Lines) == 0 {
		j.order.Lines = nil
	}
	return j.result()
}

// here returns the line of the place to which the text was read.
func (j *jsonReader) here() int {
	j.line += strings.Count(j.json.text[j.counted:j.json.at], "\n")
	j.counted = j.json.at
	return j.line
}

// value reads the next value, which is at a place; nil for one that leads nowhere.
func (j *jsonReader) value(at *place) error {
	if at == nil || j.gaveUp {
		return j.json.skip()
	}
	kind := j.json.peek()
	switch {
	case at.is == productList:
		return j.list(kind)
	case at.is != nothing:
		return j.scalar(at.is, kind)
	case kind == '{':
		return j.members(at)
	case kind == '[':
		return j.elements(func(i int) error { return j.value(at.to(itoa(i))) })
	}
	return j.json.skip()
}

func (j *jsonReader) members(at *place) error {
	for first := true; ; first = false {
		name, ok, err := j.json.member(first)
		if !ok || err != nil {
			return err
		}
		if err := j.value(at.to(name)); err != nil {
			return err
		}
	}
}

func (j *jsonReader) elements(each func(int) error) error {
	for i := 0; ; i++ {
		if ok, err := j.json.element(i == 0, ']'); !ok || err != nil {
			return err
		}
		if err := each(i); err != nil {
			return err
		}
	}
}

// list reads the product list.
func (j *jsonReader) list(kind byte) error {
	switch {
	case kind != '[':
		j.noArray = true
		return j.unexpected("the product list", "an array", kind)
	case j.found:
		j.problemf(j.here(), ProblemHeaderConflict, "the product list appears twice; the second one was not read")
		return j.json.skip()
	}
	j.found = true
	j.order.Lines = make([]Line, 0, mostJSONLines(j.json.text[j.json.at:]))
	return j.elements(func(int) error {
		if j.gaveUp {
			return j.json.skip()
		}
		kind, number := j.json.peek(), j.here()
		if j.lines++; j.tooManyLines(number, j.lines, knownColumns) {
			j.gaveUp = true
			return j.json.skip()
		}
		return j.productAt(number, kind)
	})
}

// mostJSONLines estimates the product lines in a text. Most lines are objects without others inside, so this is the number of
// objects. But a text in quotes may be full of braces, so they are no more than the shortest lines that are objects.
func mostJSONLines(text string) int {
	return min(strings.Count(text, "{"), len(text)/len(`{"a":[1,2,3]},`)+1, MaxLines)
}

// productAt reads an element of the product list.
func (j *jsonReader) productAt(number int, kind byte) error {
	if kind != '{' && kind != '[' {
		return j.unexpected("a product line", "an object", kind)
	}
	j.texts, j.has = [productPrice + 1]string{}, [productPrice + 1]bool{}
	before := len(j.problems) + j.unlisted
	if err := j.value(j.places.line); err != nil {
		return err
	}
	line := Line{Name: j.texts[productName], ProductID: j.texts[productID]}
	if len(j.problems)+j.unlisted == before {
		j.checkLine(&line, j.texts[productPrice], number)
	}
	if len(j.problems)+j.unlisted != before {
		return nil
	}
	j.addLine(line)
	j.gaveUp = j.tooLarge(number)
	return nil
}

// unexpected skips a value that is of another kind than it must be, and notes a problem.
func (j *jsonReader) unexpected(name, wanted string, kind byte) error {
	if is := kindOf(kind); is != "" && j.listing() {
		j.problemf(j.here(), ProblemJSONUnexpected, "%s must be %s, and is %s", name, wanted, is)
	}
	return j.json.skip()
}

// kindOf is what problems call the kind of a value that begins so, or "" for what is no value.
func kindOf(first byte) string {
	switch first {
	case 'n':
		return "null"
	case 't':
		return "true"
	case 'f':
		return "false"
	case '"':
		return "a text"
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return "a number"
	}
	return ""
}

// names are what problems call the values.
var names = [...]string{
	orderNumber: "the order number", vatAmount: "VAT", totalAmount: "Total",
	productName: "the product's name", productID: "the product_id", productPrice: "the price",
}

// scalar reads a text or a number. A value that is null is as one that is missing.
func (j *jsonReader) scalar(is what, kind byte) error {
	switch kind {
	case '{', '[', 't', 'f':
		return j.unexpected(names[is], "a text or a number", kind)
	}
	before := j.json.at
	text, err := j.json.scalar()
	if err != nil || kind == 'n' {
		return err
	}
	escaped := kind == '"' && len(text) < j.json.at-before-len(`""`)
	if escaped { // it is a copy
		j.order.size.text += len(text)
	}
	text = trim(text)
	if escaped && strings.IndexByte(text, 0) >= 0 { // without escapes, no control character is in a string
		if j.listing() {
			j.problemf(j.here(), ProblemNUL, "%s has a NUL character, which a text must not have: %s", names[is], quote(text))
		}
		return nil
	}
	j.take(is, text)
	return nil
}

// take keeps what was read.
func (j *jsonReader) take(is what, text string) {
	switch {
	case is == orderNumber:
		j.seen.order = true
		j.here()
		j.orderRecord(text)
	case is == vatAmount:
		j.seen.vat = true
		j.here()
		j.amountRecord("VAT", &j.order.VAT, text)
	case is == totalAmount:
		j.seen.total = true
		j.here()
		j.amountRecord("Total", &j.order.Total, text)
	case !j.has[is]:
		j.texts[is], j.has[is] = text, true
	case j.listing():
		j.problemf(j.here(), ProblemHeaderConflict, "%s appears twice in one product line", names[is])
	}
}
