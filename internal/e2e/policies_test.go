//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Ways that are not needed are closed. Without the policies they are open, which shows that the policies close them. The needed
// ways are open: every other test shows this, because the policies are on in all of them.
func TestNetworkPolicies_CloseWhatIsNotNeeded(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "policies", 10*time.Minute)
	outside := newRelease(t, "outside", 10*time.Minute)
	r.upgrade(helm4, imageOne, "networkPolicy.ingressNamespace=")
	for name, labels := range map[string]string{
		"anyone": "", "prometheus": "app.kubernetes.io/name: prometheus", "operator": "app.kubernetes.io/name: cloudnative-pg",
	} {
		outside.apply(bystander(name, labels))
	}
	mine := "app.kubernetes.io/name: myticket, app.kubernetes.io/instance: myticket, app.kubernetes.io/component: "
	r.apply(bystander("neighbour", "app: neighbour"))
	r.apply(bystander("chore", mine+"retention"))
	r.apply(bystander("test", mine+"test"))
	for _, of := range []*release{r, outside} {
		of.kubectl("wait", "--for=condition=Ready", "pods", "-l", "bystander", "--timeout=120s")
	}
	address := func(pod string) string { return r.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}") }
	server, database := address("myticket-0"), address(r.primary())
	api := r.kubectl("get", "service", "--namespace=default", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")

	type way struct {
		from *release
		pod  string
		to   string
		port int
	}
	ways := func(what string, open bool, list ...way) {
		t.Helper()
		for _, w := range list {
			r.until(fmt.Sprintf("%s: %s/%s reaches port %d: %t", what, w.from.namespace, w.pod, w.port, open), func() (bool, string) {
				is := w.from.reaches(w.pod, w.to, w.port)
				return is == open, strconv.FormatBool(is)
			})
		}
	}

	closed := []way{
		{outside, "anyone", server, 9099}, {outside, "operator", server, 9099}, {r, "neighbour", server, 9099},
		{outside, "anyone", database, 5432}, {outside, "prometheus", database, 5432}, {r, "neighbour", database, 5432}, {r, "test", database, 5432},
		{outside, "anyone", database, 8000}, {r, "neighbour", database, 8000},
		{outside, "anyone", database, 9187},
		{r, "chore", api, 443}, {r, "chore", database, 8000}, {r, "chore", server, 9098}, // ways out of a chore's pod
	}
	open := []way{
		{outside, "prometheus", server, 9099}, {outside, "prometheus", database, 9187},
		{r, "chore", database, 5432}, {r, "test", server, 9098}, {r, "neighbour", api, 443},
	}
	ways("by default", true, append(open, way{outside, "anyone", server, 9098}, way{outside, "operator", database, 5432}, way{outside, "operator", database, 8000})...)
	ways("by default", false, closed...)

	r.upgrade(helm4, imageOne, "networkPolicy.operatorNamespace=cnpg-system")
	ways("with namespaces", false, append(closed, way{outside, "anyone", server, 9098}, way{outside, "prometheus", server, 9098},
		way{outside, "operator", database, 5432}, way{outside, "operator", database, 8000})...)
	ways("with namespaces", true, open...)
	r.routed()
	_, status, err := post(r.ctx, newClient(), r.host, "/ticket/e2e", []byte("through the ingress controller"), "policies")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	r.helm(helm4, "test", "myticket", "--timeout", "2m")
	// The operator still reaches its instance: only the instance knows the id of its data, and says nothing while Postgres is stopped.
	const heard = "--for=condition=ConsistentSystemID="
	r.fence("*")
	r.kubectl("wait", heard+"False", "clusters.postgresql.cnpg.io/myticket-db", "--timeout=120s")
	r.unfence()
	r.until("the operator hears from its instance again", func() (bool, string) {
		r.lookAgain() // it may have asked while Postgres was starting
		is := r.kubectl("get", "clusters.postgresql.cnpg.io/myticket-db", "-o",
			`jsonpath={.status.conditions[?(@.type=="ConsistentSystemID")].status}`)
		return is == "True", is
	})

	r.upgrade(helm4, imageOne, "networkPolicy.enabled=false")
	require.Empty(t, r.kubectl("get", "networkpolicies", "-o", "name"), "none may be left")
	ways("without policies", true, closed...)
}

// The servers cannot reach the database for a minute, and neither of them is down.
func TestNetworkPolicies_ThatCutOffTheDatabase(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "cut", 10*time.Minute)
	r.upgrade(helm4, imageOne)
	l := r.startLoad()
	served := r.withoutPolicy(l, "myticket-db", []string{"/spec/ingress/0"}, func() {
		// A connection that is there already stays open to them, so it is closed. No other can take its place.
		r.until("the servers are cut off", func() (bool, string) {
			have := r.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'myticket serve'")
			return have == "0", have
		})
	})
	t.Logf("MEASURED servers cut off from the database: %s", served)
	r.spooledAndNothingLost(l)
}

