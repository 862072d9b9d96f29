// Package dialect is the file format of dialects: how a source writes its tickets (ticket.Dialect), as YAML or JSON.
// docs/dialect.schema.json describes it to editors.
package dialect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"myticket/internal/ticket"
)

// MaxBytes is the size of the longest file that is read.
const MaxBytes = 64 << 10

// The formats of tickets.
const (
	formatText = "text"
	formatJSON = "json"
)

// The records that may be missing.
const (
	recordVAT   = "vat"
	recordTotal = "total"
)

// file is a dialect as it is written.
type file struct {
	Format    string    `json:"format,omitempty" yaml:"format,omitempty"`
	Records   *records  `json:"records,omitempty" yaml:"records,omitempty"`
	Columns   *columns  `json:"columns,omitempty" yaml:"columns,omitempty"`
	Pointers  *pointers `json:"pointers,omitempty" yaml:"pointers,omitempty"`
	Optional  []string  `json:"optional,omitempty" yaml:"optional,omitempty"`
	Separator string    `json:"separator,omitempty" yaml:"separator,omitempty"`
	Decimal   string    `json:"decimal,omitempty" yaml:"decimal,omitempty"`
	Encoding  string    `json:"encoding,omitempty" yaml:"encoding,omitempty"`
	PassOver  []match   `json:"pass_over,omitempty" yaml:"pass_over,omitempty"`
	End       []match   `json:"end,omitempty" yaml:"end,omitempty"`
}

type records struct {
	Order []string `json:"order,omitempty" yaml:"order,omitempty,flow"`
	VAT   []string `json:"vat,omitempty" yaml:"vat,omitempty,flow"`
	Total []string `json:"total,omitempty" yaml:"total,omitempty,flow"`
}

type columns struct {
	Product   []string `json:"product,omitempty" yaml:"product,omitempty,flow"`
	ProductID []string `json:"product_id,omitempty" yaml:"product_id,omitempty,flow"`
	Price     []string `json:"price,omitempty" yaml:"price,omitempty,flow"`
}

type pointers struct {
	Order     string `json:"order,omitempty" yaml:"order,omitempty"`
	VAT       string `json:"vat,omitempty" yaml:"vat,omitempty"`
	Total     string `json:"total,omitempty" yaml:"total,omitempty"`
	Lines     string `json:"lines" yaml:"lines"`
	Product   string `json:"product,omitempty" yaml:"product,omitempty"`
	ProductID string `json:"product_id,omitempty" yaml:"product_id,omitempty"`
	Price     string `json:"price,omitempty" yaml:"price,omitempty"`
}

// match is written as a text, or as {begins: text}.
type match ticket.Match

// begins is how the beginning of a line is written.
type begins struct {
	Begins string `json:"begins" yaml:"begins"`
}

func (m match) MarshalYAML() (any, error) {
	if m.Begins {
		return begins{m.Text}, nil
	}
	return m.Text, nil
}

func (m match) MarshalJSON() ([]byte, error) {
	if m.Begins {
		return json.Marshal(begins{m.Text})
	}
	return json.Marshal(m.Text)
}

// UnmarshalYAML reads both forms. The decoder does not check the keys of a node that is decoded here.
func (m *match) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.MappingNode {
		return node.Decode(&m.Text)
	}
	if len(node.Content) != 2 || node.Content[0].Value != "begins" {
		return fmt.Errorf("line %d: a line is a text, or has the one key begins", node.Line)
	}
	m.Begins = true
	return node.Content[1].Decode(&m.Text)
}

// Parse reads a dialect from YAML 1.2, of which JSON is a part. An unknown key, a key that is given twice, more than one
// document, and a dialect that contradicts itself are errors that name what is wrong; they wrap ticket.ErrDialect.
func Parse(content []byte) (ticket.Dialect, error) {
	if len(content) > MaxBytes {
		return ticket.Dialect{}, fmt.Errorf("%w: it has more than %d bytes", ticket.ErrDialect, MaxBytes)
	}
	var f file
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	err := decoder.Decode(&f)
	if err == nil && !errors.Is(decoder.Decode(new(yaml.Node)), io.EOF) {
		err = errors.New("there is a second document in it")
	}
	switch {
	case errors.Is(err, io.EOF):
		return ticket.Dialect{}, fmt.Errorf("%w: the file says nothing", ticket.ErrDialect)
	case err != nil:
		return ticket.Dialect{}, fmt.Errorf("%w: %s", ticket.ErrDialect, reason(err))
	}
	d, err := f.dialect()
	if err != nil {
		return ticket.Dialect{}, fmt.Errorf("%w: %w", ticket.ErrDialect, err)
	}
	if _, err := ticket.NewReader(d); err != nil {
		return ticket.Dialect{}, err
	}
	return d, nil
}

