//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
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

// Parts of an installation cannot reach each other for a minute, and none of them is down.
func TestNetworkPolicies_ThatCutOff(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "cut", 15*time.Minute)
	r.upgrade(helm4, imageOne, "database.cluster.instances=3", "database.cluster.synchronous.enabled=true")
	const servers, database = "app.kubernetes.io/component=server", "cnpg.io/podRole=instance"
	l := r.startLoad()
	for _, cut := range []struct{ what, policy, rule, from, to string }{
		{"the servers from the database", "myticket-db", "/spec/ingress/0", servers, database},
		{"the instances from each other", "myticket-db", "/spec/ingress/1/from/0", database, database},
		{"the ingress controller from the servers", "myticket", "/spec/ingress/0/from/0", "", servers},
	} {
		t.Run(cut.what, func(t *testing.T) {
			begun := time.Now()
			removed := r.cut(cut.policy, cut.rule, cut.from, cut.to)
			time.Sleep(time.Minute) // that is what is tested
			r.kubectl("patch", "networkpolicy", cut.policy, "--type=json", "--patch", `[{"op":"add","path":"`+cut.rule+`","value":`+removed+`}]`)
			mended := time.Now()
			served := r.untilServed(l)
			require.Greater(t, served.Sub(begun), time.Minute/2, "the test proves nothing: nothing was cut off")
			_, spooled := l.since(begun)
			t.Logf("MEASURED cut off, %s: %d answered 202, only 200 from %s after the end on", cut.what, spooled,
				max(0, served.Sub(mended)).Round(100*time.Millisecond))
		})
	}
	r.nothingLost(l.stop())
}

// cut removes a rule from a policy, and returns it. Connections that are there already are cut, too: nodes forget them, and what comes
// next is a new one to them.
func (r *release) cut(policy, rule, from, to string) (removed string) {
	r.t.Helper()
	path := "{" + strings.NewReplacer("/0", "[0]", "/1", "[1]", "/", ".").Replace(rule) + "}"
	removed = r.kubectl("get", "networkpolicy", policy, "-o", "jsonpath="+path)
	require.True(r.t, strings.HasPrefix(removed, "{"), removed)
	r.kubectl("patch", "networkpolicy", policy, "--type=json", "--patch", `[{"op":"remove","path":"`+rule+`"}]`)
	addresses := func(label string) []string {
		return strings.Fields(r.kubectl("get", "pods", "-l", label, "-o", "jsonpath={.items[*].status.podIP}"))
	}
	sources := [][]string{nil} // from anywhere
	if from != "" {
		sources = nil
		for _, address := range addresses(from) {
			sources = append(sources, []string{"--src", address})
		}
	}
	nodes := strings.Fields(r.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	time.Sleep(3 * time.Second) // the network plugin needs a moment to apply a policy, and does not say when it has
	for _, node := range nodes {
		for _, target := range addresses(to) {
			for _, source := range sources {
				_, _ = r.onNode(node, append([]string{"conntrack", "--delete", "--dst", target}, source...)...) // fails if there are none
			}
		}
	}
	return removed
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
