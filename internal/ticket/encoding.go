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

// decode sets the text of a body. A body is UTF-8, with or without a byte order mark, or UTF-16 with a byte order mark. Any other
// body is in the encoding of the dialect, or Windows-1252, which has all of Latin-1's characters. So every body has a text.
func (p *parser) decode(body []byte) {
	if len(body) >= 2 && (body[0] == 0xff && body[1] == 0xfe || body[0] == 0xfe && body[1] == 0xff) {
		p.text = transcode(unicode.UTF16(unicode.LittleEndian, unicode.UseBOM).NewDecoder(), body)
		return
	}
	plain := bytes.TrimPrefix(body, []byte("\ufeff"))
	always := p.reader != nil && p.reader.always && len(plain) == len(body)
	switch {
	case !always && utf8.Valid(plain):
		p.text = string(plain)
	case p.reader != nil && p.reader.encoding != nil:
		p.text = transcode(p.reader.encoding.NewDecoder(), plain)
		p.checkEncoding()
	default:
		p.text = transcode(charmap.Windows1252.NewDecoder(), plain)
	}
}

// Text returns the text of a body, as Parse reads it.
func (r *Reader) Text(body []byte) string {
	p := parser{reader: r}
	p.decode(body)
	return p.text
}

// checkEncoding notes the first line that has a byte which the encoding of the dialect does not have.
func (p *parser) checkEncoding() {
	at := strings.Index(p.text, "\ufffd")
	if at < 0 {
		return
	}
	lines := parser{text: p.text}
	for lines.at <= at {
		lines.next()
	}
	p.problemf(lines.line, ProblemEncoding, "the line has bytes that are not %s", p.reader.dialect.Encoding)
}

// transcode decodes the body twice, first to count: a text may be three times as long as its body, and Decoder.Bytes makes
// several copies that are even longer.
func transcode(decoder *encoding.Decoder, body []byte) string {
	size := 0
	eachPiece(decoder, body, func(piece []byte) { size += len(piece) })
	var text strings.Builder
	text.Grow(size)
	eachPiece(decoder, body, func(piece []byte) { text.Write(piece) })
	return text.String()
}

// eachPiece decodes piece by piece. The decoders of this file turn any bytes into characters, so they stop only at a full
// piece.
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

// quote is a text as a problem shows it: in quotes, cut after 40 characters, with characters that are not printable escaped. Its
// String is called only for problems that are listed.
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
