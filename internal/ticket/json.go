package ticket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
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
	members map[string]*place // by the name or the index of a value
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
		pointer := jsontext.Pointer(one.pointer)
		if one.pointer == "" || !pointer.IsValid() || len(pointer) > MaxDialectText {
			return nil, fmt.Errorf("%w: %s is %q, which must be a JSON Pointer (RFC 6901) such as /receipt/number, of at most %d bytes",
				ErrDialect, one.name, one.pointer, MaxDialectText)
		}
		if err := one.from.add(slices.Collect(pointer.Tokens()), one.is); err != nil {
			return nil, fmt.Errorf("%w: %s is %q, %w", ErrDialect, one.name, one.pointer, err)
		}
	}
	return p, nil
}

// add adds what is read at the end of a path.
func (p *place) add(path []string, is what) error {
	for _, name := range path {
		if p.is != nothing {
			return errors.New("which is inside of another value that is read")
		}
		next := p.members[name]
		if next == nil {
			next = &place{}
			if p.members == nil {
				p.members = map[string]*place{}
			}
			p.members[name] = next
		}
		p = next
	}
	if p.is != nothing || len(p.members) > 0 {
		return errors.New("where another value is read, too")
	}
	p.is = is
	return nil
}

// jsonReader reads a document token by token, and keeps only what is read.
type jsonReader struct {
	parser

	body    []byte
	decoder *jsontext.Decoder
	places  *places
	counted int  // bytes of the body whose lines are counted in parser.line
	found   bool // there is a product list
	noArray bool // it is no array, which is a problem already
	lines   int
	gaveUp  bool // nothing more is read

	texts [productPrice + 1]string // what the product line has
	has   [productPrice + 1]bool
}

// parseJSON reads a ticket that is JSON.
func (r *Reader) parseJSON(body []byte) (Order, []Problem) {
	body = bytes.TrimPrefix(body, []byte("\ufeff"))
	j := &jsonReader{parser: parser{reader: r, line: 1}, body: body, places: r.json}
	j.decoder = jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true))
	err := j.value(r.json.document)
	if err == nil && !j.gaveUp {
		if _, err = j.decoder.ReadToken(); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("there is more after its end")
		}
	}
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return Order{}, []Problem{{Code: ProblemEmpty, Message: "the ticket has only blank lines"}}
	case err != nil:
		at := j.lineAt(j.decoder.InputOffset())
		j.problemf(at, ProblemJSONInvalid, "the ticket is not JSON from here on, and nothing more was read: %s",
			quote(reason(err)))
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

// reason is what a decoder says, without the name of its package.
func reason(err error) string { return strings.TrimPrefix(err.Error(), "jsontext: ") }

// lineAt returns the line of a place in the body. Places come in their order.
func (j *jsonReader) lineAt(offset int64) int {
	at := min(int(offset), len(j.body))
	if at > j.counted {
		part := j.body[j.counted:at]
		j.line += bytes.Count(part, []byte("\n"))
		j.counted = at
	}
	return j.line
}

// value reads the next value, which is at a place; nil for one that leads nowhere.
func (j *jsonReader) value(at *place) error {
	if at == nil || j.gaveUp {
		return j.decoder.SkipValue()
	}
	kind := j.decoder.PeekKind()
	switch {
	case at.is == productList:
		return j.list(kind)
	case at.is != nothing:
		return j.scalar(at.is, kind)
	case kind == jsontext.KindBeginObject:
		return j.members(at)
	case kind == jsontext.KindBeginArray:
		return j.elements(func(i int) error { return j.value(at.members[itoa(i)]) })
	}
	return j.decoder.SkipValue()
}

func (j *jsonReader) members(at *place) error {
	if _, err := j.decoder.ReadToken(); err != nil {
		return err
	}
	for j.decoder.PeekKind() != jsontext.KindEndObject {
		name, err := j.decoder.ReadToken()
		if err != nil {
			return err
		}
		if err := j.value(at.members[name.String()]); err != nil {
			return err
		}
	}
	_, err := j.decoder.ReadToken()
	return err
}

