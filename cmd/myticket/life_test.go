package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/admin"
	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
)

const (
	requestTimeout = 4 * time.Second // the default of --request-timeout
	slack          = time.Second     // for a machine that runs other tests besides
)

// exchange is a request of a load, and its answer.
type exchange struct {
	body   string
	begin  time.Time
	end    time.Time
	answer answer
	err    error // instead of an answer: the connection failed
}

func (e exchange) took() time.Duration { return e.end.Sub(e.begin) }

func (e exchange) is(status int) bool { return e.err == nil && e.answer.status == status }

func (e exchange) String() string {
	return fmt.Sprintf("%s, after %s: %s %v", e.begin.Format("15:04:05.000"), e.took(), e.answer, e.err)
}

// load is many tills that post ticket after ticket, each with a body of its own.
type load struct {
	stopped atomic.Bool
	tills   sync.WaitGroup

	mu        sync.Mutex
	exchanges []exchange
}

func startLoad(t *testing.T, s *server, tills int) *load {
	t.Helper()
	l := &load{}
	for till := range tills {
		l.tills.Go(func() {
			for n := 0; !l.stopped.Load(); n++ {
				e := exchange{body: body(fmt.Sprintf("%d-%d", till, n), "Coffee,c,2"), begin: time.Now()}
				e.answer, e.err = s.send("/ticket", e.body)
				e.end = time.Now()
				l.mu.Lock()
				l.exchanges = append(l.exchanges, e)
				l.mu.Unlock()
				if !e.is(http.StatusOK) {
					time.Sleep(10 * time.Millisecond) // a pause after a refusal, so that the log does not get too long
				}
			}
		})
	}
	t.Cleanup(func() { l.stop() })
	return l
}

// stop ends the load, and returns all exchanges.
func (l *load) stop() []exchange {
	l.stopped.Store(true)
	l.tills.Wait()
	return l.exchanges
}

// awaitMore waits until this many more requests that began from now on were answered with a status.
func (l *load) awaitMore(t *testing.T, answers, status int) {
	t.Helper()
	from := time.Now()
	await(t, fmt.Sprintf("%d more requests are answered with %d", answers, status), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		n := 0
		for i := len(l.exchanges) - 1; i >= 0 && n < answers && l.exchanges[i].end.After(from); i-- {
			if e := l.exchanges[i]; e.is(status) && e.begin.After(from) {
				n++
			}
		}
		return n == answers
	})
}

// requireKept requires that every request was answered in time, by 200 or by 503 with Retry-After, and that each ticket that was
// answered 200 is in the database with its bytes.
func requireKept(t *testing.T, databaseURL string, exchanges []exchange, h *hiccups) {
	t.Helper()
	stored := storedBodies(t, databaseURL)
	acknowledged := 0
	for _, e := range exchanges {
		require.NoError(t, e.err, "%s", e)
		require.Less(t, e.took(), h.beyond(requestTimeout+slack), "%s", e)
		if !e.is(http.StatusOK) {
			requireProblem(t, e.answer, http.StatusServiceUnavailable, "database_unavailable")
			requireRetryAfter(t, e.answer)
			continue
		}
		r := requireReceipt(t, e.answer)
		require.Equal(t, e.body, stored[r.ID], "what was acknowledged as %s is not stored, or has other bytes", r.ID)
		acknowledged++
	}
	t.Logf("%d of %d requests were answered with 200; %d tickets are stored", acknowledged, len(exchanges), len(stored))
}

// readiness is the answer of /readyz.
type readiness struct {
	status int
	Ready  bool          `json:"ready"`
	Checks []admin.Check `json:"checks"`
}

func (s *server) readiness(t *testing.T) readiness {
	t.Helper()
	a := s.get(t, s.internal+"/readyz")
	r := readiness{status: a.status}
	require.Equal(t, "application/json", a.header.Get("Content-Type"))
	require.NoError(t, json.Unmarshal(a.body, &r), "%s", a)
	require.Equal(t, r.Ready, a.status == http.StatusOK, "%s", a)
	require.Contains(t, []int{http.StatusOK, http.StatusServiceUnavailable}, a.status, "%s", a)
	return r
}

