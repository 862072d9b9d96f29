//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
)

func itoa(n int) string { return strconv.Itoa(n) }

// A new image under load: a refused ticket is accepted when it is sent again, within 5 s.
func TestUpgrade_UnderLoad(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "upgrade", 6*time.Minute)
	r.upgrade(helm4, imageOne)
	l := r.startLoad()
	r.upgrade(helm4, imageTwo)
	require.Equal(t, imageTwo, r.image())
	l.await(50)
	deliveries := l.stop()
	servedAgainWithin(r, deliveries, 5*time.Second)
	r.nothingLost(deliveries)
}

// A migration that fails ends the upgrade before a server is changed, and says why.
func TestUpgrade_WhoseMigrationFails(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "broken", 8*time.Minute)
	r.upgrade(helm4, imageOne)
	l := r.startLoad()
	pods := r.kubectl("get", "pods", "-l", "app.kubernetes.io/component=server", "-o", "jsonpath={.items[*].metadata.uid}")

	printed, err := r.tryHelm(helm4, append([]string{"upgrade", "--wait", "--timeout", "3m"}, r.chart(imageBroken)...)...)
	require.Error(t, err)
	require.Contains(t, printed+err.Error(), "division by zero", "the reason must be in sight")
	require.Contains(t, r.kubectl("logs", "job/myticket-migrate"), "division by zero")
	r.noRightsOfHooks()

	l.await(100)
	require.Equal(t, imageOne, r.image())
	require.Equal(t, pods, r.kubectl("get", "pods", "-l", "app.kubernetes.io/component=server", "-o", "jsonpath={.items[*].metadata.uid}"),
		"no server may be touched")
	require.Equal(t, 2, r.ready())

	t.Run("a second attempt explains the dirty schema", func(t *testing.T) {
		printed, err := r.tryHelm(helm4, append([]string{"upgrade", "--wait", "--timeout", "3m"}, r.chart(imageBroken)...)...)
		require.Error(t, err)
		require.Contains(t, printed+err.Error(), "migrate force")
	})
	t.Run("mended as docs/operations.md says", func(t *testing.T) {
		latest, err := postgres.LatestSchema()
		require.NoError(t, err)
		r.kubectl("exec", "myticket-0", "--", "/myticket", "migrate", "force", itoa(int(latest)))
		r.upgrade(helm4, imageTwo)
		require.Equal(t, imageTwo, r.image())
	})
	l.await(50)
	deliveries := l.stop()
	servedAgainWithin(r, deliveries, 5*time.Second)
	r.nothingLost(deliveries)
}

// The primary's pod is deleted under load: three instances, every commit on two of them. First in order, as when its node is
// drained; then by force, as when its node is lost. Then the primary's lease is not given back and has to expire.
func TestFailover_OfThePrimary(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "failover", 12*time.Minute)
	r.upgrade(helm4, imageOne, "database.cluster.instances=3", "database.cluster.synchronous.enabled=true")
	l := r.startLoad()
	for how, flags := range map[string][]string{"in order": nil, "by force": {"--grace-period=0", "--force"}} {
		t.Run(how, func(t *testing.T) {
			l.await(100)
			old, killed := r.primary(), time.Now()
			r.kubectl(append([]string{"delete", "pod", old, "--wait=false"}, flags...)...)
			r.until("there is another primary", func() (bool, string) { now := r.primary(); return now != old, now })
			promoted := time.Since(killed)
			r.kubectl("wait", "--for=condition=Ready", "clusters.postgresql.cnpg.io/myticket-db", "--timeout=180s")
			l.await(200)
			gap, spooled := l.since(killed)
			t.Logf("MEASURED failover %s: another primary after %s; longest time without a 200: %s; %d tickets answered 202",
				how, promoted.Round(100*time.Millisecond), gap.Round(100*time.Millisecond), spooled)
		})
	}
	t.Run("no standby is left", func(*testing.T) { noStandbyIsLeft(r, l) })
	r.spooledAndNothingLost(l)
}

