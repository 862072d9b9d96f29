package httpapi_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/httpapi"
	"myticket/internal/intake"
)

const (
	mebibyte = 1 << 20
	patience = 2 * time.Minute // no condition takes nearly as long
)

// await waits for a condition.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "waited in vain until %s", what)
	}
}

// metric returns the sum of a metric's series.
func metric(t *testing.T, registry *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
			return sum
		}
	}
	require.Fail(t, "there is no "+name)
	return 0
}

func (c *connection) writef(t *testing.T, format string, args ...any) {
	t.Helper()
	_, err := fmt.Fprintf(c, format, args...)
	require.NoError(t, err)
}

// requireClosed requires that nothing more comes, and that the connection ends.
func (c *connection) requireClosed(t *testing.T) {
	t.Helper()
	rest, err := io.ReadAll(c.reader)
	require.Empty(t, rest)
	if err != nil {
		require.ErrorContains(t, err, "reset")
	}
}

// The head is enough to refuse these requests: no byte of the body has come, or has to come.
func TestRequest_IsRefusedBeforeItsBody(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"open": {}, "bearer": {"bearer_tokens": ["`+token+`"]}, "signed": {"webhook_secrets": ["`+secret+`"]},
		"slow": {"rate": 0.001, "burst": 1}}`)
	require.NoError(t, err)
	accepter := &keeper{}
	address := listenWith(t, httpapi.Config{}, accepter, sources)
	first := connect(t, address)
	first.writef(t, "POST /ticket/slow HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx")
	status, _, body := first.answer(t)
	require.Equal(t, http.StatusOK, status, body)

	for name, test := range map[string]struct {
		source, headers string
		status          int
		code            string
	}{
		"a name that is none":      {"SHOP", "", 404, "source_invalid"},
		"an unknown source":        {"shop-9", "", 403, "source_unknown"},
		"no credentials":           {"bearer", "", 401, "unauthorized"},
		"wrong credentials":        {"bearer", "Authorization: Bearer no-" + token + "\r\n", 401, "unauthorized"},
		"no signature":             {"signed", "", 401, "unauthorized"},
		"an old signature":         {"signed", signatureHeaders("msg", time.Now().Add(-time.Hour)), 401, "unauthorized"},
		"a signature from ahead":   {"signed", signatureHeaders("msg", time.Now().Add(time.Hour)), 401, "unauthorized"},
		"a signature without id":   {"signed", signatureHeaders("", time.Now()), 401, "unauthorized"},
		"a signature that is none": {"signed", strings.Replace(signatureHeaders("msg", time.Now()), "v1,", "v2,", 1), 401, "unauthorized"},
		"over the rate":            {"slow", "", 429, "rate_limited"},
		"compressed":               {"open", "Content-Encoding: gzip\r\n", 415, "content_encoding"},
		"compressed, hidden": {
			"open", "Content-Encoding: identity\r\nX-Other: 1\r\nContent-Encoding: gzip\r\n", 415, "content_encoding",
		},
		"compressed, hidden behind": {
			"open", "Content-Encoding: gzip\r\nContent-Encoding: identity\r\n", 415, "content_encoding",
		},
		"two keys":                        {"open", "Idempotency-Key: a\r\nIdempotency-Key: b\r\n", 400, "header_repeated"},
		"two ids":                         {"open", "webhook-id: a\r\nWebhook-ID: b\r\n", 400, "header_repeated"},
		"two authorizations":              {"bearer", "Authorization: Bearer " + token + "\r\nAuthorization: Bearer x\r\n", 400, "header_repeated"},
		"no credentials, and too long":    {"bearer", "", 401, "unauthorized"},
		"unknown, and compressed as well": {"shop-9", "Content-Encoding: gzip\r\n", 403, "source_unknown"},
	} {
		for way, framing := range map[string]string{
			"length":   "Content-Length: 1048576\r\n",
			"chunked":  "Transfer-Encoding: chunked\r\n",
			"expect":   "Content-Length: 1048576\r\nExpect: 100-continue\r\n",
			"too long": "Content-Length: 104857600\r\n",
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				c := connect(t, address)
				c.writef(t, "POST /ticket/%s HTTP/1.1\r\nHost: test\r\n%s%s\r\n", test.source, test.headers, framing)
				status, _, body := c.answer(t)
				require.Equal(t, test.status, status, body)
				require.Contains(t, body, `"code":"`+test.code+`"`)
				c.requireClosed(t)
			})
		}
	}
	for name, framing := range map[string]string{"length": "", "expect": "Expect: 100-continue\r\n"} {
		t.Run("too long, "+name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, address)
			c.writef(t, "POST /ticket/open HTTP/1.1\r\nHost: test\r\nContent-Length: 1048577\r\n%s\r\n", framing)
			status, _, body := c.answer(t)
			require.Equal(t, http.StatusRequestEntityTooLarge, status, body)
		})
	}
	t.Cleanup(func() { assert.Len(t, accepter.deliveries, 1) })
}

func signatureHeaders(id string, at time.Time) string {
	return fmt.Sprintf("webhook-id: %s\r\nwebhook-timestamp: %d\r\nwebhook-signature: v1,%s=\r\n", id, at.Unix(), strings.Repeat("A", 43))
}

// A refused sender gets its answer while it is still sending, and the bytes that it sends are not taken for a request.
func TestRefusedBody_IsNoRequest_AndItsSenderIsTold(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"bearer": {"bearer_tokens": ["`+token+`"]}, "open": {}}`)
	require.NoError(t, err)
	accepter := &keeper{}
	address := listenWith(t, httpapi.Config{}, accepter, sources)
	smuggled := "POST /ticket/open HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\nsmuggled"
	for _, size := range []int{0, 100, 60_000, 3 * mebibyte} {
		for range 10 {
			c := connect(t, address)
			body := smuggled + strings.Repeat("x", size)
			go func() {
				_, _ = fmt.Fprintf(c, "POST /ticket/bearer HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}()
			status, _, answer := c.answer(t)
			require.Equal(t, http.StatusUnauthorized, status, answer)
			c.requireClosed(t)
		}
	}
	require.Empty(t, accepter.deliveries)
}

// An announced length costs nothing. 700 connections that announced 1 MiB and sent 100 bytes once took 1 GiB.
func TestBodies_TakeMemoryAsTheyCome(t *testing.T) {
	t.Parallel()
	const senders = 200
	registry := prometheus.NewRegistry()
	accepter := &keeper{}
	address := listenWith(t, httpapi.Config{Registry: registry}, accepter, httpapi.OpenSources())
	connections := make([]*connection, senders)
	for i := range connections {
		connections[i] = connect(t, address)
		connections[i].writef(t, "POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", mebibyte, strings.Repeat("x", 100))
	}
	held := func() int { return int(metric(t, registry, "myticket_http_body_bytes")) }
	await(t, "all bodies have begun", func() bool { return held() == senders*httpapi.SmallBody })
	connections[0].writef(t, "%s", strings.Repeat("x", 99_900))
	await(t, "one has grown with what came of it", func() bool { return held() > senders*httpapi.SmallBody+90_000 })
	require.LessOrEqual(t, held(), senders*httpapi.SmallBody+2*100_000)

	connections[0].writef(t, "%s", strings.Repeat("x", mebibyte-100_000))
	status, _, body := connections[0].answer(t)
	require.Equal(t, http.StatusOK, status, body)
	require.Len(t, accepter.deliveries[0].Body, mebibyte)
	for _, c := range connections {
		require.NoError(t, c.Close())
	}
	await(t, "all memory is given back", func() bool { return held() == 0 })
	require.Len(t, accepter.deliveries, 1, "a body that did not arrive whole is no ticket")
}

// While 24 senders never finish their large bodies, every small ticket is accepted, and large ones are refused early enough to be
// sent elsewhere.
func TestBudget_OfLargeBodies_LeavesRoomForSmallOnes(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	sources, err := readSources(t, `{"*": {"bearer_tokens": ["`+token+`"]}}`)
	require.NoError(t, err)
	const budget = 8 * mebibyte
	address := listenWith(t, httpapi.Config{Registry: registry, BodyBytes: budget}, &keeper{}, sources)
	const post = "POST /ticket HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer " + token + "\r\n"

	var group sync.WaitGroup
	answers := make(chan string, 24)
	for range 24 {
		c := connect(t, address)
		group.Go(func() {
			_, _ = fmt.Fprintf(c, post+"Content-Length: %d\r\n\r\n%s", mebibyte, strings.Repeat("x", mebibyte-1))
		})
		go func() {
			if response, err := http.ReadResponse(c.reader, nil); err == nil {
				_ = response.Body.Close()
				answers <- fmt.Sprint(response.StatusCode, response.Header.Get("Retry-After"))
			}
		}()
	}
	for refused := range 24 - 4 { // at most four of 1 MiB fit into half of it
		select {
		case answer := <-answers:
			require.Equal(t, "5031", answer)
		case <-time.After(patience):
			require.Fail(t, "no request was refused", "after %d", refused)
		}
	}
	require.LessOrEqual(t, metric(t, registry, "myticket_http_body_bytes"), float64(budget/2))
	for range 50 {
		c := connect(t, address)
		c.writef(t, post+"Content-Length: %d\r\n\r\n%s", httpapi.SmallBody, strings.Repeat("x", httpapi.SmallBody))
		status, _, body := c.answer(t)
		require.Equal(t, http.StatusOK, status, body)
	}
}

func TestBudget_ThatIsUsedUp_RefusesBeforeTheBody_AndBeforeContinue(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	const length = 12 << 10 // of which 8 KiB are counted with the small ones, and which needs both while it grows
	address := listenWith(t, httpapi.Config{Registry: registry, MaxBody: length, BodyBytes: 40 << 10}, &keeper{}, httpapi.OpenSources())
	held := connect(t, address)
	held.writef(t, "POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", length, strings.Repeat("x", 10_000))
	await(t, "there is no room for another one", func() bool { return metric(t, registry, "myticket_http_body_bytes") == length })
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		c := connect(t, address)
		c.writef(t, "POST /ticket HTTP/1.1\r\nHost: test\r\n%sContent-Length: 10000\r\n\r\n", expect)
		status, header, body := c.answer(t)
		require.Equal(t, http.StatusServiceUnavailable, status, body)
		require.Contains(t, body, `"code":"overloaded"`)
		require.Equal(t, "1", header.Get("Retry-After"))
	}
	held.writef(t, "%s", strings.Repeat("x", length-10_000))
	status, _, body := held.answer(t)
	require.Equal(t, http.StatusOK, status, body)
	await(t, "it is given back", func() bool { return metric(t, registry, "myticket_http_body_bytes") == 0 })
}

