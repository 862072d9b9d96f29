package lab_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/lab"
)

// echo answers each connection with what it sends, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

func startProxy(t *testing.T, backend string, answers lab.Answers) *lab.Proxy {
	t.Helper()
	p, err := lab.StartProxy(t.Context(), backend, answers)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

func say(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	_, err := conn.Write([]byte(text))
	require.NoError(t, err)
	answer := make([]byte, len(text))
	_, err = io.ReadFull(conn, answer)
	require.NoError(t, err)
	return string(answer)
}

func TestDelay_AnswersLater_AndExactly(t *testing.T) {
	t.Parallel()
	const delay, rounds = 500 * time.Microsecond, 200
	backend := echo(t)
	direct, delayed := dial(t, backend), dial(t, startProxy(t, backend, lab.Delay(delay)).Addr())
	measure := func(conn net.Conn) time.Duration {
		start := time.Now()
		require.Equal(t, "ping", say(t, conn, "ping"))
		return time.Since(start)
	}
	var without, with []time.Duration
	for range rounds {
		without, with = append(without, measure(direct)), append(with, measure(delayed))
	}
	slices.Sort(without)
	slices.Sort(with)
	assert.GreaterOrEqual(t, with[0], delay)
	if runtime.GOOS == "linux" {
		// A busy machine adds to any answer, but little to the quickest tenth. Whole milliseconds would show here.
		added := with[rounds/10] - without[rounds/10]
		assert.Less(t, added, 950*time.Microsecond, "without: %s\nwith: %s", without, with)
	}
}

func TestDelay_CostsNoThroughput(t *testing.T) {
	t.Parallel()
	const delay = 200 * time.Millisecond
	conn := dial(t, startProxy(t, echo(t), lab.Delay(delay)).Addr())
	const pieces = 40
	start := time.Now()
	go func() {
		for range pieces {
			_, _ = conn.Write(make([]byte, 32<<10))
			time.Sleep(time.Millisecond) // so that they are pieces of their own
		}
	}()
	_, err := io.ReadFull(conn, make([]byte, pieces*32<<10))
	require.NoError(t, err)
	took := time.Since(start)
	assert.GreaterOrEqual(t, took, delay)
	assert.Less(t, took, pieces*delay/4, "one after the other they would take %s", pieces*delay)
}

func TestDelay_EndsWithEitherSide(t *testing.T) {
	t.Parallel()
	p, err := lab.StartProxy(t.Context(), echo(t), lab.Delay(time.Hour))
	require.NoError(t, err)
	conn := dial(t, p.Addr())
	_, err = conn.Write([]byte("never answered"))
	require.NoError(t, err)
	time.Sleep(20 * time.Millisecond) // so that the answer waits in the proxy
	done := make(chan error, 1)
	go func() { done <- p.Close() }()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(patience):
		t.Fatal("Close waits for an answer that no caller waits for")
	}
}

func TestProxy_PointsNewConnectionsElsewhere(t *testing.T) {
	t.Parallel()
	shout := func(_ context.Context, from io.Reader, to io.Writer) {
		b := make([]byte, 64)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			_, _ = to.Write([]byte(strings.ToUpper(string(b[:n]))))
		}
	}
	p := startProxy(t, "127.0.0.1:1", shout)
	refused := dial(t, p.Addr())
	_, err := refused.Read(make([]byte, 1))
	require.Error(t, err, "nothing listens there")
	p.Point(echo(t))
	assert.Equal(t, "PING", say(t, dial(t, p.Addr()), "ping"))
}

func TestMetrics_LeavesOutWhatIsNotThere(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# TYPE up gauge\nup 1\nrate{a=\"b\"} 2\nbig 1.5e+06\n")
	}))
	t.Cleanup(server.Close)
	found, err := lab.Metrics(t.Context(), server.Listener.Addr().String(), "up", "big", "rate", "none")
	require.NoError(t, err)
	assert.Equal(t, map[string]float64{"up": 1, "big": 1.5e6}, found)
}

func TestTreeCPUTime_CountsChildrenAlsoWhenTheyEnded(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has /proc")
	}
	const count = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
	p, log := shell(t, "sh -c '"+count+"'; sh -c '"+count+"; echo counted; exec sleep 60' >&1 & wait")
	awaitLog(t, log, "counted")
	own, err := lab.CPUTime(p.PID())
	require.NoError(t, err)
	children, err := lab.ChildrenOf(p.PID())
	require.NoError(t, err)
	require.Len(t, children, 1)
	defer func() { assert.NoError(t, lab.Signal(children[0], syscall.SIGKILL)) }()
	running, err := lab.CPUTime(children[0])
	require.NoError(t, err)
	tree, err := lab.TreeCPUTime(p.PID())
	require.NoError(t, err)
	const enough = 20 * time.Millisecond
	assert.Greater(t, running, enough)
	assert.Greater(t, tree-own-running, enough, "the child that has ended")
}
