package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb"
	"myticket/internal/devdb/pgtest"
	"myticket/internal/ticket"
)

// The program to measure is built once, into this folder.
var folder string

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && (os.Args[1] == "floor" || os.Args[1] == "naive") { // started by the benchmark under test
		main()
	}
	var err error
	if folder, err = os.MkdirTemp("", "myticket-bench-test-"); err != nil {
		panic(err)
	}
	code := 1
	func() {
		defer os.RemoveAll(folder)
		code = m.Run()
	}()
	os.Exit(code)
}

var build = sync.OnceValue(func() error {
	command := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(folder, "myticket"), "myticket/cmd/myticket")
	if printed, err := command.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(printed)))
	}
	return nil
})

// newTestBench has short slices, few products, and a Postgres that does not wait for the disk.
func newTestBench(t *testing.T, change func(*settings)) (*bench, *bytes.Buffer) {
	t.Helper()
	require.NoError(t, build())
	s := settings{
		server: filepath.Join(folder, "myticket"), warmUp: 20 * time.Millisecond, duration: time.Second, rounds: 1,
		products: 2_000,
		latency:  500 * time.Microsecond, spooled: 300, share: 0.01,
	}
	change(&s)
	var out bytes.Buffer
	b, err := newBench(s, &out)
	require.NoError(t, err)
	b.pgbench, b.postgres = time.Second, devdb.Volatile()
	return b, &out
}

// linesOf returns the cells of all lines that begin so.
func linesOf(t *testing.T, text, begin string, count int) (lines [][]string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, begin) {
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
			for i := range cells {
				cells[i] = strings.Trim(cells[i], " *")
			}
			lines = append(lines, cells)
		}
	}
	require.Len(t, lines, count, "lines begin with %q:\n%s", begin, text)
	return lines
}

func assertPositive(t *testing.T, cells []string, at ...int) {
	t.Helper()
	for _, i := range at {
		number, _, _ := strings.Cut(cells[i], " ")
		value, err := strconv.ParseFloat(number, 64)
		if assert.NoError(t, err, cells) {
			assert.Positive(t, value, cells)
		}
	}
}

func TestBench_MeasuresEachKindOfRow(t *testing.T) { //nolint:paralleltest // it needs the machine for itself
	if testing.Short() {
		t.Skip("it starts a Postgres of its own, three times")
	}
	if _, err := exec.LookPath("pgbench"); err != nil {
		t.Skip("pgbench is not in PATH")
	}
	b, out := newTestBench(t, func(s *settings) {
		s.only = "^(2 lines, 10 products, concurrency 200|40 lines, 400 new|2 lines.* away, concurrency 50$|2 lines.* drained)"
	})
	naive, err := naivePeer(t.Context(), "")
	require.NoError(t, err)
	b.peers = []peer{naive}
	require.NoError(t, b.run(t.Context()), out.String())
	t.Log(out.String())

	const floorRate, serverRate, ratio = 2, 3, 6
	for _, begin := range []string{
		"| 2 lines, 10 products | 200 | ", "| 40 lines, 400 new products | 200 | ",
		"| 2 lines, 2000 products, Postgres 500µs away | 50 | ",
	} {
		lines := linesOf(t, out.String(), begin, 2) // in the table of MyTicket, and in that of the peers
		require.Len(t, lines[0], 11)
		assertPositive(t, lines[0], floorRate, serverRate, ratio)
		require.Len(t, lines[1], 6)
		assertPositive(t, lines[1], 2, 3, 4) // MyTicket, the only peer, and the ratio
	}
	spool := linesOf(t, out.String(), "| 2 lines, 2000 products, drained from a spool | ", 1)[0]
	require.Len(t, spool, 10)
	assertPositive(t, spool, 1, 2, 3, 5, 6)
	assertPositive(t, linesOf(t, out.String(), "| (c) in batches of 100, 4 clients | ", 1)[0], 1)
	assert.Contains(t, out.String(), "times a single-row commit")
}

