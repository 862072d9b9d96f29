package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// sendReported runs `myticket send --output=json` and reads what it reports.
func sendReported(t *testing.T, args ...string) (outcome, sendReport) {
	t.Helper()
	o := runCommand(t, nil, append([]string{"send", "--output=json"}, args...)...)
	var r sendReport
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &r), "%s%s", o.stdout, o.stderr)
	return o, r
}

// inFront answers instead of a server, or lets the request pass to it.
func inFront(t *testing.T, s *server, answer func(n int64, w http.ResponseWriter, pass func(http.ResponseWriter))) string {
	t.Helper()
	target, err := url.Parse(s.webhook)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	var requests atomic.Int64
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(requests.Add(1), w, func(w http.ResponseWriter) { proxy.ServeHTTP(w, r) })
	}))
	t.Cleanup(front.Close)
	return front.URL + "/ticket"
}

func write(t *testing.T, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestSend_WithoutAFile_SendsTheSample(t *testing.T) {
	t.Parallel()
	require.Equal(t, sampleTicket, sample(t), "testdata/ticket.txt")
	b := setup(t)
	o := runCommand(t, nil, "send", "--url", b.webhook+"/ticket/shop-1")
	require.Zero(t, o.code, "%s", o.stderr)
	require.Regexp(t, `^200  [0-9a-f-]{36}  TREATED  [0-9.]+(µ|m)?s  sample\n$`, o.stdout)
	stored := b.ticket(t, uuid.MustParse(strings.Fields(o.stdout)[1]))
	require.Equal(t, sample(t), stored.Body)
	require.Equal(t, "shop-1", stored.Source)
}

func TestSend_ManySamples_AreDifferentOrders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := runCommand(t, nil, "send", "--url", b.webhook+"/ticket", "--count=50", "--concurrency=8")
	require.Zero(t, o.code, "%s", o.stderr)
	require.Regexp(t, `^50 tickets sent, 50 stored \(TREATED: 50\), answers \(200: 50\), in .*s: \d+ tickets/s, the longest took .*s\n$`, o.stdout)
	require.Equal(t, 50, b.count(t, `SELECT count(DISTINCT order_number) FROM tickets WHERE status = 'TREATED'`))
	require.Equal(t, 50, b.count(t, `SELECT count(*) FROM deliveries`), "each had a key of its own")
}

func TestSend_Files_ByteForByte(t *testing.T) {
	t.Parallel()
	b := setup(t)
	good, bad := body("1", "Coffee,c,2"), "no ticket \xff\x00\r\n"
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"send", "--url", b.webhook + "/ticket", "--count=2", write(t, "good", good), "-"}, nil,
		streams{stdin: strings.NewReader(bad), stdout: &stdout, stderr: &stderr})
	require.Equal(t, exitUnread, code, "what cannot be read is stored, too: %s", &stderr)
	require.Contains(t, stderr.String(), "2 of 4 tickets are stored, but could not be read as a whole (ERROR). Do not send them again")
	require.Contains(t, stdout.String(), "4 tickets sent, 4 stored (ERROR: 2, TREATED: 2), answers (200: 4), in ")
	require.Equal(t, 2, strings.Count(stdout.String(), "  TREATED  "))
	require.Equal(t, 2, strings.Count(stdout.String(), "  ERROR  "))
	stored := map[string]int{}
	for _, text := range storedBodies(t, b.databaseURL) {
		stored[text]++
	}
	require.Equal(t, map[string]int{good: 2, bad: 2}, stored)
}

