package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/ticket"
)

// runMain is the variable that makes a process of the tests run the program itself.
const runMain = "MYTICKET_TEST_RUN_MAIN"

// TestMain removes the settings in the environment of the tests, because the program reads the real environment.
func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
		return
	}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "DATABASE_URL") ||
			strings.HasPrefix(name, "MYTICKET_") && !strings.HasPrefix(name, "MYTICKET_TEST_") {
			if err := os.Unsetenv(name); err != nil {
				panic(err)
			}
		}
	}
	if err := os.Setenv("NO_COLOR", "1"); err != nil { // a terminal shows the text alone; the test of colours asks for them
		panic(err)
	}
	pgtest.Main(m)
}

// patience bounds every wait for a condition. No condition takes nearly as long.
const patience = 2 * time.Minute

// testBundle is the real program, on a real Postgres.
type testBundle struct {
	*server
	databaseURL string
	pool        *pgxpool.Pool // for checks in the database
}

// setup serves on a database of the test's own, and returns when it is ready.
func setup(t *testing.T, flags ...string) *testBundle {
	t.Helper()
	b := &testBundle{databaseURL: pgtest.New(t)}
	b.pool = openPool(t, b.databaseURL)
	b.server = serve(t, b.databaseURL, flags...)
	b.awaitReady(t)
	b.awaitStoring(t)
	return b
}

func openPool(t *testing.T, databaseURL string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// server is `myticket serve`, run in this process.
type server struct {
	webhook  string // base URL of the public listener
	internal string // base URL of the internal one
	log      *logText
	client   *http.Client
	cancel   func() // what SIGTERM does
	exited   chan struct{}
	code     int // once exited is closed
}

// serve starts the program on free ports, and returns when it listens. It is stopped after the test, and must exit
// with 0.
func serve(t *testing.T, databaseURL string, flags ...string) *server {
	t.Helper()
	return serveWith(t, append([]string{"--database-url", databaseURL}, flags...)...)
}

func serveWith(t *testing.T, flags ...string) *server {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true}
	s := &server{log: &logText{}, client: &http.Client{Transport: transport}, exited: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	args := append([]string{"serve", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"}, flags...)
	go func() {
		defer close(s.exited)
		s.code = run(ctx, args, nil, streams{stdout: s.log, stderr: s.log})
	}()
	t.Cleanup(func() {
		assert.Zero(t, s.stop(), "exit code")
		transport.CloseIdleConnections()
		if t.Failed() {
			t.Logf("log of the server:\n%s", s.log)
		}
	})
	var serving map[string]any
	await(t, "the server serves (or ends)", func() bool {
		serving = s.log.line("serving")
		return serving != nil || s.hasExited()
	})
	require.NotNil(t, serving, "the server ended: %s", s.log)
	s.webhook, s.internal = "http://"+serving["webhook"].(string), "http://"+serving["internal"].(string)
	return s
}

func (s *server) hasExited() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// stop shuts the server down, and returns its exit code.
func (s *server) stop() int {
	s.cancel()
	select {
	case <-s.exited:
		return s.code
	case <-time.After(patience):
		return -1
	}
}

func (s *server) awaitReady(t *testing.T) {
	t.Helper()
	await(t, "the server is ready", func() bool { return s.get(t, s.internal+"/readyz").status == http.StatusOK })
}

// awaitStoring waits until tickets go to the database, and no longer to the spool alone. On a machine that is very busy, a server
// that is ready may not have read the dialects yet.
func (s *server) awaitStoring(t *testing.T) {
	t.Helper()
	await(t, "tickets go to the database", func() bool { return s.metric(t, "myticket_intake_database_away") == 0 })
}

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) String() string { return fmt.Sprintf("%d %v %s", a.status, a.header, a.body) }

// do sends a request; headers are names and values in turn.
func (s *server) do(method, url string, body io.Reader, headers ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := s.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, content}, err
}

// send posts to the webhook, and can be called from any goroutine.
func (s *server) send(path, body string, headers ...string) (answer, error) {
	return s.do(http.MethodPost, s.webhook+path, strings.NewReader(body), headers...)
}

func (s *server) post(t *testing.T, path, body string, headers ...string) answer {
	t.Helper()
	a, err := s.send(path, body, headers...)
	require.NoError(t, err, "POST %s", path)
	return a
}

func (s *server) get(t *testing.T, url string) answer {
	t.Helper()
	a, err := s.do(http.MethodGet, url, nil)
	require.NoError(t, err, url)
	return a
}

// receipt is the body of a 200.
type receipt struct {
	ID        uuid.UUID        `json:"id"`
	Status    ticket.Status    `json:"status"`
	Problems  []ticket.Problem `json:"problems"`
	Duplicate bool             `json:"duplicate"`
}

// readReceipt reads a 200. Any other answer is an error. It can be called from any goroutine.
func readReceipt(a answer) (receipt, error) {
	var r receipt
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" {
		return r, fmt.Errorf("no receipt: %s", a)
	}
	decoder := json.NewDecoder(bytes.NewReader(a.body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return r, fmt.Errorf("%s: %w", a, err)
	}
	return r, nil
}

func requireReceipt(t *testing.T, a answer) receipt {
	t.Helper()
	r, err := readReceipt(a)
	require.NoError(t, err)
	return r
}

// trySubmit posts a ticket that should be stored, and can be called from any goroutine.
func (s *server) trySubmit(body string, headers ...string) (receipt, error) {
	a, err := s.send("/ticket", body, headers...)
	if err != nil {
		return receipt{}, err
	}
	return readReceipt(a)
}

// submit posts a ticket that must be stored.
func (s *server) submit(t *testing.T, path, body string, headers ...string) receipt {
	t.Helper()
	return requireReceipt(t, s.post(t, path, body, headers...))
}

// requireProblem checks an error against RFC 9457 and docs/webhook.md.
func requireProblem(t *testing.T, a answer, status int, code string) {
	t.Helper()
	require.Equal(t, status, a.status, "%s", a)
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"), "%s", a)
	var problem map[string]any
	require.NoError(t, json.Unmarshal(a.body, &problem), "%s", a)
	require.NotEmpty(t, problem["detail"], "%s", a)
	delete(problem, "detail")
	require.Equal(t, map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": float64(status), "code": code,
	}, problem, "%s", a)
}

