//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// This test takes nodes away from all that runs, so it does not run beside others. It has a server and a database instance on each of
// three nodes, every commit on two of them.
func TestNodes(t *testing.T) { //nolint:paralleltest // it needs all nodes
	r := newRelease(t, "nodes", 35*time.Minute)
	r.upgrade(helm4, imageOne, "replicas=3", "database.cluster.instances=3", "database.cluster.synchronous.enabled=true")
	for _, pods := range []string{"app.kubernetes.io/component=server", "cnpg.io/podRole=instance"} {
		on := slices.Collect(strings.FieldsSeq(r.kubectl("get", "pods", "-l", pods, "-o", "jsonpath={.items[*].spec.nodeName}")))
		slices.Sort(on)
		require.Len(t, slices.Compact(on), 3, "pods with %s must be on three nodes: %s", pods, on)
	}
	first, workers := r.nodes()
	parts := []struct {
		name string
		play func()
	}{
		{"drained", func() { drained(r, first, workers) }},
		{"lost with the primary", func() { lost(r, workers[0], workers[0], 2*time.Minute) }},
		{"lost with a standby", func() {
			r.impatient()
			lost(r, workers[0], workers[1], 25*time.Second) // without these settings a sender waited 45 s
		}},
		{"lost with a spool that holds tickets", func() { lostWithItsSpool(r, workers) }},
		{"cut off from the ingress controller", func() { cutOffFromTheIngress(r) }},
	}
	for _, part := range parts {
		if !t.Run(part.name, func(t *testing.T) { r.in(t, part.play) }) {
			break // the next one needs everything in place
		}
	}
}

// in runs a part of a test as a test of its own.
func (r *release) in(t *testing.T, part func()) {
	t.Helper()
	whole := r.t
	defer func() { r.t = whole }()
	r.t = t
	part()
}

// nodes returns all nodes, the first of which has the ingress controller and all of Kubernetes' own.
func (r *release) nodes() (first string, workers []string) {
	r.t.Helper()
	const control = "node-role.kubernetes.io/control-plane"
	first = r.kubectl("get", "nodes", "-l", control, "-o", "jsonpath={.items[*].metadata.name}")
	workers = strings.Fields(r.kubectl("get", "nodes", "-l", "!"+control, "-o", "jsonpath={.items[*].metadata.name}"))
	require.Len(r.t, workers, 2, "these tests need three nodes: CLUSTER_NODES=3, or k8s/kind-three-nodes.yaml")
	return first, workers
}

// on returns the pod with a label that is on a node.
func (r *release) on(node, label string) string {
	r.t.Helper()
	return r.kubectl("get", "pods", "-l", label, "--field-selector", "spec.nodeName="+node, "-o", "jsonpath={.items[0].metadata.name}")
}

