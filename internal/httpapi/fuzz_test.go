package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"myticket/internal/httpapi"
	"myticket/internal/intake"
	"myticket/internal/ticket"
)

const (
	fuzzMaxBody   = 64 << 10
	fuzzMaxHeader = 4 << 10
	fuzzLast      = "Order: the last one, which is well-formed as HTTP"
)

// fuzzStore keeps the tickets that it is given, and their cost.
type fuzzStore struct {
	mu      sync.Mutex
	tickets map[uuid.UUID]fuzzTicket
}

type fuzzTicket struct {
	source, body string
	cost         int
}

func (s *fuzzStore) Save(_ context.Context, b intake.Batch) (intake.Saved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var saved intake.Saved
	for _, e := range b.Entries {
		t := &e.Ticket
		s.tickets[t.ID] = fuzzTicket{t.Source, string(t.Body), t.Cost()}
		saved.Outcomes = append(saved.Outcomes, intake.Outcome{ID: t.ID, Status: t.Status, Problems: t.Problems})
	}
	return saved, nil
}

func (*fuzzStore) Ping(context.Context) error { return nil }

func (*fuzzStore) Treat(context.Context, ticket.Ticket, int) (ticket.Status, []ticket.Problem, error) {
	return ticket.Treated, nil, nil
}

// take returns what was stored since it was called last.
func (s *fuzzStore) take() map[uuid.UUID]fuzzTicket {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.tickets
	s.tickets = map[uuid.UUID]fuzzTicket{}
	return taken
}

// wire is a connection whose sender has sent everything and said so.
type wire struct {
	in     *bytes.Reader
	out    bytes.Buffer // after closed
	closed chan struct{}
	once   sync.Once
}

func (w *wire) Read(p []byte) (int, error)     { return w.in.Read(p) }
func (w *wire) Write(p []byte) (int, error)    { return w.out.Write(p) }
func (w *wire) Close() error                   { w.once.Do(func() { close(w.closed) }); return nil }
func (*wire) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (*wire) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (*wire) SetDeadline(time.Time) error      { return nil }
func (*wire) SetReadDeadline(time.Time) error  { return nil }
func (*wire) SetWriteDeadline(time.Time) error { return nil }
func newWire(sent []byte) *wire                { return &wire{in: bytes.NewReader(sent), closed: make(chan struct{})} }
func (l wires) Accept() (net.Conn, error)      { return l.next() }
func (wires) Addr() net.Addr                   { return &net.UnixAddr{} }
func (l wires) Close() error                   { close(l); return nil }

// wires is a listener.
type wires chan *wire

func (l wires) next() (net.Conn, error) {
	w, ok := <-l
	if !ok {
		return nil, errors.New("use of closed network connection")
	}
	return w, nil
}

