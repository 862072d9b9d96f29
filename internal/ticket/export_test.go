package ticket

// Content returns the Order without its size, because two texts of different size may say the same.
func (o *Order) Content() Order {
	content := *o
	content.size = size{}
	return content
}
