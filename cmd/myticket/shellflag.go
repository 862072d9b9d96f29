package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// shellFlag returns a flag in a form that a shell takes as it is, whatever its value is: people paste command lines, and the
// value may come from a ticket. A value with other than plain characters is written as $'…' (POSIX.1-2024, XCU 2.2.4). A
// shell expands nothing in it, and control characters can be escaped for the terminal. A quote is escaped by its number, so
// that a shell that does not know $'…' expands nothing either.
func shellFlag(name, value string) string {
	separator, plain := " ", true
	if strings.HasPrefix(value, "-") {
		separator = "=" // otherwise the value is taken for a flag
	}
	var b strings.Builder
	for i := 0; i < len(value); {
		r, size := utf8.DecodeRuneInString(value[i:])
		switch {
		case r == '\'', r == '\\', r == utf8.RuneError && size == 1, !unicode.IsPrint(r):
			plain = false
			for _, c := range []byte(value[i : i+size]) {
				fmt.Fprintf(&b, `\%03o`, c) // always three digits, so a digit after them is not part of the number
			}
		default:
			plain = plain && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_.:/@%+=, ", r))
			b.WriteRune(r)
		}
		i += size
	}
	if plain {
		return " --" + name + separator + `"` + value + `"`
	}
	return " --" + name + separator + `$'` + b.String() + `'`
}
