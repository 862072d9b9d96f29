package main

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// receiver receives spans, as OpenTelemetry's collector does.
type receiver struct {
	collector.UnimplementedTraceServiceServer

	mu       sync.Mutex
	received []*collector.ExportTraceServiceRequest
}

func (r *receiver) Export(
	_ context.Context, request *collector.ExportTraceServiceRequest,
) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received = append(r.received, request)
	return &collector.ExportTraceServiceResponse{}, nil
}

// overHTTP starts the receiver of http/protobuf, and returns its URL.
func (r *receiver) overHTTP(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		var export collector.ExportTraceServiceRequest
		if err != nil || request.URL.Path != "/v1/traces" || proto.Unmarshal(body, &export) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = r.Export(request.Context(), &export)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// overGRPC starts the receiver of gRPC, and returns its URL.
func (r *receiver) overGRPC(t *testing.T) string {
	t.Helper()
	var listen net.ListenConfig
	listener, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return "http://" + listener.Addr().String()
}

// text is everything that was received, for what must not be in it.
func (r *receiver) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, request := range r.received {
		b.WriteString(protojson.Format(request))
	}
	return b.String()
}

// named returns the spans of a name.
func (r *receiver) named(name string) (found []*spans.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, request := range r.received {
		for _, resource := range request.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				for _, span := range scope.GetSpans() {
					if span.GetName() == name {
						found = append(found, span)
					}
				}
			}
		}
	}
	return found
}

func (r *receiver) one(t *testing.T, name string) *spans.Span {
	t.Helper()
	found := r.named(name)
	require.Len(t, found, 1, "spans %q in %s", name, r.text())
	return found[0]
}

func attributes(span *spans.Span) map[string]string {
	all := map[string]string{}
	for _, a := range span.GetAttributes() {
		all[a.GetKey()] = strings.TrimSpace(protojson.Format(a.GetValue()))
	}
	return all
}

const (
	senderTrace = "0af7651916cd43dd8448eb211c80319c"
	senderSpan  = "b7ad6b7169203331"
)

// trustedToken is the credential of the sources whose traces are followed.
const trustedToken = "very-secret-0123456789"

// trustedSources returns a sources file with an open source, and some that ask for trustedToken.
func trustedSources(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"quiet": {}, "open": {}, "shop-1": {"bearer_tokens": ["`+trustedToken+`"]},
		"default": {"bearer_tokens": ["`+trustedToken+`"]}}`), 0o600))
	return file
}

// It is not parallel: the variables are those of the process.
func TestTracing_LinksRequestsWithTheirBatch(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			tb := setup(t)
			r := &receiver{}
			endpoint := r.overGRPC
			if protocol == "http/protobuf" {
				endpoint = r.overHTTP
			}
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint(t))
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
			t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off") // so what follows is because of the sender's
			s := serve(t, tb.databaseURL, "--sources-file", trustedSources(t), "--ignore-parameters=secret")
			s.awaitReady(t)

			s.submit(t, "/ticket/quiet", body("1", "Tea,t,1"))
			sent := s.submit(t, "/ticket/shop-1?secret=very", body("2", "Coffee,c,2"),
				"Traceparent", "00-"+senderTrace+"-"+senderSpan+"-01", "Authorization", "Bearer "+trustedToken, "X-Forwarded-Proto", "https")
			exposition, err := s.do(http.MethodGet, s.internal+"/metrics", nil, "Accept", "application/openmetrics-text; version=1.0.0")
			require.NoError(t, err)
			require.Regexp(t, `myticket_http_request_duration_seconds_bucket\{code="200",le="[^"]+"\} [12] # \{trace_id="`+senderTrace+`"\}`,
				string(exposition.body), "a slow request leads to its trace")
			require.Regexp(t, `myticket_intake_commit_seconds_bucket\{le="[^"]+"\} [12] # \{trace_id="[0-9a-f]{32}"\}`, string(exposition.body))
			require.Zero(t, s.stop(), "the last spans are sent before the server ends")

			request := r.one(t, "POST /ticket/:source")
			require.Equal(t, senderTrace, hexOf(request.GetTraceId()))
			require.Equal(t, senderSpan, hexOf(request.GetParentSpanId()))
			require.Equal(t, spans.Span_SPAN_KIND_SERVER, request.GetKind())
			require.Contains(t, attributes(request)["http.response.status_code"], "200")
			require.Contains(t, attributes(request)["url.scheme"], "https")

			batch := r.one(t, "store batch")
			require.Empty(t, batch.GetParentSpanId(), "a batch has no parent")
			require.Len(t, batch.GetLinks(), 1)
			require.Equal(t, request.GetSpanId(), batch.GetLinks()[0].GetSpanId())
			require.Len(t, request.GetLinks(), 1)
			require.Equal(t, batch.GetSpanId(), request.GetLinks()[0].GetSpanId())
			require.Equal(t, "00-"+senderTrace+"-"+hexOf(request.GetSpanId())+"-01", tb.traceparent(t, sent.ID))

			statement := r.one(t, "INSERT")
			require.Equal(t, batch.GetTraceId(), statement.GetTraceId(), "SQL is below its batch")
			require.Equal(t, batch.GetSpanId(), statement.GetParentSpanId())
			require.Contains(t, attributes(statement)["db.query.text"], "INSERT INTO tickets")
			for _, secret := range []string{"very", "Coffee", "secret"} {
				require.NotContains(t, r.text(), secret)
			}
		})
	}
}

