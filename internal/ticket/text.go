package ticket

import "strings"

// CleanText makes s fit for a text column and a log line: valid UTF-8 without NUL, cut after most bytes. Invalid bytes and NUL
// become U+FFFD.
func CleanText(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	}
	return s
}
