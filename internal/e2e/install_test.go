//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An installation with one command, in a namespace that enforces Pod Security's level restricted, as all test namespaces do.
func TestInstall_FromNothing(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "install", 6*time.Minute)
	r.upgrade(helm4, imageOne)

	printed := r.helm(helm4, "test", "myticket", "--logs", "--timeout", "2m")
	require.Contains(t, printed, "TREATED", "the test's log should show the answer")
	for _, well := range []string{"database", "encryption", "schema", "partitions", "durability", "clock"} {
		require.Regexp(t, `(?m)^ok +`+well+` `, printed, "the test's log should show every check")
	}
	require.NotRegexp(t, `(?m)^problem `, printed)
	require.Equal(t, "1|TREATED", r.sql("SELECT count(*), min(status) FROM tickets WHERE source = 'helm-test'"))
	require.Equal(t, "0", r.sql("SELECT count(*) FROM products"), "the test teaches no products: the product base is as before")

	body, err := os.ReadFile(filepath.Join(root(), "testdata", "ticket.txt"))
	require.NoError(t, err)
	r.routed()
	id, status, err := post(r.ctx, newClient(), r.host, "/ticket/shop-1", body, "install-1")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, hash(body)+"|shop-1|TREATED",
		r.sql("SELECT encode(sha256(body), 'hex'), source, status FROM tickets WHERE id = '"+id+"'"))
	require.Equal(t, "2", r.sql("SELECT count(*) FROM products"), "a shop's ticket teaches its products")

	for path, want := range map[string]int{
		"/metrics": 404, "/ping": 404, "/readyz": 404, "/debug/pprof/": 404, "/": 404, "/ticketing": 404, "/ticket/../metrics": 404,
		"/ticket": 405, // it is routed, and only answers to POST
	} {
		require.Equal(t, want, r.get(path), "GET %s through the Ingress", path)
	}

	t.Run("commands of operators work in the pod", func(t *testing.T) {
		require.Contains(t, r.kubectl("exec", "myticket-0", "--", "/myticket", "tickets", "list"), id)
		require.Contains(t, r.kubectl("exec", "myticket-0", "--", "/myticket", "migrate", "status"), "version")
		examined := r.kubectl("exec", "myticket-0", "--", "/myticket", "doctor", "--fail-on", "problem")
		for _, well := range []string{"settings", "database", "rights", "spool", "spool_tickets", "server"} {
			require.Regexp(t, `(?m)^ok +`+well+` `, examined)
		}
	})
	t.Run("the connection to Postgres is TLS, verified", func(t *testing.T) {
		require.Equal(t, "t", r.sql("SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'myticket serve'"))
		settings := r.kubectl("get", "statefulset", "myticket", "-o", "jsonpath={.spec.template.spec.containers[0].env[?(@.name=='PGSSLMODE')].value}")
		require.Equal(t, "verify-full", settings)
	})
	t.Run("no pod but the database's has an account's token", func(t *testing.T) {
		require.NotContains(t, r.kubectl("get", "pods", "-l", "app.kubernetes.io/component in (server, migrate, test)", "-o", "yaml"),
			"serviceAccountToken")
	})
	t.Run("the hooks tell what they did", func(t *testing.T) {
		require.Contains(t, r.kubectl("logs", "job/myticket-migrate"), "version")
		require.Contains(t, r.kubectl("logs", "job/myticket-provision"), "serverside-applied")
		require.Contains(t, r.kubectl("logs", "job/myticket-provision-ready"), "condition met")
	})
	r.noRightsOfHooks()
	t.Run("the server knows the limit of its memory", func(t *testing.T) {
		have, err := r.metric("myticket-0", "9099", "go_gc_gomemlimit_bytes")
		require.NoError(t, err)
		require.InDelta(t, 256<<20*9/10, have, 1)
		limit := r.kubectl("get", "pod", "myticket-0", "-o", "jsonpath={.spec.containers[0].resources.limits.memory}")
		require.Equal(t, "256Mi", limit)
	})
}

// noRightsOfHooks checks that the rights that hooks created for themselves are gone.
func (r *release) noRightsOfHooks() {
	r.t.Helper()
	require.Empty(r.t, r.kubectl("get", "serviceaccounts,roles,rolebindings,configmaps,networkpolicies",
		"-l", "app.kubernetes.io/component in (provision, migrate)", "-o", "name"), "what hooks made for themselves must be gone")
}

