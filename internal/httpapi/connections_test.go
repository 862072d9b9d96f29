package httpapi_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"myticket/internal/httpapi"
	"myticket/internal/intake"
	"myticket/internal/ticket"
)

const small = "POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx"

// connectFrom connects from an address of this machine.
func connectFrom(t *testing.T, local, address string) *connection {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return &connection{conn, bufio.NewReader(conn)}
}

// 4096 idle connections must not lock other senders out.
func TestConnections_ThatIdle_AreClosedForNewOnes_LongestFirst(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	accepter := &slowAccepter{entered: make(chan struct{}, 1), release: make(chan struct{})}
	address := listenWith(t, httpapi.Config{Registry: registry, MaxConnections: 4}, accepter, httpapi.OpenSources())
	busy := connect(t, address)
	busy.writef(t, small)
	<-accepter.entered
	idling := func(want float64) {
		t.Helper()
		await(t, "as many idle", func() bool { return metric(t, registry, "myticket_http_connections_idle") == want })
	}
	silent := connect(t, address)
	idling(1)
	headless := connect(t, address) // it has sent a part of a request
	headless.writef(t, "POST /ticket HTTP/1.1\r\nHost:")
	await(t, "three are open", func() bool { return metric(t, registry, "myticket_http_connections") == 3 })
	idling(1) // not the headless one
	idle := connect(t, address)
	idle.writef(t, "GET /ping HTTP/1.1\r\nHost: test\r\n\r\n")
	status, _, _ := idle.answer(t)
	require.Equal(t, http.StatusOK, status)

	idling(2)
	next := connect(t, address)
	next.writef(t, "GET /ping HTTP/1.1\r\nHost: test\r\n\r\n")
	status, _, _ = next.answer(t)
	require.Equal(t, http.StatusOK, status)
	silent.requireClosed(t)
	idling(2)
	another := connect(t, address)
	another.writef(t, "GET /ping HTTP/1.1\r\nHost: test\r\n\r\n")
	status, _, _ = another.answer(t)
	require.Equal(t, http.StatusOK, status)
	idle.requireClosed(t)
	require.InDelta(t, 2, metric(t, registry, "myticket_http_connections_closed_idle_total"), 0)

	// Now all have a request that has arrived, and each of them is answered.
	go func() {
		for range accepter.entered { //nolint:revive // they wait for release
		}
	}()
	headless.writef(t, " test\r\nContent-Length: 1\r\n\r\nx")
	for _, c := range []*connection{next, another} {
		c.writef(t, small)
	}
	await(t, "all have arrived", func() bool { return accepter.waiting.Load() == 4 })
	refused := connect(t, address)
	refused.writef(t, small)
	status, header, body := refused.answer(t)
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	require.Contains(t, body, `"code":"too_many_connections"`)
	require.Equal(t, "1", header.Get("Retry-After"))
	refused.requireClosed(t)
	require.InDelta(t, 1, metric(t, registry, "myticket_http_connections_refused_total"), 0)
	require.InDelta(t, 4, metric(t, registry, "myticket_http_connections"), 0)

	close(accepter.release)
	for _, c := range []*connection{busy, headless, next, another} {
		status, _, body := c.answer(t)
		require.Equal(t, http.StatusOK, status, body)
	}
	require.Len(t, accepter.deliveries, 4)
}

// Heads that come byte by byte, from any number of addresses, must not keep other senders out.
func TestConnections_WhoseRequestsComeSlowly_AreClosedForNewOnes(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	accepter := &slowAccepter{entered: make(chan struct{}, 3), release: make(chan struct{})}
	// On a busy machine this takes longer than the usual timeout, which would close the slow ones as well.
	address := listenWith(t, httpapi.Config{Registry: registry, MaxConnections: 3, ReadTimeout: patience}, accepter, httpapi.OpenSources())
	begun := []string{
		"POST /ticket HTTP/1.1\r\nHost:",
		"POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nx",
		"GET /ping HTTP/1.1\r\nHost: test\r\n\r\nPOST /ticket HTTP/1.1\r\nHost:", // and a part of the next one
	}
	slow := make([]*connection, len(begun))
	for i := range slow {
		slow[i] = connect(t, address)
		slow[i].writef(t, "%s", begun[i])
	}
	status, _, _ := slow[2].answer(t)
	require.Equal(t, http.StatusOK, status)
	await(t, "the server has read a part of each", func() bool {
		return metric(t, registry, "myticket_http_connections") == 3 && metric(t, registry, "myticket_http_connections_idle") == 0
	})
	// Not one by one: on a busy machine the server may accept two connections between two looks at the metric.
	await(t, "the slow ones are closed", func() bool {
		connect(t, address).writef(t, small) // it is refused, or takes the place of a slow one and stays
		return metric(t, registry, "myticket_http_connections_closed_slow_total") == float64(len(slow))
	})
	for _, c := range slow {
		c.requireClosed(t)
	}
	await(t, "those that came have been read", func() bool { return accepter.waiting.Load() == 3 })
	close(accepter.release)
	await(t, "they are answered", func() bool { return metric(t, registry, "myticket_http_connections_idle") == 3 })
	require.Len(t, accepter.deliveries, 3, "half a request is no ticket")
}

