//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Two cells share a host name. The ingress controller routes shop-1 to the default cell, and then to the other one. The commands are
// those of docs/scaling.md. Tills of shop-1 post all the time.
func TestCells_SourceMovesUnderOneURL(t *testing.T) {
	t.Parallel()
	a, b := newRelease(t, "cell-a", 15*time.Minute), newRelease(t, "cell-b", 15*time.Minute)
	b.host = a.host
	a.sources(`{"*": {}}`)
	b.sources(`{"cell-b": {}, "shop-1": {}, "*": {"hold": true}}`)
	a.upgrade(helm4, imageOne, "sources.secretName=sources")
	b.upgrade(helm4, imageOne, "sources.secretName=sources", "ingress.sources={cell-b}")
	client := newClient()
	send := func(n int) (int, error) {
		body := fmt.Sprint("test ", n)
		_, status, err := post(b.ctx, client, b.host, "/ticket/cell-b", []byte(body), body)
		return status, err
	}
	n := 0
	b.until("the ingress controller knows the way", func() (bool, string) { // until it does, these go to the default cell
		n++
		status, err := send(n)
		return err == nil && status == http.StatusOK && b.count("cell-b") != "0", fmt.Sprint(status, " ", err)
	})
	status, err := send(n + 1)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	stored := fmt.Sprintf("SELECT count(*) FROM tickets WHERE body = 'test %d'", n+1)
	require.Equal(t, "0", a.sql(stored))
	require.Equal(t, "1", b.sql(stored))

	l := a.startLoadOf("shop-1", 8*time.Minute) // a source is on hold while servers restart, and Helm upgrades
	// Answers that are lost on their way: the tills do not know that the tickets are stored.
	lost := map[string]string{} // ids, by key
	repeat := func(key string) (string, int) {
		id, status, err := post(a.ctx, client, a.host, "/ticket/shop-1", []byte("not answered "+key), key)
		require.NoError(t, err)
		return id, status
	}
	for range 20 {
		key := uuid.NewString()
		id, status := repeat(key)
		require.Equal(t, http.StatusOK, status)
		lost[key] = id
	}
	begun := time.Now()
	printed := moveAsDocumented(t, a, b, `{"shop-1": {"hold": true}, "*": {}}`)
	require.Contains(t, printed, `"on_hold":["shop-1"]`)
	require.NotRegexp(t, `(?m)^myticket_spool_(tickets|files_unverified|files_aside) [^0]`, printed, "a spool of the old cell is not empty")
	b.until("the route leads to the other cell", func() (bool, string) {
		have := b.count("shop-1")
		return have != "0", have
	})
	moved := time.Since(begun)
	for key, id := range lost {
		again, status := repeat(key)
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, id, again, "the new cell must know the deliveries of the old one")
	}
	l.await(50)
	// Paths are compared by their elements: what is not shop-1 stays.
	_, status, err = post(a.ctx, client, a.host, "/ticket/shop-10", []byte("of another shop"), "shop-10")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status,
		"503: the ingress controller compares characters; Traefik needs strictPrefixMatching (kubectl apply --server-side -k k8s/ingress)")
	require.Equal(t, "1", a.count("shop-10"))
	require.Equal(t, "0", b.count("shop-10"))
	held := 0.0
	for pod := range strings.FieldsSeq(a.kubectl("get", "pods", "-l", "app.kubernetes.io/component=server", "-o", "jsonpath={.items[*].metadata.name}")) {
		n, err := a.metric(pod, "9099", "myticket_http_requests_total/source_on_hold")
		require.NoError(t, err)
		held += n
	}
	require.Positive(t, held, "the test proves nothing: no till was asked to wait")

	deliveries := l.stop()
	refused := 0
	var longest time.Duration
	for _, d := range deliveries {
		if !d.refused.IsZero() {
			refused++
			longest = max(longest, d.answered.Sub(d.refused))
		}
	}
	require.Positive(t, refused)
	t.Logf("MEASURED cells: shop-1 moved in %s; %d of %d tickets were asked to wait, the longest for %s",
		moved.Round(time.Second), refused, len(deliveries), longest.Round(100*time.Millisecond))
	inBoth(t, a, b, deliveries, len(lost))
}

// sources writes the sources file.
func (r *release) sources(content string) {
	r.t.Helper()
	r.kubectl("create", "secret", "generic", "sources", "--from-literal=sources.json="+content)
}

// count returns how many tickets of a source are in the database.
func (r *release) count(source string) string {
	r.t.Helper()
	return r.sql("SELECT count(*) FROM tickets WHERE source = '" + source + "'")
}

// moveAsDocumented runs the commands of docs/scaling.md, with a sources file for the old cell.
func moveAsDocumented(t *testing.T, a, b *release, sources string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(sources), 0o600))
	text, err := os.ReadFile(filepath.Join(root(), "docs", "scaling.md"))
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n### Moving a source under one URL\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n### ")
	blocks := regexp.MustCompile("(?ms)^ *```sh\n(.*?)^ *```$").FindAllStringSubmatch(section, -1)
	require.Len(t, blocks, 4, "hold, look, take the keys along, route")
	here := strings.NewReplacer("-n a ", "-n "+a.namespace+" ", "-n b ", "-n "+b.namespace+" ", "--namespace b ", "--namespace "+b.namespace+" ",
		"=sources.json", "=sources.json="+file, "19099", "19299") // the runbooks' commands use that port, perhaps at this moment
	tools := onlyOnTheCluster(t)
	var all strings.Builder
	for _, block := range blocks {
		begun := time.Now()
		said, err := output(a.ctx, root(), "", "bash", "-c", "set -eo pipefail; PATH="+tools+":$PATH\n"+here.Replace(block[1]))
		require.NoError(t, err, block[1])
		t.Logf("%s in %s:\n%s", strings.TrimSpace(here.Replace(block[1])), time.Since(begun).Round(time.Second), last(said, 12))
		all.WriteString(said)
	}
	return all.String()
}

// inBoth checks that each acknowledged ticket is in exactly one of two databases, and that no ticket is stored twice.
func inBoth(t *testing.T, a, b *release, deliveries []delivery, others int) {
	t.Helper()
	a.drained()
	b.drained()
	inA, bodies := a.stored()
	inB, bodiesOfB := b.stored()
	for body, times := range bodiesOfB {
		bodies[body] += times
	}
	for _, d := range deliveries {
		require.NotEmpty(t, d.id, "a ticket was never acknowledged: first %s", d.refusal)
		// An answer 202 may have an id that the drain found to be the second one: see nothingLost.
		second := d.status == http.StatusAccepted && !d.refused.IsZero() && bodies[d.body] == 1
		require.True(t, second || (inA[d.id] == d.body) != (inB[d.id] == d.body),
			"LOST or in both: %s, acknowledged with %d at %s", d.id, d.status, d.answered.Format(time.TimeOnly))
	}
	for body, times := range bodies {
		require.Equal(t, 1, times, "DOUBLED: the body with the hash %s", body)
	}
	require.GreaterOrEqual(t, len(inA), others+1)
	require.NotEmpty(t, inB)
	t.Logf("%d acknowledged tickets, %d in the old cell and %d in the new one, each once", len(deliveries)+others, len(inA), len(inB))
}