func TestSend_ThroughFailures_StoresOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	address := inFront(t, b.server, func(n int64, w http.ResponseWriter, pass func(http.ResponseWriter)) {
		switch n {
		case 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler) // the connection breaks
		case 3:
			w.WriteHeader(http.StatusBadGateway)
		default:
			pass(w)
		}
	})
	o, r := sendReported(t, "--url", address)
	require.Zero(t, o.code, "%s", o.stderr)
	require.Len(t, r.Each, 1)
	require.GreaterOrEqual(t, r.Each[0].Attempts, 3, "net/http makes one more by itself")
	require.GreaterOrEqual(t, r.Each[0].Seconds, 1.0, "Retry-After")
	require.Empty(t, r.Each[0].Error)
	require.Equal(t, map[string]int{"200": 1}, r.Answers)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSend_AnswerThatIsLost_IsADuplicate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	address := inFront(t, b.server, func(n int64, w http.ResponseWriter, pass func(http.ResponseWriter)) {
		if n > 1 {
			pass(w)
			return
		}
		pass(httptest.NewRecorder()) // stored, but without an answer
		panic(http.ErrAbortHandler)
	})
	o, r := sendReported(t, "--url", address)
	require.Zero(t, o.code, "%s", o.stderr)
	require.True(t, r.Each[0].Duplicate)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSend_ServerThatStartsLater_IsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	address, listen := reserve(t)
	ended := make(chan outcome, 1)
	go func() {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"send", "--url", "http://" + address + "/ticket"}, nil,
			streams{stdout: &stdout, stderr: &stderr})
		ended <- outcome{code, stdout.String(), stderr.String()}
	}()
	time.Sleep(300 * time.Millisecond) // most likely it has tried by now
	listener := listen()
	target, err := url.Parse(b.webhook)
	require.NoError(t, err)
	front := &http.Server{Handler: httputil.NewSingleHostReverseProxy(target)}
	t.Cleanup(func() { _ = front.Close() })
	go func() { _ = front.Serve(listener) }()
	o := <-ended
	require.Zero(t, o.code, "%s", o.stderr)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets`))
}

// reserve takes a port on which nothing listens until listen is called. Another test could take a port that is only free.
func reserve(t *testing.T) (address string, listen func() net.Listener) {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	file := os.NewFile(uintptr(socket), "reserved")
	t.Cleanup(func() { _ = file.Close() })
	require.NoError(t, syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	bound, err := syscall.Getsockname(socket)
	require.NoError(t, err)
	return fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port), func() net.Listener {
		require.NoError(t, syscall.Listen(socket, 128))
		listener, err := net.FileListener(file)
		require.NoError(t, err)
		return listener
	}
}

func TestSend_BearerToken(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	address := b.webhook + "/ticket/bearer"
	o := runCommand(t, nil, "send", "--url", address, "--bearer-file", write(t, "token", "new-token-0123456789\n"))
	require.Zero(t, o.code, "%s", o.stderr)

	o = runCommand(t, nil, "send", "--url", address, "--bearer-file", write(t, "token", "no-token-0123456789"))
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "1 of 1 tickets were not stored; the first was sample: 401 Unauthorized unauthorized")
	require.Contains(t, o.stderr, "It is safe to run it again, because nothing was stored")
	require.Contains(t, o.stdout, "401  -  -  ")

	for _, token := range []string{"", "two tokens"} {
		o = runCommand(t, nil, "send", "--url", address, "--bearer-file", write(t, "token", token))
		require.Equal(t, 1, o.code)
		require.Contains(t, o.stderr, "--bearer-file")
		require.Contains(t, o.stderr, "nothing was sent")
	}
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSend_FileThatIsNoTicket_IsSaidBeforeAnythingIsSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	good := write(t, "good", sample(t))
	for _, bad := range []string{write(t, "empty", ""), good + "-not", t.TempDir(), "-"} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"send", "--url", b.webhook + "/ticket", good, bad}, nil,
			streams{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr})
		require.Equal(t, 1, code, bad)
		require.Contains(t, stderr.String(), bad)
		require.Contains(t, stderr.String(), "nothing was sent")
	}
	require.Zero(t, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSend_SomeThatAreRefused_SaysWhichAndWhatASecondRunDoes(t *testing.T) {
	t.Parallel()
	b := setup(t, "--max-body=1KiB")
	large := write(t, "large", strings.Repeat("x", 2000))
	o, r := sendReported(t, "--url", b.webhook+"/ticket", "--count=15", write(t, "good", sample(t)), large)
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "15 of 30 tickets were not stored; the first was "+large+": 413 ")
	require.Contains(t, o.stderr, "A second run sends all tickets with new keys, so the 15 that were stored would be stored twice: send only the others")
	require.NotContains(t, o.stderr, "may be stored")
	require.Equal(t, map[string]int{"200": 15, "413": 15}, r.Answers)
	require.Equal(t, []int{30, 30, 15, 15}, []int{r.Tickets, r.Sent, r.Stored, len(r.Failed)})
	require.Equal(t, 1, r.Failed[0].Attempts, "the same bytes are too long again")
	require.Equal(t, 15, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSend_AnswersThatAreNotAReceipt_AreFailures(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		says   []string
	}{
		"another web server": {
			func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<h1>\x1b[2JIt works!</h1>") },
			[]string{"200 OK, but the answer has no ticket id: check that the URL is MyTicket's", "It is safe to run it again, because nothing was stored"},
		},
		"sent elsewhere": {
			func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) },
			[]string{"302 Found", "It is safe to run it again, because nothing was stored"},
		},
		"a proxy's own": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGatewayTimeout) },
			[]string{"504 Gateway Timeout", "Up to 1 of them may be stored all the same, because no answer says that they are not; a second run sends all tickets with new keys, " +
				"so these would be stored twice"},
		},
		"cut off": {
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			[]string{"EOF", "Up to 1 of them may be stored"},
		},
		"none in time": {
			func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // only after that the end of the connection is noticed
				<-r.Context().Done()
			},
			[]string{"deadline exceeded", "Up to 1 of them may be stored"},
		},
		"full": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "3600") // longer than this test waits
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprint(w, `{"code": "spool_full", "detail": "later", "status": 503}`)
			},
			[]string{"503 Service Unavailable spool_full: later", "It is safe to run it again, because nothing was stored"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(test.answer)
			t.Cleanup(server.Close)
			o := runCommand(t, nil, "send", "--url", server.URL, "--retry-for=0s", "--timeout=1s")
			require.Equal(t, 1, o.code)
			for _, text := range test.says {
				require.Contains(t, o.stderr, text)
			}
			require.NotContains(t, o.stdout+o.stderr, "\x1b")
		})
	}
}

func TestSend_WithoutAServer_FailsInTime(t *testing.T) {
	t.Parallel()
	o, r := sendReported(t, "--url=http://127.0.0.1:1/ticket", "--retry-for=1s")
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "connection refused")
	require.Contains(t, o.stderr, "It is safe to run it again, because nothing was stored")
	require.Greater(t, r.Each[0].Attempts, 1)
	require.Equal(t, map[string]int{"none": 1}, r.Answers)
}

func TestSend_Interrupted_SaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	t.Cleanup(server.Close)
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"send", "--url", server.URL, "--count=5"}, nil, streams{stdout: &stdout, stderr: &stderr})
	require.Equal(t, 1, code)
	require.Contains(t, stderr.String(), "interrupted: 5 of 5 tickets were not stored")
}

func TestSend_SettingsThatCannotBe_AreNamed(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--url=localhost:9098"}, {"--url=ftp://localhost/ticket"}, {"--count=0"}, {"--count=1000001"},
		{"--count=600000", "a", "b"}, {"--concurrency=0"}, {"--concurrency=1001"}, {"--retry-for=-1s"}, {"--timeout=0s"},
		{"--output=xml"},
	} {
		setting, _, _ := strings.Cut(args[0], "=")
		requireNotUnderstood(t, runCommand(t, nil, append([]string{"send"}, args...)...), setting)
	}
}