// noStandbyIsLeft makes the primary answer but commit nothing, because each commit waits for a standby. Servers must not take an
// answer for a sign that it is back: the senders of each batch that tried would wait for the whole --database-timeout.
func noStandbyIsLeft(r *release, l *load) {
	r.t.Helper()
	primary, standbys := r.instances()
	r.fence(standbys...)
	both := func(metric string) (sum float64) {
		for _, server := range []string{"myticket-0", "myticket-1"} {
			have, err := r.metric(server, "9099", metric)
			require.NoError(r.t, err)
			sum += have
		}
		return sum
	}
	r.until("CloudNativePG says that no standby follows, as MyticketStandbyMissing asks", func() (bool, string) {
		have, err := r.metric(primary, "9187", "cnpg_pg_replication_streaming_replicas")
		return err == nil && have == 0, fmt.Sprint(have, " ", err)
	})
	const away, failed = "myticket_intake_database_away", "myticket_spool_overflow_total/failed"
	r.until("every server takes the database for away, as MyticketDatabaseAway asks", func() (bool, string) { return both(away) == 2, "" })
	before := both(failed)
	l.await(1000)
	require.LessOrEqual(r.t, both(failed)-before, float64(tills), "only what was under way may have been held up")
	require.InDelta(r.t, 2, both(away), 0)
	r.t.Run("a migration does not begin", func(t *testing.T) {
		values := r.chart(imageBroken, "database.cluster.instances=3", "database.cluster.synchronous.enabled=true", "migrations.deadlineSeconds=60")
		printed, err := r.tryHelm(helm4, append([]string{"upgrade", "--wait", "--timeout", "3m"}, values...)...)
		require.Error(t, err)
		require.Contains(t, printed+err.Error(), "no synchronous standby confirmed a commit", "Helm must show the reason")
		require.Contains(t, r.kubectl("logs", "job/myticket-migrate"), "nothing was migrated by this run", "and its log stays")
		latest, err := postgres.LatestSchema()
		require.NoError(t, err)
		require.Equal(t, itoa(int(latest))+"|f", r.sql("SELECT version, dirty FROM schema_migrations"))
	})
	r.unfence()
	r.until("tickets are committed again", func() (bool, string) { return both(away) == 0, "" })
}

// instances are the pods of a Cluster of three: the primary, and the two standbys.
func (r *release) instances() (primary string, standbys []string) {
	r.t.Helper()
	primary = r.primary()
	for instance := range strings.FieldsSeq(r.kubectl("get", "pods", "-l", "cnpg.io/podRole=instance", "-o", "jsonpath={.items[*].metadata.name}")) {
		if instance != primary {
			standbys = append(standbys, instance)
		}
	}
	require.Len(r.t, standbys, 2)
	return primary, standbys
}

// A commit whose wait for a standby was interrupted is only on the primary. If it is sent again, it must wait for a standby too.
// Otherwise Postgres only finds that the rows exist, and the spool deletes the one copy that outlives the primary.
func TestFailover_WithTheStandbysMissing(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "standbys", 15*time.Minute)
	r.upgrade(helm4, imageOne, "replicas=1", "shutdown.preStopSeconds=0", "shutdown.spoolSeconds=0", "shutdown.timeoutSeconds=10",
		// By quorum no standby is promoted before both are back, and then the other one may have what this one lacks.
		"database.cluster.instances=3", "database.cluster.synchronous.enabled=true", "database.cluster.synchronous.failoverQuorum=false")
	r.routed()
	var sent []delivery
	for name, lose := range map[string]func(primary string, standbys []string){
		"one comes back before the primary is lost": func(primary string, standbys []string) {
			r.fence(standbys[1])
			r.drained()
			r.kubectl("delete", "pod", primary, "--grace-period=0", "--force")
			r.until("the standby is the primary", func() (bool, string) { now := r.primary(); return now == standbys[0], now })
		},
		"the primary is lost with its disk before one comes back": func(primary string, _ []string) {
			r.kubectl("delete", "persistentvolumeclaim", primary, "--wait=false")
			r.kubectl("delete", "pod", primary, "--grace-period=0", "--force")
			r.kubectl("wait", "--for=delete", "persistentvolumeclaim/"+primary, "--timeout=120s")
			r.kubectl("annotate", "clusters.postgresql.cnpg.io", "myticket-db", "cnpg.io/fencedInstances-")
			r.until("a standby is the primary", func() (bool, string) {
				// The standby that was chosen while it was fenced looks at the Cluster when the fence is gone, before Postgres
				// is up, and then waits for the next change of the Cluster (docs/operations.md, "Failover of the database").
				r.lookAgain()
				now := r.primary()
				return now != primary, now
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			primary, standbys := r.instances()
			r.fence(standbys...)
			r.until("no standby follows", func() (bool, string) {
				have := r.sql("SELECT count(*) FROM pg_stat_replication")
				return have == "0", have
			})
			for i := range 3 { // the first is committed on the primary, the others are only spooled
				body := fmt.Appendf(nil, "Order: %s-%d\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n", name, i)
				id, status, err := post(r.ctx, newClient(), r.host, "/ticket/e2e", body, uuid.NewString())
				require.NoError(t, err)
				require.Equal(t, http.StatusAccepted, status)
				sent = append(sent, delivery{body: hash(body), id: id, status: status})
			}
			r.until("the first is on the primary, without which this proves nothing", func() (bool, string) {
				have := r.sql("SELECT count(*) FROM tickets WHERE id = '" + sent[len(sent)-3].id + "'")
				return have == "1", have
			})

			r.restartServer()
			// A ticket that the new server sends again must wait for a standby; without one it never gets an answer.
			since := r.sql("SELECT now()")
			r.until("the server waits for a standby, or has given up the spool", func() (bool, string) {
				have, err := r.spooled()
				waiting := r.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_start > '" + since + "'")
				return err == nil && (have == 0 || waiting != "0"), fmt.Sprintf("%d tickets, %v; %s wait", have, err, waiting)
			})
			have, err := r.spooled()
			require.NoError(t, err)
			require.Equal(t, 3, have, "the spool gave up tickets that no standby has")

			lose(primary, standbys)
			r.unfence()
			r.nothingLost(sent)
		})
	}
}

