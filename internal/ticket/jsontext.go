package ticket

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxJSONDepth is how many objects and arrays may be inside of each other.
const maxJSONDepth = 10_000

// jsonText reads a JSON text (RFC 8259) from its beginning to its end. It makes no copy of a string that has no escapes, because
// most time goes into copies. It is as strict as encoding/json/v2: strings are valid UTF-8, and their escapes make characters.
// Only names may repeat.
//
// After an error nothing more may be read. at is then where it was found.
type jsonText struct {
	text    string
	at      int
	invalid bool   // the text is not UTF-8 as a whole, so each string is checked
	open    []byte // scratch memory of skip
	plain   []byte // scratch memory of escaped
}

func newJSONText(text string) jsonText { return jsonText{text: text, invalid: !utf8.ValidString(text)} }

// peek goes to the next token, and returns its first character, or 0 at the end.
func (j *jsonText) peek() byte {
	for ; j.at < len(j.text); j.at++ {
		switch c := j.text[j.at]; c {
		case ' ', '\n', '\r', '\t':
		default:
			return c
		}
	}
	return 0
}

// unexpected is the error of a text that does not go on as it must.
func (j *jsonText) unexpected(wanted string) error {
	if j.at >= len(j.text) {
		return fmt.Errorf("it ends where %s must come", wanted)
	}
	_, size := utf8.DecodeRuneInString(j.text[j.at:])
	return fmt.Errorf("%s must come here, not %q", wanted, j.text[j.at:j.at+size])
}

// member goes to the value of the next member of an object, and returns its name. Without another one it leaves the object.
// The first call enters the object.
func (j *jsonText) member(first bool) (name string, ok bool, err error) {
	if ok, err = j.element(first, '}'); !ok || err != nil {
		return "", false, err
	}
	if j.peek() != '"' {
		return "", false, j.unexpected("a name in quotes")
	}
	if name, err = j.string(); err != nil {
		return "", false, err
	}
	if j.peek() != ':' {
		return "", false, j.unexpected("a colon")
	}
	j.at++
	return name, true, nil
}

// element goes to the next element of an array, or, with the other end, to the next member of an object. Without another one it
// leaves the array. The first call enters the array.
func (j *jsonText) element(first bool, end byte) (ok bool, err error) {
	if first {
		j.at++
		if j.peek() != end {
			return true, nil
		}
	}
	switch j.peek() {
	case end:
		j.at++
		return false, nil
	case ',':
		j.at++
		return true, nil
	}
	return false, j.unexpected("a comma or " + strconv.Quote(string(end)))
}

// skip passes over the next value.
func (j *jsonText) skip() error {
	j.open = j.open[:0] // the ends of the objects and arrays that it is inside of
	for {
		first := false
		switch c := j.peek(); c {
		case '{', '[':
			if len(j.open) == maxJSONDepth {
				return fmt.Errorf("more than %d objects and arrays are inside of each other", maxJSONDepth)
			}
			j.open, first = append(j.open, c+2), true // the end of each is two after its beginning
		default:
			if _, err := j.scalar(); err != nil {
				return err
			}
		}
		// What ends with this value.
		for {
			if len(j.open) == 0 {
				return nil
			}
			var more bool
			var err error
			if end := j.open[len(j.open)-1]; end == '}' {
				_, more, err = j.member(first)
			} else {
				more, err = j.element(first, end)
			}
			if err != nil {
				return err
			}
			if more {
				break
			}
			j.open, first = j.open[:len(j.open)-1], false
		}
	}
}

// scalar reads the next value, which is no object and no array: a string without its escapes, or anything else as it is written.
func (j *jsonText) scalar() (string, error) {
	switch c := j.peek(); c {
	case '"':
		return j.string()
	case 't':
		return j.literal("true")
	case 'f':
		return j.literal("false")
	case 'n':
		return j.literal("null")
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return j.number()
	}
	return "", j.unexpected("a value")
}

func (j *jsonText) literal(word string) (string, error) {
	for i := range len(word) {
		if j.at >= len(j.text) || j.text[j.at] != word[i] {
			return "", j.unexpected(word)
		}
		j.at++
	}
	return word, nil
}