// failing returns why a check fails, or "" if it does not.
func (r readiness) failing(check string) string {
	for _, c := range r.Checks {
		if c.Name == check && !c.OK {
			return c.Detail
		}
	}
	return ""
}

func TestReadiness_WaitsForTheSchema_AndComesByItself(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Empty(t)
	s := serve(t, databaseURL)
	await(t, "readiness says what to do", func() bool {
		r := s.readiness(t)
		require.False(t, r.Ready)
		return strings.Contains(r.failing("schema"), `run "myticket migrate up"`)
	})
	require.Equal(t, http.StatusOK, s.get(t, s.internal+"/livez").status, "a restart would not migrate the database")
	a := s.post(t, "/ticket", sample(t))
	requireProblem(t, a, http.StatusServiceUnavailable, "database_unavailable")
	requireRetryAfter(t, a)

	require.NoError(t, postgres.MigrateUp(t.Context(), databaseURL))
	s.awaitReady(t)
	r := s.submit(t, "/ticket", sample(t))
	require.Equal(t, sample(t), storedBodies(t, databaseURL)[r.ID])
}

func TestShutdown_UnderLoad_KeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	b := setup(t, "--shutdown-delay=1s")
	h := watchHiccups(t, b.server)
	l := startLoad(t, b.server, 50)
	l.awaitMore(t, 500, http.StatusOK)
	b.cancel()
	await(t, "it is not ready, and says why", func() bool { return b.readiness(t).failing("serving") == "shutting down" })
	l.awaitMore(t, 20, http.StatusOK) // load balancers have not noticed yet
	require.Zero(t, b.stop(), "exit code")
	exchanges := l.stop()

	stored := storedBodies(t, b.databaseURL)
	acknowledged := 0
	for _, e := range exchanges {
		require.Less(t, e.took(), h.beyond(requestTimeout+slack), "%s", e)
		switch {
		case e.err != nil: // the connection was refused or closed: it knows that nothing was promised
		case e.is(http.StatusOK):
			r := requireReceipt(t, e.answer)
			require.Equal(t, e.body, stored[r.ID], "what was acknowledged as %s is not stored, or has other bytes", r.ID)
			acknowledged++
		default:
			requireProblem(t, e.answer, http.StatusServiceUnavailable, "draining")
			requireRetryAfter(t, e.answer)
		}
	}
	require.GreaterOrEqual(t, acknowledged, 520)
	require.NotNil(t, b.log.line("stopped; every ticket that was accepted has been answered"))
}

