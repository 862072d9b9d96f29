//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// The two versions of Helm, which `make e2e` builds.
const (
	helm4 = "bin/helm"
	helm3 = "bin/helm3"
)

// release is an installation in a namespace of its own, which enforces Pod Security's level restricted.
type release struct {
	t         *testing.T
	ctx       context.Context //nolint:containedctx // it is the time bound of one test
	namespace string
	host      string // by which the ingress controller finds it
}

// newRelease creates the namespace. When the test ends, it is deleted. If the test has failed, its content is shown before.
func newRelease(t *testing.T, name string, bound time.Duration) *release {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	t.Cleanup(cancel)
	r := &release{t: t, ctx: ctx, namespace: "e2e-" + name, host: "e2e-" + name + ".test"}
	_, err := output(ctx, root(), fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q,"labels":{
		"myticket-e2e":"","pod-security.kubernetes.io/enforce":"restricted"}}}`, r.namespace),
		"kubectl", "--context", kubeContext, "create", "-f", "-")
	require.NoError(t, err)
	t.Cleanup(func() {
		// The test's own context has ended.
		r.ctx = context.WithoutCancel(ctx)
		if t.Failed() {
			r.show()
		}
		_, err := r.try("delete", "namespace", r.namespace, "--wait=false")
		require.NoError(t, err)
	})
	return r
}

// show prints what a person would check first.
func (r *release) show() {
	for _, args := range [][]string{
		{"get", "pods,jobs,statefulsets,pvc,clusters.postgresql.cnpg.io", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
	} {
		printed, err := r.try(args...)
		r.t.Logf("kubectl -n %s %s\n%s%v", r.namespace, strings.Join(args, " "), last(printed, 40), err)
	}
	pods, _ := r.try("get", "pods", "-o", "name")
	for pod := range strings.FieldsSeq(pods) {
		for _, previous := range []string{"--previous=false", "--previous"} {
			if printed, err := r.try("logs", pod, "--all-containers", "--tail=25", previous); err == nil && printed != "" {
				r.t.Logf("kubectl -n %s logs %s %s\n%s", r.namespace, pod, previous, printed)
			}
		}
	}
}

func last(text string, lines int) string {
	all := strings.SplitAfter(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// try runs kubectl in the namespace.
func (r *release) try(args ...string) (string, error) {
	return output(r.ctx, root(), "", "kubectl", append([]string{"--context", kubeContext, "--namespace", r.namespace}, args...)...)
}

func (r *release) kubectl(args ...string) string {
	r.t.Helper()
	printed, err := r.try(args...)
	require.NoError(r.t, err)
	return strings.TrimSpace(printed)
}

// apply applies a manifest as Argo CD does.
func (r *release) apply(manifest string) {
	r.t.Helper()
	_, err := output(r.ctx, root(), manifest, "kubectl", "--context", kubeContext, "--namespace", r.namespace,
		"apply", "--server-side", "--filename", "-")
	require.NoError(r.t, err)
}

func (r *release) tryHelm(helm string, args ...string) (string, error) {
	return output(r.ctx, root(), "", helm, append(args, "--kube-context", kubeContext, "--namespace", r.namespace)...)
}

func (r *release) helm(helm string, args ...string) string {
	r.t.Helper()
	printed, err := r.tryHelm(helm, args...)
	require.NoError(r.t, err)
	return printed
}

// chart returns the arguments that all tests install with: a small installation, reached through the ingress controller.
func (r *release) chart(image string, set ...string) []string {
	repository, tag, _ := strings.Cut(image, ":")
	args := []string{
		"myticket", filepath.Join("charts", "myticket"), "--values", filepath.Join("charts", "myticket", "values-small.yaml"),
		"--set", "image.repository=" + repository + ",image.tag=" + tag,
		"--set", "ingress.className=" + *class + ",ingress.hosts={" + r.host + "},networkPolicy.ingressNamespace=" + *proxies,
		// Requests, so that all pods fit on the machine's two cores.
		"--set", "resources.requests.cpu=20m,database.cluster.resources.requests.cpu=20m,migrations.resources.requests.cpu=10m",
	}
	for _, value := range set {
		args = append(args, "--set", value)
	}
	return args
}

// upgrade installs or upgrades, and waits until everything is ready.
func (r *release) upgrade(helm, image string, set ...string) {
	r.t.Helper()
	start := time.Now()
	args := append([]string{"upgrade", "--install", "--wait", "--timeout", "5m"}, r.chart(image, set...)...)
	r.helm(helm, args...)
	r.t.Logf("%s upgrade --install took %s", helm, time.Since(start).Round(time.Second))
}

// sql queries the database's primary. Each row is a line, with fields separated by |.
func (r *release) sql(query string) string {
	r.t.Helper()
	primary := r.kubectl("get", "pods", "-l", "cnpg.io/instanceRole=primary", "-o", "jsonpath={.items[0].metadata.name}")
	return r.kubectl("exec", primary, "-c", "postgres", "--", "psql", "-XAtq", "-d", "myticket", "-c", query)
}

// stored returns what is in the database: by id, the hash of the body; and by hash, the number of tickets.
func (r *release) stored() (map[string]string, map[string]int) {
	r.t.Helper()
	ids, bodies := map[string]string{}, map[string]int{}
	for line := range strings.FieldsSeq(r.sql("SELECT id, encode(sha256(body), 'hex') FROM tickets")) {
		id, hash, _ := strings.Cut(line, "|")
		ids[id] = hash
		bodies[hash]++
	}
	return ids, bodies
}

// spooled returns how many tickets are in the spools of all servers but some.
func (r *release) spooled(without ...string) (int, error) {
	pods, err := r.try("get", "pods", "-l", "app.kubernetes.io/component=server", "-o", "jsonpath={.items[*].metadata.name}")
	sum := 0
	for pod := range strings.FieldsSeq(pods) {
		if slices.Contains(without, pod) {
			continue
		}
		have, podErr := r.spooledBy(pod)
		sum, err = sum+have, errors.Join(err, podErr)
	}
	return sum, err
}

func (r *release) spooledBy(pod string) (int, error) {
	have, err := r.metric(pod, "9099", "myticket_spool_tickets")
	return int(have), err
}

// metrics returns the page of metrics of a pod. It is asked from the pod's node, which NetworkPolicies never shut out
// (https://kubernetes.io/docs/concepts/services-networking/network-policies/).
func (r *release) metrics(pod, port string) (string, error) {
	place, err := r.try("get", "pod", pod, "-o", "jsonpath={.spec.nodeName} {.status.podIP}")
	if err != nil {
		return "", err
	}
	node, address, _ := strings.Cut(place, " ")
	return r.onNode(node, "curl", "--silent", "--show-error", "--fail", "--max-time", "5", "http://"+address+":"+port+"/metrics")
}

// onNode runs a command on a node, which is a container of this machine.
func (r *release) onNode(node string, args ...string) (string, error) {
	return output(r.ctx, root(), "", "docker", append([]string{"exec", node}, args...)...)
}

// metric returns the sum of a metric's series that a pod exports: of all (name), or of those with a label's value (name/value).
func (r *release) metric(pod, port, metric string) (float64, error) {
	page, err := r.metrics(pod, port)
	if err != nil {
		return 0, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		return 0, err
	}
	name, value, labelled := strings.Cut(metric, "/")
	if families[name] == nil {
		return 0, fmt.Errorf("%s has no metric %s", pod, name)
	}
	sum := 0.0
	for _, m := range families[name].GetMetric() {
		if !labelled || slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == value }) {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return sum, nil
}

// drained waits until all spools are empty.
func (r *release) drained() {
	r.t.Helper()
	r.until("no spool holds a ticket", func() (bool, string) {
		have, err := r.spooled()
		return err == nil && have == 0, fmt.Sprint(have, " tickets, ", err)
	})
}

// until waits for a condition. When the time is over, it reports the last state.
func (r *release) until(what string, check func() (bool, string)) {
	r.t.Helper()
	said := ""
	for {
		ok, now := check()
		if ok {
			return
		}
		if now != said {
			said = now
			r.t.Logf("waiting until %s: %s", what, now)
		}
		select {
		case <-r.ctx.Done():
			require.FailNow(r.t, "timed out while waiting until "+what, said)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// ready returns how many servers are ready.
func (r *release) ready() int {
	n, _ := strconv.Atoi(r.kubectl("get", "statefulset", "myticket", "-o", "jsonpath={.status.readyReplicas}"))
	return n
}

func hash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}