func (r *release) nodeOf(pod string) string {
	r.t.Helper()
	return r.kubectl("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
}

// whole waits until all servers and instances are ready, as an operator does before the next node. The Cluster's condition Ready is
// not enough: it is true for a moment after an instance went, and while a former primary starts as a standby.
func (r *release) whole() {
	r.t.Helper()
	r.kubectl("rollout", "status", "statefulset/myticket", "--timeout=300s")
	r.until("all instances are ready", func() (bool, string) {
		const template = `{range .items[*]}{.metadata.labels.cnpg\.io/instanceRole}={.status.conditions[?(@.type=="Ready")].status} {end}`
		roles := strings.Fields(r.kubectl("get", "pods", "-l", "cnpg.io/podRole=instance", "-o", "jsonpath="+template))
		slices.Sort(roles)
		phase := r.kubectl("get", "clusters.postgresql.cnpg.io", "myticket-db", "-o", "jsonpath={.status.phase}")
		return phase == "Cluster in healthy state" && slices.Equal(roles, []string{"primary=True", "replica=True", "replica=True"}),
			fmt.Sprint(phase, " ", roles)
	})
}

// promote makes an instance the primary, as CloudNativePG's plugin does
// (https://cloudnative-pg.io/documentation/current/kubectl-plugin/#promote).
func (r *release) promote(instance string) {
	r.t.Helper()
	r.kubectl("patch", "clusters.postgresql.cnpg.io", "myticket-db", "--subresource=status", "--type=merge", "--patch",
		fmt.Sprintf(`{"status":{"targetPrimary":%q,"targetPrimaryTimestamp":%q,"phase":"Switchover in progress"}}`,
			instance, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")))
	r.until(instance+" is the primary", func() (bool, string) { now := r.primary(); return now == instance, now })
	r.whole()
}

// drained drains every node, one after the other, as an upgrade of the nodes does it. Pods wait for their volumes, which stay on the
// node.
func drained(r *release, first string, workers []string) {
	r.t.Helper()
	r.promote(r.on(workers[0], "cnpg.io/podRole=instance"))
	l := r.startLoad()
	for _, node := range append(workers, first) {
		args := []string{"drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s"}
		if node == first { // without the ingress controller and the operator, which are only here
			args = append(args, "--pod-selector=app.kubernetes.io/component in (server,database)")
		}
		again := r.afterwards()
		r.t.Cleanup(func() { _, _ = again.try("uncordon", node) })
		begun := time.Now()
		primary := r.nodeOf(r.primary()) == node
		r.kubectl(args...)
		empty := time.Since(begun)
		require.NotEqual(r.t, node, r.nodeOf(r.primary()), "a node must not be drained of the primary before another is promoted")
		r.kubectl("uncordon", node)
		r.whole()
		l.await(50)
		gap, spooled := l.since(begun)
		r.t.Logf("MEASURED drain of %s (primary: %t): empty after %s, whole again after %s; longest time without a 200: %s; %d answered 202",
			node, primary, empty.Round(time.Second), time.Since(begun).Round(time.Second), gap.Round(100*time.Millisecond), spooled)
		require.Less(r.t, gap, 30*time.Second)
	}
	deliveries := l.stop()
	servedAgainWithin(r, deliveries, 5*time.Second)
	r.nothingLost(deliveries)
}

// lost takes a node's power away while the primary is on the node keeper. Tickets go on to the others. No sender may wait longer than
// bound for its answer. What the node's server had acknowledged is stored when it is back.
func lost(r *release, node, keeper string, bound time.Duration) {
	r.t.Helper()
	if instance := r.on(keeper, "cnpg.io/podRole=instance"); r.primary() != instance {
		r.promote(instance)
	}
	l := r.startLoad()
	killed := time.Now()
	r.kill(node)
	r.kubectl("wait", "--for=condition=Ready=Unknown", "node/"+node, "--timeout=180s")
	silent := time.Since(killed)
	r.until("another instance is the primary", func() (bool, string) { now := r.primary(); return r.nodeOf(now) != node, now })
	promoted := time.Since(killed)
	served := r.untilServed(l)
	l.await(400)
	gap, spooled := l.since(killed)
	revived := time.Now()
	r.revive(node)
	r.whole()
	whole := time.Since(revived)
	deliveries := l.stop()
	longest, resent := time.Duration(0), 0
	for _, d := range deliveries {
		if !d.refused.IsZero() {
			longest, resent = max(longest, d.answered.Sub(d.begun)), resent+1
		}
	}
	r.t.Logf("MEASURED silent after %s, primary elsewhere after %s, only 200 from %s on; longest time without a 200: %s; "+
		"%d answered 202; %d sent again, for up to %s; whole %s after the node was back", silent.Round(time.Second),
		promoted.Round(time.Second), served.Sub(killed).Round(time.Second), gap.Round(100*time.Millisecond), spooled,
		resent, longest.Round(100*time.Millisecond), whole.Round(time.Second))
	require.Less(r.t, gap, 2*time.Minute)
	require.Less(r.t, longest, bound, "a sender must not wait so long for a dead server")
	r.nothingLost(deliveries)
}

// cutOffFromTheIngress cuts the ingress controller off from all servers for a minute. Each sender is refused, and sends again.
func cutOffFromTheIngress(r *release) {
	r.t.Helper()
	l := r.startLoad()
	measured := r.withoutPolicy(l, "myticket", []string{"/spec/ingress/0"}, func() {
		// Connections that are there already stay open, so it begins anew.
		traefik := []string{"--namespace", *proxies}
		r.kubectl(append(traefik, "rollout", "restart", "deployment/traefik")...)
		r.kubectl(append(traefik, "rollout", "status", "deployment/traefik", "--timeout=120s")...)
	})
	deliveries := l.stop()
	refused := 0
	for _, d := range deliveries {
		if !d.refused.IsZero() {
			refused++
		}
	}
	r.t.Logf("MEASURED ingress controller cut off from the servers: %d sent again; %s", refused, measured)
	require.GreaterOrEqual(r.t, refused, tills, "the test proves nothing: a sender was served")
	r.nothingLost(deliveries)
}

// lostWithItsSpool takes a node away whose server has acknowledged tickets that are nowhere else. First the server comes back with its
// node. Then the node is given up, as docs/operations.md says, and the server begins anew on another one.
func lostWithItsSpool(r *release, workers []string) {
	r.t.Helper()
	node := workers[0]
	if instance := r.on(workers[1], "cnpg.io/podRole=instance"); r.primary() != instance {
		r.promote(instance)
	}
	server := r.on(node, "app.kubernetes.io/component=server")
	l := r.startLoad()
	r.fence("*")
	r.until("the spool of "+server+" holds tickets", func() (bool, string) {
		have, err := r.spooledBy(server)
		return err == nil && have >= 20, fmt.Sprint(have, " tickets, ", err)
	})
	r.kill(node)
	l.await(50)
	deliveries := l.stop()
	r.kubectl("annotate", "clusters.postgresql.cnpg.io", "myticket-db", "cnpg.io/fencedInstances-")
	r.until("the spools of the other servers are empty", func() (bool, string) {
		have, err := r.spooled(server)
		return err == nil && have == 0, fmt.Sprint(have, " tickets, ", err)
	})
	ids, _ := r.stored()
	missing := 0
	for _, d := range deliveries {
		if ids[d.id] == "" {
			missing++
		}
	}
	require.Positive(r.t, missing, "the test proves nothing: the lost server had no ticket of its own")
	r.t.Logf("%d tickets are only on the node without power", missing)
	r.revive(node)
	r.whole()
	r.nothingLost(deliveries)

	r.kill(node)
	r.kubectl("wait", "--for=condition=Ready=Unknown", "node/"+node, "--timeout=180s")
	// As docs/operations.md says. Its volume is bound to that node, so without its claim the server begins anew on another one.
	uid := r.kubectl("get", "pod", server, "-o", "jsonpath={.metadata.uid}")
	const taint = "node.kubernetes.io/out-of-service"
	again := r.afterwards()
	r.t.Cleanup(func() { _, _ = again.try("taint", "nodes", node, taint+"-") })
	r.kubectl("taint", "nodes", node, taint+"=nodeshutdown:NoExecute")
	r.until("another pod waits for the volume of "+server, func() (bool, string) {
		now, err := r.try("get", "pod", server, "-o", "jsonpath={.metadata.uid} {.status.phase}")
		return err == nil && !strings.HasPrefix(now, uid) && strings.HasSuffix(now, " Pending"), now
	})
	r.kubectl("delete", "persistentvolumeclaim", "spool-"+server, "--wait=false")
	r.kubectl("delete", "pod", server)
	r.until(server+" is ready elsewhere", func() (bool, string) {
		now, err := r.try("get", "pod", server, "-o", "jsonpath={.spec.nodeName} {.status.containerStatuses[0].ready}")
		return err == nil && !strings.HasPrefix(now, node+" ") && strings.HasSuffix(now, " true"), now
	})
	r.revive(node)
	r.kubectl("taint", "nodes", node, taint+"-")
	r.whole()
}

// impatient makes Traefik give up a dead server early and try another one, as docs/operations.md says, until the test ends.
func (r *release) impatient() {
	r.t.Helper()
	traefik := []string{"--namespace", *proxies}
	before := r.kubectl(append(traefik, "get", "deployment", "traefik", "-o", "jsonpath={.spec.template}")...)
	patch := func(operations string) {
		r.kubectl(append(traefik, "patch", "deployment", "traefik", "--type=json", "--patch", operations)...)
		r.kubectl(append(traefik, "rollout", "status", "deployment/traefik", "--timeout=120s")...)
	}
	again := r.afterwards()
	const middlewares = "traefik.ingress.kubernetes.io/router.middlewares"
	r.t.Cleanup(func() {
		r = again
		r.kubectl("annotate", "ingress", "myticket", middlewares+"-")
		patch(`[{"op":"replace","path":"/spec/template","value":` + before + `}]`)
		r.kubectl(append(traefik, "delete", "configmap", "e2e")...)
	})
	r.kubectl(append(traefik, "create", "configmap", "e2e",
		"--from-literal=retry.yaml={http: {middlewares: {again: {retry: {attempts: 3, initialInterval: 100ms}}}}}")...)
	patch(`[
		{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--serversTransport.forwardingTimeouts.dialTimeout=1s"},
		{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--serversTransport.forwardingTimeouts.responseHeaderTimeout=6s"},
		{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--providers.file.directory=/dynamic"},
		{"op":"add","path":"/spec/template/spec/volumes","value":[{"name":"dynamic","configMap":{"name":"e2e"}}]},
		{"op":"add","path":"/spec/template/spec/containers/0/volumeMounts","value":[{"name":"dynamic","mountPath":"/dynamic"}]}
	]`)
	r.kubectl("annotate", "ingress", "myticket", middlewares+"=again@file")
}

// afterwards is the release for what puts the cluster right when the test has ended, or its time.
func (r *release) afterwards() *release {
	again := *r
	again.ctx = context.WithoutCancel(r.ctx)
	return &again
}

// kill takes a node's power away. When the test ends, the node is back.
func (r *release) kill(node string) {
	r.t.Helper()
	again := r.afterwards()
	r.t.Cleanup(func() { again.revive(node) })
	_, err := output(r.ctx, root(), "", "docker", "kill", node)
	require.NoError(r.t, err)
}

// revive starts a node again, and waits until it is ready. It does nothing to a node that runs.
func (r *release) revive(node string) {
	r.t.Helper()
	command := []string{"docker", "start", node}
	if *cluster != "" {
		command = []string{"env", "CLUSTER_NODES=3", *cluster, "revive", node}
	}
	_, err := output(r.ctx, root(), "", command[0], command[1:]...)
	require.NoError(r.t, err)
	r.kubectl("wait", "--for=condition=Ready", "node/"+node, "--timeout=180s")
}
