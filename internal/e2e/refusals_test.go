//go:build e2e

package e2e

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// What Kubernetes would refuse after the hooks have changed the database is refused before them, with a sentence.
func TestUpgrade_ThatTheClusterWouldRefuse(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "contradicted", 10*time.Minute)
	base := []string{
		"database.cluster.parameters.max_connections=120", // a number, as anyone would write it
		"database.cluster.walStorage.enabled=true", "database.cluster.walStorage.size=1Gi",
	}
	with := func(set ...string) []string { return r.chart(imageOne, slices.Concat(base, set)...) }
	r.upgrade(helm4, imageOne, base...)
	require.Equal(t, "120", r.sql("SHOW max_connections"))
	hooks := func() string {
		return r.kubectl("get", "jobs", "-o", "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{\"\\n\"}{end}")
	}
	before := hooks()
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"without the values of the installation": {
			[]string{"upgrade", "myticket", "charts/myticket", "--set", "image.repository=myticket,image.tag=e2e-two"},
			"spool.size is 2Gi, but the spools of myticket were made with 256Mi",
		},
		"larger spools":       {append([]string{"upgrade"}, with("spool.size=1Gi")...), "spool.size is 1Gi"},
		"spools without disk": {append([]string{"upgrade"}, with("spool.type=emptyDir")...), "have volumes"},
		"spools elsewhere":    {append([]string{"upgrade"}, with("spool.storageClass=fast")...), `spool.storageClass is "fast"`},
		"a smaller database":  {append([]string{"upgrade"}, with("database.cluster.storage.size=1Gi")...), "a volume cannot shrink: set at least 2Gi"},
		"a volume taken away": {
			append([]string{"upgrade"}, with("database.cluster.walStorage.enabled=false")...),
			"database.cluster.walStorage.enabled is false, but myticket-db has that volume",
		},
		"the database of another release": {
			append([]string{"install", "other"}, with("fullnameOverride=other", "database.cluster.name=myticket-db")[1:]...),
			`is not of this release, but of "myticket"`,
		},
	} {
		for _, helm := range []string{helm4, helm3} {
			_, err := r.tryHelm(helm, c.args...)
			require.ErrorContains(t, err, c.says, "%s: %s", helm, name)
		}
	}
	require.Equal(t, before, hooks(), "no hook may have run")

	t.Run("a rollback takes back the Cluster", func(t *testing.T) {
		r.upgrade(helm4, imageOne, append(base, "database.cluster.parameters.work_mem=9MB")...)
		require.Equal(t, "9MB", r.parameter("work_mem"))
		r.helm(helm4, "rollback", "myticket", "1", "--wait", "--timeout", "5m")
		require.Empty(t, r.parameter("work_mem"))
		require.Equal(t, "120", r.parameter("max_connections"))
		r.noRightsOfHooks()
	})
	t.Run("a first hook that fails says why", func(t *testing.T) {
		printed, err := r.tryHelm(helm4, append([]string{"upgrade", "--wait", "--timeout", "3m"}, with("database.cluster.parameters.port=5433")...)...)
		require.Error(t, err)
		require.Contains(t, printed+err.Error(), "port", "CloudNativePG sets the port itself")
	})
}

// parameter returns what the Cluster asks of Postgres; empty if it asks nothing.
func (r *release) parameter(name string) string {
	r.t.Helper()
	return r.kubectl("get", "clusters.postgresql.cnpg.io/myticket-db", "-o", "jsonpath={.spec.postgresql.parameters."+name+"}")
}

// The number of servers may be Helm's, a person's or an autoscaler's. An upgrade must neither undo it nor fail half-way.
func TestScale_ByOthersThanHelm(t *testing.T) {
	t.Parallel()
	for _, helm := range []string{helm4, helm3} {
		t.Run(helm, func(t *testing.T) {
			t.Parallel()
			r := newRelease(t, "scaled-"+helm[len("bin/"):], 12*time.Minute)
			wanted := func() string { return r.kubectl("get", "statefulset/myticket", "-o", "jsonpath={.spec.replicas}") }
			automatic := []string{"autoscaling.enabled=true", "autoscaling.minReplicas=1", "autoscaling.maxReplicas=3"}
			r.upgrade(helm, imageOne, automatic...)
			r.kubectl("scale", "statefulset/myticket", "--replicas=2") // as the autoscaler does
			r.upgrade(helm, imageTwo, automatic...)
			r.helm(helm, "rollback", "myticket", "1", "--wait", "--timeout", "5m")
			require.Equal(t, "2", wanted(), "no revision had a number, so a rollback must not take one away")

			r.upgrade(helm, imageOne)
			require.Equal(t, "2", wanted())
			r.kubectl("scale", "statefulset/myticket", "--replicas=1")
			if helm == helm4 { // it applies as the server does, and must not take a number that is not its own
				_, err := r.tryHelm(helm, append([]string{"upgrade"}, r.chart(imageOne)...)...)
				require.ErrorContains(t, err, "myticket has 1 servers, set by kubectl and not by Helm")
				require.ErrorContains(t, err, "scale statefulset/myticket --replicas=2")
				r.upgrade(helm, imageOne, "replicas=1")
				r.kubectl("scale", "statefulset/myticket", "--replicas=2")
			}
			r.upgrade(helm, imageOne, "replicas=2")
			require.Equal(t, "2", wanted())

			for range 2 { // the second upgrade begins with a release that had no number of its own
				r.upgrade(helm, imageOne, automatic...)
				require.Equal(t, "2", wanted(), "the servers must stay as many as they are")
			}
			r.kubectl("scale", "statefulset/myticket", "--replicas=3") // as the autoscaler does
			for range 2 {
				r.upgrade(helm, imageOne, automatic...)
				require.Equal(t, "3", wanted(), "an upgrade must not undo what the autoscaler did")
			}
			r.upgrade(helm, imageOne, "replicas=3")
			require.Equal(t, "3", wanted())
		})
	}
}

// A person changes the password in the Secret. The operator sets it in Postgres, and leaves the URIs in the Secret as they were.
func TestPassword_Renewed(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "password", 8*time.Minute)
	r.upgrade(helm4, imageOne, "replicas=1")
	r.routed()
	r.kubectl("patch", "secret", "myticket-db-app", "--patch", `{"stringData":{"password":"`+uuid.NewString()+`"}}`)
	r.until("a new connection is refused, or made with the new password", func() (bool, string) {
		r.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'myticket serve'")
		log := r.kubectl("get", "secret", "myticket-db-app", "-o", "jsonpath={.metadata.resourceVersion}")
		renewed := r.kubectl("get", "clusters.postgresql.cnpg.io/myticket-db", "-o", "jsonpath={.status.secretsResourceVersion.applicationSecretVersion}")
		return log == renewed, log + " " + renewed
	})
	r.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'myticket serve'")
	r.until("tickets are stored in Postgres again", func() (bool, string) {
		_, status, err := post(r.ctx, newClient(), r.host, "/ticket/e2e", []byte("after a new password "+uuid.NewString()), uuid.NewString())
		require.NoError(t, err)
		return status == http.StatusOK, http.StatusText(status)
	})
	r.drained()
}