// restartServer stops the only server in order, and waits until another pod has its place and takes tickets.
func (r *release) restartServer() {
	r.t.Helper()
	const uid, ready = "jsonpath={.metadata.uid}", "jsonpath={.metadata.uid} {.status.containerStatuses[0].ready}"
	before := r.kubectl("get", "pod", "myticket-0", "-o", uid)
	r.kubectl("delete", "pod", "myticket-0", "--timeout=120s")
	r.until("another server is in its place", func() (bool, string) {
		now, err := r.try("get", "pod", "myticket-0", "-o", ready)
		return err == nil && !strings.HasPrefix(now, before) && strings.HasSuffix(now, " true"), now
	})
}

// primary returns the pod that CloudNativePG considers the primary.
func (r *release) primary() string {
	r.t.Helper()
	return r.kubectl("get", "clusters.postgresql.cnpg.io", "myticket-db", "-o", "jsonpath={.status.currentPrimary}")
}

// A server is killed with tickets in its spool, and its pod deleted by force, while Postgres is away.
func TestSpool_OutlivesItsPod(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "spool", 8*time.Minute)
	r.upgrade(helm4, imageOne)
	l := r.startLoad()
	r.fence("*")
	r.until("tickets are in the spools", func() (bool, string) {
		have, err := r.spooled()
		return err == nil && have >= 200, fmt.Sprint(have, " tickets, ", err)
	})
	r.killServer("myticket-0")
	r.until("the killed server is back in its pod", func() (bool, string) {
		restarts := r.kubectl("get", "pod", "myticket-0", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")
		return strings.HasSuffix(restarts, " true") && !strings.HasPrefix(restarts, "0"), restarts
	})
	uid := r.kubectl("get", "pod", "myticket-0", "-o", "jsonpath={.metadata.uid}")
	r.kubectl("delete", "pod", "myticket-0", "--grace-period=0", "--force")
	r.until("another pod is in its place, and ready without Postgres", func() (bool, string) {
		now, err := r.try("get", "pod", "myticket-0", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].ready}")
		return err == nil && !strings.HasPrefix(now, uid) && strings.HasSuffix(now, " true"), now
	})
	l.await(50)
	deliveries := l.stop()
	r.unfence()
	r.nothingLost(deliveries)
	servedAgainWithin(r, deliveries, 20*time.Second)
}

// killServer kills the process of a pod's server by SIGKILL, as the kernel does. This is not possible from inside the container,
// because the process is its first.
func (r *release) killServer(pod string) {
	r.t.Helper()
	node := r.kubectl("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
	on := func(args ...string) string {
		printed, err := r.onNode(node, args...)
		require.NoError(r.t, err)
		return strings.TrimSpace(printed)
	}
	container := on("crictl", "ps", "--quiet", "--name", "^server$", "--label", "io.kubernetes.pod.name="+pod,
		"--label", "io.kubernetes.pod.namespace="+r.namespace)
	pid := on("crictl", "inspect", "--output", "go-template", "--template", "{{.info.pid}}", container)
	on("kill", "-9", pid)
}

// More servers, then fewer: a server that is removed drains its spool, and its volume stays.
func TestScale_UpAndDown(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "scale", 8*time.Minute)
	r.upgrade(helm4, imageOne, "replicas=1")
	l := r.startLoad()
	r.upgrade(helm4, imageOne, "replicas=4")
	require.Equal(t, 4, r.ready())
	l.await(100)
	r.upgrade(helm4, imageOne, "replicas=1")
	r.gone("myticket-1", "myticket-2", "myticket-3")
	l.await(50)
	deliveries := l.stop()
	servedAgainWithin(r, deliveries, 5*time.Second)
	r.nothingLost(deliveries)
	require.Len(t, strings.Fields(r.kubectl("get", "pvc", "-l", "app.kubernetes.io/component=server", "-o", "name")), 4, "spools are kept")
}