// storedTicket is a row of tickets, with its lines in order_lines.
type storedTicket struct {
	Source      string
	Body        string
	ContentType string
	Traceparent string
	Status      ticket.Status
	Problems    []ticket.Problem
	Order       *string
	VAT         *string
	Total       *string
	Lines       []storedLine // in order_lines, where they come a moment later
}

type storedLine struct {
	Product   string      `json:"product"`
	ProductID string      `json:"product_id"`
	Price     json.Number `json:"price"`
}

func (b *testBundle) ticket(t *testing.T, id uuid.UUID) storedTicket {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `
		SELECT source, body, content_type, coalesce(traceparent, ''), status, coalesce(problems, '[]'),
		       order_number, vat::text, total::text,
		       coalesce((SELECT jsonb_agg(jsonb_build_object('product', product, 'product_id', product_id, 'price', price) ORDER BY line)
		                 FROM order_lines WHERE ticket_id = $1), '[]')
		FROM tickets WHERE id = $1`, id)
	require.NoError(t, err)
	found, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (storedTicket, error) {
		var s storedTicket
		var body []byte
		err := row.Scan(&s.Source, &body, &s.ContentType, &s.Traceparent, &s.Status, &s.Problems,
			&s.Order, &s.VAT, &s.Total, &s.Lines)
		s.Body = string(body)
		return s, err
	})
	require.NoError(t, err, "the ticket %s should be in tickets exactly once", id)
	return found
}

// awaitOrderLines waits until order_lines has all tickets that are stored now.
func (b *testBundle) awaitOrderLines(t *testing.T) {
	t.Helper()
	const behind = `SELECT count(*) FROM outbox WHERE xid > coalesce((SELECT xid FROM outbox_readers WHERE name = 'order_lines'), '0')`
	await(t, "order_lines has all tickets", func() bool { return b.count(t, behind) == 0 })
}

// requireSameBytes does not print the bytes, because there may be many.
func requireSameBytes(t *testing.T, sent, stored string) {
	t.Helper()
	if sent != stored {
		require.Failf(t, "not what was sent", "%d bytes were sent, and %d others are stored", len(sent), len(stored))
	}
}

// products returns the product base as "name price" by product_id.
func (b *testBundle) products(t *testing.T) map[string]string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `SELECT product_id, name || ' ' || price FROM products`)
	require.NoError(t, err)
	found := map[string]string{}
	var id, what string
	_, err = pgx.ForEachRow(rows, []any{&id, &what}, func() error { found[id] = what; return nil })
	require.NoError(t, err)
	return found
}

