package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// outputFlags choose between output for people and for programs.
type outputFlags struct {
	Output string `short:"o" default:"table" enum:"table,json" help:"table for people, json for programs. Default: ${default}."`
}

// printJSON writes a value as JSON. People look at it too, so characters that a terminal would obey, and characters that make
// a text look like another one, are escaped. For programs the value is the same.
func printJSON(w io.Writer, value any) error {
	var plain bytes.Buffer
	encoder := json.NewEncoder(&plain)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		return err
	}
	_, err := w.Write(escapeJSON(plain.Bytes()))
	return err
}

// escapeJSON escapes the characters of a JSON text that do not print. These are in strings only: json.Encoder escapes control
// characters by itself, and breaks lines only between values. A character of more than 16 bits is written as two halves
// (RFC 8259, section 7).
func escapeJSON(text []byte) []byte {
	escaped := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case r == '\n', isVisible(r):
			escaped = utf8.AppendRune(escaped, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			escaped = fmt.Appendf(escaped, `\u%04x\u%04x`, high, low)
		default:
			escaped = fmt.Appendf(escaped, `\u%04x`, r)
		}
	}
	return escaped
}

// isVisible reports whether a terminal shows a character. Some letters and marks have nothing to show, such as the Hangul
// fillers: a product_id with one would look like another product's.
func isVisible(r rune) bool {
	return unicode.IsPrint(r) && !unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r)
}

// printable escapes characters that a terminal would obey. A ticket's text may come from anyone.
func printable(s string) string { return escape(s, false) }

// printableText is like printable, but keeps line ends and tabs.
func printableText(s string) string { return escape(s, true) }

func escape(s string, lines bool) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\ufffd") {
		switch {
		case lines && (r == '\n' || r == '\t'), isVisible(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// cut shortens a text for a table.
func cut(s string, most int) string {
	n := 0
	for i := range s {
		if n++; n > most {
			return s[:i] + "…"
		}
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