func TestBench_ComparesAndSustains(t *testing.T) { //nolint:paralleltest // it needs the machine for itself
	if testing.Short() {
		t.Skip("it starts a Postgres of its own, three times")
	}
	b, out := newTestBench(t, func(s *settings) { s.vs, s.only = s.server, "^2 lines, 10 products, concurrency 50$" })
	require.NoError(t, b.run(t.Context()), out.String())
	assert.Equal(t, 2, strings.Count(out.String(), "| 2 lines, 10 products | 50 | `"), out.String())

	b, out = newTestBench(t, func(s *settings) { s.sustain = 300 * time.Millisecond })
	require.NoError(t, b.run(t.Context()), out.String())
	assert.Contains(t, out.String(), "40 lines, 2000 products at a steady rate for 300ms: 0.01 of the floor's ")
	const asked, answered = 0, 1
	line := linesOf(t, out.String(), "| ", 2)[1]
	assertPositive(t, line, asked, answered)

	b, out = newTestBench(t, func(s *settings) { s.retried, s.duration = 3_000, 100*time.Millisecond })
	require.NoError(t, b.run(t.Context()), out.String())
	assertPositive(t, linesOf(t, out.String(), "| alone | ", 1)[0], 1, 2, 3)
	assertPositive(t, linesOf(t, out.String(), "| beside the retry | ", 1)[0], 1, 2, 3)
	assert.Contains(t, out.String(), "The last one was read ")
}

func TestFloor_AnswersLikeMyTicket(t *testing.T) {
	t.Parallel()
	b, _ := newTestBench(t, func(*settings) {})
	floor, err := startFloor(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, floor.stop()) })
	server, err := b.launch(t.Context(), b.settings.server, pgtest.New(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.stop()) })

	type reply struct {
		status int
		length int64
		header []string
		keys   []string
	}
	post := func(p *process, body string) reply {
		response, err := http.Post("http://"+p.addr+"/ticket", "text/plain", strings.NewReader(body))
		require.NoError(t, err)
		defer response.Body.Close()
		r := reply{status: response.StatusCode, length: response.ContentLength}
		for name := range response.Header {
			r.header = append(r.header, name)
		}
		if response.StatusCode == http.StatusOK {
			assert.Equal(t, "application/json", response.Header.Get("Content-Type"))
			var answer map[string]string
			require.NoError(t, json.NewDecoder(response.Body).Decode(&answer))
			assert.Equal(t, string(ticket.Treated), answer["status"])
			for key := range answer {
				r.keys = append(r.keys, key)
			}
		}
		return r
	}
	same := func(body string) int {
		ours, floors := post(server, body), post(floor, body)
		assert.Equal(t, ours.status, floors.status)
		if ours.status == http.StatusOK {
			assert.Equal(t, ours.length, floors.length)
			assert.ElementsMatch(t, ours.header, floors.header)
			assert.ElementsMatch(t, ours.keys, floors.keys)
		}
		return floors.status
	}
	for _, lines := range []int{2, 40} {
		set := newTickets(lines, hotProducts)
		set.make()
		_, body, _ := bytes.Cut(set.requests[0], []byte("\r\n\r\n"))
		assert.Equal(t, http.StatusOK, same(string(body)))
	}
	for _, p := range []*process{server, floor} {
		for length, status := range map[int]string{1 << 20: "", 1<<20 + 1: "413"} {
			assert.Equal(t, status, answerToHead(t, p, length), "%s is told of a body of %d bytes", p.addr, length)
		}
	}
	assert.Equal(t, http.StatusBadRequest, post(floor, "").status, "a handler that needs no body measures nothing")
}

// answerToHead returns the status of the answer to a request whose body does not come, or "" if the server waits for the body.
func answerToHead(t *testing.T, p *process, length int) string {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "POST /ticket HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", length)
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
	status, err := bufio.NewReader(conn).ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	require.NoError(t, err)
	return strings.Fields(status)[1]
}

