package ticket

// Content returns the Order without what it took to read it: two texts may say the same.
func (o *Order) Content() Order {
	content := *o
	content.size = size{}
	return content
}
