package httpapi

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The header is not signed, so whoever captured a request could say another time.
func TestTicketTime_OfASignedRequest_IsRefused(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	w, stored := signedWebhook(t, now)
	headers := signedHeaders(t, signingKey, "msg_1", strconv.FormatInt(now.Unix(), 10), "ticket")
	headers.TicketTime = "2026-11-24T18:50:00+01:00"
	r := w.Ticket(Request{Source: "signed", Headers: headers, Body: []byte("ticket")})
	require.Equal(t, http.StatusBadRequest, r.Status)
	require.Equal(t, "ticket_time_unsigned", r.Outcome)
	require.Empty(t, stored)
}