// A sender without credentials must not make the servers trace more than they otherwise would, nor add to another's trace.
func TestTracing_OfASenderWithoutCredentials_IsItsOwn(t *testing.T) {
	for sampler, traced := range map[string]bool{"parentbased_always_off": false, "parentbased_always_on": true} {
		t.Run(sampler, func(t *testing.T) {
			tb := setup(t)
			r := &receiver{}
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", r.overHTTP(t))
			t.Setenv("OTEL_TRACES_SAMPLER", sampler)
			s := serve(t, tb.databaseURL, "--sources-file", trustedSources(t))
			s.awaitReady(t)
			theirs := []string{"Traceparent", "00-" + senderTrace + "-" + senderSpan + "-01", "X-Forwarded-Proto", "https"}
			sent := s.submit(t, "/ticket/open", body("1", "Tea,t,1"), theirs...)
			wrong := s.post(t, "/ticket/shop-1", body("1", "Tea,t,1"), append(theirs, "Authorization", "Bearer no-"+trustedToken)...)
			require.Equal(t, http.StatusUnauthorized, wrong.status)
			require.Zero(t, s.stop())

			stored := tb.traceparent(t, sent.ID)
			if !traced {
				require.Empty(t, r.text(), "the sender's sampling does not count, neither for its request nor for its batch")
				require.Equal(t, "00-"+senderTrace+"-"+senderSpan+"-00", stored, "it can still be found by it")
				return
			}
			require.Len(t, r.named("POST /ticket/:source"), 2)
			for _, request := range r.named("POST /ticket/:source") {
				require.NotEqual(t, senderTrace, hexOf(request.GetTraceId()))
				require.Empty(t, request.GetParentSpanId())
				require.NotContains(t, attributes(request)["url.scheme"], "https")
				if strings.Contains(attributes(request)["http.response.status_code"], "200") {
					require.Equal(t, senderTrace, hexOf(request.GetLinks()[0].GetTraceId()), "it is linked, which costs nothing")
					require.NotContains(t, stored, senderTrace)
				}
			}
		})
	}
}

func hexOf(id []byte) string { return hex.EncodeToString(id) }