// A standby cannot reach the primary for a minute, and each commit waits for it.
func TestNetworkPolicies_ThatCutOffTheStandby(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "alone", 12*time.Minute)
	r.upgrade(helm4, imageOne, "database.cluster.instances=2", "database.cluster.synchronous.enabled=true",
		"database.cluster.synchronous.failoverQuorum=false")
	l := r.startLoad()
	primary := r.primary()
	// kube-router lets in what either end allows, so both ends forbid it.
	rules := []string{"/spec/ingress/1/from/0", "/spec/egress/2"}
	require.Contains(t, r.kubectl("get", "networkpolicy/myticket-db", "-o", "jsonpath={.spec.egress[2].to}"), "cnpg.io/cluster")
	served := r.withoutPolicy(l, "myticket-db", rules, func() {
		last := time.Now() // it tries again every 5 s (wal_retrieve_retry_interval), and a policy takes a moment
		r.until("the standby is cut off", func() (bool, string) {
			have := r.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication")
			if have != "0" {
				last = time.Now()
			}
			return time.Since(last) > 15*time.Second, have
		})
	})
	t.Logf("MEASURED standby cut off from the primary: %s", served)
	require.Equal(t, primary, r.primary(), "a standby that lacks commits must not be promoted")
	r.spooledAndNothingLost(l)
}

// withoutPolicy takes rules out of a NetworkPolicy for a minute, which begins when cut has cut the connections that they had allowed.
// It returns when tickets are stored at once again, and what it measured.
func (r *release) withoutPolicy(l *load, policy string, rules []string, cut func()) string {
	r.t.Helper()
	policy = "networkpolicy/" + policy
	patch := func(operations []string) {
		r.kubectl("patch", policy, "--type=json", "--patch", "["+strings.Join(operations, ",")+"]")
	}
	var remove, add []string
	for _, rule := range rules {
		value := r.kubectl("get", policy, "-o", "jsonpath={"+jsonPath(rule)+"}")
		remove = append(remove, fmt.Sprintf(`{"op":"remove","path":%q}`, rule))
		add = append(add, fmt.Sprintf(`{"op":"add","path":%q,"value":%s}`, rule, value))
	}
	begun := time.Now()
	patch(remove)
	cut()
	since := time.Now()
	time.Sleep(time.Minute) // that is what is tested
	patch(add)
	mended := time.Now()
	l.await(tills) // of senders that wait for their answer nothing is known yet
	served := r.untilServed(l)
	require.Greater(r.t, served.Sub(since), time.Minute, "the test proves nothing: nothing was cut off")
	_, spooled := l.since(begun)
	return fmt.Sprintf("%d answered 202, only 200 from %s after the end on", spooled, max(0, served.Sub(mended)).Round(100*time.Millisecond))
}

// jsonPath writes a JSON Pointer (RFC 6901) as kubectl's JSONPath: /spec/ingress/0 as .spec.ingress[0].
func jsonPath(pointer string) string {
	return index.ReplaceAllString(strings.ReplaceAll(pointer, "/", "."), "[$1]")
}

var index = regexp.MustCompile(`\.(\d+)`)

// spooledAndNothingLost checks that no till was refused while the spools took what Postgres could not.
func (r *release) spooledAndNothingLost(l *load) {
	r.t.Helper()
	deliveries := l.stop()
	r.nothingLost(deliveries)
	for _, d := range deliveries {
		require.True(r.t, d.refused.IsZero(), "refused with %s: the spool must take what Postgres cannot", d.refusal)
	}
}

// bystander is an idle pod with a shell, of the image of the database's pods.
func bystander(name, labels string) string {
	if labels != "" {
		labels += ", "
	}
	return strings.NewReplacer("NAME", name, "LABELS", labels+`bystander: ""`).Replace(`
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {LABELS}}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 26, seccompProfile: {type: RuntimeDefault}}
  terminationGracePeriodSeconds: 0
  containers:
    - name: shell
      image: ghcr.io/cloudnative-pg/postgresql:17-minimal-trixie
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      command: [sleep, infinity]
`)
}

// reaches reports whether a pod can open a connection.
func (r *release) reaches(pod, address string, port int) bool {
	r.t.Helper()
	printed := r.kubectl("exec", pod, "--", "bash", "-c",
		fmt.Sprintf("timeout 3 bash -c ': </dev/tcp/%s/%d' 2>/dev/null && echo open || echo closed", address, port))
	return printed == "open"
}