func TestDatabase_IsFilledWithWhatTheTicketsSay(t *testing.T) {
	t.Parallel()
	b, _ := newTestBench(t, func(*settings) {})
	db := &database{url: pgtest.New(t)}
	require.NoError(t, db.fill(t.Context(), 200))
	server, err := b.launch(t.Context(), b.settings.server, db.url, nil)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.stop()) })
	r, err := load{addr: server.addr, concurrency: 4, tickets: newTickets(40, 200), count: 500}.run(t.Context())
	require.NoError(t, err)
	require.Equal(t, 500, r.acked)
	require.NoError(t, db.checkStored(t.Context(), 500), "all of it was known")
	require.ErrorContains(t, db.checkStored(t.Context(), 501), "501 tickets were acknowledged and 500 are stored")

	r, err = load{addr: server.addr, concurrency: 1, tickets: newTickets(2, 202), count: 101}.run(t.Context())
	require.NoError(t, err)
	require.ErrorContains(t, db.checkStored(t.Context(), 500+r.acked), "2 products were new or changed")
}

func TestNaive_KeepsWhatItAcknowledges(t *testing.T) {
	t.Parallel()
	db := &database{url: pgtest.New(t)}
	naive, err := naivePeer(t.Context(), "")
	require.NoError(t, err)
	require.NoError(t, db.exec(t.Context(), naive.createTable()))
	server, err := naive.start(t.Context(), db.url)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.stop()) })
	_, err = load{addr: server.addr, concurrency: 5, tickets: newTickets(2, hotProducts), count: 50}.run(t.Context())
	require.NoError(t, err)
	require.NoError(t, naive.checkStored(t.Context(), db, 50))
	require.ErrorContains(t, naive.checkStored(t.Context(), db, 51), "acknowledged 51 tickets and stored 50")
}

func TestTickets_NameEveryProduct_EachWithAnOrderNumberOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, set := range []*tickets{newTickets(2, 10), newTickets(40, 4_000), newShopTickets(40, 400)} {
		set.make()
		products := map[product]bool{}
		for n := range len(set.requests) + 3 {
			request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(set.appendRequest(nil, n))))
			require.NoError(t, err)
			var body bytes.Buffer
			_, err = body.ReadFrom(request.Body)
			require.NoError(t, err)
			order, problems := ticket.Parse(body.Bytes())
			require.Empty(t, problems)
			assert.Equal(t, fmt.Sprintf("%010d", n), order.Number)
			require.Len(t, order.Lines, set.lines)
			for _, line := range order.Lines {
				products[product{line.ProductID, line.Name, line.Price.String()}] = true
			}
		}
		assert.Len(t, products, set.products, set.name)
		for i := range set.products {
			assert.True(t, products[productOf(i)], "product %d of %s", i, set.name)
		}
	}
}

func TestReadOK(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer    string
		mayBeKept bool
		fails     string
	}{
		"stored":            {answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"},
		"small letters":     {answer: "HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 2\r\n\r\n{}"},
		"kept":              {answer: "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}", mayBeKept: true},
		"kept unexpectedly": {answer: "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}", fails: "202 Accepted"},
		"refused":           {answer: "HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n", mayBeKept: true, fails: "503 Away"},
		"without a length":  {answer: "HTTP/1.1 200 OK\r\n\r\n", fails: "no Content-Length"},
		"cut off":           {answer: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", fails: "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := readOK(bufio.NewReader(strings.NewReader(c.answer)), c.mayBeKept)
			if c.fails == "" {
				assert.NoError(t, err)
			} else {
				assert.ErrorContains(t, err, c.fails)
			}
		})
	}
}

