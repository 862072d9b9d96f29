package ticket

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// decode returns the text of a body: UTF-8, without its byte order mark; UTF-16, where a byte order mark says so; and
// Windows-1252, which holds all of Latin-1's characters, for what is no valid UTF-8. Every body has a text.
func decode(body []byte) string {
	if len(body) >= 2 && (body[0] == 0xff && body[1] == 0xfe || body[0] == 0xfe && body[1] == 0xff) {
		return transcode(unicode.UTF16(unicode.LittleEndian, unicode.UseBOM).NewDecoder(), body)
	}
	body = bytes.TrimPrefix(body, []byte("\ufeff"))
	if utf8.Valid(body) {
		return string(body)
	}
	return transcode(charmap.Windows1252.NewDecoder(), body)
}

// transcode goes through the body twice, to count first: a text may be three times as long as its body, and Decoder.Bytes
// makes several copies of it that are longer still.
func transcode(decoder *encoding.Decoder, body []byte) string {
	size := 0
	eachPiece(decoder, body, func(piece []byte) { size += len(piece) })
	var text strings.Builder
	text.Grow(size)
	eachPiece(decoder, body, func(piece []byte) { text.Write(piece) })
	return text.String()
}

// eachPiece decodes piece by piece. The decoders of this file make a character of whatever they meet, so a full piece is
// the only thing that stops them.
func eachPiece(decoder *encoding.Decoder, body []byte, yield func([]byte)) {
	piece := make([]byte, 256)
	decoder.Reset()
	for len(body) > 0 {
		written, read, err := decoder.Transform(piece, body, true)
		yield(piece[:written])
		body = body[read:]
		if err == nil || written+read == 0 {
			return
		}
	}
}

// trim removes spaces, tabs and no-break spaces (U+00A0) around a text.
func trim(s string) string {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	if len(s) > 1 && (s[0] == 0xc2 && s[1] == 0xa0 || s[len(s)-2] == 0xc2 && s[len(s)-1] == 0xa0) {
		return strings.Trim(s, " \t\u00a0")
	}
	return s
}

// quote is a text as a problem shows it: in quotes, cut after 40 characters, with what is not printable escaped. It is
// made only for the problems that are listed.
type quote string

func (q quote) String() string {
	const most = 40
	n := 0
	for i := range q {
		if n++; n > most {
			return strconv.Quote(string(q[:i]) + "…")
		}
	}
	return strconv.Quote(string(q))
}

func itoa(n int) string { return strconv.Itoa(n) }
