package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/signature"
)

const eventsSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// eventReceiver is a server that verifies and keeps the events that it gets.
type eventReceiver struct {
	*httptest.Server

	mu     sync.Mutex
	ids    map[string]int    // how often each event came
	bodies map[string]string // what it said the first time
	status map[uuid.UUID]string
	wrong  []string
	delay  time.Duration
}

func receiveEvents(t *testing.T) *eventReceiver {
	t.Helper()
	r := &eventReceiver{ids: map[string]int{}, bodies: map[string]string{}, status: map[uuid.UUID]string{}}
	key, err := signature.Key(eventsSecret)
	require.NoError(t, err)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil { // the sender was killed
			return
		}
		var e cloudevents.Event
		var data struct {
			ID     uuid.UUID `json:"id"`
			Status string    `json:"status"`
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		time.Sleep(r.delay)
		id := request.Header.Get("Webhook-Id")
		at := request.Header.Get("Webhook-Timestamp")
		if err := json.Unmarshal(body, &e); err != nil || e.Validate() != nil || e.ID() != id || e.DataAs(&data) != nil {
			r.wrong = append(r.wrong, string(body))
		}
		if seconds, err := strconv.ParseInt(at, 10, 64); err != nil || time.Since(time.Unix(seconds, 0)).Abs() > patience ||
			request.Header.Get("Webhook-Signature") != signature.Header([][]byte{key}, id, at, body) {
			r.wrong = append(r.wrong, "signature of "+id)
		}
		if before, again := r.bodies[id]; again && before != string(body) {
			r.wrong = append(r.wrong, before+" was repeated as "+string(body))
		}
		r.ids[id]++
		r.bodies[id] = string(body)
		if data.ID != uuid.Nil {
			r.status[data.ID] = data.Status
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(r.Close)
	return r
}

// has reports whether all tickets have an event that says TREATED.
func (r *eventReceiver) has(ids []uuid.UUID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if r.status[id] != "TREATED" {
			return false
		}
	}
	return true
}

func (r *eventReceiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ids)
}

// startEvents starts `myticket events` as a process of its own.
func startEvents(t *testing.T, databaseURL string, flags ...string) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	args := append([]string{"events", "--admin-addr", "127.0.0.1:0", "--log-format", "json"}, flags...)
	p := &process{Cmd: exec.CommandContext(t.Context(), self, args...)}
	p.Env = append(os.Environ(), runMain+"=1", "DATABASE_URL="+databaseURL)
	p.Stdout, p.Stderr = &p.out, &p.err
	require.NoError(t, p.Start())
	t.Cleanup(func() {
		p.end()
		if t.Failed() {
			t.Logf("log of events:\n%s", &p.err)
		}
	})
	return p
}

// The whole way: a till posts, a receiver gets a signed event, the sender is killed in the middle, and Postgres stops.
func TestEvents_ReachAReceiverThroughKillsAndAnOutage(t *testing.T) {
	t.Parallel()
	postgres, databaseURL := pgtest.NewServer(t)
	s := serve(t, databaseURL, "--spool-dir", t.TempDir())
	s.awaitReady(t)
	s.awaitStoring(t)
	r := receiveEvents(t)
	folder := t.TempDir()
	key := filepath.Join(folder, "key")
	require.NoError(t, os.WriteFile(key, []byte(eventsSecret+"\n"), 0o600))
	file := filepath.Join(folder, "subscriptions.yaml")
	require.NoError(t, os.WriteFile(file, []byte("subscriptions:\n  - {name: erp, target: \""+r.URL+"/hook\", secret: \"file:"+key+"\"}\n"), 0o600))

	first := startEvents(t, databaseURL, "--subscriptions-file", file)
	pool := openPool(t, databaseURL)
	await(t, "the subscription of the file is there", func() bool {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM subscriptions WHERE declared`).Scan(&n)
		return err == nil && n == 1
	})
	var sent []uuid.UUID
	submit := func(n int) {
		for range n {
			sent = append(sent, s.submit(t, "/ticket/shop-"+strconv.Itoa(len(sent)%3), sample(t)).ID)
		}
	}
	submit(1)
	await(t, "the first event came", func() bool { return r.has(sent) })
	require.GreaterOrEqual(t, r.count(), 1)

	r.mu.Lock()
	r.delay = 2 * time.Millisecond // so that the kill is in the middle
	r.mu.Unlock()
	submit(200)
	await(t, "some events came", func() bool { return r.count() > 20 })
	first.end()
	require.False(t, r.has(sent), "it was killed in the middle")
	second := startEvents(t, databaseURL, "--subscriptions-file", file)
	await(t, "nothing is lost by the kill", func() bool { return r.has(sent) })

	require.NoError(t, postgres.Kill())
	var spooled []uuid.UUID
	for range 5 {
		a := s.post(t, "/ticket/shop-1", sample(t))
		require.Equal(t, http.StatusAccepted, a.status, "%s", a)
		var got receipt
		require.NoError(t, json.Unmarshal(a.body, &got))
		spooled = append(spooled, got.ID)
	}
	require.NoError(t, postgres.Restart(t.Context()))
	await(t, "nothing is lost by the outage", func() bool { return r.has(spooled) })

	r.mu.Lock()
	require.Empty(t, r.wrong)
	r.mu.Unlock()
	require.NoError(t, second.Process.Signal(os.Interrupt))
	require.NoError(t, second.Wait(), "it ends with 0")
}