func TestLoad_CountsAndPaces(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.Header().Set("Content-Length", "0")
	}))
	t.Cleanup(server.Close)
	l := load{addr: server.Listener.Addr().String(), concurrency: 3, tickets: newTickets(2, hotProducts)}
	counted := l
	counted.count = 100
	r, err := counted.run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 100, r.acked)
	assert.Equal(t, int64(100), requests.Load())

	paced := l
	paced.rate, paced.duration = 100, 500*time.Millisecond
	r, err = paced.run(t.Context())
	require.NoError(t, err)
	assert.LessOrEqual(t, r.acked, 53, "50, and the first of each connection")
	assert.Positive(t, r.perSecond)
}

func TestFigures(t *testing.T) {
	t.Parallel()
	assert.InDelta(t, 2.0, median([]float64{5, 2, 1}), 0)
	assert.Equal(t, []float64{2, 0.5}, pairs([]float64{4, 1}, []float64{2, 2}))
	assert.Empty(t, pairs([]float64{1}, nil))
	assert.Equal(t, "**2.000** (1.000–4.000)", describeRatios([]float64{1, 2, 4}))
	assert.Empty(t, describeRatios(nil))

	before := clocks{client: time.Second, server: 2 * time.Second, postgres: 3 * time.Second}
	after := clocks{client: 2 * time.Second, server: 4 * time.Second, postgres: 6 * time.Second}
	assert.Equal(t, "10 + 20 + 30", describeWork([]work{after.since(before, 100_000)}))
	assert.Equal(t, "unknown", describeWork(nil))
	assert.Equal(t, "3 MiB", describeMemory(3<<20))
	assert.Equal(t, "unknown", describeMemory(0))

	id := idAt(time.UnixMilli(1_700_000_000_123))
	assert.Equal(t, 7, int(id.Version()))
	assert.Equal(t, int64(1_700_000_000_123), ticket.IDTime(id).UnixMilli())
}

func TestRows_AreChosenByName(t *testing.T) {
	t.Parallel()
	chosen := func(only string) (labels []string) {
		b := &bench{settings: settings{latency: time.Millisecond, spooled: 1, products: 100_000}, only: regexp.MustCompile(only)}
		for r := range b.rows() {
			labels = append(labels, fmt.Sprintf("%s at %d", r.label(), r.concurrency))
		}
		return labels
	}
	assert.Len(t, chosen(""), 13)
	assert.Equal(t, []string{"40 lines, 20000 new products at 200"}, chosen("new"))
	assert.Equal(t, []string{"2 lines, 100000 products, Postgres 1ms away at 50"}, chosen("^2 lines.*away.* 50$"))
	assert.Equal(t, []string{"2 lines, 10 products at 200"}, chosen("^2 lines, 10 products, concurrency 200$"))

	long := &bench{settings: settings{spooled: 1, products: 100}, only: regexp.MustCompile("^40 lines")}
	assert.False(t, long.needsCeiling())
	assert.Len(t, long.spooledRows(), 1)
	short := &bench{settings: settings{spooled: 1, products: 100}, only: regexp.MustCompile("^2 lines.*spool")}
	assert.True(t, short.needsCeiling())
}

func TestPeers_AreComparedWithTheBest(t *testing.T) {
	t.Parallel()
	figuresOf := func(rates ...float64) *contender {
		return &contender{figures: figures{rates: rates, p99s: []time.Duration{time.Millisecond}}}
	}
	r := row{load: load{concurrency: 50, tickets: &tickets{name: "some"}}}
	assert.Equal(t, "| some | 50 | 500 (1ms) | 100 (1ms) | 200 (1ms) | **2.50** | 2.00–3.00 |\n",
		besidePeers(r, figuresOf(400, 500, 600), []*contender{figuresOf(90, 100, 110), figuresOf(200, 200, 200)}))
}

