package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/httpapi"
	"myticket/internal/intake"
)

// listen serves on a free port until the test ends, and returns the address.
func listen(t *testing.T, accepter httpapi.Accepter) string {
	t.Helper()
	return listenWith(t, httpapi.Config{}, accepter, httpapi.OpenSources())
}

func listenWith(t *testing.T, config httpapi.Config, accepter httpapi.Accepter, sources *httpapi.Sources) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	config.Logger = slog.New(slog.DiscardHandler)
	server := httpapi.New(config, accepter, sources)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		assert.NoError(t, server.Shutdown(ctx))
		assert.NoError(t, <-served)
	})
	return listener.Addr().String()
}

// connection is one keep-alive connection, which is written and read by hand.
type connection struct {
	net.Conn
	reader *bufio.Reader
}

func connect(t *testing.T, address string) *connection {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	return &connection{conn, bufio.NewReader(conn)}
}

func (c *connection) answer(t *testing.T) (status int, header http.Header, body string) {
	t.Helper()
	response, err := http.ReadResponse(c.reader, nil)
	require.NoError(t, err)
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	return response.StatusCode, response.Header, string(content)
}

// TestDelivery_KeepsNothingOfTheConnectionsBuffers: Fiber hands out parts of its buffers, which the next request
// overwrites, and intake keeps deliveries for longer than that.
func TestDelivery_KeepsNothingOfTheConnectionsBuffers(t *testing.T) {
	t.Parallel()
	const requests = 500
	for _, way := range []string{"one after the other", "pipelined"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			accepter := &keeper{}
			c := connect(t, listen(t, accepter))
			expected := make([]intake.Delivery, requests)
			written := make(chan struct{}, requests)
			go func() {
				for i := range requests {
					// All of one length, so that each would have exactly the place of the one before.
					n := fmt.Sprintf("%05d", i)
					expected[i] = intake.Delivery{
						Source: "shop-" + n, Body: []byte(strings.Repeat("body "+n+" ", 100)), ContentType: "text/plain; n=" + n,
						Traceparent:    "00-4bf92f3577b34da6a3ce929d0e0" + n + "-00f067aa0ba902b7-01",
						IdempotencyKey: "key-" + n,
					}
					e := &expected[i]
					header := "Idempotency-Key"
					if i%2 == 1 {
						header = "webhook-id"
					}
					_, err := fmt.Fprintf(c, "POST /ticket/%s HTTP/1.1\r\nHost: test\r\nContent-Type: %s\r\ntraceparent: %s\r\n"+
						"%s: %s\r\nContent-Length: %d\r\n\r\n%s",
						e.Source, e.ContentType, e.Traceparent, header, e.IdempotencyKey, len(e.Body), e.Body)
					if !assert.NoError(t, err) {
						return
					}
					if way != "pipelined" {
						<-written
					}
				}
			}()
			for range requests {
				status, _, body := c.answer(t)
				require.Equal(t, http.StatusOK, status, body)
				written <- struct{}{}
			}
			for i := range 20 { // shorter and longer ones overwrite what is left
				_, err := fmt.Fprintf(c, "POST /ticket/%s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s",
					strings.Repeat("z", 1+i), strings.Repeat("z", 1+380*i), 200*i+1, strings.Repeat("z", 200*i+1))
				require.NoError(t, err)
				status, _, body := c.answer(t)
				require.Equal(t, http.StatusOK, status, body)
			}
			require.Equal(t, expected, accepter.deliveries[:requests])
		})
	}
}

type accepterFunc func(intake.Delivery) (intake.Receipt, error)

func (f accepterFunc) Accept(d intake.Delivery) (intake.Receipt, error) { return f(d) }

func TestPanic_CostsNoOtherRequest(t *testing.T) {
	t.Parallel()
	accepter := &keeper{}
	c := connect(t, listen(t, accepterFunc(func(d intake.Delivery) (intake.Receipt, error) {
		if string(d.Body) == "panic" {
			panic("secret")
		}
		return accepter.Accept(d)
	})))
	for _, body := range []string{"panic", "ticket", "panic", "ticket"} {
		_, err := fmt.Fprintf(c, "POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		require.NoError(t, err)
		status, header, content := c.answer(t)
		if body != "panic" {
			require.Equal(t, http.StatusOK, status, content)
			continue
		}
		require.Equal(t, http.StatusServiceUnavailable, status, content)
		require.Equal(t, "application/problem+json", header.Get("Content-Type"))
		require.Equal(t, "5", header.Get("Retry-After"))
		require.Contains(t, content, `"code":"internal_error"`)
		require.NotContains(t, content, "secret")
	}
}

func TestWhatIsNoHTTP_IsToldSo(t *testing.T) {
	t.Parallel()
	accepter := &keeper{}
	address := listen(t, accepter)
	const post = "POST /ticket HTTP/1.1\r\nHost: test\r\n"
	for name, request := range map[string]string{
		"no request line":        "hello\r\n\r\n",
		"length that is none":    post + "Content-Length: many\r\n\r\nx",
		"negative length":        post + "Content-Length: -1\r\n\r\nx",
		"two lengths":            post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"chunk that is none":     post + "Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",
		"header without a colon": post + "broken\r\nContent-Length: 1\r\n\r\nx",
		"space before the colon": post + "Content-Length : 1\r\n\r\nx",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, address)
			_, err := io.WriteString(c, request)
			require.NoError(t, err)
			status, header, body := c.answer(t)
			require.Equal(t, http.StatusBadRequest, status, body)
			require.Equal(t, "application/problem+json", header.Get("Content-Type"))
			require.Contains(t, body, `"code":"bad_request"`)
		})
	}
	t.Cleanup(func() { assert.Empty(t, accepter.deliveries, "none of it may be taken for a ticket") })
}

// TestLengthAndChunks_CannotSmuggleATicket: if a proxy used the length and the server used the chunks, a second request could be
// hidden in the first (RFC 9112, section 6.1).
func TestLengthAndChunks_CannotSmuggleATicket(t *testing.T) {
	t.Parallel()
	accepter := &keeper{}
	c := connect(t, listen(t, accepter))
	_, err := io.WriteString(c, "POST /ticket HTTP/1.1\r\nHost: test\r\n"+
		"Content-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"1\r\nx\r\n0\r\n\r\nPOST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\nsmuggled")
	require.NoError(t, err)
	c.answer(t)
	_, err = c.reader.ReadByte()
	require.Error(t, err, "the connection is closed after such a request")
	for _, d := range accepter.deliveries {
		require.Equal(t, "x", string(d.Body))
	}
}