// FuzzRequest sends bytes that may be requests, and a well-formed request after them, to the whole server.
func FuzzRequest(f *testing.F) {
	const body = "Order: 1\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n"
	post := func(path, headers, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\n%sContent-Length: %d\r\n\r\n%s", path, headers, len(body), body)
	}
	chunked := func(headers, chunks string) string {
		return "POST /ticket HTTP/1.1\r\nHost: h\r\n" + headers + "Transfer-Encoding: chunked\r\n\r\n" + chunks
	}
	for _, seed := range []string{
		"", "\r\n", "hello\r\n\r\n", "GET /ping HTTP/1.1\r\nHost: h\r\n\r\n", "GET /ping HTTP/1.0\r\n\r\n",
		post("/ticket", "", body), post("/ticket/shop-1", "Idempotency-Key: k\r\nidempotency-key: k\r\n", body),
		post("/ticket/shop-1", "Idempotency-Key: k\r\nIdempotency-Key: l\r\n", body),
		post("/ticket/bearer", "Authorization: Bearer "+token+"\r\n", body), post("/ticket/bearer", "Authorization: Bearer x\r\n", body),
		post("/ticket/signed", signatureHeaders("msg", time.Unix(1, 0)), body), post("/ticket/NO", "", body), post("/elsewhere", "", body),
		post("/ticket", "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", body), post("/ticket", "Expect: 100-continue\r\n", body),
		post("/ticket/bearer", "Expect: 100-continue\r\n", body), post("/ticket", "Connection: close\r\n", body),
		post("/ticket", "Content-Length: 5\r\n", body), post("/ticket", "Transfer-Encoding: chunked\r\n", "5\r\nfirst\r\n0\r\n\r\n"),
		post("http://h/ticket?x#y", "", body), post("//h/ticket", "", body), post("/ticket/../ticket/shop-1", "", body),
		strings.TrimSuffix(post("/ticket", "", "short"), "ort"), post("/ticket", "", strings.Repeat("x", fuzzMaxBody)), post("/ticket", "", strings.Repeat("x", fuzzMaxBody+1)),
		post("/ticket", "X: "+strings.Repeat("x", fuzzMaxHeader)+"\r\n", body),
		post("/ticket", "", body) + post("/ticket/bearer", "", body) + post("/ticket", "", body),
		post("/ticket", "", "Order: 1\nVAT: 1\nTotal: 1\n\nproduct,product_id,price"+strings.Repeat(",x", 90)+"\n"+strings.Repeat("a,b,1"+strings.Repeat(",", 90)+"\n", 300)),
		chunked("", "5\r\nfirst\r\n0\r\n\r\n"), chunked("", "5;a=b\r\nfirst\r\n0;c\r\nX-T: 1\r\n\r\n"), chunked("", "zz\r\n"),
		chunked("", "FFFFFFFFFFFFFFFFF\r\n"), chunked("", strings.Repeat("1\r\nx\r\n", 100)+"0\r\n\r\n"),
		chunked("Trailer: Idempotency-Key\r\n", "1\r\nx\r\n0\r\nIdempotency-Key: k\r\n\r\n"), chunked("Expect: 100-continue\r\n", "1\r\nx\r\n0\r\n\r\n"),
		chunked("", "5\r\nfirst0\r\n\r\n"), chunked("", "1;"+strings.Repeat("x", 60_000)+"\r\nx\r\n0\r\n\r\n"),
		"POST /ticket HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "POST /ticket HTTP/1.0\r\n\r\n" + body,
		"POST /ticket HTTP/1.1\nHost: h\nContent-Length: 1\n\nx", "POST /ticket HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\nx",
		"PUT /ticket HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nfirst", "GET /ping HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nfirst",
	} {
		f.Add([]byte(seed))
	}
	file := filepath.Join(f.TempDir(), "sources.json")
	if err := os.WriteFile(file, []byte(`{"bearer": {"bearer_tokens": ["`+token+`"]}, "signed": {"webhook_secrets": ["`+secret+`"]},
		"default": {}, "shop-1": {}, "last": {}}`), 0o600); err != nil {
		f.Fatal(err)
	}
	sources, err := httpapi.ReadSources(file)
	if err != nil {
		f.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	store := &fuzzStore{tickets: map[uuid.UUID]fuzzTicket{}}
	in := intake.New(intake.Config{Logger: logger}, store, store)
	server := httpapi.New(httpapi.Config{MaxBody: fuzzMaxBody, MaxHeader: fuzzMaxHeader, Logger: logger}, in, sources)
	listener := make(wires)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	f.Cleanup(func() {
		if err := errors.Join(server.Shutdown(context.Background()), <-served, in.Close(context.Background())); err != nil {
			f.Error(err)
		}
	})

	var one sync.Mutex // what is stored and what is allocated is one input's
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) > 4*fuzzMaxBody {
			return
		}
		one.Lock()
		defer one.Unlock()
		all := append(bytes.Clone(sent), post("/ticket/last", "", fuzzLast)...)
		w := newWire(all)
		before := allocated()
		listener <- w
		select {
		case <-w.closed:
		case <-time.After(patience):
			t.Fatal("the connection was neither answered nor closed")
		}
		cost := int(allocated() - before)
		stored := store.take()
		answers := readAnswers(t, w.out.Bytes())
		requireHonest(t, answers, stored)
		requireInStep(t, all, answers, stored)

		// The limit of an input's cost: the connection, its bytes, and what its tickets become; each a few times, because
		// buffers grow.
		bound := 1<<20 + 8*(httpapi.ConnectionCost(fuzzMaxHeader)*(1+len(answers))+len(all))
		for _, s := range stored {
			bound += 8 * s.cost
			// A ticket costs a multiple of its text, which the parser bounds.
			if most := 64<<10 + 512*len(s.body); s.cost > most {
				t.Errorf("a ticket of %d bytes costs %d, more than %d", len(s.body), s.cost, most)
			}
		}
		if cost > bound {
			t.Errorf("%d bytes cost %d bytes of memory, more than %d", len(all), cost, bound)
		}
	})
}