func TestPeers_ArePinned_AndUnpacked(t *testing.T) {
	t.Parallel()
	dir, err := unpack("peers/fastapi", t.TempDir())
	require.NoError(t, err)
	assert.FileExists(t, filepath.Join(dir, "main.py"))
	pins, err := os.ReadFile(filepath.Join(dir, "requirements.txt"))
	require.NoError(t, err)
	for line := range strings.Lines(string(pins)) {
		assert.Regexp(t, `^[a-z]+==[0-9.]+\n$`, line)
	}
	dir, err = unpack("peers/fastify", t.TempDir())
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(dir, "package.json"))
	require.NoError(t, err)
	var wanted struct {
		Dependencies map[string]string `json:"dependencies"`
	}
	require.NoError(t, json.Unmarshal(text, &wanted))
	require.Len(t, wanted.Dependencies, 2)
	text, err = os.ReadFile(filepath.Join(dir, "package-lock.json"))
	require.NoError(t, err)
	assert.NotContains(t, string(text), "http", "a lock file names no registry")
	var lock struct {
		Packages map[string]struct {
			Version   string `json:"version"`
			Integrity string `json:"integrity"`
		} `json:"packages"`
	}
	require.NoError(t, json.Unmarshal(text, &lock))
	for name, version := range wanted.Dependencies {
		assert.Equal(t, version, lock.Packages["node_modules/"+name].Version)
	}
	for name, p := range lock.Packages {
		assert.True(t, name == "" || p.Integrity != "", name)
	}
}

func TestPeers_ThatAreMissingAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out bytes.Buffer
	peers := installPeers(t.Context(), t.TempDir(), &out)
	require.Len(t, peers, 1)
	assert.Equal(t, "Go + pgx", peers[0].name)
	assert.Contains(t, out.String(), "Fastify + pg is not measured: node is missing here: install Node.js")
	assert.Contains(t, out.String(), "FastAPI + asyncpg is not measured: python3 is missing here: install Python")
}

func TestSustained_ReadsMetrics_OrSaysThatTheyAreMissing(t *testing.T) {
	t.Parallel()
	var waiting atomic.Int64
	waiting.Store(3)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s %d\n", linesWaiting, waiting.Load())
		waiting.Store(max(0, waiting.Load()-1))
	}))
	t.Cleanup(server.Close)
	addr := server.Listener.Addr().String()
	stop := watchGauges(t.Context(), addr, time.Hour, linesWaiting, linesLag)
	seen, err := stop()
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(seen[linesWaiting].describe(""), "3, "), seen[linesWaiting].describe(""))
	assert.Equal(t, "the server has no such metric", seen[linesLag].describe(" s"))
	waited, err := catchUp(t.Context(), addr, seen)
	require.NoError(t, err)
	assert.NotEqual(t, "unknown", waited)
	assert.Zero(t, waiting.Load())
	waited, err = catchUp(t.Context(), addr, nil)
	require.NoError(t, err)
	assert.Equal(t, "unknown", waited)
}

func TestSustained_NeedsRoom(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, checkRoom(t.TempDir(), 1e18), "make it shorter")
}

func TestReceiver_CountsSpans(t *testing.T) {
	t.Parallel()
	spans := func(n int) []byte { return bytes.Repeat([]byte{2<<3 | 2, 0}, n) } // empty ones
	within := func(field byte, message []byte) []byte {
		return append([]byte{field<<3 | 2, byte(len(message))}, message...)
	}
	two := within(1, within(2, spans(2)))
	r := &receiver{}
	address, stop, err := r.listen(t.Context())
	require.NoError(t, err)
	t.Cleanup(stop)
	response, err := http.Post("http://"+address, "application/x-protobuf", bytes.NewReader(append(two, within(1, within(2, spans(1)))...)))
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	assert.Equal(t, int64(3), r.received.Load())
}

func TestDelayed_LeadsThroughTheProxy(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	proxy, through, err := delayed(t.Context(), direct, 30*time.Millisecond)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	host, _, err := net.SplitHostPort(proxy.Addr())
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1", host)
	db := &database{url: through}
	start := time.Now()
	n, err := db.count(context.WithoutCancel(t.Context()), `SELECT 7`)
	require.NoError(t, err)
	assert.Equal(t, 7, n)
	assert.GreaterOrEqual(t, time.Since(start), 60*time.Millisecond, "at least the login and the query")
}