func (b *testBundle) exec(t *testing.T, sql string) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), sql)
	require.NoError(t, err, sql)
}

func (b *testBundle) count(t *testing.T, sql string, args ...any) int {
	t.Helper()
	var n int
	require.NoError(t, b.pool.QueryRow(t.Context(), sql, args...).Scan(&n), sql)
	return n
}

// lockTickets prevents every batch from being stored until release is called, or the test ends.
func (b *testBundle) lockTickets(t *testing.T) (release func()) {
	t.Helper()
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	release = sync.OnceFunc(func() { assert.NoError(t, tx.Rollback(context.Background())) })
	t.Cleanup(release)
	_, err = tx.Exec(t.Context(), `LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	return release
}

// awaitBlocked waits until a batch waits for lockTickets.
func (b *testBundle) awaitBlocked(t *testing.T) {
	t.Helper()
	await(t, "a batch waits for the lock", func() bool {
		return b.count(t, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO tickets%'`) == 1
	})
}

// awaitWaiting waits until this many tickets wait for a transaction.
func (b *testBundle) awaitWaiting(t *testing.T, tickets int) {
	t.Helper()
	await(t, fmt.Sprintf("%d tickets wait for a transaction", tickets), func() bool {
		return b.metric(t, "myticket_intake_waiting_tickets") == float64(tickets)
	})
}

// metric returns a value of the internal listener's /metrics, or 0 if the metric is not there.
func (s *server) metric(t *testing.T, series string) float64 {
	t.Helper()
	return metricIn(t, s.get(t, s.internal+"/metrics"), series)
}

func metricIn(t *testing.T, exposition answer, series string) float64 {
	t.Helper()
	require.Equal(t, http.StatusOK, exposition.status)
	for line := range strings.Lines(string(exposition.body)) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			var value float64
			require.NoError(t, json.Unmarshal([]byte(strings.TrimSpace(rest)), &value), line)
			return value
		}
	}
	return 0
}

// storedBodies reads all tickets on a connection of its own, because those of a pool may have lost their server.
func storedBodies(t *testing.T, databaseURL string) map[uuid.UUID]string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(t.Context(), `SELECT id, body FROM tickets`)
	require.NoError(t, err)
	bodies := map[uuid.UUID]string{}
	var id uuid.UUID
	var body []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &body}, func() error {
		if _, twice := bodies[id]; twice {
			return fmt.Errorf("the ticket %s is stored twice", id)
		}
		bodies[id] = string(body)
		return nil
	})
	require.NoError(t, err)
	return bodies
}

// await polls until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "waited %s in vain until %s", patience, what)
	}
}

// hiccups is the longest time that this machine makes a request wait that has nothing to wait for. A test adds it to each time
// limit. Otherwise the test would measure the machine, which may be busy with other work.
type hiccups struct{ longest atomic.Int64 }

// watchHiccups asks for /livez, which depends on nothing, until the test ends.
func watchHiccups(t *testing.T, s *server) *hiccups {
	t.Helper()
	const every = 20 * time.Millisecond
	h := &hiccups{}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	t.Cleanup(func() { cancel(); group.Wait() })
	group.Go(func() {
		for ctx.Err() == nil && !s.hasExited() {
			begin := time.Now()
			time.Sleep(every)
			_, _ = s.do(http.MethodGet, s.internal+"/livez", nil) //nolint:contextcheck // it has a limit of its own
			h.longest.Store(max(h.longest.Load(), int64(time.Since(begin)-every)))
		}
	})
	return h
}

// beyond returns a time limit for what should take no longer than d on a machine that is not busy.
func (h *hiccups) beyond(d time.Duration) time.Duration { return d + time.Duration(h.longest.Load()) }

// logText collects the output of the program.
type logText struct {
	mu   sync.Mutex
	text []byte
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// lines returns the JSON log lines with a message.
func (l *logText) lines(message string) []map[string]any {
	var found []map[string]any
	for text := range strings.Lines(l.String()) {
		var line map[string]any
		if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == message {
			found = append(found, line)
		}
	}
	return found
}

// line returns the first of lines, or nil.
func (l *logText) line(message string) map[string]any {
	if found := l.lines(message); len(found) > 0 {
		return found[0]
	}
	return nil
}

// body is a ticket with product lines of the form name,id,price.
func body(order string, lines ...string) string {
	return "Order: " + order + "\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\n" + strings.Join(lines, "\n")
}

func sample(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../testdata/ticket.txt")
	require.NoError(t, err)
	return string(text)
}