func TestConnections_OfOnePeer_LeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	address := listenWith(t, httpapi.Config{Registry: registry, MaxConnections: 100, MaxPerPeer: 3}, &keeper{}, httpapi.OpenSources())
	held := make([]*connection, 3)
	for i := range held {
		held[i] = connectFrom(t, "127.0.0.1", address)
	}
	await(t, "three are open", func() bool { return metric(t, registry, "myticket_http_connections") == 3 })
	refused := connectFrom(t, "127.0.0.1", address)
	refused.writef(t, small)
	status, header, body := refused.answer(t)
	require.Equal(t, http.StatusTooManyRequests, status, body)
	require.Contains(t, body, `"code":"too_many_connections"`)
	require.Equal(t, "1", header.Get("Retry-After"))
	require.InDelta(t, 1, metric(t, registry, "myticket_http_peer_refused_total"), 0)

	other := connectFrom(t, "127.0.0.2", address)
	other.writef(t, small)
	status, _, body = other.answer(t)
	require.Equal(t, http.StatusOK, status, body)

	require.NoError(t, held[0].Close())
	await(t, "one has a place again", func() bool { return metric(t, registry, "myticket_http_connections") == 3 })
	again := connectFrom(t, "127.0.0.1", address)
	again.writef(t, small)
	status, _, body = again.answer(t)
	require.Equal(t, http.StatusOK, status, body)
}

// Behind a proxy all connections come from the proxy, and its header says whose requests they carry.
func TestPeerHeader_BoundsTheRequestsOfEachPeer(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	accepter := &slowAccepter{entered: make(chan struct{}, 10), release: make(chan struct{})}
	address := listenWith(t, httpapi.Config{Registry: registry, MaxPerPeer: 2, PeerHeader: "X-Forwarded-For"}, accepter, httpapi.OpenSources())
	post := func(forwarded string) *connection {
		c := connect(t, address)
		c.writef(t, "POST /ticket HTTP/1.1\r\nHost: test\r\n%sContent-Length: 1\r\n\r\nx", forwarded)
		return c
	}
	var taken []*connection
	for _, peer := range []string{
		"X-Forwarded-For: 192.0.2.1\r\n", "X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n",
		"X-Forwarded-For: 2001:db8::1\r\n", "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 2001:db8::2\r\n",
		"X-Forwarded-For: 2001:db8:0:1::1\r\n", "X-Forwarded-For: 192.0.2.2\r\n", "", "X-Forwarded-For: unknown\r\n",
	} {
		taken = append(taken, post(peer))
		<-accepter.entered
	}
	for _, peer := range []string{"X-Forwarded-For: 203.0.113.9,192.0.2.1\r\n", "X-Forwarded-For: 192.0.2.1:4711\r\n", "X-Forwarded-For: 2001:db8::99\r\n", ""} {
		c := post(peer)
		status, header, body := c.answer(t)
		require.Equal(t, http.StatusTooManyRequests, status, body)
		require.Contains(t, body, `"code":"peer_busy"`)
		require.Equal(t, "1", header.Get("Retry-After"))
	}
	require.InDelta(t, 4, metric(t, registry, "myticket_http_peer_refused_total"), 0)
	close(accepter.release)
	for _, c := range taken {
		status, _, body := c.answer(t)
		require.Equal(t, http.StatusOK, status, body)
	}
	taken = append(taken, post("X-Forwarded-For: 192.0.2.1\r\n"))
	status, _, body := taken[len(taken)-1].answer(t)
	require.Equal(t, http.StatusOK, status, body)
}

