package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/lab"
)

// cell is a server process on a database of its own.
type cell struct {
	program     string
	databaseURL string
	address     string // of the webhook
	internal    string
	spool       string
	process     *lab.Process
}

func newCell(t *testing.T, program string) *cell {
	t.Helper()
	c := &cell{program: program, databaseURL: pgtest.New(t), spool: t.TempDir()}
	var err error
	c.address, err = lab.FreeAddr(t.Context())
	require.NoError(t, err)
	c.internal, err = lab.FreeAddr(t.Context())
	require.NoError(t, err)
	return c
}

// command returns a command of the program on the cell's database.
func (c *cell) command(args ...string) *exec.Cmd {
	command := exec.Command(c.program, args...)
	command.Env = []string{"DATABASE_URL=" + c.databaseURL}
	return command
}

// start starts the server with a sources file, and returns when it is ready.
func (c *cell) start(t *testing.T, sources string) {
	t.Helper()
	log := &logText{}
	command := c.command("serve", "--http-addr", c.address, "--admin-addr", c.internal, "--spool-dir", c.spool,
		"--sources-file", write(t, "sources.json", sources), "--max-connections-per-peer=0")
	command.Stderr = log
	process, err := lab.Start(command, syscall.SIGKILL)
	require.NoError(t, err)
	c.process = process
	t.Cleanup(func() {
		assert.NoError(t, process.Stop(patience))
		if t.Failed() {
			t.Logf("log of a server:\n%s", log)
		}
	})
	require.NoError(t, process.AwaitOK(t.Context(), "http://"+c.internal+"/readyz"))
}

func (c *cell) server() *server {
	return &server{webhook: "http://" + c.address, internal: "http://" + c.internal, client: http.DefaultClient}
}

// front is a reverse proxy that routes by path, as an ingress controller does.
type front struct {
	*httptest.Server
	moved atomic.Bool // /ticket/shop-1 leads to b
	cut   atomic.Bool // an answer that acknowledges a ticket of shop-1 is dropped
	cuts  atomic.Int64
}

func newFront(t *testing.T, a, b *cell) *front {
	t.Helper()
	f := &front{}
	to := func(c *cell) http.Handler {
		proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: c.address})
		proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
		proxy.ModifyResponse = func(r *http.Response) error {
			if strings.HasSuffix(r.Request.URL.Path, "/shop-1") && f.cut.Load() && r.StatusCode < 300 {
				f.cuts.Add(1)
				panic(http.ErrAbortHandler)
			}
			return nil
		}
		return proxy
	}
	toA, toB := to(a), to(b)
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ticket/shop-1" && f.moved.Load() {
			toB.ServeHTTP(w, r)
			return
		}
		toA.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// tills post one ticket after another, each with a key of its own, and repeat it until it is acknowledged.
type tills struct {
	client  *http.Client
	stopped atomic.Bool
	group   sync.WaitGroup
	held    atomic.Int64 // answers that the source is on hold

	mu           sync.Mutex
	acknowledged map[uuid.UUID]string // bodies
	duplicates   map[uuid.UUID]bool   // answered as the same delivery again
}

func startTills(t *testing.T, target, source string, n int) *tills {
	t.Helper()
	l := &tills{
		client:       &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: n}},
		acknowledged: map[uuid.UUID]string{}, duplicates: map[uuid.UUID]bool{},
	}
	for range n {
		l.group.Go(func() {
			for !l.stopped.Load() {
				l.deliver(t, target+"/ticket/"+source)
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

// deliver posts a new ticket until it is acknowledged.
func (l *tills) deliver(t *testing.T, target string) {
	t.Helper()
	text, key := body(rand.Text(), "Coffee,c,2"), uuid.NewString()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		status, content := l.post(target, text, key)
		var r receipt
		switch {
		case status == http.StatusServiceUnavailable && bytes.Contains(content, []byte("source_on_hold")):
			l.held.Add(1)
		case status == http.StatusOK || status == http.StatusAccepted:
			if err := json.Unmarshal(content, &r); err != nil {
				assert.Fail(t, "not a receipt", "%s: %s", err, content)
				return
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.acknowledged[r.ID], l.duplicates[r.ID] = text, r.Duplicate
			return
		}
	}
	assert.Fail(t, "a ticket was never acknowledged")
}

// post sends once. It returns status 0 if there is no whole answer.
func (l *tills) post(target, text, key string) (int, []byte) {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, target, strings.NewReader(text))
	if err != nil {
		return 0, nil
	}
	request.GetBody = nil // so net/http never sends it again by itself
	request.Header.Set("Idempotency-Key", key)
	response, err := l.client.Do(request)
	if err != nil {
		return 0, nil
	}
	defer response.Body.Close()
	var content bytes.Buffer
	if _, err := content.ReadFrom(response.Body); err != nil {
		return 0, nil
	}
	return response.StatusCode, content.Bytes()
}

func (l *tills) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acknowledged)
}

func (l *tills) awaitMore(t *testing.T, more int) {
	t.Helper()
	from := l.count()
	await(t, fmt.Sprintf("%d more tickets are acknowledged", more), func() bool { return l.count() >= from+more })
}

func (l *tills) stop() {
	l.stopped.Store(true)
	l.group.Wait()
}

// A source moves to another cell under one URL, as docs/scaling.md says, while its tills send all the time.
func TestCells_SourceThatMoves_LosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "myticket")
	built, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", built)
	t.Run("as documented", func(t *testing.T) {
		t.Parallel()
		require.Zero(t, moveSource(t, program, true), "deliveries that are stored in both databases")
	})
	t.Run("without its keys, which shows that the test would see a double", func(t *testing.T) {
		t.Parallel()
		require.Positive(t, moveSource(t, program, false))
	})
}