func (b *testBundle) traceparent(t *testing.T, id uuid.UUID) string {
	t.Helper()
	var stored string
	require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT coalesce(traceparent, '') FROM tickets WHERE id = $1`, id).Scan(&stored))
	return stored
}

func TestTracing_FollowsATicketThroughSpoolAndTreatment(t *testing.T) {
	tb := setup(t)
	require.Zero(t, tb.stop(), "it is not traced, and could treat the ticket")
	r := &receiver{}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", r.overHTTP(t))
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
	s := serve(t, tb.databaseURL, "--spool-dir", t.TempDir(), "--database-timeout", "300ms", "--sources-file", trustedSources(t))
	s.awaitReady(t)

	release := tb.lockTickets(t)
	a, err := s.send("/ticket", body("1", "Tea,t,1"), "Traceparent", "00-"+senderTrace+"-"+senderSpan+"-01",
		"Authorization", "Bearer "+trustedToken)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, a.status, a)
	release()
	await(t, "the spool is drained", func() bool { return tb.count(t, `SELECT count(*) FROM tickets`) == 1 })
	tb.exec(t, `UPDATE tickets SET status = 'TO_TREAT', next_attempt_at = now()`)
	await(t, "the ticket is treated", func() bool { return tb.count(t, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`) == 1 })
	await(t, "the attempt is counted", func() bool { return s.metric(t, `myticket_treatment_attempts_total{outcome="treated"}`) == 1 })
	require.Zero(t, s.stop())

	request := r.one(t, "POST /ticket")
	failed := r.named("store batch")
	require.NotEmpty(t, failed)
	require.Equal(t, spans.Status_STATUS_CODE_ERROR, failed[0].GetStatus().GetCode())
	for _, name := range []string{"spool batch", "drain spool", "treat ticket"} {
		found := r.named(name)
		require.NotEmpty(t, found, name)
		last := found[len(found)-1]
		require.Len(t, last.GetLinks(), 1, name)
		require.Equal(t, request.GetSpanId(), last.GetLinks()[0].GetSpanId(), name)
		require.NotEqual(t, spans.Status_STATUS_CODE_ERROR, last.GetStatus().GetCode(), name)
	}
}

// Postgres' errors quote the content that it refuses.
func TestTracing_ShowsNothingOfATicketThatTheDatabaseRefuses(t *testing.T) {
	tb := setup(t)
	r := &receiver{}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", r.overHTTP(t))
	tb.exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE 'not with %', convert_from(NEW.body, 'UTF8') USING ERRCODE = 'data_exception'; END $$`)
	tb.exec(t, `CREATE TRIGGER refuse BEFORE INSERT ON tickets FOR EACH ROW WHEN (NEW.status = 'TREATED') EXECUTE FUNCTION refuse()`)
	s := serve(t, tb.databaseURL)
	s.awaitReady(t)
	s.submit(t, "/ticket", body("1", "Coffee,c,2"))
	require.Zero(t, s.stop())
	require.Contains(t, s.log.String(), "Coffee", "Postgres quotes it, and the operator's own log may")

	failed := r.named("store batch")[0]
	require.Equal(t, spans.Status_STATUS_CODE_ERROR, failed.GetStatus().GetCode())
	require.Contains(t, attributes(failed)["error.type"], "refused")
	require.Contains(t, r.text(), "22000")
	require.NotContains(t, r.text(), "Coffee")
}

func TestTracing_RefusesWhatItDoesNotKnow(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
	var out logText
	code := run(t.Context(), []string{"serve", "--database-url", "postgres://x@127.0.0.1:1/x"}, nil, streams{stdout: &out, stderr: &out})
	require.NotZero(t, code)
	require.Contains(t, out.String(), `OTEL_EXPORTER_OTLP_PROTOCOL="carrier-pigeon": use http/protobuf or grpc`)
}

// A collector that is away, that never answers, or that asks for spans later must not hold up a server.
func TestTracing_ACollectorThatFailsCostsNoTicketAndNoTime(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"hangs": func(_ http.ResponseWriter, request *http.Request) {
			_, _ = io.Copy(io.Discard, request.Body)
			<-request.Context().Done()
		},
		"overloaded": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"away":       nil,
	} {
		t.Run(name, func(t *testing.T) {
			tb := setup(t)
			endpoint := "http://127.0.0.1:1"
			if handler != nil {
				collector := httptest.NewServer(handler)
				t.Cleanup(collector.Close)
				t.Cleanup(collector.CloseClientConnections) // before it, for it waits for those that hang
				endpoint = collector.URL
			}
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
			s := serve(t, tb.databaseURL, "--shutdown-timeout", patience.String())
			s.awaitReady(t)
			s.submit(t, "/ticket", sample(t))
			require.Zero(t, s.stop(), s.log.String())
			require.Contains(t, s.log.String(), "traces")
			require.Contains(t, s.log.String(), "tickets are not affected")
			require.NotNil(t, s.log.line("stopped; every ticket that was accepted has been answered"))
		})
	}
}
