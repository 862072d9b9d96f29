package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// shellFlag returns a flag as a shell takes it, whatever its value is: people paste what a ticket may have brought.
// What is not plain goes into $'…' (POSIX.1-2024, XCU 2.2.4), in which a shell expands nothing and control characters
// can be escaped for the terminal. A quote is escaped by its number: a shell that does not know $'…' expands nothing
// either.
func shellFlag(name, value string) string {
	separator, plain := " ", true
	if strings.HasPrefix(value, "-") {
		separator = "=" // or else it is taken for a flag
	}
	var b strings.Builder
	for i := 0; i < len(value); {
		r, size := utf8.DecodeRuneInString(value[i:])
		switch {
		case r == '\'', r == '\\', r == utf8.RuneError && size == 1, !unicode.IsPrint(r):
			plain = false
			for _, c := range []byte(value[i : i+size]) {
				fmt.Fprintf(&b, `\%03o`, c) // three digits and no more, so what follows cannot be taken for one
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