// The API server refuses the Cluster, so the first hook fails. Its log stays, its rights do not, and the next attempt begins anew.
func TestInstall_WhoseFirstHookFails(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "refused", 10*time.Minute)
	for _, helm := range []string{helm3, helm4} {
		args := append([]string{"upgrade", "--install", "--wait", "--timeout", "4m"}, r.chart(imageOne, "database.cluster.storage.size=much")...)
		printed, err := r.tryHelm(helm, args...)
		require.Error(t, err)
		require.Contains(t, printed+err.Error(), "spec.storage.size", "Helm must show the reason")
		require.Contains(t, r.kubectl("logs", "job/myticket-provision"), "much", "the reason must be in the log, which stays")
		r.noRightsOfHooks()
	}
	r.upgrade(helm4, imageOne)
	r.noRightsOfHooks()
	require.Equal(t, 2, r.ready())
}

// routed waits until the ingress controller knows the route.
func (r *release) routed() {
	r.t.Helper()
	r.until("the ingress controller knows the way", func() (bool, string) {
		status := r.get("/ticket")
		return status == http.StatusMethodNotAllowed, http.StatusText(status)
	})
}

// get asks for a path through the ingress, and returns the status.
func (r *release) get(path string) int {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.ctx, http.MethodGet, *ingress, nil)
	require.NoError(r.t, err)
	request.Host, request.URL.Opaque = r.host, path // as it is, not cleaned
	response, err := http.DefaultClient.Do(request)
	require.NoError(r.t, err)
	require.NoError(r.t, response.Body.Close())
	return response.StatusCode
}

// Helm does not own the Cluster, so that neither an uninstall nor another Helm deletes the tickets.
func TestUninstall_KeepsEveryTicket(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "uninstall", 8*time.Minute)
	r.upgrade(helm4, imageOne)
	l := r.startLoad()
	l.await(100)
	deliveries := l.stop()
	r.nothingLost(deliveries)

	r.helm(helm4, "uninstall", "myticket", "--wait", "--timeout", "2m")
	r.gone("myticket-0", "myticket-1")
	require.NotEmpty(t, r.kubectl("get", "pvc", "-l", "app.kubernetes.io/component=server", "-o", "name"), "spools are kept")
	r.upgrade(helm3, imageOne)
	r.nothingLost(deliveries)

	t.Run("rollback", func(t *testing.T) {
		r.upgrade(helm3, imageTwo)
		schema := r.sql("SELECT version, dirty FROM schema_migrations")
		r.helm(helm3, "rollback", "myticket", "1", "--wait", "--timeout", "5m")
		require.Equal(t, imageOne, r.image())
		require.Equal(t, schema, r.sql("SELECT version, dirty FROM schema_migrations"), "a rollback runs no migration")
		l := r.startLoad()
		l.await(50)
		r.nothingLost(append(deliveries, l.stop()...))
	})
}

// image returns the image of the servers.
func (r *release) image() string {
	return r.kubectl("get", "statefulset", "myticket", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
}

// A Postgres that the chart did not create, without an operator.
func TestExternal_Database(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "external", 6*time.Minute)
	r.apply(externalPostgres)
	r.kubectl("wait", "--for=condition=Ready", "pod/postgres", "--timeout=120s")
	r.upgrade(helm4, imageOne, "database.mode=external", "database.external.secretName=postgres",
		"database.external.sslMode=disable", "database.external.maxConnections=100")
	require.Empty(t, r.kubectl("get", "clusters.postgresql.cnpg.io", "-o", "name"))
	l := r.startLoad()
	l.await(50)
	r.upgrade(helm4, imageOne, "database.mode=external", "database.external.secretName=postgres",
		"database.external.sslMode=disable", "database.external.maxConnections=100",
		"database.external.secretKeys.host=address,database.external.secretKeys.dbname=name",
		"database.external.secretKeys.username=user,database.external.secretKeys.password=password")
	l.await(50)
	sent := len(l.stop())
	r.drained()
	stored := r.kubectl("exec", "postgres", "--", "psql", "-XAtq", "-h", "127.0.0.1", "-U", "postgres", "-c", "SELECT count(DISTINCT body) FROM tickets")
	require.Equal(t, stored, itoa(sent))
}

