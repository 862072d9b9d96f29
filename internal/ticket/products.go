package ticket

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
