package ticket

import "strings"

// fewLines is up to how many lines looking through all of them is faster than a map (BenchmarkProducts).
const fewLines = 24

// Products returns what an order says about products: each once, in the order of its first line, with the words of its
// last one.
func (o *Order) Products() []Product {
	products := make([]Product, 0, len(o.Lines))
	if len(o.Lines) <= fewLines {
	lines:
		for _, line := range o.Lines {
			for i := range products {
				if products[i].ID == line.ProductID {
					products[i] = Product{line.ProductID, line.Name, line.Price}
					continue lines
				}
			}
			products = append(products, Product{line.ProductID, line.Name, line.Price})
		}
		return products
	}
	index := make(map[string]int, len(o.Lines))
	for _, line := range o.Lines {
		i, ok := index[line.ProductID]
		if !ok {
			i = len(products)
			index[line.ProductID] = i
			products = append(products, Product{})
		}
		products[i] = Product{line.ProductID, line.Name, line.Price}
	}
	return products
}

// AppendText appends the order in the form of the sample. Parse reads the same Order from it, for every Order that Parse
// has returned without problems.
func (o *Order) AppendText(b []byte) []byte {
	b = append(append(b, "Order: "...), o.Number...)
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