// maxReasons is how many things that are wrong with a file are named.
const maxReasons = 10

// reason is what the decoder says, in words of this package.
func reason(err error) string {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	list := slices.Clone(wrong.Errors[:min(len(wrong.Errors), maxReasons)]) // there may be one for each two keys that are the same
	for i := range list {
		if where, _, ok := strings.Cut(list[i], " not found in type "); ok {
			list[i] = strings.Replace(where, "field ", "unknown key ", 1)
		}
		list[i] = strings.Replace(list[i], "cannot unmarshal !!", "cannot be a ", 1)
	}
	return strings.Join(list, "; ")
}

func (f *file) dialect() (ticket.Dialect, error) {
	d := ticket.Dialect{Encoding: f.Encoding, PassOver: matches(f.PassOver), End: matches(f.End)}
	switch {
	case f.Format != "" && f.Format != formatText && f.Format != formatJSON:
		return d, fmt.Errorf("format is %q; it must be text (the default) or json", f.Format)
	case (f.Format == formatJSON) != (f.Pointers != nil):
		return d, errors.New("format: json and pointers belong together: pointers say where a JSON ticket has what it says")
	case len(f.Separator) > 1:
		return d, fmt.Errorf("separator is %q; it must be one sign", f.Separator)
	case len(f.Decimal) > 1:
		return d, fmt.Errorf("decimal is %q; it must be . or ,", f.Decimal)
	}
	if f.Separator != "" {
		d.Separator = f.Separator[0]
	}
	if f.Decimal != "" {
		d.Decimal = f.Decimal[0]
	}
	for i, name := range f.Optional {
		switch {
		case slices.Contains(f.Optional[:i], name):
			return d, fmt.Errorf("optional names %s twice", name)
		case name == recordVAT:
			d.VATOptional = true
		case name == recordTotal:
			d.TotalOptional = true
		default:
			return d, fmt.Errorf("optional names %q; only vat and total may be missing", name)
		}
	}
	if f.Records != nil {
		d.Order, d.VAT, d.Total = f.Records.Order, f.Records.VAT, f.Records.Total
	}
	if f.Columns != nil {
		d.Product, d.ProductID, d.Price = f.Columns.Product, f.Columns.ProductID, f.Columns.Price
	}
	if f.Pointers != nil {
		j := ticket.JSON(*f.Pointers)
		d.JSON = &j
	}
	return d, nil
}

func matches(list []match) []ticket.Match {
	var all []ticket.Match
	for _, m := range list {
		all = append(all, ticket.Match(m))
	}
	return all
}

func fileOf(d ticket.Dialect) file {
	f := file{Encoding: d.Encoding}
	for _, m := range d.PassOver {
		f.PassOver = append(f.PassOver, match(m))
	}
	for _, m := range d.End {
		f.End = append(f.End, match(m))
	}
	if len(d.Order)+len(d.VAT)+len(d.Total) > 0 {
		f.Records = &records{d.Order, d.VAT, d.Total}
	}
	if len(d.Product)+len(d.ProductID)+len(d.Price) > 0 {
		f.Columns = &columns{d.Product, d.ProductID, d.Price}
	}
	if d.VATOptional {
		f.Optional = append(f.Optional, recordVAT)
	}
	if d.TotalOptional {
		f.Optional = append(f.Optional, recordTotal)
	}
	if d.Separator != 0 {
		f.Separator = string(rune(d.Separator))
	}
	if d.Decimal != 0 {
		f.Decimal = string(rune(d.Decimal))
	}
	if d.JSON != nil {
		f.Format = formatJSON
		p := pointers(*d.JSON)
		f.Pointers = &p
	}
	return f
}

// JSON returns a dialect in the form that is kept in the database. Parse reads it.
func JSON(d ticket.Dialect) ([]byte, error) {
	content, err := json.Marshal(fileOf(d))
	if err != nil {
		return nil, fmt.Errorf("write a dialect: %w", err)
	}
	return content, nil
}

// YAML returns a dialect as a person reads it. Parse reads it.
func YAML(d ticket.Dialect) ([]byte, error) {
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(fileOf(d)), encoder.Close()); err != nil {
		return nil, fmt.Errorf("write a dialect: %w", err)
	}
	return b.Bytes(), nil
}