const externalPostgres = `
apiVersion: v1
kind: Secret
metadata: {name: postgres}
stringData:
  uri: "postgresql://postgres:e2e@postgres:5432/postgres"
  address: postgres
  name: postgres
  user: postgres
  password: e2e
---
apiVersion: v1
kind: Service
metadata: {name: postgres}
spec:
  selector: {app: postgres}
  ports: [{port: 5432}]
---
apiVersion: v1
kind: Pod
metadata: {name: postgres, labels: {app: postgres}}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 26, fsGroup: 26, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: postgres
      image: ghcr.io/cloudnative-pg/postgresql:17-minimal-trixie
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      command: [sh, -ec]
      args:
        - |
          echo e2e > /data/password
          initdb --pgdata=/data/db --username=postgres --pwfile=/data/password --auth=scram-sha-256
          echo "host all all all scram-sha-256" >> /data/db/pg_hba.conf
          exec postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories=/data
      env: [{name: PGPASSWORD, value: e2e}]
      readinessProbe: {exec: {command: [pg_isready, -h, 127.0.0.1]}, periodSeconds: 1}
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
`

// As Argo CD applies it: everything together, without hooks, and again for each change.
func TestInline_AsGitOpsAppliesIt(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "inline", 6*time.Minute)
	manifest := func(image string) string {
		args := append([]string{"template"}, r.chart(image, "database.mode=inline")...)
		return r.helm(helm4, append(args, "--api-versions", "postgresql.cnpg.io/v1", "--skip-tests")...)
	}
	one, two := manifest(imageOne), manifest(imageTwo)
	require.NotContains(t, one, "helm.sh/hook:")
	r.apply(one)
	r.kubectl("rollout", "status", "statefulset/myticket", "--timeout=180s")
	r.kubectl("wait", "--for=condition=Complete", "job", "-l", "app.kubernetes.io/component=migrate", "--timeout=180s")
	l := r.startLoad()
	l.await(50)
	r.apply(one) // the next sync changes nothing
	r.apply(two)
	r.kubectl("rollout", "status", "statefulset/myticket", "--timeout=180s")
	require.Equal(t, imageTwo, r.image())
	l.await(50)
	deliveries := l.stop()
	servedAgainWithin(r, deliveries, 5*time.Second)
	r.nothingLost(deliveries)
}

// Every manifest of every mode and switch, as the API server checks it.
func TestManifests_AreAcceptedByTheAPIServer(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "manifests", 3*time.Minute)
	everything := []string{
		"networkPolicy.enabled=true", "retention.enabled=true", "monitoring.podMonitor.enabled=true", "httpRoute.enabled=true",
		"httpRoute.parentRefs[0].name=traefik,httpRoute.parentRefs[0].namespace=traefik", "sources.secretName=sources",
		"ingress.sources={shop-1,shop-2}", "httpRoute.sources={shop-1,shop-2}", "ingress.tls[0].secretName=tls", "imagePullSecrets[0].name=registry", "priorityClassName=",
		"events.enabled=true", "events.subscriptions[0].name=erp,events.subscriptions[0].target=https://erp.example.com/events",
		"events.secrets={erp}", "archive.enabled=true", "archive.url=s3://tickets?region=eu-central-1", "archive.keep=30d",
		"settings.MYTICKET_BATCH_TICKETS=512", "extraEnv[0].name=A,extraEnv[0].value=b", "spool.storageClass=standard",
	}
	for name, set := range map[string][]string{
		"hook": nil, "another volume for the archive": {"archive.tmp.storageClass=standard"}, "inline": {"database.mode=inline"}, "emptyDir": {"spool.type=emptyDir"},
		"external": {"database.mode=external", "database.external.secretName=x", "database.external.caSecretName=y"},
		"autoscaling": {
			"autoscaling.enabled=true", "autoscaling.maxReplicas=5", "resources.requests.cpu=1",
			"autoscaling.metrics[0].type=Pods,autoscaling.metrics[0].pods.metric.name=in_flight," +
				"autoscaling.metrics[0].pods.target.type=AverageValue,autoscaling.metrics[0].pods.target.averageValue=50",
		},
		"production": {
			"database.mode=inline", "database.cluster.instances=3", "database.cluster.synchronous.enabled=true",
			"database.cluster.walStorage.enabled=true", "podDisruptionBudget.maxUnavailable=50%",
		},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"template"}, r.chart(imageOne, append(everything, set...)...)...)
			manifest := r.helm(helm4, append(args, "--api-versions", "postgresql.cnpg.io/v1", "--api-versions", "monitoring.coreos.com/v1",
				"--api-versions", "gateway.networking.k8s.io/v1", "--skip-tests")...)
			printed, err := output(r.ctx, root(), manifest, "kubectl", "--context", kubeContext, "--namespace", r.namespace,
				"apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", "-")
			require.NoError(t, err)
			require.GreaterOrEqual(t, strings.Count(printed, "serverside-applied"), 10)
		})
	}
}