func TestBody_ThatIsSlow_HoldsItsMemoryForTheReadTimeout(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	address := listenWith(t, httpapi.Config{Registry: registry, ReadTimeout: 300 * time.Millisecond}, &keeper{}, httpapi.OpenSources())
	for _, framing := range []string{"Content-Length: 1000\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n5\r\nx"} {
		c := connect(t, address)
		c.writef(t, "POST /ticket HTTP/1.1\r\nHost: test\r\n%s", framing)
		status, _, body := c.answer(t)
		require.Equal(t, http.StatusRequestTimeout, status, body)
		require.Contains(t, body, `"code":"request_timeout"`)
		c.requireClosed(t)
	}
	require.Zero(t, metric(t, registry, "myticket_http_body_bytes"))
}

// A chunk of one byte may have long extensions and trailers. They are not kept, but they cost time.
func TestChunks_MayBeFramedOnlySoMuch(t *testing.T) {
	t.Parallel()
	accepter := &keeper{}
	address := listenWith(t, httpapi.Config{}, accepter, httpapi.OpenSources())
	const post = "POST /ticket HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
	long := strings.Repeat("x", 100_000)
	for name, test := range map[string]struct {
		body string
		want int
	}{
		"chunks of a byte":       {strings.Repeat("1\r\nx\r\n", 100_000) + "0\r\n\r\n", 200},
		"a short extension":      {"1;name=value\r\nx\r\n0\r\n\r\n", 200},
		"a trailer":              {"1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n", 200},
		"a long extension":       {"1;" + long + "\r\nx\r\n0\r\n\r\n", 400},
		"many extensions":        {strings.Repeat("1;"+long[:1000]+"\r\nx\r\n", 200) + "0\r\n\r\n", 400},
		"one at the end":         {"1\r\nx\r\n0;" + long + "\r\n\r\n", 400},
		"leading zeros":          {strings.Repeat("0", 100_000) + "1\r\nx\r\n0\r\n\r\n", 400},
		"a long trailer":         {"1\r\nx\r\n0\r\nX-Long: " + long + "\r\n\r\n", 400},
		"many trailers":          {"1\r\nx\r\n0\r\n" + strings.Repeat("X-Many: 1\r\n", 10_000) + "\r\n", 400},
		"a key in the trailer":   {"1\r\ny\r\n0\r\nIdempotency-Key: trailing\r\n\r\n", 200},
		"a size beyond numbers":  {"fffffffffffffffff\r\nx\r\n", 400},
		"a size beyond the body": {"fffffff\r\n" + long, 413},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, address)
			if name == "a size beyond the body" {
				test.body += strings.Repeat("x", mebibyte)
			}
			go func() { _, _ = io.WriteString(c, post+test.body) }()
			status, _, body := c.answer(t)
			require.Equal(t, test.want, status, body)
			if test.want != http.StatusOK {
				c.requireClosed(t)
			}
		})
	}
	t.Cleanup(func() {
		for _, d := range accepter.deliveries {
			assert.Empty(t, d.IdempotencyKey, "a trailer is no header")
			assert.LessOrEqual(t, cap(d.Body), 2*len(d.Body)+16, "what waits takes no more memory than is counted")
		}
	})
}

