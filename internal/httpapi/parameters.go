package httpapi

import (
	"bytes"
	"net/url"
	"slices"
	"strconv"

	"github.com/valyala/fasthttp"
)

// allParameters stands for every name among those that are ignored.
const allParameters = "*"

// unknownParameter returns the name of the first parameter in a request's URL that is not ignored, in quotes and bounded for the
// answer; "" if there is none. The webhook knows no parameters. A sender that writes one expects something of it ("dry_run"),
// which would not happen.
//
//go:noinline
func unknownParameter(h *fasthttp.RequestHeader, ignored []string) string {
	uri := h.RequestURI()
	i := bytes.IndexByte(uri, '?')
	if i < 0 || slices.Contains(ignored, allParameters) { // there is no "?" in nearly all requests
		return ""
	}
	query, _, _ := bytes.Cut(uri[i+1:], []byte{'#'})
	for parameter := range bytes.SplitSeq(query, []byte{'&'}) {
		if len(parameter) == 0 {
			continue
		}
		written, _, _ := bytes.Cut(parameter, []byte{'='})
		name := string(written[:min(len(written), 3*maxParameterName)]) // a character is up to three of %61
		if decoded, err := url.QueryUnescape(name); err == nil {
			name = decoded
		}
		if !slices.Contains(ignored, name) {
			return strconv.QuoteToASCII(name[:min(len(name), maxParameterName)])
		}
	}
	return ""
}

// maxParameterName is the longest name of a parameter that an answer repeats, in bytes.
const maxParameterName = 64
