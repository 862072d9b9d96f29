package webhook_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/events/webhook"
	"myticket/internal/httpapi"
	"myticket/internal/intake"
	"myticket/internal/ticket"
)

const (
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	second = "whsec_c2Vjb25kLWtleS10aGF0LWlzLWxvbmc="
)

// open opens the target of a URL.
func open(t *testing.T, at string, change func(*events.Address)) events.Target {
	t.Helper()
	target, err := tryOpen(t, at, change)
	require.NoError(t, err)
	t.Cleanup(target.Close)
	return target
}

func tryOpen(t *testing.T, at string, change func(*events.Address)) (events.Target, error) {
	t.Helper()
	parsed, err := url.Parse(at)
	require.NoError(t, err)
	address := events.Address{URL: parsed, Secret: []byte(secret), Options: map[string]string{}}
	if change != nil {
		change(&address)
	}
	return webhook.Open(t.Context(), address, slog.New(slog.DiscardHandler))
}

func option(name, value string) func(*events.Address) {
	return func(a *events.Address) { a.Options[name] = value }
}

// made returns an event for each key.
func made(t *testing.T, keys ...string) (all []events.Event) {
	t.Helper()
	for i, key := range keys {
		e, err := events.EncodeTicket(&events.Ticket{
			ID: uuid.MustParse(fmt.Sprintf("019acf3a-0b1d-7c3e-8f00-%012d", i)), Version: 1, Status: ticket.Treated, Source: key,
		}, time.Now())
		require.NoError(t, err)
		all = append(all, e)
	}
	return all
}

// receiver is a server that keeps what it gets.
type receiver struct {
	*httptest.Server

	mu    sync.Mutex
	got   []*http.Request
	texts []string
}

