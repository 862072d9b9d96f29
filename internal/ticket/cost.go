package ticket

// Cost returns how many bytes the ticket takes on its way into a store, never less than it really does: its body, what
// was read from it, and the row that both become. Whatever bounds tickets in bytes (a batch, what waits, a drain) counts
// this, because a short body may become a long row.
func (t *Ticket) Cost() int {
	const ticketCost, lineCost, fieldCost = 1024, 160, 64
	n := ticketCost + 2*len(t.Body) + len(t.ContentType) + lineCost*len(t.Order.Lines)
	for _, p := range t.Problems {
		n += fieldCost + 2*len(p.Message)
	}
	for _, f := range t.Order.Extra {
		n += fieldCost + 2*(len(f.Name)+len(f.Value))
	}
	for i := range t.Order.Lines {
		line := &t.Order.Lines[i]
		n += 2 * (len(line.Name) + len(line.ProductID))
		for _, f := range line.Extra {
			n += fieldCost + 2*(len(f.Name)+len(f.Value))
		}
	}
	return n
}