// number reads a number (RFC 8259, section 6).
func (j *jsonText) number() (string, error) {
	start := j.at
	if j.text[j.at] == '-' {
		j.at++
	}
	if j.at < len(j.text) && j.text[j.at] == '0' {
		j.at++
	} else if !j.digits() {
		return "", j.unexpected("a digit")
	}
	if j.at < len(j.text) && j.text[j.at] == '.' {
		j.at++
		if !j.digits() {
			return "", j.unexpected("a digit")
		}
	}
	if j.at < len(j.text) && j.text[j.at]|0x20 == 'e' {
		j.at++
		if j.at < len(j.text) && (j.text[j.at] == '-' || j.text[j.at] == '+') {
			j.at++
		}
		if !j.digits() {
			return "", j.unexpected("a digit")
		}
	}
	return j.text[start:j.at], nil
}

// digits reports whether there are digits, and passes over them.
func (j *jsonText) digits() bool {
	start := j.at
	for j.at < len(j.text) && j.text[j.at]-'0' <= 9 {
		j.at++
	}
	return j.at > start
}

// string reads a string, and returns it without its escapes.
func (j *jsonText) string() (string, error) {
	start := j.at + 1
	for i := start; i < len(j.text); i++ {
		switch c := j.text[i]; {
		case c == '"':
			j.at = i + 1
			return j.checked(j.text[start:i], start)
		case c == '\\':
			j.at = i
			return j.escaped(start)
		case c < ' ':
			j.at = i
			return "", j.unexpected("the rest of a string, in which a control character must be escaped,")
		}
	}
	j.at = len(j.text)
	return "", j.unexpected("the rest of a string")
}

// checked returns a part of the text, or an error if it is not UTF-8.
func (j *jsonText) checked(part string, start int) (string, error) {
	if !j.invalid || utf8.ValidString(part) {
		return part, nil
	}
	for i, c := range part {
		if _, size := utf8.DecodeRuneInString(part[i:]); c == utf8.RuneError && size == 1 {
			j.at = start + i
			break
		}
	}
	return "", j.unexpected("UTF-8")
}

// escaped reads the rest of a string from its first escape on, and returns the whole.
func (j *jsonText) escaped(start int) (string, error) {
	j.plain = j.plain[:0]
	for {
		part, err := j.checked(j.text[start:j.at], start)
		if err != nil {
			return "", err
		}
		j.plain = append(j.plain, part...)
		if j.at >= len(j.text) {
			return "", j.unexpected("the rest of a string")
		}
		switch c := j.text[j.at]; {
		case c == '"':
			j.at++
			return string(j.plain), nil
		case c != '\\':
			return "", j.unexpected("the rest of a string, in which a control character must be escaped,")
		}
		c, err := j.escape()
		if err != nil {
			return "", err
		}
		j.plain = utf8.AppendRune(j.plain, c)
		for start = j.at; j.at < len(j.text); j.at++ {
			if c := j.text[j.at]; c == '"' || c == '\\' || c < ' ' {
				break
			}
		}
	}
}

// escape reads an escape (RFC 8259, section 7).
func (j *jsonText) escape() (rune, error) {
	const letters, are = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	j.at++
	if j.at < len(j.text) {
		if i := strings.IndexByte(letters, j.text[j.at]); i >= 0 {
			j.at++
			return rune(are[i]), nil
		}
	}
	first, err := j.hex()
	if err != nil || !utf16.IsSurrogate(first) {
		return first, err
	}
	if j.at < len(j.text) && j.text[j.at] == '\\' {
		j.at++
		second, err := j.hex()
		if err != nil {
			return 0, err
		}
		if c := utf16.DecodeRune(first, second); c != utf8.RuneError {
			return c, nil
		}
	}
	return 0, j.unexpected("the other half of a character, after an escaped surrogate,")
}

// hex reads what follows the backslash of an escape such as \u00e9.
func (j *jsonText) hex() (rune, error) {
	if j.at >= len(j.text) || j.text[j.at] != 'u' {
		return 0, j.unexpected("one of \"\\/bfnrtu after a backslash")
	}
	j.at++
	var value rune
	for range 4 {
		if j.at >= len(j.text) {
			return 0, j.unexpected("a hexadecimal digit")
		}
		c := j.text[j.at]
		switch {
		case c-'0' <= 9:
			c -= '0'
		case c|0x20-'a' < 6:
			c = c | 0x20 - 'a' + 10
		default:
			return 0, j.unexpected("a hexadecimal digit")
		}
		value = value<<4 | rune(c)
		j.at++
	}
	return value, nil
}
