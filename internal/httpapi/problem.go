package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
)

// problemDetails is the body of an error (RFC 9457). Code is stable; docs/webhook.md lists all codes.
type problemDetails struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func problem(status int, code, detail string) Response {
	body, err := json.Marshal(problemDetails{"about:blank", http.StatusText(status), status, code, detail})
	if err != nil { // strings and an integer: there is no error
		body = nil
	}
	return Response{Status: status, ContentType: "application/problem+json", Body: body, Source: otherLabel, Outcome: code}
}

// retryLater is a problem that passes by itself: the sender may send again after this many seconds (RFC 9110, section 10.2.3).
func retryLater(status int, code string, seconds int, detail string) Response {
	r := problem(status, code, detail)
	r.RetryAfter = seconds
	return r
}

func hashed(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}