func receive(t *testing.T, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		r.mu.Lock()
		r.got, r.texts = append(r.got, request), append(r.texts, string(body))
		r.mu.Unlock()
		answer(w, request)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func TestSend_PostsEachEventInOrderPerKey(t *testing.T) {
	t.Parallel()
	var at, most atomic.Int64
	busy := sync.Map{}
	r := receive(t, func(w http.ResponseWriter, request *http.Request) {
		defer at.Add(-1)
		for now := at.Add(1); ; {
			before := most.Load()
			if now <= before || most.CompareAndSwap(before, now) {
				break
			}
		}
		id := request.Header.Get("Webhook-Id")
		_, twice := busy.LoadOrStore(id, true)
		if twice {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	var keys []string
	for i := range 200 {
		keys = append(keys, fmt.Sprintf("shop-%d", i%40))
	}
	all := made(t, keys...)
	for _, err := range open(t, r.URL+"/hook?token=t", nil).Send(t.Context(), all) {
		require.NoError(t, err)
	}
	require.LessOrEqual(t, most.Load(), int64(16))
	require.Len(t, r.got, 200)
	bodies, order := map[string]string{}, map[string][]string{}
	for i := range all {
		bodies[all[i].ID] = string(all[i].JSON)
		order[all[i].Key] = append(order[all[i].Key], all[i].ID)
	}
	came := map[string][]string{}
	for i, request := range r.got {
		id := request.Header.Get("Webhook-Id")
		require.Equal(t, bodies[id], r.texts[i])
		require.Equal(t, "/hook?token=t", request.URL.String())
		require.Equal(t, events.ContentType, request.Header.Get("Content-Type"))
		require.NotContains(t, request.Header, "Idempotency-Key")
		for j := range all {
			if all[j].ID == id {
				came[all[j].Key] = append(came[all[j].Key], id)
			}
		}
	}
	require.Equal(t, order, came)
}

// accepter takes what a source signed.
type accepter struct{ keys []string }

func (a *accepter) Accept(d intake.Delivery) (intake.Receipt, error) {
	a.keys = append(a.keys, d.IdempotencyKey)
	return intake.Receipt{ID: uuid.Max, Status: ticket.Error}, nil
}

func TestSend_SignsWhatOurOwnWebhookAccepts(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"one": {"webhook_secrets": ["`+secret+`"]}, "two": {"webhook_secrets": ["`+second+`"]},
		"three": {"webhook_secrets": ["whsec_dGhpcmQta2V5LXRoYXQtaXMtbG9uZ2Vy"]}}`), 0o600))
	sources, err := httpapi.ReadSources(file)
	require.NoError(t, err)
	taken := &accepter{}
	ours := httpapi.NewWebhook(taken, sources, 1<<20, slog.New(slog.DiscardHandler))
	r := receive(t, func(http.ResponseWriter, *http.Request) {})
	all := made(t, "shop")
	target := open(t, r.URL, func(a *events.Address) { a.Secret = []byte(" " + secret + "\n" + second + "\n") })
	require.Equal(t, []error{nil}, target.Send(t.Context(), all))
	header := r.got[0].Header
	ask := func(source, body string) int {
		return ours.Ticket(httpapi.Request{Source: source, Body: []byte(body), Headers: httpapi.Headers{Signed: &httpapi.Signed{
			ID: header.Get("Webhook-Id"), Timestamp: header.Get("Webhook-Timestamp"), Signature: header.Get("Webhook-Signature"),
		}}}).Status
	}
	require.Equal(t, http.StatusOK, ask("one", r.texts[0]), "by the first secret")
	require.Equal(t, http.StatusOK, ask("two", r.texts[0]), "and by the second, while they are changed")
	require.Equal(t, http.StatusUnauthorized, ask("three", r.texts[0]))
	require.Equal(t, http.StatusUnauthorized, ask("one", r.texts[0]+" "))
	require.Equal(t, []string{all[0].ID, all[0].ID}, taken.keys)
}

func TestSend_SaysWhatEachAnswerMeans(t *testing.T) {
	t.Parallel()
	inAMinute := time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)
	for _, c := range []struct {
		status          int
		retryAfter      string
		is              error
		after, afterMax time.Duration
		contains        string
	}{
		{status: 200}, {status: 202}, {status: 204},
		{status: 400, is: events.ErrRejected, contains: "400 Bad Request: the product is unknown"},
		{status: 413, is: events.ErrRejected}, {status: 414, is: events.ErrRejected}, {status: 415, is: events.ErrRejected},
		{status: 422, is: events.ErrRejected}, {status: 431, is: events.ErrRejected},
		{status: 410, is: events.ErrGone, contains: "410 Gone"},
		{status: 401, contains: "secret"}, {status: 403, contains: "secret"}, {status: 404, contains: "URL"}, {status: 405, contains: "URL"},
		{status: 302, contains: "redirects are not followed"}, {status: 408, contains: "408"}, {status: 409, contains: "409"}, {status: 425, contains: "425"},
		{status: 429, retryAfter: "7", after: 7 * time.Second, afterMax: 7 * time.Second, contains: "429"},
		{status: 503, retryAfter: inAMinute, after: 50 * time.Second, afterMax: time.Minute, contains: "503"},
		{status: 503, retryAfter: "Mon, 02 Jan 2006 15:04:05 GMT", after: 0, afterMax: 0, contains: "503"},
		{status: 503, retryAfter: "99999999999999999", after: 24 * time.Hour, afterMax: 24 * time.Hour, contains: "503"},
		{status: 503, retryAfter: "-1", contains: "503"}, {status: 503, retryAfter: "soon", contains: "503"},
		{status: 500, contains: "the product is unknown"}, {status: 502, contains: "502"}, {status: 504, contains: "504"}, {status: 599, contains: "599"},
	} {
		r := receive(t, func(w http.ResponseWriter, _ *http.Request) {
			if c.retryAfter != "" {
				w.Header().Set("Retry-After", c.retryAfter)
			}
			w.Header().Set("Location", "http://192.0.2.1/elsewhere")
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "the product\n is unknown")
		})
		err := open(t, r.URL, nil).Send(t.Context(), made(t, "shop"))[0]
		if c.status < 300 {
			require.NoError(t, err, c.status)
			continue
		}
		require.ErrorContains(t, err, c.contains, c.status)
		require.Equal(t, errors.Is(c.is, events.ErrRejected), errors.Is(err, events.ErrRejected), c.status)
		require.Equal(t, errors.Is(c.is, events.ErrGone), errors.Is(err, events.ErrGone), c.status)
		var after *events.RetryAfter
		if c.afterMax > 0 {
			require.ErrorAs(t, err, &after, c.status)
			require.GreaterOrEqual(t, after.After, c.after)
			require.LessOrEqual(t, after.After, c.afterMax)
		}
		require.Equal(t, 1, r.count(), "a redirect is not followed")
	}
}

func TestSend_AnEventThatIsRefusedHoldsNoOther(t *testing.T) {
	t.Parallel()
	all := made(t, "a", "a", "a", "b", "b")
	for _, c := range []struct {
		status int
		want   []bool // which are delivered
	}{
		{http.StatusUnprocessableEntity, []bool{true, false, true, true, true}},
		{http.StatusInternalServerError, []bool{true, false, false, true, true}},
		{http.StatusBadGateway, []bool{true, false, false, false, false}},
	} {
		r := receive(t, func(w http.ResponseWriter, request *http.Request) {
			if request.Header.Get("Webhook-Id") == all[1].ID {
				w.WriteHeader(c.status)
			}
		})
		outcomes := open(t, r.URL, option("parallel", "1")).Send(t.Context(), all)
		for i, err := range outcomes {
			require.Equal(t, c.want[i], err == nil, "%d: %v", i, err)
		}
		if c.status != http.StatusUnprocessableEntity {
			require.ErrorIs(t, outcomes[2], events.ErrNotSent)
		}
	}
}

func TestSend_WaitsOnceForATargetThatHangs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := receive(t, func(_ http.ResponseWriter, request *http.Request) {
		select {
		case <-release:
		case <-request.Context().Done():
		}
	})
	t.Cleanup(func() { close(release) })
	target := open(t, r.URL, func(a *events.Address) { a.Options["timeout"], a.Options["parallel"] = "100ms", "2" })
	outcomes := target.Send(t.Context(), made(t, "a", "b", "c", "d", "e", "f"))
	require.ErrorContains(t, outcomes[0], "no answer within 100ms")
	require.ErrorIs(t, outcomes[5], events.ErrNotSent)
	require.LessOrEqual(t, r.count(), 2)

	slow := open(t, r.URL, option("timeout", "1m"))
	ctx, cancel := context.WithCancel(t.Context())
	begun := r.count()
	go func() {
		for r.count() == begun {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	require.ErrorIs(t, slow.Send(ctx, made(t, "a"))[0], context.Canceled)
}

// raw is a server that writes what it likes.
func raw(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return "http://" + listener.Addr().String()
}

func TestSend_SurvivesServersThatLie(t *testing.T) {
	t.Parallel()
	read := func(conn net.Conn) { _, _ = conn.Read(make([]byte, 64<<10)) }
	for name, c := range map[string]struct {
		serve     func(net.Conn)
		delivered bool
	}{
		"cut off before the answer": {func(conn net.Conn) { read(conn); _ = conn.Close() }, false},
		"no HTTP": {func(conn net.Conn) {
			read(conn)
			_, _ = io.WriteString(conn, "220 mail.example.com\r\n\r\n")
			_ = conn.Close()
		}, false},
		"the answer's body is cut off": {func(conn net.Conn) {
			read(conn)
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
			_ = conn.Close()
		}, true},
		"an answer without end": {func(conn net.Conn) {
			read(conn)
			_, err := io.WriteString(conn, "HTTP/1.1 500 No\r\n\r\n")
			for err == nil {
				_, err = conn.Write(make([]byte, 1<<20))
			}
		}, false},
		"headers without end": {func(conn net.Conn) {
			read(conn)
			_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			for err == nil {
				_, err = io.WriteString(conn, "X: "+strings.Repeat("x", 1000)+"\r\n")
			}
		}, false},
		"an answer before the request": {func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			read(conn)
			_ = conn.Close()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := raw(t, c.serve)
			err := open(t, at+"/?token=hidden", option("timeout", "20s")).Send(t.Context(), made(t, "shop"))[0]
			if c.delivered {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			require.NotContains(t, err.Error(), "hidden", "a URL may have a token")
		})
	}
}

func TestSend_UsesAConnectionAgainAndReplacesAClosedOne(t *testing.T) {
	t.Parallel()
	var conns atomic.Int64
	r := &receiver{}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		_, _ = io.Copy(io.Discard, request.Body)
	}))
	r.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	r.Start()
	t.Cleanup(r.Close)
	target := open(t, r.URL, option("parallel", "1"))
	for _, err := range target.Send(t.Context(), made(t, "a", "b", "a", "c")) {
		require.NoError(t, err)
	}
	require.Equal(t, int64(1), conns.Load())
	r.CloseClientConnections()
	require.Equal(t, []error{nil}, target.Send(t.Context(), made(t, "a")))
}

func TestSend_TrustsTheGivenAuthorities(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	err := open(t, server.URL, nil).Send(t.Context(), made(t, "shop"))[0]
	require.ErrorContains(t, err, "certificate")
	authorities := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	target := open(t, server.URL, func(a *events.Address) { a.Authorities = authorities })
	require.Equal(t, []error{nil}, target.Send(t.Context(), made(t, "shop")))
}

func TestOpen_RefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		url      string
		change   func(*events.Address)
		contains string
	}{
		{"ftp://host/", nil, "http://HOST/PATH"},
		{"https:///path", nil, "http://HOST/PATH"},
		{"https://user@host/", nil, "has a user"},
		{"https://host/", option("colour", "red"), `no option "colour": its options are batch, batch-bytes, parallel, timeout`},
		{"https://host/", option("timeout", "10"), "such as 10s"},
		{"https://host/", option("timeout", "1h"), "100ms to 5m"},
		{"https://host/", option("parallel", "17"), "from 1 to 16"},
		{"https://host/", option("batch", "0"), "from 1 to 100"},
		{"https://host/", option("batch", "101"), "from 1 to 100"},
		{"https://host/", option("batch-bytes", "1"), "from 1024 to 16777216"},
		{"https://host/", option("batch-bytes", "2048"), "needs the option batch"},
		{"https://host/", func(a *events.Address) { a.Secret = []byte("short") }, "24 characters"},
		{"https://host/", func(a *events.Address) { a.Secret = []byte(strings.Repeat(secret+" ", 5)) }, "at most 4"},
		{"https://host/", func(a *events.Address) { a.Authorities = []byte("none") }, "PEM"},
	} {
		_, err := tryOpen(t, c.url, c.change)
		require.ErrorContains(t, err, c.contains)
	}
}