func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

type fuzzAnswer struct {
	status int
	closes bool
	id     uuid.UUID // of a ticket that was stored
	code   string
}

// readAnswers fails on an incomplete answer.
func readAnswers(t *testing.T, out []byte) (answers []fuzzAnswer) {
	t.Helper()
	reader := bufio.NewReader(bytes.NewReader(out))
	for {
		if _, err := reader.Peek(1); err != nil {
			return answers
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("no answer: %v in %q", err, out)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil {
			t.Fatalf("half an answer: %v in %q", err, out)
		}
		if response.StatusCode == http.StatusContinue {
			continue
		}
		a := fuzzAnswer{status: response.StatusCode, closes: response.Close}
		var said struct {
			ID   uuid.UUID `json:"id"`
			Code string    `json:"code"`
		}
		if json.Unmarshal(body, &said) == nil {
			a.id, a.code = said.ID, said.Code
		}
		answers = append(answers, a)
	}
}

// requireHonest requires that each stored ticket was acknowledged once, that each acknowledged ticket was stored, and that
// nothing failed.
func requireHonest(t *testing.T, answers []fuzzAnswer, stored map[uuid.UUID]fuzzTicket) {
	t.Helper()
	acknowledged := map[uuid.UUID]int{}
	for _, a := range answers {
		if a.status >= 500 {
			t.Errorf("answered %d %s", a.status, a.code)
		}
		if a.id == uuid.Nil {
			continue
		}
		if acknowledged[a.id]++; a.status != http.StatusOK {
			t.Errorf("answered %d for a ticket that was stored", a.status)
		}
		if _, ok := stored[a.id]; !ok {
			t.Errorf("%s was acknowledged, and is not stored", a.id)
		}
	}
	for id, s := range stored {
		if acknowledged[id] != 1 {
			t.Errorf("%s was acknowledged %d times", id, acknowledged[id])
		}
		if s.source == "bearer" || s.source == "signed" {
			continue // whether the credentials were right is for other tests
		}
		if s.body == "" || len(s.body) > fuzzMaxBody {
			t.Errorf("a ticket of %d bytes was stored", len(s.body))
		}
	}
}

// requireInStep compares with how net/http reads the same bytes: if both understand a request, they must agree on where it ends
// and what its body is.
func requireInStep(t *testing.T, all []byte, answers []fuzzAnswer, stored map[uuid.UUID]fuzzTicket) {
	t.Helper()
	reader := bufio.NewReader(bytes.NewReader(all))
	for i, a := range answers {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return // it is stricter, or what follows is no request
		}
		body, err := io.ReadAll(request.Body)
		if err != nil {
			if a.id != uuid.Nil {
				t.Errorf("answer %d acknowledged a body that did not arrive whole", i)
			}
			return
		}
		if a.id != uuid.Nil && stored[a.id].body != string(body) {
			t.Errorf("answer %d acknowledged %q, and %q was sent", i, stored[a.id].body, body)
		}
		if a.closes {
			if i != len(answers)-1 {
				t.Errorf("answer %d closes the connection, and is not the last", i)
			}
			return
		}
	}
	// All were answered and the connection is open, so the next request must be answered too. It is the well-formed one if the
	// bytes before it ended with a request.
	if request, err := http.ReadRequest(reader); err == nil {
		t.Errorf("%d answers, and %s %s was not answered", len(answers), request.Method, request.URL)
	}
}