// After a body that was read comes the next request, also if the first one was refused.
func TestConnection_StaysInStep(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"signed": {"webhook_secrets": ["`+secret+`"]}, "open": {}, "slow": {"rate": 0.001, "burst": 1}}`)
	require.NoError(t, err)
	accepter := &keeper{}
	c := connect(t, listenWith(t, httpapi.Config{IgnoreParameters: []string{"x"}}, accepter, sources))
	wrong := signatureHeaders("msg", time.Now())
	c.writef(t, "%s", "POST /ticket/open HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nfirst"+
		"POST /ticket/signed HTTP/1.1\r\nHost: test\r\n"+wrong+"Content-Length: 6\r\n\r\nsecond"+
		"POST /ticket/open HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthird\r\n0\r\n\r\n"+
		"POST /ticket/open HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"+
		"POST /ticket/open HTTP/1.1\r\nHost: test\r\n\r\n"+
		"GET /ping HTTP/1.1\r\nHost: test\r\n\r\n"+
		"POST http://test/ticket/open?x=1 HTTP/1.1\r\nHost: test\r\nContent-Length: 20000\r\n\r\n"+strings.Repeat("f", 20_000)+
		"POST /ticket/nobody HTTP/1.1\r\nHost: test\r\nContent-Length: 7\r\n\r\nrefused"+
		"POST /ticket/open HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nnever")
	for i, want := range []int{200, 401, 200, 400, 400, 200, 200, 403} {
		status, _, body := c.answer(t)
		require.Equal(t, want, status, "%d: %s", i, body)
	}
	c.requireClosed(t)
	bodies := []string{}
	for _, d := range accepter.deliveries {
		bodies = append(bodies, string(d.Body))
		require.Equal(t, "open", d.Source)
	}
	require.Equal(t, []string{"first", "third", strings.Repeat("f", 20_000)}, bodies)
}

// A ticket that is admitted as one source must not be stored as another's.
func TestSource_IsTheOneThatWasLookedAt(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"open": {}, "closed": {"bearer_tokens": ["`+token+`"]}}`)
	require.NoError(t, err)
	accepter := &keeper{}
	address := listenWith(t, httpapi.Config{IgnoreParameters: []string{"*"}}, accepter, sources)
	for _, target := range []string{
		"/ticket/closed", "/ticket/closed/", "/ticket/closed//", "//ticket/closed", "/ticket//closed", "/ticket/open/../closed",
		"/ticket/./closed", "/ticket/%63losed", "/ticket/closed?/ticket/open", "/ticket/closed#/ticket/open", "/ticket/open/closed",
		"http://test/ticket/closed", "http://x/ticket/open/../closed", "//x/ticket/closed", "/ticket/open%2f..%2fclosed",
		"/ticket/closed;open", "/ticket\\closed", "?/ticket/open", "*", "/ticket/open?/../closed/", "test:80", "/ticket/open#/../closed",
	} {
		c := connect(t, address)
		c.writef(t, "POST %s HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nticket", target)
		c.answer(t)
		require.NoError(t, c.Close())
	}
	for _, d := range accepter.deliveries {
		require.Equal(t, "open", d.Source)
	}
	require.Len(t, accepter.deliveries, 2, "those with the path /ticket/open")
}

type slowAccepter struct {
	keeper
	entered chan struct{}
	release chan struct{}
	waiting atomic.Int64
}

func (a *slowAccepter) Accept(d intake.Delivery) (intake.Receipt, error) {
	a.waiting.Add(1)
	a.entered <- struct{}{}
	<-a.release
	return a.keeper.Accept(d)
}
