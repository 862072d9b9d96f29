package ticket

import (
	"strconv"
	"unicode/utf8"
)

// AppendJSON appends s as a JSON string (RFC 8259, section 7): as json.Marshal does, but it does not escape characters that are
// only special in HTML. Each byte that is no UTF-8 becomes U+FFFD. Ticket.Cost counts its bytes; what is read from a ticket is
// UTF-8.
func AppendJSON(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	if !utf8.ValidString(s) {
		s = string([]rune(s))
	}
	b = append(b, '"')
	plain := 0 // s[plain:i] is not appended yet
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[plain:i]...)
		plain = i + 1
		if c < 0x20 {
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&0xf])
		} else {
			b = append(b, '\\', c)
		}
	}
	b = append(b, s[plain:]...)
	return append(b, '"')
}

// AppendProblems appends problems as a JSON array. Ticket.Cost counts its bytes.
func AppendProblems(b []byte, problems []Problem) []byte {
	b = append(b, '[')
	for i := range problems {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"line":`...), int64(problems[i].Line), 10)
		b = AppendJSON(append(b, `,"code":`...), problems[i].Code)
		b = AppendJSON(append(b, `,"message":`...), problems[i].Message)
		b = append(b, '}')
	}
	return append(b, ']')
}