func TestShutdown_AnswersWhatWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	const waiting = 10
	b := setup(t, "--batches-in-flight=1")
	release := b.lockTickets(t)
	var group sync.WaitGroup
	post := func() {
		_, err := b.trySubmit(sample(t))
		assert.NoError(t, err)
	}
	group.Go(post)
	b.awaitBlocked(t)
	for range waiting {
		group.Go(post)
	}
	b.awaitWaiting(t, waiting)
	b.cancel()
	await(t, "the webhook listens no more", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(b.webhook, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	require.False(t, b.hasExited())
	release()
	group.Wait()
	require.Zero(t, b.stop(), "exit code")
	require.Len(t, storedBodies(t, b.databaseURL), 1+waiting)
}

func TestPostgresKilled_SendersAreToldAtOnce_AndNothingIsLost(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	s := serve(t, databaseURL)
	s.awaitReady(t)
	h := watchHiccups(t, s)
	l := startLoad(t, s, 20)
	l.awaitMore(t, 200, http.StatusOK)

	require.NoError(t, database.Kill())
	l.awaitMore(t, 1, http.StatusServiceUnavailable)
	noticed := time.Now()
	l.awaitMore(t, 200, http.StatusServiceUnavailable)
	await(t, "it is not ready", func() bool { return s.readiness(t).failing("database") != "" })
	require.Equal(t, http.StatusOK, s.get(t, s.internal+"/livez").status, "a restart would not bring Postgres back")
	restarting := time.Now()

	require.NoError(t, database.Restart(t.Context()))
	l.awaitMore(t, 200, http.StatusOK)
	s.awaitReady(t)
	exchanges := l.stop()
	requireKept(t, databaseURL, exchanges, h)
	for _, e := range exchanges {
		if e.begin.After(noticed) && e.end.Before(restarting) {
			require.True(t, e.is(http.StatusServiceUnavailable), "%s", e)
			require.Less(t, e.took(), h.beyond(1500*time.Millisecond), "once it is known, no sender waits: %s", e)
		}
	}
}

func TestPostgresThatSaysNothing_NoSenderWaitsBeyondTheTimeout(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	s := serve(t, databaseURL)
	s.awaitReady(t)
	h := watchHiccups(t, s)
	l := startLoad(t, s, 20)
	l.awaitMore(t, 200, http.StatusOK)

	require.NoError(t, database.Pause()) // connections stay open, and new ones are made: by the kernel
	await(t, "the first sender is told", func() bool { return s.metric(t, "myticket_intake_database_away") == 1 })
	l.awaitMore(t, 100, http.StatusServiceUnavailable)
	await(t, "it is not ready", func() bool { return s.readiness(t).failing("database") != "" })

	require.NoError(t, database.Resume())
	l.awaitMore(t, 200, http.StatusOK)
	s.awaitReady(t)
	requireKept(t, databaseURL, l.stop(), h) // which bounds how long each took
}

func TestBackendsTerminated_IsOverInAMoment(t *testing.T) {
	t.Parallel()
	const rounds, moment = 5, 1500 * time.Millisecond
	b := setup(t)
	h := watchHiccups(t, b.server)
	l := startLoad(t, b.server, 20)
	terminated := 0
	for range rounds {
		l.awaitMore(t, 100, http.StatusOK)
		terminated += b.count(t, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'myticket serve'`)
	}
	l.awaitMore(t, 100, http.StatusOK)
	require.GreaterOrEqual(t, terminated, rounds, "there was nothing to terminate")
	exchanges := l.stop()
	requireKept(t, b.databaseURL, exchanges, h)

	last := exchanges[0]
	for _, e := range exchanges { // in the order in which they ended
		require.Less(t, e.took(), h.beyond(moment), "%s", e)
		if e.is(http.StatusOK) {
			require.Less(t, e.end.Sub(last.end), h.beyond(moment), "nothing was stored from %s to %s", last, e)
			last = e
		}
	}
}

func TestClientThatGoesAway_CancelsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, "--batches-in-flight=1")
	release := b.lockTickets(t)
	var group sync.WaitGroup
	post := func(text string) {
		group.Go(func() {
			_, err := b.trySubmit(text)
			assert.NoError(t, err)
		})
	}
	post("holds the lane")
	b.awaitBlocked(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.webhook, "http://"))
	require.NoError(t, err)
	const impatient = "of an impatient client"
	_, err = fmt.Fprintf(conn, "POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s",
		len(impatient), impatient)
	require.NoError(t, err)
	b.awaitWaiting(t, 1)
	post("in the same batch")
	b.awaitWaiting(t, 2)
	require.NoError(t, conn.Close())
	release()
	group.Wait()
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE body = $1`, []byte(impatient)))
	require.Equal(t, 3, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSlowClient_IsCutOff_WhileOthersAreServed(t *testing.T) {
	t.Parallel()
	const readTimeout = time.Second
	b := setup(t, "--read-timeout", readTimeout.String())
	h := watchHiccups(t, b.server)
	for name, request := range map[string]struct{ atOnce, byteByByte string }{
		"headers": {"", "POST /ticket HTTP/1.1\r\nHost: test\r\nX-Slow: " + strings.Repeat("x", 1000)},
		"body":    {"POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n", strings.Repeat("x", 999)},
		"nothing": {"POST /ticket", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now() // before the server can know of the connection
			conn, err := net.Dial("tcp", strings.TrimPrefix(b.webhook, "http://"))
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, request.atOnce)
			require.NoError(t, err)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			go func() {
				for i := 0; i < len(request.byteByByte) && ctx.Err() == nil; i++ {
					if _, err := conn.Write([]byte{request.byteByByte[i]}); err != nil {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
			cut := make(chan answer, 1)
			go func() {
				_ = conn.SetReadDeadline(begin.Add(readTimeout + patience))
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if !assert.NoError(t, err, "it is told why it is cut off (docs/webhook.md)") {
					cut <- answer{}
					return
				}
				defer response.Body.Close()
				content, _ := io.ReadAll(response.Body)
				_, err = conn.Read(make([]byte, 1))
				assert.Error(t, err, "the connection is closed")
				cut <- answer{response.StatusCode, response.Header, content}
			}()
			var a answer
			for others := 0; a.body == nil; others++ {
				select {
				case a = <-cut:
					require.Positive(t, others)
					require.NotNil(t, a.body)
				default:
					b.submit(t, "/ticket", "of another client")
				}
			}
			requireProblem(t, a, http.StatusRequestTimeout, "request_timeout")
			took := time.Since(begin)
			require.GreaterOrEqual(t, took, readTimeout)
			require.LessOrEqual(t, took, h.beyond(readTimeout+slack))
		})
	}
}

// TestPoison_CostsNoOtherTicket: the database refuses the content of one ticket of a batch.
func TestPoison_CostsNoOtherTicket(t *testing.T) {
	t.Parallel()
	const tickets, poison = 128, 77
	b := setup(t, "--batches-in-flight=1")
	b.exec(t, `ALTER TABLE tickets ADD CONSTRAINT not_poison CHECK (order_number <> 'POISON')`)
	release := b.lockTickets(t)
	receipts := make([]receipt, tickets)
	text := func(i int) string {
		if i == poison {
			return body("POISON", "Poison,poison,1")
		}
		return body(strconv.Itoa(i), fmt.Sprintf("Product %d,p%d,1", i, i))
	}
	var group sync.WaitGroup
	send := func(i int) {
		group.Go(func() {
			var err error
			receipts[i], err = b.trySubmit(text(i))
			assert.NoError(t, err)
		})
	}
	send(0)
	b.awaitBlocked(t)
	for i := 1; i < tickets; i++ {
		send(i)
	}
	b.awaitWaiting(t, tickets-1) // in one batch
	release()
	group.Wait()
	require.False(t, t.Failed(), "every ticket is answered with 200: see above")

	for i, r := range receipts {
		stored := b.ticket(t, r.ID)
		require.Equal(t, text(i), stored.Body)
		require.Equal(t, r.Status, stored.Status)
		if i != poison {
			require.Equal(t, "TREATED", string(r.Status), "ticket %d: %v", i, r.Problems)
			continue
		}
		require.Equal(t, "ERROR", string(r.Status))
		require.Len(t, r.Problems, 1)
		require.Equal(t, "database_refused", r.Problems[0].Code)
		require.Contains(t, r.Problems[0].Message, "not_poison", "the operator must find the cause")
		require.Equal(t, r.Problems, stored.Problems)
	}
	require.Equal(t, tickets, b.count(t, `SELECT count(*) FROM tickets`))
	products := b.products(t)
	require.Len(t, products, tickets-1)
	require.NotContains(t, products, "poison")
}

// A sender that is slower than the shutdown must not leave the operator with "context deadline exceeded" alone.
func TestServe_WhoseShutdownTakesTooLong_SaysWhatThatMeansForTickets(t *testing.T) {
	t.Parallel()
	s := serve(t, unreachable, "--shutdown-timeout=50ms")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.webhook, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("POST /ticket HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 100)) // it waits for the body now
	require.NoError(t, err)
	require.Equal(t, 1, s.stop())
	require.Contains(t, s.log.String(), "--shutdown-timeout (50ms) is over, and not all is finished: a request without an answer has to be sent again")
	s.code = 0 // for the end of the test
}