func (j *jsonReader) elements(each func(int) error) error {
	if _, err := j.decoder.ReadToken(); err != nil {
		return err
	}
	for i := 0; j.decoder.PeekKind() != jsontext.KindEndArray; i++ {
		if err := each(i); err != nil {
			return err
		}
	}
	_, err := j.decoder.ReadToken()
	return err
}

// list reads the product list.
func (j *jsonReader) list(kind jsontext.Kind) error {
	switch {
	case kind != jsontext.KindBeginArray:
		j.noArray = true
		return j.unexpected("the product list", "an array", kind)
	case j.found:
		j.problemf(j.here(), ProblemHeaderConflict, "the product list appears twice; the second one was not read")
		return j.decoder.SkipValue()
	}
	j.found = true
	return j.elements(func(int) error {
		if j.gaveUp {
			return j.decoder.SkipValue()
		}
		number := j.here()
		if j.lines++; j.tooManyLines(number, j.lines, knownColumns) {
			j.gaveUp = true
			return j.decoder.SkipValue()
		}
		return j.productAt(number)
	})
}

// productAt reads an element of the product list.
func (j *jsonReader) productAt(number int) error {
	if kind := j.decoder.PeekKind(); kind != jsontext.KindBeginObject && kind != jsontext.KindBeginArray {
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
	j.order.size.text += len(line.Name) + len(line.ProductID)
	j.addLine(line)
	j.gaveUp = j.tooLarge(number)
	return nil
}

// here returns the line on which the next value begins.
func (j *jsonReader) here() int {
	at := int(j.decoder.InputOffset())
	for at < len(j.body) && strings.IndexByte(" \t\r\n,:", j.body[at]) >= 0 {
		at++
	}
	return j.lineAt(int64(at))
}

// unexpected skips a value that is of another kind than it must be, and notes a problem.
func (j *jsonReader) unexpected(name, wanted string, kind jsontext.Kind) error {
	if number := j.here(); kind != jsontext.KindInvalid && j.listing() {
		j.problemf(number, ProblemJSONUnexpected, "%s must be %s, and is %s", name, wanted, kindNames[kind])
	}
	return j.decoder.SkipValue()
}

// kindNames are what problems call the kinds of values.
var kindNames = map[jsontext.Kind]string{
	jsontext.KindNull: "null", jsontext.KindTrue: "true", jsontext.KindFalse: "false", jsontext.KindString: "a text",
	jsontext.KindNumber: "a number", jsontext.KindBeginObject: "an object", jsontext.KindBeginArray: "an array",
}

// names are what problems call the values.
var names = [...]string{
	orderNumber: "the order number", vatAmount: "VAT", totalAmount: "Total",
	productName: "the product's name", productID: "the product_id", productPrice: "the price",
}

// scalar reads a text or a number. A value that is null is as one that is missing.
func (j *jsonReader) scalar(is what, kind jsontext.Kind) error {
	switch kind {
	case jsontext.KindNull:
		return j.decoder.SkipValue()
	case jsontext.KindString, jsontext.KindNumber:
	default:
		return j.unexpected(names[is], "a text or a number", kind)
	}
	number := j.here()
	token, err := j.decoder.ReadToken()
	if err != nil {
		return err
	}
	text := trim(token.String())
	if strings.IndexByte(text, 0) >= 0 {
		if j.listing() {
			j.problemf(number, ProblemNUL, "%s has a NUL character, which a text must not have: %s", names[is], quote(text))
		}
		return nil
	}
	j.take(is, text, number)
	return nil
}

// take keeps what was read.
func (j *jsonReader) take(is what, text string, number int) {
	switch {
	case is == orderNumber:
		j.seen.order = true
		j.order.size.text += min(len(text), 4*MaxNumberLength)
		j.orderRecord(text)
	case is == vatAmount:
		j.seen.vat = true
		j.amountRecord("VAT", &j.order.VAT, text)
	case is == totalAmount:
		j.seen.total = true
		j.amountRecord("Total", &j.order.Total, text)
	case !j.has[is]:
		j.texts[is], j.has[is] = text, true
	case j.listing():
		j.problemf(number, ProblemHeaderConflict, "%s appears twice in one product line", names[is])
	}
}