// The default number of connections follows from the cost of one. The test is not parallel, because it measures this process,
// which also holds the other end of each connection.
//
//nolint:paralleltest // see above
func TestConnection_CostsWhatIsCounted(t *testing.T) {
	const connections = 400
	for what, sent := range map[string]string{
		"that has sent nothing":        "",
		"that idles":                   small,
		"with a slow head":             "POST /ticket HTTP/1.1\r\nHost: test\r\nX-Slow: " + strings.Repeat("x", 7000),
		"with a slow body":             "POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 100),
		"that sent many headers":       fmt.Sprintf(headed, strings.Repeat("a:\r\n", 120)),
		"that sent many cookies":       fmt.Sprintf(headed, "Cookie: "+strings.Repeat("a;", 120)+"\r\n"),
		"that announced many trailers": fmt.Sprintf(headed, "Trailer: "+manyTrailers(120)+"\r\n"),
		"that sent a long query":       "POST /ticket?" + strings.Repeat("a&", 3800) + " HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx",
		"that sent a long header":      fmt.Sprintf(headed, "X-Long: "+strings.Repeat("x", 7600)+"\r\n"),
		"with a slow chunked body":     "POST /ticket HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + strings.Repeat("x", 50),
	} {
		t.Run(what, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			address := listenWith(t, httpapi.Config{Registry: registry, IgnoreParameters: []string{"*"}}, discarder{}, httpapi.OpenSources())
			before := inUse()
			for range connections {
				conn, err := net.Dial("tcp", address)
				require.NoError(t, err)
				t.Cleanup(func() { _ = conn.Close() })
				_, err = fmt.Fprint(conn, sent)
				require.NoError(t, err)
			}
			await(t, "all are open", func() bool { return metric(t, registry, "myticket_http_connections") == connections })
			if strings.HasPrefix(what, "with a slow") && strings.HasSuffix(what, "body") {
				await(t, "all bodies have begun", func() bool {
					return metric(t, registry, "myticket_http_body_bytes") == connections*httpapi.SmallBody
				})
			} else {
				time.Sleep(200 * time.Millisecond) // until most were read: it makes no difference for the test, only for its worth
			}
			each := (inUse() - before) / connections
			t.Logf("%d bytes each, of %d", each, httpapi.ConnectionCost(8<<10))
			require.LessOrEqual(t, each, httpapi.ConnectionCost(8<<10))
		})
	}
}

// An answer that its client does not read stays in memory, and the answer of /metrics grows with the sources. The test is not
// parallel, because it measures this process.
//
//nolint:paralleltest // see above
func TestMetrics_ThatAreNotRead_AreHeldForAFewOnly(t *testing.T) {
	const connections, size, few = 200, 100 << 10, 16
	registry := prometheus.NewRegistry()
	for i := range 100 {
		registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: fmt.Sprint("a", i), Help: strings.Repeat("x", size/100)}))
	}
	address := listenWith(t, httpapi.Config{Registry: registry, WriteTimeout: patience}, discarder{}, httpapi.OpenSources())
	before := inUse()
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) })
	}}
	all := make([]net.Conn, connections)
	for i := range all {
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
		require.NoError(t, err)
		all[i] = conn
	}
	time.Sleep(time.Second) // until most were answered: it makes no difference for the test, only for its worth
	taken := inUse() - before
	t.Logf("%d bytes", taken)
	require.LessOrEqual(t, taken, connections*httpapi.ConnectionCost(8<<10)+2*few*size)
	for _, conn := range all {
		require.NoError(t, conn.Close())
	}
	require.Eventually(t, func() bool {
		conn := connect(t, address)
		conn.writef(t, "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
		status, _, _ := conn.answer(t)
		return status == http.StatusOK
	}, patience, 10*time.Millisecond, "closed connections give their places back")
	for range 2 * few {
		conn := connect(t, address)
		for range 2 {
			conn.writef(t, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
			status, _, _ := conn.answer(t)
			require.Equal(t, http.StatusOK, status)
		}
	}
}

const headed = "POST /ticket HTTP/1.1\r\nHost: test\r\n%sContent-Length: 1\r\n\r\nx"

// Each small part of a head takes many times its length, until its connection is closed.
func TestHead_OfVeryManyParts_IsRefused_AndItsMemoryGivenBack(t *testing.T) {
	t.Parallel()
	accepter := &keeper{}
	address := listenWith(t, httpapi.Config{}, accepter, httpapi.OpenSources())
	for what, headers := range map[string]string{
		"headers":  strings.Repeat("a:\r\n", 1900),
		"cookies":  "Cookie: " + strings.Repeat("a;", 3800) + "\r\n",
		"trailers": "Trailer: " + manyTrailers(1800) + "\r\n",
	} {
		c := connect(t, address)
		c.writef(t, "%s", fmt.Sprintf(headed, headers)+small)
		status, _, body := c.answer(t)
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, status, what)
		require.Contains(t, body, `"code":"header_too_large"`)
		c.requireClosed(t)
	}
	require.Empty(t, accepter.deliveries)
	c := connect(t, address)
	c.writef(t, "%s", "GET /ping HTTP/1.1\r\nHost: test\r\n"+strings.Repeat("a:\r\n", 1900)+"\r\n")
	status, _, _ := c.answer(t)
	require.Equal(t, http.StatusOK, status)
	c.requireClosed(t)
}

// manyTrailers are different names of two and three characters.
func manyTrailers(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = "x" + strconv.FormatInt(int64(i), 36)
	}
	return strings.Join(names, ",")
}

// discarder is an Accepter that keeps nothing.
type discarder struct{}

func (discarder) Accept(intake.Delivery) (intake.Receipt, error) {
	return intake.Receipt{ID: receiptID, Status: ticket.Treated}, nil
}

// inUse returns the bytes of heap and stacks that this process uses.
func inUse() int {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapInuse + stats.StackInuse)
}
