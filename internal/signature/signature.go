// Package signature signs webhooks as Standard Webhooks says: those that MyTicket receives, and those that it sends
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
package signature

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"strings"
)

// minSecret is the minimum length of a secret without its prefix, in characters of base64.
const minSecret = 24

// Key returns the key of a secret: what is in base64 behind "whsec_", which may be left out.
func Key(secret string) ([]byte, error) {
	encoded := strings.TrimPrefix(secret, "whsec_")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(encoded) < minSecret {
		return nil, errors.New("a webhook secret must be \"whsec_\" and at least 24 characters of base64")
	}
	return key, nil
}

// Sum returns the signature of version 1: HMAC-SHA256 of a webhook's id, its time in Unix seconds, and its body. Unlike the
// module of Standard Webhooks, it does not copy the body.
func Sum(key []byte, id, timestamp string, body []byte) []byte {
	mac := hmac.New(sha256.New, key)
	for _, part := range []string{id, ".", timestamp, "."} {
		_, _ = io.WriteString(mac, part)
	}
	_, _ = mac.Write(body)
	return mac.Sum(nil)
}

// Header returns the header webhook-signature with a signature by each key, so that a secret can be replaced while both count.
func Header(keys [][]byte, id, timestamp string, body []byte) string {
	var b strings.Builder
	for i, key := range keys {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("v1," + base64.StdEncoding.EncodeToString(Sum(key, id, timestamp, body)))
	}
	return b.String()
}
