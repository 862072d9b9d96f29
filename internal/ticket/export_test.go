package ticket

// Content returns the Order without its size, because two texts of different size may say the same.
func (o *Order) Content() Order {
	content := *o
	content.size = size{}
	return content
}

// JSONTokens returns the tokens of a JSON text, as the reader of JSON tickets finds them.
func JSONTokens(text string) (tokens []string, err error) {
	j := newJSONText(text)
	var value func() error
	value = func() error {
		kind := j.peek()
		if kind != '{' && kind != '[' {
			text, err := j.scalar()
			tokens = append(tokens, text)
			return err
		}
		tokens = append(tokens, string(kind))
		for first := true; ; first = false {
			var name string
			var ok bool
			var err error
			if kind == '{' {
				name, ok, err = j.member(first)
			} else {
				ok, err = j.element(first, ']')
			}
			if err != nil {
				return err
			}
			if !ok {
				tokens = append(tokens, string(kind+2))
				return nil
			}
			if kind == '{' {
				tokens = append(tokens, name)
			}
			if err := value(); err != nil {
				return err
			}
		}
	}
	if err := value(); err != nil {
		return nil, err
	}
	if j.peek() != 0 || j.at < len(text) {
		return nil, j.unexpected("nothing more")
	}
	return tokens, nil
}

// SkipJSON passes over a whole JSON text.
func SkipJSON(text string) error {
	j := newJSONText(text)
	if err := j.skip(); err != nil {
		return err
	}
	if j.peek() != 0 || j.at < len(text) {
		return j.unexpected("nothing more")
	}
	return nil
}