// moveSource moves shop-1 from one cell to another under load. It requires that nothing is lost, and returns how many tickets are
// stored twice.
func moveSource(t *testing.T, program string, withKeys bool) (doubled int) {
	t.Helper()
	const senders = 12
	a, b := newCell(t, program), newCell(t, program)
	a.start(t, `{"*": {}}`)
	b.start(t, `{"*": {}}`)
	f := newFront(t, a, b)
	moving, staying := startTills(t, f.URL, "shop-1", senders), startTills(t, f.URL, "shop-10", 2)
	moving.awaitMore(t, 300)

	// The last answers before the move are lost on their way: the tickets are stored, and their tills do not know it.
	f.cut.Store(true)
	await(t, "every till of shop-1 waits for an answer", func() bool { return f.cuts.Load() >= 10*senders })
	require.NoError(t, a.process.Stop(patience))
	a.start(t, `{"shop-1": {"hold": true}, "*": {}}`)
	f.cut.Store(false)
	began := time.Now()
	before := moving.held.Load()
	await(t, "the tills are asked to wait", func() bool { return moving.held.Load() >= before+2*senders })
	await(t, "the spool is empty", func() bool { return a.server().metric(t, "myticket_spool_tickets") == 0 })
	pool := openPool(t, a.databaseURL)
	ofShop1 := func() (n int) {
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM tickets WHERE source = 'shop-1'`).Scan(&n))
		return n
	}
	held := ofShop1()
	if withKeys {
		moveKeys(t, a, b)
	}
	f.moved.Store(true)
	t.Logf("shop-1 was on hold for %s, without the restart", time.Since(began).Round(time.Millisecond))
	moving.awaitMore(t, 300)
	staying.awaitMore(t, 20)

	late := a.server().post(t, "/ticket/shop-1", sample(t), "Idempotency-Key", "late")
	requireProblem(t, late, http.StatusServiceUnavailable, "source_on_hold")
	requireRetryAfter(t, late)
	require.Positive(t, a.server().metric(t, `myticket_http_requests_total{outcome="source_on_hold",source="shop-1"}`))
	moving.stop()
	staying.stop()

	inA, inB := storedBodies(t, a.databaseURL), storedBodies(t, b.databaseURL)
	times := map[string]int{}
	for _, stored := range []map[uuid.UUID]string{inA, inB} {
		for _, text := range stored {
			times[text]++
		}
	}
	fromA, repeats := 0, 0
	for _, l := range []*tills{moving, staying} {
		for id, text := range l.acknowledged {
			_, isInA := inA[id]
			_, isInB := inB[id]
			require.NotEqual(t, isInA, isInB, "the ticket %s is in exactly one database", id)
			require.Equal(t, text, inA[id]+inB[id], "as it was sent")
			if times[text] != 1 {
				doubled++
			}
			if isInA && l == moving {
				fromA++
				if l.duplicates[id] {
					repeats++
				}
			}
			require.False(t, l == staying && isInB, "shop-10 stays in a")
		}
	}
	require.Len(t, times, len(moving.acknowledged)+len(staying.acknowledged), "every ticket that is stored was acknowledged")
	moved := len(moving.acknowledged) - fromA
	require.GreaterOrEqual(t, fromA, 300)
	require.GreaterOrEqual(t, moved, 300)
	if withKeys {
		require.Positive(t, repeats, "the test proves nothing: b answered no delivery that a had stored")
	}
	require.Equal(t, ofShop1(), held, "a stored nothing of shop-1 after the hold")
	t.Logf("%d answers were cut; of shop-1, a has %d tickets, and b %d; b answered %d deliveries of a; %d are stored twice",
		f.cuts.Load(), held, moved, repeats, doubled)
	return doubled
}

// moveKeys runs keys export | keys import.
func moveKeys(t *testing.T, a, b *cell) {
	t.Helper()
	export, load := a.command("keys", "export", "--source", "shop-1"), b.command("keys", "import")
	read, written, err := os.Pipe()
	require.NoError(t, err)
	var said bytes.Buffer
	export.Stdout, load.Stdin, load.Stderr = written, read, &said
	require.NoError(t, export.Start())
	require.NoError(t, load.Start())
	require.NoError(t, written.Close())
	require.NoError(t, read.Close())
	require.NoError(t, export.Wait())
	require.NoError(t, load.Wait(), "%s", &said)
	t.Logf("keys import: %s", strings.TrimSpace(said.String()))
}