// The autoscaler adds servers under load, and takes them away after it.
func TestScale_ByTheAutoscaler(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "autoscaler", 12*time.Minute)
	const scaleDown = "autoscaling.behavior.scaleDown."
	r.upgrade(helm4, imageOne, "autoscaling.enabled=true", "autoscaling.minReplicas=1", "autoscaling.maxReplicas=3",
		"autoscaling.targetCPUUtilizationPercentage=50", "resources.requests.cpu=50m", scaleDown+"stabilizationWindowSeconds=15",
		scaleDown+"policies[0].type=Pods", scaleDown+"policies[0].value=1", scaleDown+"policies[0].periodSeconds=15")
	l := r.startLoad()
	r.until("there are more servers", func() (bool, string) {
		return r.ready() > 1, r.kubectl("get", "horizontalpodautoscaler", "myticket", "--no-headers")
	})
	l.await(100)
	deliveries := l.stop()
	r.until("there is one server", func() (bool, string) {
		return r.kubectl("get", "pods", "-l", "app.kubernetes.io/component=server", "-o", "name") == "pod/myticket-0",
			r.kubectl("get", "horizontalpodautoscaler", "myticket", "--no-headers")
	})
	servedAgainWithin(r, deliveries, 5*time.Second)
	r.nothingLost(deliveries)
}

// A server is scaled away while Postgres is away. It waits for Postgres before it goes. Then another one is not given that time, so its
// volume keeps tickets that are nowhere else. A Job stores them.
func TestSpool_OfAServerThatIsGone(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "orphan", 12*time.Minute)
	r.upgrade(helm4, imageOne)
	scaleDown := func(set ...string) *load {
		l := r.startLoad()
		r.fence("*")
		r.until("the second server's spool holds tickets", func() (bool, string) {
			have, err := r.spooledBy("myticket-1")
			return err == nil && have >= 50, fmt.Sprint(have, " tickets, ", err)
		})
		// As docs/operations.md says: without the hooks, which would wait for Postgres.
		r.helm(helm4, append([]string{"upgrade", "--no-hooks"}, r.chart(imageOne, append(set, "replicas=1")...)...)...)
		l.await(50)
		return l
	}
	l := scaleDown()
	r.until("the second server waits for Postgres", func() (bool, string) {
		said := r.kubectl("logs", "myticket-1")
		return strings.Contains(said, "serving until they are in Postgres, then stopping"), last(said, 1)
	})
	deliveries := l.stop()
	require.NotEmpty(t, r.kubectl("get", "pod", "myticket-1", "-o", "jsonpath={.metadata.deletionTimestamp}"), "it must still be there")
	r.unfence()
	r.gone("myticket-1")
	r.nothingLost(deliveries)

	const notAtAll = "shutdown.spoolSeconds=0"
	r.upgrade(helm4, imageOne, notAtAll)
	l = scaleDown(notAtAll)
	r.gone("myticket-1")
	deliveries = append(deliveries, l.stop()...)
	r.unfence()
	r.drained()
	ids, _ := r.stored()
	require.Less(t, len(ids), len(deliveries), "the test proves nothing: the volume of the second server is empty")

	r.upgrade(helm4, imageOne, notAtAll, "replicas=1", "spool.drain={spool-myticket-1}")
	r.kubectl("wait", "--for=condition=Complete", "job", "-l", "app.kubernetes.io/component=drain", "--timeout=120s")
	r.nothingLost(deliveries)
}

// fence stops Postgres on these instances only, keeps their pods, and makes the operator leave them so
// (https://cloudnative-pg.io/documentation/current/fencing/).
func (r *release) fence(instances ...string) {
	r.t.Helper()
	r.kubectl("annotate", "--overwrite", "clusters.postgresql.cnpg.io", "myticket-db",
		`cnpg.io/fencedInstances=["`+strings.Join(instances, `","`)+`"]`)
}

// lookAgain has CloudNativePG, the operator and the instances, look at the Cluster. They do so at each change of it, however
// small, and by themselves perhaps only after minutes.
func (r *release) lookAgain() {
	r.t.Helper()
	r.kubectl("annotate", "--overwrite", "clusters.postgresql.cnpg.io/myticket-db", "e2e.myticket/look="+uuid.NewString())
}

func (r *release) unfence() {
	r.t.Helper()
	r.kubectl("annotate", "clusters.postgresql.cnpg.io", "myticket-db", "cnpg.io/fencedInstances-")
	r.kubectl("wait", "--for=condition=Ready", "clusters.postgresql.cnpg.io/myticket-db", "--timeout=180s")
}

// gone waits until these pods no longer exist.
func (r *release) gone(pods ...string) {
	r.t.Helper()
	for _, pod := range pods {
		r.kubectl("wait", "--for=delete", "pod/"+pod, "--timeout=120s")
	}
}
