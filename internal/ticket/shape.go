package ticket

import (
	"errors"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
)

// Shape returns what the problem is about: its message up to a semicolon, behind which is what to do or what was not read, with …
// for each quoted text and N for each number. Messages are ours, so there are few shapes. A shape has at most as many characters
// as the message.
func (p Problem) Shape() string { return string(appendShape(nil, p.Message)) }

func appendShape(b []byte, message string) []byte {
	for i := 0; i < len(message); {
		switch c := message[i]; {
		case c == '"':
			b = append(b, "…"...)
			i = quoteEnd(message, i)
		case isDigit(c):
			b = append(b, 'N')
			i = numberEnd(message, i)
		case c == ';':
			return b
		default:
			b = append(b, c)
			i++
		}
	}
	return b
}

// quoteEnd returns where a text ends that strconv.Quote wrote, and that begins at start.
func quoteEnd(message string, start int) int {
	for i := start + 1; i < len(message); i++ {
		switch message[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(message) // the message was cut
}

// numberEnd returns where a number ends that begins at start: 3, 3.10 or 1e+06.
func numberEnd(message string, start int) int {
	digitAt := func(i int) bool { return i < len(message) && isDigit(message[i]) }
	for i := start; ; {
		switch {
		case digitAt(i):
			i++
		case i >= len(message):
			return i
		case message[i] == '.' && digitAt(i+1):
			i++
		case message[i] == 'e' && i+1 < len(message) && (message[i+1] == '+' || message[i+1] == '-') && digitAt(i+2):
			i += 2
		default:
			return i
		}
	}
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// Kind is what a problem is about, without the values of one ticket.
type Kind struct {
	Code  string `json:"code"`
	Shape string `json:"shape"`
}

// MaxKinds is how many kinds of problems count for a group.
const MaxKinds = 5

// Kinds returns the first MaxKinds different kinds of problems, in the order of their codes and shapes. Others reports whether
// there are more.
func Kinds(problems []Problem) (kinds []Kind, others bool) {
	var scratch [256]byte
	for i := range problems {
		p := &problems[i]
		shape := appendShape(scratch[:0], p.Message)
		if slices.ContainsFunc(kinds, func(k Kind) bool { return k.Code == p.Code && k.Shape == string(shape) }) {
			continue
		}
		if len(kinds) == MaxKinds {
			others = true
			break
		}
		kinds = append(kinds, Kind{p.Code, string(shape)})
	}
	slices.SortFunc(kinds, func(a, b Kind) int {
		if c := strings.Compare(a.Code, b.Code); c != 0 {
			return c
		}
		return strings.Compare(a.Shape, b.Shape)
	})
	return kinds, others
}

// Group is a number for all tickets that failed in the same way, which is with the same kinds of problems. It is stored with
// them, so how it is computed must not change. As text it has 16 hexadecimal digits. 0 is no group.
type Group int64 //nolint:recvcheck // reading one changes it

// GroupOf returns the group of a ticket's problems.
func GroupOf(problems []Problem) Group {
	kinds, others := Kinds(problems)
	hash := fnv.New64a() // it need not be stronger, because no sender can choose a shape
	for _, k := range kinds {
		_, _ = hash.Write(append(append([]byte(k.Code), 0), k.Shape...))
		_, _ = hash.Write([]byte{0})
	}
	if others {
		_, _ = hash.Write([]byte("others"))
	}
	return Group(max(hash.Sum64(), 1))
}

// String returns the group as text.
func (g Group) String() string {
	digits := strconv.FormatUint(uint64(g), 16)
	return strings.Repeat("0", 16-len(digits)) + digits
}

// MarshalText returns the group as text.
func (g Group) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText reads a group.
func (g *Group) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || len(text) != 16 || n == 0 {
		return errors.New("write the 16 hexadecimal digits of a group that `myticket problems` lists")
	}
	*g = Group(n)
	return nil
}
