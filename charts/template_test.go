package charts

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// switches are values that each turn on or off one thing.
func switches() []string {
	return []string{
		"replicas=3", "autoscaling.enabled=false", "networkPolicy.enabled=false", "networkPolicy.ingressNamespace=web", "retention.enabled=true",
		"monitoring.podMonitor.enabled=true", "monitoring.dashboards.enabled=true,monitoring.runbookURL=https://git.example.com/r",
		"monitoring.prometheusRule.enabled=true,monitoring.runbookURL=https://git.example.com/r", "tracing.endpoint=http://collector:4318",
		"httpRoute.enabled=true,httpRoute.parentRefs[0].name=web", "ingress.enabled=false",
		"spool.type=emptyDir", "spool.drain={spool-myticket-3}", "podDisruptionBudget.enabled=false", "sources.secretName=sources",
		"database.cluster.backup.enabled=true,database.cluster.backup.destinationPath=s3://b/f",
		"database.cluster.backup.enabled=true,database.cluster.backup.destinationPath=s3://b/f,database.cluster.recovery.from=old",
		strings.Join(sending(), ","), strings.Join(archiving(), ","),
		"database.cluster.walStorage.enabled=false", "extraObjects[0].kind=ConfigMap,extraObjects[0].metadata.name=more",
	}
}

func TestChart_RendersEachMode(t *testing.T) {
	t.Parallel()
	always := []string{
		"HorizontalPodAutoscaler/myticket", "Ingress/myticket", "NetworkPolicy/myticket", "NetworkPolicy/myticket-chores", "NetworkPolicy/myticket-test",
		"Pod/myticket-doctor", "Pod/myticket-test", "PodDisruptionBudget/myticket",
		"Service/myticket", "Service/myticket-servers", "ServiceAccount/myticket", "ServiceAccount/myticket-migrate", "StatefulSet/myticket",
	}
	for _, helm := range helms {
		for mode, besides := range map[string][]string{
			"hook": {
				"ConfigMap/myticket-provision", "Job/myticket-migrate", "Job/myticket-provision", "Job/myticket-provision-ready",
				"NetworkPolicy/myticket-db", "NetworkPolicy/myticket-migrate", "NetworkPolicy/myticket-provision", "Role/myticket-provision",
				"RoleBinding/myticket-provision", "ServiceAccount/myticket-provision",
			},
			"inline":   {"Cluster/myticket-db", "Job/myticket-migrate-#", "NetworkPolicy/myticket-db"},
			"external": {"Job/myticket-migrate", "NetworkPolicy/myticket-migrate"},
		} {
			t.Run(helm+" "+mode, func(t *testing.T) {
				t.Parallel()
				names := renderWith(t, helm, values(modes()[mode]...)...).names()
				for i, name := range names {
					names[i] = regexp.MustCompile(`^(Job/myticket-migrate-)[0-9a-f]{10}$`).ReplaceAllString(name, "$1#")
				}
				want := slices.Concat(always, besides)
				slices.Sort(want)
				require.Equal(t, want, names)
			})
		}
	}
}

// Helm deletes a hook before it makes the next one, and CloudNativePG deletes the volumes with the Cluster.
func TestCluster_IsNeverAHook(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		for _, turn := range switches() {
			t.Run(mode+" "+turn, func(t *testing.T) {
				t.Parallel()
				all := render(t, append(set, turn)...)
				found := all.database(t)
				require.Len(t, found.all("Cluster"), map[string]int{"hook": 1, "inline": 1}[mode])
				require.Equal(t, mode == "inline", len(all.all("Cluster")) == 1, "only in mode inline it is a resource of the release")
				for _, x := range found {
					for name := range annotations(x) {
						require.NotContains(t, name, "helm.sh/hook")
					}
					if mode == "inline" {
						require.Equal(t, "keep", annotation(x, "helm.sh/resource-policy"))
						require.Equal(t, "Prune=false,Delete=false", annotation(x, "argocd.argoproj.io/sync-options"))
					}
				}
			})
		}
	}
}

func TestHooks_RunInOrderAndLeaveTheirLogs(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"hook", "external"} {
		all := render(t, modes()[mode]...)
		weights := map[string]int{}
		for _, x := range all {
			if !strings.Contains(annotation(x, "helm.sh/hook"), "pre-") {
				continue
			}
			name := at(x, "metadata.name").(string)
			switch {
			case name == "myticket-provision-ready":
				assert.Equal(t, "pre-install", annotation(x, "helm.sh/hook"), "a Cluster that lacks a standby must not hold up an upgrade")
			case strings.HasPrefix(name, "myticket-provision"):
				assert.Equal(t, "pre-install,pre-upgrade,pre-rollback", annotation(x, "helm.sh/hook"), "a rollback also takes back the Cluster")
			default:
				assert.Equal(t, "pre-install,pre-upgrade", annotation(x, "helm.sh/hook"), "an older program cannot undo a migration")
			}
			weight, err := strconv.Atoi(annotation(x, "helm.sh/hook-weight"))
			require.NoError(t, err)
			weights[x["kind"].(string)+"/"+at(x, "metadata.name").(string)] = weight
			switch x["kind"] {
			case "Job":
				assert.Equal(t, "before-hook-creation", annotation(x, "helm.sh/hook-delete-policy"), "its log must stay")
				assert.Equal(t, "hook-failed", annotation(x, "helm.sh/hook-output-log-policy"))
				assert.NotNil(t, at(x, "spec.activeDeadlineSeconds"))
				assert.NotNil(t, at(x, "spec.ttlSecondsAfterFinished"))
			case "ServiceAccount", "Role", "RoleBinding", "ConfigMap":
				assert.Equal(t, "before-hook-creation,hook-succeeded,hook-failed", annotation(x, "helm.sh/hook-delete-policy"), "rights must not stay")
			}
		}
		assert.Less(t, weights["NetworkPolicy/myticket-migrate"], weights["ServiceAccount/myticket-migrate"])
		assert.Less(t, weights["ServiceAccount/myticket-migrate"], weights["Job/myticket-migrate"])
		if mode == "hook" {
			assert.Less(t, weights["NetworkPolicy/myticket-provision"], weights["Job/myticket-provision"])
			for _, kind := range []string{"ServiceAccount", "Role", "RoleBinding", "ConfigMap"} {
				assert.Less(t, weights[kind+"/myticket-provision"], weights["Job/myticket-provision"], kind)
			}
			assert.Less(t, weights["Job/myticket-provision"], weights["Job/myticket-provision-ready"])
			assert.Less(t, weights["Job/myticket-provision-ready"], weights["Job/myticket-migrate"])
		}
	}
}

func TestProvision_CannotDelete(t *testing.T) {
	t.Parallel()
	all := render(t, "database.cluster.backup.enabled=true", "database.cluster.backup.destinationPath=s3://b/f")
	for _, rule := range at(all.find(t, "Role", "myticket-provision"), "rules").([]any) {
		for _, verb := range at(rule, "verbs").([]any) {
			assert.Contains(t, []any{"create", "get", "list", "watch", "patch"}, verb)
		}
		if !slices.Contains(at(rule, "verbs").([]any), any("create")) { // what is created has no name yet
			assert.Len(t, at(rule, "resourceNames"), 1)
		}
	}
	for name, does := range map[string]string{"myticket-provision": "--server-side", "myticket-provision-ready": "--for=condition=Ready"} {
		job := all.find(t, "Job", name)
		assert.Contains(t, at(job, "spec.template.spec.containers.0.args"), does)
		assert.Nil(t, at(job, "spec.template.spec.initContainers"), "Helm shows no log of an init container")
	}
}

func TestMigration_IsOneAttemptThatWaits(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		all := render(t, append(set, "migrations.deadlineSeconds=100")...)
		for _, x := range all.all("Job") {
			if at(x, "metadata.labels").(object)["app.kubernetes.io/component"] != "migrate" {
				continue
			}
			assert.Equal(t, 0, at(x, "spec.backoffLimit"), mode)
			assert.Equal(t, []any{"migrate", "up", "--wait=80s", "--timeout=90s"}, at(x, "spec.template.spec.containers.0.args"), mode)
			assert.Equal(t, 400, at(x, "spec.activeDeadlineSeconds"), "%s: longer than the program and the pull of its image, because "+
				"the deadline removes the log", mode)
			assert.Equal(t, "myticket-migrate", at(x, "spec.template.spec.serviceAccountName"), mode)
			assert.Equal(t, mode == "inline", at(x, "spec.ttlSecondsAfterFinished") == nil, "GitOps would make it again and again")
		}
	}
}

// A Job cannot be changed, so a Job of the release needs a new name for every change.
func TestJobs_OfTheReleaseAreNamedAfterWhatTheyRun(t *testing.T) {
	t.Parallel()
	names := func(set ...string) []string {
		var found []string
		for _, x := range render(t, append(set, "database.mode=inline", "spool.drain={spool-myticket-3,spool-myticket-4}")...).all("Job") {
			found = append(found, at(x, "metadata.name").(string))
		}
		require.Len(t, found, 3)
		return found
	}
	one, again, other := names(), names(), names("image.tag=other")
	assert.Equal(t, one, again)
	for _, name := range one {
		assert.NotContains(t, other, name)
	}
}

// https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
func TestPods_AreRestricted(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		for name, pod := range render(t, slices.Concat(set, sending(), archiving(), []string{"retention.enabled=true", "spool.drain={spool-myticket-3}"})...).pods() {
			t.Run(mode+" "+name, func(t *testing.T) {
				t.Parallel()
				spec := at(pod, "spec").(object)
				assert.Equal(t, true, at(spec, "securityContext.runAsNonRoot"))
				assert.Equal(t, "RuntimeDefault", at(spec, "securityContext.seccompProfile.type"))
				assert.Equal(t, false, spec["enableServiceLinks"])
				assert.Equal(t, strings.Contains(name, "provision"), spec["automountServiceAccountToken"], "only that one speaks with the API server")
				for _, forbidden := range []string{"hostNetwork", "hostPID", "hostIPC"} {
					assert.NotContains(t, spec, forbidden)
				}
				volumes, _ := spec["volumes"].([]any)
				for _, volume := range volumes {
					for kind := range volume.(object) {
						assert.Contains(t, []string{"name", "configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim"}, kind)
					}
				}
				for _, c := range containers(pod) {
					assert.Equal(t, false, at(c, "securityContext.allowPrivilegeEscalation"))
					assert.Equal(t, true, at(c, "securityContext.readOnlyRootFilesystem"))
					assert.Equal(t, []any{"ALL"}, at(c, "securityContext.capabilities.drop"))
					assert.NotNil(t, at(c, "resources.requests"))
					assert.NotNil(t, at(c, "resources.limits.memory"))
					assert.Equal(t, "FallbackToLogsOnError", at(c, "terminationMessagePolicy"))
				}
			})
		}
	}
}

func TestServer_StopsAfterItsGracePeriodsParts(t *testing.T) {
	t.Parallel()
	all := render(t, "shutdown.preStopSeconds=7", "shutdown.timeoutSeconds=50", "shutdown.spoolSeconds=100")
	pod := at(all.find(t, "StatefulSet", "myticket"), "spec.template.spec")
	assert.Equal(t, 7, at(pod, "containers.0.lifecycle.preStop.sleep.seconds"))
	assert.Equal(t, "50s", env(all.server(t))["MYTICKET_SHUTDOWN_TIMEOUT"])
	assert.Equal(t, "100s", env(all.server(t))["MYTICKET_SHUTDOWN_SPOOL_WAIT"])
	assert.Greater(t, at(pod, "terminationGracePeriodSeconds"), 7+100+50)
	assert.Nil(t, at(render(t, "shutdown.preStopSeconds=0").server(t), "lifecycle"), "sleep takes no zero")
}

func TestServer_IsProbedOnTheInternalPort(t *testing.T) {
	t.Parallel()
	server := render(t, "probes.startup.failureThreshold=7").server(t)
	for probe, path := range map[string]string{"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"} {
		assert.Equal(t, object{"path": path, "port": "internal"}, at(server, probe+".httpGet"))
	}
	assert.Equal(t, 7, at(server, "startupProbe.failureThreshold"))
}

func TestServer_LimitsFollowTheValues(t *testing.T) {
	t.Parallel()
	for limit, want := range map[string]string{"256Mi": "241591910", "1Gi": "966367641", "512M": "460800000", "1073741824": "966367641"} {
		assert.Equal(t, want, env(render(t, "resources.limits.memory="+limit, "spool.maxTickets=1000").server(t))["GOMEMLIMIT"], limit)
	}
	assert.NotContains(t, env(render(t, "resources.limits=null").server(t)), "GOMEMLIMIT")
	var drain any
	for _, job := range render(t, "spool.drain={a}", "resources.limits.memory=512Mi", "spool.maxTickets=500000").all("Job") {
		if strings.HasPrefix(at(job, "metadata.name").(string), "myticket-drain-") {
			drain = at(job, "spec.template.spec.containers.0")
		}
	}
	assert.Equal(t, "483183820", env(drain)["GOMEMLIMIT"], "it reads what a server wrote")
	assert.Equal(t, "512Mi", at(drain, "resources.limits.memory"))
	assert.Equal(t, "3221225472", env(render(t, "spool.size=4Gi").server(t))["MYTICKET_SPOOL_MAX_BYTES"])
	assert.Equal(t, "2000000", env(render(t, "spool.maxTickets=2000000", "resources.limits.memory=2Gi").server(t))["MYTICKET_SPOOL_MAX_TICKETS"])
	assert.Equal(t, "9", env(render(t, "database.connectionsPerServer=9").server(t))["MYTICKET_DATABASE_MAX_CONNS"])
}

func TestServer_TakesSettings(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		variables := env(renderWith(t, helm, values("settings.MYTICKET_ORDER_LINES=false", "settings.MYTICKET_BATCH_TICKETS=512", "settings.MYTICKET_WAITING_TICKETS=1500000",
			"settings.MYTICKET_REQUEST_TIMEOUT=5s", "settings.MYTICKET_LOG_LEVEL=debug")...).server(t))
		assert.Equal(t, "false", variables["MYTICKET_ORDER_LINES"])
		assert.Equal(t, "512", variables["MYTICKET_BATCH_TICKETS"])
		assert.Equal(t, "1500000", variables["MYTICKET_WAITING_TICKETS"], "and not 1.5e+06")
		assert.Equal(t, "5s", variables["MYTICKET_REQUEST_TIMEOUT"])
		assert.Equal(t, "debug", variables["MYTICKET_LOG_LEVEL"])
	}
}

func TestServer_CountsNoConnectionsByPeerBehindAProxy(t *testing.T) {
	t.Parallel()
	const limit = "MYTICKET_MAX_CONNECTIONS_PER_PEER"
	for want, sets := range map[string][][]string{
		"0": {nil, {"ingress.enabled=false", "httpRoute.enabled=true", "httpRoute.parentRefs[0].name=web"}},
		"7": {{"settings." + limit + "=7"}},
		"":  {{"ingress.enabled=false"}, {"settings.MYTICKET_PEER_HEADER=X-Forwarded-For"}},
	} {
		for _, set := range sets {
			assert.Equal(t, want, env(render(t, set...).server(t))[limit], set)
		}
	}
}

func TestServer_TakesWhatElseIsWanted(t *testing.T) {
	t.Parallel()
	all := render(t, "extraEnv[0].name=A", "extraEnv[0].value=b", "extraEnvFrom[0].secretRef.name=more",
		"extraVolumes[0].name=more", "extraVolumes[0].emptyDir.sizeLimit=1Mi", "extraVolumeMounts[0].name=more", "extraVolumeMounts[0].mountPath=/more",
		"extraObjects[0].kind=ConfigMap", "extraObjects[0].metadata.name=\\{\\{ .Release.Name \\}\\}-more",
		"commonLabels.team=tills", "podLabels.pod=p", "podAnnotations.note=n", "priorityClassName=high", "nodeSelector.disk=fast",
		"initContainers[0].name=first", "extraContainers[0].name=beside",
		"tolerations[0].key=tickets", "affinity.nodeAffinity.x=y", "serviceAccountAnnotations.role=r", "sources.secretName=y", "sources.secretKey=n")
	assert.True(t, all.has("ConfigMap", "myticket-more"), "templates in extraObjects are filled in: %s", all.names())
	assert.Equal(t, "b", env(all.server(t))["A"])
	assert.Equal(t, "more", at(all.server(t), "envFrom.0.secretRef.name"))
	pod := at(all.find(t, "StatefulSet", "myticket"), "spec.template")
	assert.Equal(t, "n", at(pod, "metadata.annotations.note"))
	assert.Equal(t, "tills", at(pod, "metadata.labels.team"))
	assert.Equal(t, "p", at(pod, "metadata.labels.pod"))
	assert.Equal(t, "high", at(pod, "spec.priorityClassName"))
	assert.Equal(t, "fast", at(pod, "spec.nodeSelector.disk"))
	assert.Equal(t, "tickets", at(pod, "spec.tolerations.0.key"))
	assert.Equal(t, "first", at(pod, "spec.initContainers.0.name"))
	assert.Equal(t, "server", at(pod, "spec.containers.0.name"))
	assert.Equal(t, "beside", at(pod, "spec.containers.1.name"))
	assert.Equal(t, "y", at(pod, "spec.affinity.nodeAffinity.x"))
	assert.Equal(t, "r", at(all.find(t, "ServiceAccount", "myticket"), "metadata.annotations.role"))
	names := map[any]any{}
	for _, volume := range at(pod, "spec.volumes").([]any) {
		names[at(volume, "name")] = volume
	}
	assert.Equal(t, "y", at(names["sources"], "secret.secretName"), "a name that YAML could take for true")
	assert.Equal(t, "n", at(names["sources"], "secret.items.0.key"))
	assert.Contains(t, names, "more")
	assert.Equal(t, "/etc/myticket/sources/sources.json", env(all.server(t))["MYTICKET_SOURCES_FILE"])
}

func TestServer_HasASpoolOfItsOwn(t *testing.T) {
	t.Parallel()
	set := render(t, "spool.storageClass=fast").find(t, "StatefulSet", "myticket")
	assert.Equal(t, "fast", at(set, "spec.volumeClaimTemplates.0.spec.storageClassName"))
	assert.Equal(t, "2Gi", at(set, "spec.volumeClaimTemplates.0.spec.resources.requests.storage"))
	assert.Equal(t, object{"whenDeleted": "Retain", "whenScaled": "Retain"}, at(set, "spec.persistentVolumeClaimRetentionPolicy"))
	set = render(t, "spool.type=emptyDir").find(t, "StatefulSet", "myticket")
	assert.Nil(t, at(set, "spec.volumeClaimTemplates"))
	assert.Equal(t, "2Gi", at(set, "spec.template.spec.volumes.1.emptyDir.sizeLimit"))
}

func TestServer_IsSpread(t *testing.T) {
	t.Parallel()
	spread := func(set ...string) any {
		return at(render(t, set...).find(t, "StatefulSet", "myticket"), "spec.template.spec.topologySpreadConstraints")
	}
	affinity := func(set ...string) any {
		return at(render(t, set...).find(t, "StatefulSet", "myticket"), "spec.template.spec.affinity")
	}
	const preferred = "podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution.0."
	assert.Len(t, spread(), 1, "on a node without a zone two constraints that only ask would both count for nothing")
	assert.Equal(t, "topology.kubernetes.io/zone", at(spread(), "0.topologyKey"))
	assert.Equal(t, "ScheduleAnyway", at(spread(), "0.whenUnsatisfiable"))
	assert.Equal(t, "kubernetes.io/hostname", at(affinity(), preferred+"podAffinityTerm.topologyKey"))
	assert.Equal(t, at(spread(), "0.labelSelector"), at(affinity(), preferred+"podAffinityTerm.labelSelector"))
	assert.Nil(t, spread("topologySpread.zone="))
	assert.Nil(t, spread("topologySpread.zone=", "topologySpread.node="))
	assert.Nil(t, affinity("topologySpread.node="))
	assert.Len(t, spread("topologySpread.node=DoNotSchedule"), 2)
	assert.Equal(t, "DoNotSchedule", at(spread("topologySpread.node=DoNotSchedule"), "0.whenUnsatisfiable"))
	assert.Nil(t, affinity("topologySpread.node=DoNotSchedule"))
	assert.Equal(t, "DoNotSchedule", at(spread("topologySpread.zone=DoNotSchedule"), "0.whenUnsatisfiable"))

	own := affinity("affinity.nodeAffinity.x=y", "affinity."+preferredOf("disk"))
	assert.Equal(t, "y", at(own, "nodeAffinity.x"))
	assert.Equal(t, "disk", at(own, preferred+"podAffinityTerm.topologyKey"), "what a user prefers replaces it")
}

func preferredOf(topologyKey string) string {
	return "podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey=" + topologyKey
}

func TestImage_IsByTagOrDigest(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("0a", 32)
	for want, set := range map[string][]string{
		"myticket:0.1.0":                             nil,
		"myticket:v7":                                {"image.tag=v7"},
		"registry.example.com/tills/myticket:v7":     {"image.tag=v7", "image.registry=registry.example.com", "image.repository=tills/myticket"},
		"myticket:0.1.0@" + digest:                   {"image.digest=" + digest},
		"registry.example.com/myticket:v7@" + digest: {"image.digest=" + digest, "image.tag=v7", "image.registry=registry.example.com"},
	} {
		for name, pod := range render(t, slices.Concat(set, sending(), archiving(), []string{"retention.enabled=true", "imagePullSecrets[0].name=y"})...).pods() {
			assert.Equal(t, "y", at(pod, "spec.imagePullSecrets.0.name"), name)
			if !strings.Contains(name, "provision") {
				assert.Equal(t, want, at(containers(pod)[0], "image"), name)
			}
		}
	}
	assert.Equal(t, "registry", at(render(t, "imagePullSecrets[0].name=registry").cluster(t), "spec.imagePullSecrets.0.name"))

	all := render(t, "database.cluster.image=pg:17", "database.cluster.imageDigest="+digest, "database.cluster.kubectlImage=kubectl:v1",
		"database.cluster.kubectlImageDigest="+digest)
	assert.Equal(t, "pg:17@"+digest, at(all.cluster(t), "spec.imageName"))
	for global, want := range map[string][]string{
		"":                {"own.example.com/myticket:0.1.0", "ghcr.io/cloudnative-pg/postgresql:17-minimal-trixie", "registry.k8s.io/kubectl:v1.34.3"},
		"g.example.com/m": {"own.example.com/myticket:0.1.0", "g.example.com/m/cloudnative-pg/postgresql:17-minimal-trixie", "g.example.com/m/kubectl:v1.34.3"},
	} {
		all := render(t, "global.imageRegistry="+global, "image.registry=own.example.com")
		assert.Equal(t, want[0], at(all.server(t), "image"))
		assert.Equal(t, want[1], at(all.cluster(t), "spec.imageName"))
		for _, name := range []string{"Job/myticket-provision", "Job/myticket-provision-ready"} {
			assert.Equal(t, want[2], at(containers(all.pods()[name])[0], "image"))
		}
	}
	all = render(t, "global.imageRegistry=g.example.com", "image.repository=", "database.cluster.image=postgres:17")
	assert.Equal(t, "g.example.com/myticket:0.1.0", at(all.server(t), "image"))
	assert.Equal(t, "g.example.com/postgres:17", at(all.cluster(t), "spec.imageName"))
	all = render(t, "database.cluster.image=pg:17", "database.cluster.imageDigest="+digest, "database.cluster.kubectlImage=kubectl:v1",
		"database.cluster.kubectlImageDigest="+digest)
	for _, c := range containers(all.pods()["Job/myticket-provision"]) {
		assert.Equal(t, "kubectl:v1@"+digest, at(c, "image"))
	}
}

func TestDatabase_IsReachedByVerifiedTLS(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"hook", "inline"} {
		for name, pod := range render(t, slices.Concat(modes()[mode], sending(), archiving(), []string{"retention.enabled=true", "spool.drain={a}"})...).pods() {
			if strings.Contains(name, "provision") || strings.Contains(name, "test") {
				continue
			}
			variables := env(containers(pod)[0])
			assert.Equal(t, "verify-full", variables["PGSSLMODE"], name)
			assert.Equal(t, "/etc/myticket/database/ca.crt", variables["PGSSLROOTCERT"], name)
			sources := at(pod, "spec.volumes.0.projected.sources")
			assert.Equal(t, "myticket-db-app", at(sources, "0.secret.name"), name)
			assert.Equal(t, "/etc/myticket/database", variables["DATABASE_DIR"], "a new password is in the Secret's key password alone")
			var parts []any
			for _, item := range at(sources, "0.secret.items").([]any) {
				parts = append(parts, at(item, "path"))
			}
			assert.Equal(t, []any{"host", "port", "dbname", "username", "password"}, parts, name)
			assert.Equal(t, "myticket-db-ca", at(sources, "1.secret.name"), name)
		}
	}
	external := modes()["external"]
	all := render(t, external...)
	assert.Equal(t, "verify-full", env(all.server(t))["PGSSLMODE"])
	assert.NotContains(t, env(all.server(t)), "PGSSLROOTCERT", "public CAs")
	all = render(t, append(external, "database.external.caSecretName=y", "database.external.caSecretKey=n", "database.external.secretKey=url",
		"database.external.sslMode=verify-ca")...)
	sources := at(all.find(t, "StatefulSet", "myticket"), "spec.template.spec.volumes.0.projected.sources")
	assert.Equal(t, []any{object{"key": "url", "path": "uri"}}, at(sources, "0.secret.items"))
	assert.Equal(t, "y", at(sources, "1.secret.name"))
	assert.Equal(t, []any{object{"key": "n", "path": "ca.crt"}}, at(sources, "1.secret.items"))
	assert.Equal(t, "verify-ca", env(all.server(t))["PGSSLMODE"])
	assert.Equal(t, "/etc/myticket/database/uri", env(all.server(t))["DATABASE_URL_FILE"])

	all = render(t, append(external, "database.external.secretKeys.host=address,database.external.secretKeys.dbname=db",
		"database.external.secretKeys.username=user,database.external.secretKeys.password=pass")...)
	sources = at(all.find(t, "StatefulSet", "myticket"), "spec.template.spec.volumes.0.projected.sources")
	assert.ElementsMatch(t, []any{
		object{"key": "address", "path": "host"}, object{"key": "db", "path": "dbname"},
		object{"key": "user", "path": "username"}, object{"key": "pass", "path": "password"},
	}, at(sources, "0.secret.items"))
	assert.NotContains(t, env(all.server(t)), "DATABASE_URL_FILE")
	assert.Equal(t, "/etc/myticket/database", env(all.server(t))["DATABASE_DIR"])
}

func TestRoutes_LeadOnlyToTickets(t *testing.T) {
	t.Parallel()
	all := render(t, "ingress.className=web", "ingress.hosts={a.example.com,b.example.com}", "ingress.tls[0].secretName=tls",
		"httpRoute.enabled=true", "httpRoute.parentRefs[0].name=web", "httpRoute.parentRefs[0].namespace=gateways", "httpRoute.hostnames={c.example.com}")
	ingress := all.find(t, "Ingress", "myticket")
	assert.Empty(t, annotations(ingress), "of no controller's")
	assert.Equal(t, "web", at(ingress, "spec.ingressClassName"))
	assert.Equal(t, "tls", at(ingress, "spec.tls.0.secretName"))
	require.Len(t, at(ingress, "spec.rules"), 2)
	for i, host := range []string{"a.example.com", "b.example.com"} {
		rule := at(ingress, "spec.rules").([]any)[i]
		assert.Equal(t, host, at(rule, "host"))
		require.Len(t, at(rule, "http.paths"), 1)
		assert.Equal(t, "/ticket", at(rule, "http.paths.0.path"))
		assert.Equal(t, "Prefix", at(rule, "http.paths.0.pathType"))
		assert.Equal(t, "http", at(rule, "http.paths.0.backend.service.port.name"))
	}
	assert.Nil(t, at(render(t).find(t, "Ingress", "myticket"), "spec.rules.0.host"), "every host, where none is named")

	route := all.find(t, "HTTPRoute", "myticket")
	assert.Equal(t, "gateways", at(route, "spec.parentRefs.0.namespace"))
	require.Len(t, at(route, "spec.rules"), 1)
	assert.Equal(t, []any{object{"path": object{"type": "PathPrefix", "value": "/ticket"}}}, at(route, "spec.rules.0.matches"))

	ranges := render(t, "service.type=LoadBalancer", "service.loadBalancerSourceRanges={10.0.0.0/8}").find(t, "Service", "myticket")
	assert.Equal(t, []any{"10.0.0.0/8"}, at(ranges, "spec.loadBalancerSourceRanges"))
	for _, service := range all.all("Service") {
		require.Len(t, at(service, "spec.ports"), 1)
		assert.Equal(t, "http", at(service, "spec.ports.0.targetPort"), "the internal port is in no Service")
	}
}

// Releases that share a host name each have the paths of their sources, and one has /ticket.
func TestRoutes_OfSources(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		all := renderWith(t, helm, values("ingress.hosts={a.example.com,b.example.com}", "ingress.sources={shop-1,shop-10}",
			"httpRoute.enabled=true", "httpRoute.parentRefs[0].name=web", "httpRoute.sources={shop-1,7-a}")...)
		for _, rule := range at(all.find(t, "Ingress", "myticket"), "spec.rules").([]any) {
			var paths []any
			for _, path := range at(rule, "http.paths").([]any) {
				assert.Equal(t, "Prefix", at(path, "pathType"), "which compares whole elements")
				assert.Equal(t, "myticket", at(path, "backend.service.name"))
				paths = append(paths, at(path, "path"))
			}
			assert.Equal(t, []any{"/ticket/shop-1", "/ticket/shop-10"}, paths, "and not /ticket")
		}
		route := all.find(t, "HTTPRoute", "myticket")
		require.Len(t, at(route, "spec.rules"), 1)
		assert.Equal(t, []any{
			object{"path": object{"type": "PathPrefix", "value": "/ticket/shop-1"}},
			object{"path": object{"type": "PathPrefix", "value": "/ticket/7-a"}},
		}, at(route, "spec.rules.0.matches"))

		// A rule has at most 64 matches, and an HTTPRoute 128.
		names := make([]string, 129)
		for i := range names {
			names[i] = fmt.Sprintf("shop-%d", i)
		}
		with := func(n int) []string {
			return []string{"httpRoute.enabled=true", "httpRoute.parentRefs[0].name=web", "httpRoute.sources={" + strings.Join(names[:n], ",") + "}"}
		}
		route = renderWith(t, helm, values(with(128)...)...).find(t, "HTTPRoute", "myticket")
		require.Len(t, at(route, "spec.rules"), 2)
		seen := map[any]bool{}
		for _, rule := range at(route, "spec.rules").([]any) {
			assert.Len(t, at(rule, "matches"), 64)
			assert.Equal(t, "myticket", at(rule, "backendRefs.0.name"))
			for _, match := range at(rule, "matches").([]any) {
				seen[at(match, "path.value")] = true
			}
		}
		assert.Len(t, seen, 128)
		_, err := tryTemplate(t, helm, values(with(129)...)...)
		require.ErrorContains(t, err, "httpRoute.sources names 129 sources, but an HTTPRoute can match 128")
	}
}

func TestNetworkPolicies_AreOnUnlessTurnedOff(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		assert.Empty(t, render(t, append(set, "networkPolicy.enabled=false")...).all("NetworkPolicy"))
		all := render(t, slices.Concat(set, sending(), archiving(), []string{"retention.enabled=true", "spool.drain={a}"})...)
		for name, pod := range all.pods() {
			var policies []string
			for _, policy := range all.all("NetworkPolicy") {
				assert.Equal(t, []any{"Ingress", "Egress"}, at(policy, "spec.policyTypes"))
				if selects(at(policy, "spec.podSelector"), at(pod, "metadata.labels").(object)) {
					policies = append(policies, at(policy, "metadata.name").(string))
				}
			}
			assert.Len(t, policies, 1, "%s: %s has none, or two, which would open what the other closes", mode, name)
		}
		assert.Equal(t, mode != "external", all.has("NetworkPolicy", "myticket-db"))
	}
}

// selects reports whether a label selector matches labels (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/).
func selects(selector any, labels object) bool {
	wanted, _ := at(selector, "matchLabels").(object)
	for name, value := range wanted {
		if labels[name] != value {
			return false
		}
	}
	expressions, _ := at(selector, "matchExpressions").([]any)
	for _, e := range expressions {
		if in := slices.Contains(at(e, "values").([]any), labels[at(e, "key").(string)]); in != (at(e, "operator") == "In") {
			return false
		}
	}
	return true
}

func TestNetworkPolicies_NameWhoMayPost(t *testing.T) {
	t.Parallel()
	webhook := func(set ...string) any {
		rule := at(render(t, set...).find(t, "NetworkPolicy", "myticket"), "spec.ingress.0")
		assert.Equal(t, []any{object{"port": "http", "protocol": "TCP"}}, at(rule, "ports"))
		return at(rule, "from")
	}
	assert.Nil(t, webhook(), "from everywhere, as values.yaml says, because the chart does not know where the ingress controller is")
	const namespace = "0.namespaceSelector.matchLabels"
	from := webhook("networkPolicy.ingressNamespace=web")
	require.Len(t, from, 2)
	assert.Equal(t, object{"kubernetes.io/metadata.name": "web"}, at(from, namespace))
	assert.Equal(t, "test", at(from, "1.podSelector.matchLabels").(object)["app.kubernetes.io/component"], "helm test")
	from = webhook("networkPolicy.webhookFrom[0].ipBlock.cidr=10.0.0.0/8")
	require.Len(t, from, 2)
	assert.Equal(t, "10.0.0.0/8", at(from, "0.ipBlock.cidr"))
	require.Len(t, webhook("networkPolicy.ingressNamespace=web", "networkPolicy.webhookFrom[0].ipBlock.cidr=10.0.0.0/8"), 3)
}

func TestNetworkPolicies_NameWhoMaySpeakWithServers(t *testing.T) {
	t.Parallel()
	policy := render(t).find(t, "NetworkPolicy", "myticket")
	assert.Equal(t, "internal", at(policy, "spec.ingress.1.ports.0.port"))
	assert.Equal(t, "prometheus", at(policy, "spec.ingress.1.from.0.podSelector.matchLabels").(object)["app.kubernetes.io/name"])
	require.Len(t, at(policy, "spec.ingress"), 2)
	require.Len(t, at(policy, "spec.egress"), 2, "DNS and the database")
	assert.Equal(t, 53, at(policy, "spec.egress.0.ports.0.port"))
	assert.Equal(t, 5432, at(policy, "spec.egress.1.ports.0.port"))
	assert.Equal(t, "myticket-db", at(policy, "spec.egress.1.to.0.podSelector.matchLabels").(object)["cnpg.io/cluster"])

	for endpoint, want := range map[string][]int{
		"http://collector:4318": {4317, 4318}, "https://otel.example.com/otlp": {4317, 4318, 443}, "http://collector": {4317, 4318, 80},
		"https://[2001:db8::1]:9999": {4317, 4318, 9999},
	} {
		policy = render(t, "tracing.endpoint="+endpoint).find(t, "NetworkPolicy", "myticket")
		require.Len(t, at(policy, "spec.egress"), 3)
		assert.Equal(t, want, ports(at(policy, "spec.egress.2")), endpoint)
	}

	external := render(t, append(modes()["external"], "networkPolicy.databaseTo[0].ipBlock.cidr=10.0.0.0/8", "networkPolicy.databasePort=6432",
		"networkPolicy.extraEgress[0].ports[0].port=443", "networkPolicy.internalFrom[0].podSelector.matchLabels.team=watch")...)
	for _, name := range []string{"myticket", "myticket-chores", "myticket-migrate"} {
		policy = external.find(t, "NetworkPolicy", name)
		assert.Equal(t, "10.0.0.0/8", at(policy, "spec.egress.1.to.0.ipBlock.cidr"), name)
		assert.Equal(t, []int{6432}, ports(at(policy, "spec.egress.1")), name)
	}
	policy = external.find(t, "NetworkPolicy", "myticket")
	assert.Equal(t, 443, at(policy, "spec.egress.2.ports.0.port"))
	assert.Equal(t, "watch", at(policy, "spec.ingress.1.from.0.podSelector.matchLabels.team"))
	assert.Nil(t, at(render(t, modes()["external"]...).find(t, "NetworkPolicy", "myticket"), "spec.egress.1.to"))
}

// ports lists the ports of a rule.
func ports(rule any) []int {
	var found []int
	for _, port := range at(rule, "ports").([]any) {
		found = append(found, at(port, "port").(int))
	}
	return found
}

func TestNetworkPolicies_NameWhoMaySpeakWithTheDatabase(t *testing.T) {
	t.Parallel()
	const label = "app.kubernetes.io/name"
	for _, mode := range []string{"hook", "inline"} {
		all := render(t, modes()[mode]...)
		policy := all.find(t, "NetworkPolicy", "myticket-db")
		assert.Empty(t, annotations(policy), "it goes with the release, and the Cluster stays")
		for who, labels := range map[bool]object{
			true:  {"cnpg.io/cluster": "myticket-db", "cnpg.io/jobRole": "join"},
			false: {"cnpg.io/cluster": "myticket-db", "cnpg.io/podRole": "pooler"},
		} {
			assert.Equal(t, who, selects(at(policy, "spec.podSelector"), labels), labels)
		}
		require.Len(t, at(policy, "spec.ingress"), 3)
		assert.Equal(t, []int{5432}, ports(at(policy, "spec.ingress.0")))
		for name, pod := range render(t, slices.Concat(modes()[mode], sending(), archiving(), []string{"retention.enabled=true", "spool.drain={a}"})...).pods() {
			mine := !strings.Contains(name, "provision") && !strings.Contains(name, "test")
			assert.Equal(t, mine, selects(at(policy, "spec.ingress.0.from.0.podSelector"), at(pod, "metadata.labels").(object)), name)
		}
		assert.Equal(t, []int{5432, 8000}, ports(at(policy, "spec.ingress.1")))
		assert.Equal(t, object{"cnpg.io/cluster": "myticket-db"}, at(policy, "spec.ingress.1.from.0.podSelector.matchLabels"))
		assert.Equal(t, object{label: "cloudnative-pg"}, at(policy, "spec.ingress.1.from.1.podSelector.matchLabels"))
		assert.Equal(t, object{}, at(policy, "spec.ingress.1.from.1.namespaceSelector"), "any namespace, because the operator may be in any")
		assert.Equal(t, []int{9187}, ports(at(policy, "spec.ingress.2")))
		assert.Equal(t, "prometheus", at(policy, "spec.ingress.2.from.0.podSelector.matchLabels").(object)[label])
		require.Len(t, at(policy, "spec.egress"), 3, "DNS, the Kubernetes API, the other instances")
		assert.Equal(t, []int{443, 6443, 8443, 16443}, ports(at(policy, "spec.egress.1")))
		assert.Equal(t, []int{5432, 8000}, ports(at(policy, "spec.egress.2")))
	}
	policy := render(t, "networkPolicy.operatorNamespace=cnpg-system", "networkPolicy.databaseFrom[0].podSelector.matchLabels.app=reports",
		"networkPolicy.databaseEgress[0].ports[0].port=5433", "database.cluster.name=other").find(t, "NetworkPolicy", "other")
	assert.Equal(t, object{"kubernetes.io/metadata.name": "cnpg-system"}, at(policy, "spec.ingress.1.from.1.namespaceSelector.matchLabels"))
	assert.Equal(t, "reports", at(policy, "spec.ingress.0.from.1.podSelector.matchLabels.app"))
	assert.Equal(t, []int{5433}, ports(at(policy, "spec.egress.3")))

	backup := []string{"database.cluster.backup.enabled=true", "database.cluster.backup.destinationPath=s3://b/f"}
	policy = render(t, backup...).find(t, "NetworkPolicy", "myticket-db")
	assert.Equal(t, []int{443, 9000}, ports(at(policy, "spec.egress.3")))
	assert.Equal(t, "169.254.0.0/16", at(policy, "spec.egress.4.to.0.ipBlock.cidr"), "the cloud's own credentials")
	policy = render(t, append(backup, "database.cluster.backup.endpointURL=http://minio.minio:9001", "database.cluster.backup.secretName=keys")...).
		find(t, "NetworkPolicy", "myticket-db")
	assert.Equal(t, []int{443, 9000, 9001}, ports(at(policy, "spec.egress.3")))
	require.Len(t, at(policy, "spec.egress"), 4)
}

// Objects that a hook leaves behind would stay, unseen, after the release is removed.
func TestNetworkPolicies_OfHooksGoWithTheHooks(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		for _, policy := range render(t, set...).all("NetworkPolicy") {
			name := at(policy, "metadata.name").(string)
			if hook := name == "myticket-migrate" || name == "myticket-provision"; !hook {
				assert.Empty(t, annotations(policy), "%s: %s", mode, name)
				continue
			}
			assert.Equal(t, "before-hook-creation,hook-succeeded,hook-failed", annotation(policy, "helm.sh/hook-delete-policy"))
			for _, rule := range at(policy, "spec.egress").([]any) {
				assert.NotEmpty(t, at(rule, "ports"))
			}
			assert.Nil(t, at(policy, "spec.ingress"), "no pod connects to a hook")
		}
	}
	provision := render(t).find(t, "NetworkPolicy", "myticket-provision")
	assert.Equal(t, []int{443, 6443, 8443, 16443}, ports(at(provision, "spec.egress.1")))
}

func TestCluster_IsForProduction(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"hook", "inline"} {
		spec := at(render(t, modes()[mode]...).cluster(t), "spec")
		assert.Equal(t, 3, at(spec, "instances"))
		assert.Equal(t, object{"method": "any", "number": 1, "dataDurability": "required", "failoverQuorum": true},
			at(spec, "postgresql.synchronous"))
		assert.Equal(t, true, at(spec, "bootstrap.initdb.dataChecksums"))
		assert.Nil(t, at(spec, "bootstrap.initdb.secret"), "CloudNativePG would not make the Secret with the URI")
		assert.Equal(t, "10Gi", at(spec, "walStorage.size"))
		assert.Equal(t, "switchover", at(spec, "primaryUpdateMethod"))
		assert.Equal(t, 60, at(spec, "switchoverDelay"))
		assert.Equal(t, 1, at(spec, "smartShutdownTimeout"))
		assert.Nil(t, at(spec, "monitoring"), "enablePodMonitor is deprecated; the chart has its own")
	}
	small := at(renderWith(t, helm4, "--values", filepath.Join("myticket", "values-small.yaml")).cluster(t), "spec")
	assert.Equal(t, 1, at(small, "instances"))
	assert.Nil(t, at(small, "postgresql.synchronous"))
	assert.Nil(t, at(small, "walStorage"))
	assert.Equal(t, "restart", at(small, "primaryUpdateMethod"), "there is no instance to switch over to")
	other := at(render(t, "database.cluster.extraSpec.logLevel=debug", "database.cluster.extraSpec.instances=5",
		"database.cluster.storage.storageClass=fast", "database.cluster.image=").cluster(t), "spec")
	assert.Equal(t, "debug", at(other, "logLevel"))
	assert.Equal(t, 5, at(other, "instances"), "extraSpec wins")
	assert.Equal(t, "fast", at(other, "storage.storageClass"))
	assert.Nil(t, at(other, "inheritedMetadata"))
	inherited := render(t, "commonLabels.team=tills", "database.cluster.inheritedMetadata.labels.data=tickets",
		"database.cluster.inheritedMetadata.annotations.note=n").cluster(t)
	assert.Equal(t, object{"labels": object{"team": "tills", "data": "tickets"}, "annotations": object{"note": "n"}}, at(inherited, "spec.inheritedMetadata"))
	assert.Nil(t, at(other, "imageName"))
}

func TestBackup_AndRecovery(t *testing.T) {
	t.Parallel()
	backup := []string{
		"database.cluster.backup.enabled=true", "database.cluster.backup.destinationPath=s3://b/f",
		"database.cluster.backup.endpointURL=https://s3.example.com", "database.cluster.backup.secretName=keys",
		"database.cluster.backup.configuration.wal.maxParallel=4",
	}
	for _, mode := range []string{"hook", "inline"} {
		all := render(t, append(backup, modes()[mode]...)...)
		store := all.database(t).find(t, "ObjectStore", "myticket-backups")
		assert.Equal(t, "s3://b/f", at(store, "spec.configuration.destinationPath"))
		assert.Equal(t, "keys", at(store, "spec.configuration.s3Credentials.accessKeyId.name"))
		assert.Equal(t, 4, at(store, "spec.configuration.wal.maxParallel"))
		assert.Equal(t, "gzip", at(store, "spec.configuration.wal.compression"), "configuration is merged")
		assert.Equal(t, true, at(all.cluster(t), "spec.plugins.0.isWALArchiver"))
		assert.Equal(t, "myticket-backups", at(all.cluster(t), "spec.plugins.0.parameters.barmanObjectName"))
		scheduled := all.find(t, "ScheduledBackup", "myticket-db")
		assert.Len(t, strings.Fields(at(scheduled, "spec.schedule").(string)), 6, "with seconds")
		assert.Equal(t, "plugin", at(scheduled, "spec.method"))
	}
	assert.Empty(t, render(t).all("ScheduledBackup"))
	all := render(t, append(backup, "database.cluster.name=restored", "database.cluster.recovery.from=myticket-db",
		"database.cluster.recovery.targetTime=2026-11-23 12:00:00+00")...)
	restored := all.database(t).find(t, "Cluster", "restored")
	assert.Nil(t, at(restored, "spec.bootstrap.initdb"))
	assert.Equal(t, "2026-11-23 12:00:00+00", at(restored, "spec.bootstrap.recovery.recoveryTarget.targetTime"))
	assert.Equal(t, "myticket-db", at(restored, "spec.externalClusters.0.plugin.parameters.serverName"))
	assert.Equal(t, "restored-app", at(all.find(t, "StatefulSet", "myticket"), "spec.template.spec.volumes.0.projected.sources.0.secret.name"))

	drill := render(t, append(backup, "database.cluster.backup.enabled=false", "database.cluster.recovery.from=old")...)
	assert.Nil(t, at(drill.database(t).find(t, "ObjectStore", "myticket-backups"), "spec.retentionPolicy"), "a drill removes no backup")
	assert.NotNil(t, at(drill.cluster(t), "spec.bootstrap.recovery"))
	assert.Nil(t, at(drill.cluster(t), "spec.plugins"), "a drill reads the archive, and writes nothing to it")
	assert.Empty(t, drill.all("ScheduledBackup"))
}

func TestScaling(t *testing.T) {
	t.Parallel()
	all := render(t, "autoscaling.minReplicas=2", "autoscaling.maxReplicas=6", "autoscaling.metrics[0].type=Pods")
	scaler := all.find(t, "HorizontalPodAutoscaler", "myticket")
	assert.Equal(t, 2, at(scaler, "spec.minReplicas"))
	assert.Equal(t, 6, at(scaler, "spec.maxReplicas"))
	assert.Equal(t, 70, at(scaler, "spec.metrics.0.resource.target.averageUtilization"))
	assert.Equal(t, "Pods", at(scaler, "spec.metrics.1.type"))
	assert.Equal(t, "StatefulSet", at(scaler, "spec.scaleTargetRef.kind"))
	assert.Nil(t, at(all.find(t, "StatefulSet", "myticket"), "spec.replicas"), "an upgrade would undo what the autoscaler did")
	all = render(t, "autoscaling.targetCPUUtilizationPercentage=0", "autoscaling.metrics[0].type=Pods")
	assert.Equal(t, "Pods", at(all.find(t, "HorizontalPodAutoscaler", "myticket"), "spec.metrics.0.type"))

	all = render(t, "autoscaling.enabled=false", "replicas=4")
	assert.Empty(t, all.all("HorizontalPodAutoscaler"))
	assert.Equal(t, 4, at(all.find(t, "StatefulSet", "myticket"), "spec.replicas"))

	budget := all.find(t, "PodDisruptionBudget", "myticket")
	assert.Equal(t, 1, at(budget, "spec.maxUnavailable"))
	assert.Equal(t, "AlwaysAllow", at(budget, "spec.unhealthyPodEvictionPolicy"))
	budget = render(t, "podDisruptionBudget.maxUnavailable=null", "podDisruptionBudget.minAvailable=50%").find(t, "PodDisruptionBudget", "myticket")
	assert.Equal(t, "50%", at(budget, "spec.minAvailable"))
	assert.Nil(t, at(budget, "spec.maxUnavailable"))
	assert.Empty(t, render(t, "autoscaling.enabled=false", "replicas=1").all("PodDisruptionBudget"), "it would keep a node from being drained")
}

func TestRetention_AndPodMonitors(t *testing.T) {
	t.Parallel()
	all := render(t, "retention.enabled=true", "retention.keep=12w", "monitoring.podMonitor.enabled=true", "monitoring.podMonitor.labels.release=prometheus")
	assert.Equal(t, []any{"retention", "--keep", "12w", "--apply", "--by", "CronJob/myticket-retention"}, at(all.find(t, "CronJob", "myticket-retention"), "spec.jobTemplate.spec.template.spec.containers.0.args"))
	assert.Equal(t, "internal", at(all.find(t, "PodMonitor", "myticket"), "spec.podMetricsEndpoints.0.port"))
	assert.Equal(t, "prometheus", at(all.find(t, "PodMonitor", "myticket-db"), "metadata.labels.release"))
	relabeled := render(t, "monitoring.podMonitor.enabled=true", "monitoring.podMonitor.relabelings[0].targetLabel=shop",
		"monitoring.podMonitor.metricRelabelings[0].action=drop")
	for _, name := range []string{"myticket", "myticket-db"} {
		endpoint := at(relabeled.find(t, "PodMonitor", name), "spec.podMetricsEndpoints.0")
		assert.Equal(t, "shop", at(endpoint, "relabelings.0.targetLabel"))
		assert.Equal(t, "drop", at(endpoint, "metricRelabelings.0.action"))
		assert.Equal(t, "30s", at(endpoint, "interval"))
	}
	assert.Len(t, render(t, append(modes()["external"], "monitoring.podMonitor.enabled=true")...).all("PodMonitor"), 1)
	assert.Empty(t, render(t).all("CronJob"))
}

func TestNames_FollowTheRelease(t *testing.T) {
	t.Parallel()
	text, err := run(t, ".", helm4, "template", "shop", "myticket", "--set", "image.repository=myticket", "--kube-version", "1.34.0", "--api-versions", "postgresql.cnpg.io/v1")
	require.NoError(t, err)
	all := parse(t, text)
	assert.True(t, all.has("StatefulSet", "shop-myticket"), all.names())
	assert.True(t, all.database(t).has("Cluster", "shop-myticket-db"))
	assert.True(t, render(t, "fullnameOverride=tills").has("StatefulSet", "tills"))
}

// Postgres' parameters are texts, and so are variables; YAML makes numbers and booleans of them.
func TestTexts_AreTextsWhateverYAMLMakesOfThem(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "values.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`
settings: {MYTICKET_WAITING_TICKETS: 1500000, MYTICKET_BATCH_TICKETS: 512}
database: {cluster: {parameters: {max_connections: 1200000, checkpoint_completion_target: 0.9, jit: off, work_mem: 8MB, geqo: null}}}
`), 0o600))
	for _, helm := range helms {
		all := renderWith(t, helm, "--values", file, "--set", "database.cluster.parameters.random_page_cost=2")
		parameters := at(all.cluster(t), "spec.postgresql.parameters")
		for name, want := range map[string]string{
			"max_connections": "1200000", "checkpoint_completion_target": "0.9", "jit": "false", "work_mem": "8MB", "random_page_cost": "2",
			"checkpoint_timeout": "15min",
		} {
			assert.Equal(t, want, at(parameters, name), "%s: %s", helm, name)
		}
		assert.NotContains(t, parameters, "geqo")
		assert.Equal(t, "1500000", env(all.server(t))["MYTICKET_WAITING_TICKETS"])
	}
}

func TestJobs_TakeLabelsAndAnnotations(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		all := render(t, append(set, "retention.enabled=true", "spool.drain={a}", "jobs.podLabels.cost=tills", "jobs.podAnnotations.mesh=off",
			"podLabels.pod=p", "podAnnotations.note=n")...)
		for name, pod := range all.pods() {
			labels, job := at(pod, "metadata.labels").(object), !strings.HasPrefix(name, "StatefulSet/")
			assert.Equal(t, job, labels["cost"] == "tills", "%s: %s", mode, name)
			assert.Equal(t, job, annotation(pod, "mesh") == "off", "%s: %s", mode, name)
			assert.Equal(t, !job, labels["pod"] == "p", "%s: %s", mode, name)
		}
	}
}

func TestHelmTest_HasCredentials(t *testing.T) {
	t.Parallel()
	pod := render(t).find(t, "Pod", "myticket-test")
	assert.Contains(t, at(pod, "spec.containers.0.args"), "--url=http://myticket:80/ticket/helm-test")
	assert.Nil(t, at(pod, "spec.volumes"))
	pod = render(t, "test.source=shop-1", "test.bearerSecretName=y", "test.bearerSecretKey=n").find(t, "Pod", "myticket-test")
	assert.Contains(t, at(pod, "spec.containers.0.args"), "--url=http://myticket:80/ticket/shop-1")
	assert.Contains(t, at(pod, "spec.containers.0.args"), "--bearer-file="+at(pod, "spec.containers.0.volumeMounts.0.mountPath").(string)+"/token")
	assert.Equal(t, "y", at(pod, "spec.volumes.0.secret.secretName"))
	assert.Equal(t, []any{object{"key": "n", "path": "token"}}, at(pod, "spec.volumes.0.secret.items"))
}

// What helm test says about the settings is true only if they are those of the servers.
func TestHelmTest_ExaminesTheSettingsOfAServer(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		all := render(t, append(set, "sources.secretName=sources", "tracing.endpoint=http://collector:4318", "settings.MYTICKET_MAX_BODY=2MiB",
			"extraEnv[0].name=A,extraEnv[0].value=b", "extraEnvFrom[0].configMapRef.name=more", "autoscaling.maxReplicas=5")...)
		pod := all.find(t, "Pod", "myticket-doctor")
		doctor := containers(pod)[0]
		assert.Equal(t, []any{"doctor", "--fail-on=problem", "--skip=spool,server", "--servers=5"}, at(doctor, "args"), mode)
		assert.Equal(t, at(all.server(t), "env"), at(doctor, "env"), mode)
		assert.Equal(t, at(all.server(t), "envFrom"), at(doctor, "envFrom"), mode)
		var mounts []any
		for _, mount := range at(doctor, "volumeMounts").([]any) {
			mounts = append(mounts, at(mount, "name"))
		}
		assert.Equal(t, []any{"database", "sources"}, mounts, "%s: the volume of a spool belongs to its server", mode)
		assert.Equal(t, "test", annotation(pod, "helm.sh/hook"))
		assert.Equal(t, "-1", annotation(pod, "helm.sh/hook-weight"), "before the ticket is posted")
		assert.True(t, selects(at(all.find(t, "NetworkPolicy", "myticket-chores"), "spec.podSelector"), at(pod, "metadata.labels").(object)))
	}
	assert.NotContains(t, fmt.Sprint(render(t).find(t, "Pod", "myticket-doctor")), "sources.json")
}

// With null an operator takes a value of an earlier upgrade back. Of values that --reuse-values takes from an older chart, new
// ones are missing in the same way.
func TestChart_ValuesThatAreNull_AreEmpty(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		for _, value := range []string{
			"ingress.sources", "httpRoute.sources", "test.otherSources", "affinity", "affinity.podAntiAffinity", "events.affinity", "events.settings",
			"events.podLabels", "networkPolicy.eventsPorts", "networkPolicy.eventsTo", "archive.podLabels", "archive.env",
		} {
			set := slices.Concat([]string{"httpRoute.enabled=true", "httpRoute.parentRefs[0].name=web"}, sending(), archiving())
			assert.Equal(t, renderWith(t, helm, values(set...)...), renderWith(t, helm, values(append(set, value+"=null")...)...), value)
		}
	}
}

// Everything that learns products from tickets must know the sources that teach none.
func TestTestSources_AreKnownToServersAndDrains(t *testing.T) {
	t.Parallel()
	for want, set := range map[string][]string{
		"helm-test":        nil,
		"probe":            {"test.source=probe"},
		"helm-test,t-1,t2": {"test.otherSources={t-1,t2}"},
	} {
		all := render(t, append(set, "spool.drain={a}")...)
		assert.Equal(t, want, env(all.server(t))["MYTICKET_TEST_SOURCES"])
		drains := 0
		for name, pod := range all.pods() {
			if strings.Contains(name, "-drain-") {
				drains++
				assert.Equal(t, want, env(containers(pod)[0])["MYTICKET_TEST_SOURCES"], name)
			}
		}
		assert.Equal(t, 1, drains)
	}
}

func TestServiceAccount_MayBeOneThatExists(t *testing.T) {
	t.Parallel()
	for mode, set := range modes() {
		all := render(t, slices.Concat(set, sending(), archiving(), []string{"retention.enabled=true", "spool.drain={a}", "serviceAccountName=tills"})...)
		for _, account := range all.all("ServiceAccount") {
			assert.Equal(t, "myticket-provision", at(account, "metadata.name"), "%s: only that one gets a token", mode)
		}
		for name, pod := range all.pods() {
			if !strings.Contains(name, "provision") {
				assert.Equal(t, "tills", at(pod, "spec.serviceAccountName"), "%s: %s", mode, name)
			}
		}
	}
}

// OpenShift gives each namespace users of its own, and refuses pods that name others.
func TestPods_LeaveTheirUsersToOpenShift(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		all := renderWith(t, helm, values(slices.Concat(sending(), archiving(), []string{"podSecurityContext.runAsUser=null", "podSecurityContext.runAsGroup=null",
			"podSecurityContext.fsGroup=null", "retention.enabled=true", "spool.drain={a}"})...)...)
		for name, pod := range all.pods() {
			security := at(pod, "spec.securityContext").(object)
			for _, user := range []string{"runAsUser", "runAsGroup", "fsGroup"} {
				assert.NotContains(t, security, user, "%s: %s", helm, name)
			}
			assert.Equal(t, true, security["runAsNonRoot"])
		}
	}
}

func TestChart_RefusesContradictions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set  []string
		says string
	}{
		"an image of no registry":          {[]string{"image.repository="}, "No public registry has the image of MyTicket: push it"},
		"a name that Kubernetes refuses":   {[]string{"fullnameOverride=My_Ticket"}, "fullnameOverride"},
		"a name that begins with a digit":  {[]string{"fullnameOverride=7tickets"}, "fullnameOverride"},
		"a Cluster's name":                 {[]string{"database.cluster.name=My_DB"}, "name"},
		"a label that selects pods":        {[]string{`commonLabels.app\.kubernetes\.io/name=tills`}, "commonLabels has app.kubernetes.io/name, which the chart itself sets"},
		"a label of the database":          {[]string{`podLabels.cnpg\.io/cluster=x`}, "podLabels has cnpg.io/cluster"},
		"a label of a Job that selects":    {[]string{`jobs.podLabels.app\.kubernetes\.io/component=server`}, "jobs.podLabels has app.kubernetes.io/component"},
		"a login without its password":     {append(modes()["external"], "database.external.secretKeys.host=h", "database.external.secretKeys.dbname=d", "database.external.secretKeys.username=u"), "secretKeys has no password"},
		"a part of a login that is none":   {append(modes()["external"], "database.external.secretKeys.pass=h"), "pass"},
		"external without a Secret":        {[]string{"database.mode=external"}, "make a Secret with the connection URI"},
		"a Secret without external":        {[]string{"database.external.secretName=x"}, "set database.mode=external, or leave the name out"},
		"too many connections":             {[]string{"autoscaling.maxReplicas=24"}, "are more than the 200 that the database allows"},
		"too many, of a fixed number":      {[]string{"autoscaling.enabled=false", "replicas=24"}, "lower autoscaling.maxReplicas (or replicas)"},
		"too many for an external one":     {append(modes()["external"], "autoscaling.maxReplicas=11"), "are more than the 100"},
		"more batches than connections":    {[]string{"settings.MYTICKET_BATCHES_IN_FLIGHT=4"}, "must be at least 9"},
		"minimum over maximum":             {[]string{"autoscaling.minReplicas=11"}, "is more than autoscaling.maxReplicas: lower the minimum, or raise the maximum"},
		"nothing to scale by":              {[]string{"autoscaling.targetCPUUtilizationPercentage=0"}, "nothing to scale by"},
		"scaling without a request":        {[]string{"resources.requests=null"}, "needs resources.requests.cpu"},
		"both bounds of disruption":        {[]string{"podDisruptionBudget.minAvailable=1"}, "set the other to null"},
		"no bound of disruption":           {[]string{"podDisruptionBudget.maxUnavailable=null"}, "needs exactly one of maxUnavailable and minAvailable"},
		"a route without a Gateway":        {[]string{"httpRoute.enabled=true"}, "name the Gateway"},
		"as many standbys as instances":    {[]string{"database.cluster.instances=1"}, "cannot wait for 1 standbys of 1 instances"},
		"a quorum of two":                  {[]string{"database.cluster.instances=2"}, "needs at least 3 instances"},
		"a backup to nowhere":              {[]string{"database.cluster.backup.enabled=true"}, "Set database.cluster.backup.destinationPath"},
		"recovery from nowhere":            {[]string{"database.cluster.recovery.from=x"}, "Set database.cluster.backup.destinationPath"},
		"recovery of itself":               {[]string{"database.cluster.backup.enabled=true", "database.cluster.backup.destinationPath=s3://b", "database.cluster.recovery.from=myticket-db"}, "give the recovered Cluster another name"},
		"a time without an origin":         {[]string{"database.cluster.recovery.targetTime=now"}, "set database.cluster.recovery.from"},
		"a setting of the chart's":         {[]string{"settings.MYTICKET_SPOOL_DIR=/tmp"}, "is set by the chart itself: use spool"},
		"test sources as a setting":        {[]string{"settings.MYTICKET_TEST_SOURCES=a"}, "use test.source and test.otherSources"},
		"a test source that is everyone's": {[]string{"test.source=default"}, "must not name the source default"},
		"another one":                      {[]string{"test.otherSources={a,default}"}, "must not name the source default"},
		"a test source that is none":       {[]string{"test.otherSources={Till 1}"}, `"Till 1" cannot be a source`},
		"a setting that is none":           {[]string{"settings.MYTICKET_BATCH_TICKET=5"}, "is not a setting of the server"},
		"a variable that is no setting":    {[]string{"settings.PATH=5"}, "PATH"},
		"an unknown key":                   {[]string{"replica=3"}, "replica"},
		"an unknown key, deep":             {[]string{"database.cluster.synchronous.durability=required"}, "durability"},
		"an unknown mode":                  {[]string{"database.mode=auto"}, "database"},
		"a number that is a text":          {[]string{"replicas=many"}, "replicas"},
		"a digest that is none":            {[]string{"image.digest=sha256:12"}, "digest"},
		"a size that is none":              {[]string{"spool.size=big"}, "spool"},
		"more keys than its memory holds":  {[]string{"spool.maxTickets=2000000"}, "raise the memory, or lower spool.maxTickets"},
		"less memory than a server needs":  {[]string{"resources.limits.memory=255Mi"}, "a server with less than 256Mi may be killed by a burst"},
		"a digest without an image":        {[]string{"database.cluster.image=", "database.cluster.imageDigest=sha256:" + strings.Repeat("0a", 32)}, "name the image there"},
		"two digests":                      {[]string{"database.cluster.kubectlImage=a@sha256:1", "database.cluster.kubectlImageDigest=sha256:" + strings.Repeat("0a", 32)}, "without a digest of its own"},
		"a limit that cannot be read":      {[]string{"resources.limits.memory=1.5Gi"}, "write it as a whole number"},
		"too few connections for a server": {[]string{"database.connectionsPerServer=6"}, "connectionsPerServer"},
		"a source that cannot be":          {[]string{"ingress.sources={Shop_1}"}, "sources"},
		"a route of no source":             {[]string{"httpRoute.sources={shop/1}"}, "sources"},
		"a source twice":                   {[]string{"ingress.sources={shop-1,shop-1}"}, "sources"},
		"the source of /ticket":            {[]string{"ingress.sources={default}"}, "ingress.sources names default. A ticket that is posted to /ticket is of this source too"},
		"a subscription twice": {
			append(sending(), "events.subscriptions[1].name=loyalty", "events.subscriptions[1].target=https://b.example.com"),
			"events.subscriptions names loyalty twice",
		},
		"a subscription that cannot be":    {[]string{"events.enabled=true", "events.subscriptions[0].name=Loyalty", "events.subscriptions[0].target=https://b"}, "subscriptions"},
		"a target that cannot be":          {[]string{"events.enabled=true", "events.subscriptions[0].name=a", "events.subscriptions[0].target=ftp://b"}, "target"},
		"a subscription's unknown key":     {append(sending(), "events.subscriptions[0].status=ERROR"), "status"},
		"a secret in the values":           {append(sending(), "events.subscriptions[0].secret=hunter2"), "secret"},
		"a subscription without a target":  {[]string{"events.enabled=true", "events.subscriptions[0].name=loyalty"}, "target"},
		"a password for everyone to read":  {[]string{"events.enabled=true", "events.subscriptions[0].name=a", "events.subscriptions[0].target=amqps://u:p@b.example.com"}, "put it into a Secret that events.secrets names"},
		"a secret that is not mounted":     {append(sending(), "events.secrets={other}"), "is read from the Secret nats, which is not mounted: add it to events.secrets"},
		"events in too little memory":      {append(sending(), "events.resources.limits.memory=64Mi"), "needs 128Mi"},
		"too many with those of events":    {append(sending(), "autoscaling.maxReplicas=23"), "12 connections of the processes that send events"},
		"a setting of events that is none": {append(sending(), "events.settings.MYTICKET_BATCH_TICKETS=5"), `is not a setting of "myticket events"`},
		"a setting of events of the chart": {append(sending(), "events.settings.MYTICKET_SUBSCRIPTIONS_FILE=a"), "use events.subscriptions"},
		"a label of events that selects":   {append(sending(), `events.podLabels.app\.kubernetes\.io/component=server`), "events.podLabels has"},
		"an archive nowhere":               {[]string{"archive.enabled=true", "archive.keep=30d"}, "set archive.url"},
		"an archive of nothing old":        {[]string{"archive.enabled=true", "archive.url=s3://b"}, "set archive.keep"},
		"an archive's password":            {append(archiving(), "archive.url=s3://key:word@b/f"), "put the credentials into a Secret, and name it in archive.envFrom"},
		"retention before the archive":     {append(archiving(), "archive.keep=5w", "retention.enabled=true", "retention.keep=30d"), "archive.keep (5w) is longer than retention.keep (30d)"},
		"annotations of no account":        {append(archiving(), "archive.serviceAccountName=mine", "archive.serviceAccountAnnotations.role=r"), "uses the ServiceAccount mine, which the chart does not make"},
		"an archive in a folder that goes": {append(archiving(), "archive.url=file:///archive"), "has no volume that outlives it"},
		"an archive in too little memory":  {append(archiving(), "archive.resources.limits.memory=128Mi"), "writing Parquet needs 256Mi"},
		"an archive kept forever":          {append(archiving(), "archive.keep=forever"), "keep"},
		"a schedule of five fields":        {[]string{"database.cluster.backup.schedule=0 2 * * *"}, "schedule"},
	} {
		for _, helm := range helms {
			t.Run(helm+" "+name, func(t *testing.T) {
				t.Parallel()
				_, err := tryTemplate(t, helm, values(c.set...)...)
				require.ErrorContains(t, err, c.says)
			})
		}
	}
}

func TestChart_RefusesAClusterThatLacksWhatItNeeds(t *testing.T) {
	t.Parallel()
	for says, set := range map[string][]string{
		"Install the operator first":   nil,
		"has no Gateway API":           append(modes()["external"], "httpRoute.enabled=true", "httpRoute.parentRefs[0].name=web"),
		"has no Prometheus operator":   append(modes()["external"], "monitoring.podMonitor.enabled=true"),
		"Prometheus the rules by hand": append(modes()["external"], "monitoring.prometheusRule.enabled=true"),
	} {
		_, err := run(t, ".", helm4, append([]string{"template", "myticket", "myticket", "--set", "image.repository=myticket"}, values(set...)...)...)
		require.ErrorContains(t, err, says)
	}
	_, err := run(t, ".", helm4, append([]string{"template", "myticket", "myticket", "--set", "image.repository=myticket", "--api-versions", "postgresql.cnpg.io/v1"},
		values("database.cluster.backup.enabled=true", "database.cluster.backup.destinationPath=s3://b")...)...)
	require.ErrorContains(t, err, "need CloudNativePG's barman-cloud plugin")
}

func TestConnections_UpToTheBoundAreFine(t *testing.T) {
	t.Parallel()
	render(t, "autoscaling.maxReplicas=23") // 23 × 8 + 15 ≤ 200
	render(t, append(modes()["external"], "autoscaling.maxReplicas=10", "database.reservedConnections=20")...)
	render(t, "autoscaling.maxReplicas=48", "database.cluster.parameters.max_connections=400")
}

func TestNotes_WarnOfWhatMayLoseTickets(t *testing.T) {
	t.Parallel()
	notes := func(args ...string) string {
		text, err := run(t, ".", helm4, append([]string{"install", "myticket", "myticket", "--dry-run=client", "--set", "image.repository=myticket"}, args...)...)
		require.NoError(t, err)
		_, text, found := strings.Cut(text, "NOTES:")
		require.True(t, found)
		return text
	}
	external := modes()["external"]
	good := notes(values(append(external, "sources.secretName=sources", "ingress.tls[0].secretName=tls", "ingress.hosts={tickets.example.com}",
		"networkPolicy.ingressNamespace=web")...)...)
	assert.NotContains(t, good, "WARNING")
	assert.Contains(t, good, "tickets   from the namespace web, and helm test\n")
	assert.Contains(t, good, "servers   to Postgres on port 5432\n")
	assert.Contains(t, good, "https://tickets.example.com/ticket/SOURCE")
	assert.Contains(t, good, "helm test myticket")
	bad := notes(values(append(external, "spool.type=emptyDir", "autoscaling.enabled=false", "replicas=1")...)...)
	for _, warning := range []string{"spool.type is emptyDir", "there is only one server", "anyone who can reach", "has no TLS", "networkPolicy.ingressNamespace is not set"} {
		assert.Contains(t, bad, "WARNING: ")
		assert.Contains(t, bad, warning)
	}
	assert.Contains(t, bad, "ingress.hosts is empty, so the Ingress takes /ticket of every host name")
	assert.NotContains(t, bad, "From outside only")
	assert.Contains(t, notes(values(append(external, "ingress.sources={shop-1,shop-2}")...)...), "takes the paths of ingress.sources of every host name")
	cell := notes(values(append(external, "ingress.hosts={tickets.example.com}", "ingress.sources={shop-1,shop-2}")...)...)
	assert.Contains(t, cell, "From outside only the sources of ingress.sources come here: shop-1, shop-2.\n")
	assert.NotContains(t, cell, "ingress.hosts is empty", "another release may have the same host, and other paths")
	assert.Contains(t, notes(values(append(external, "service.type=LoadBalancer")...)...), "publishes the whole port of the webhook, with /metrics")
	assert.Contains(t, notes(values(append(external, "networkPolicy.enabled=false")...)...), "WARNING: networkPolicy.enabled is false")
}

// Helm prints notes only for a cluster that it knows, which here has no CloudNativePG and no Prometheus operator.
func TestNotes_SayWhatIsOff(t *testing.T) {
	t.Parallel()
	notes := func(set ...string) string {
		text, err := run(t, ".", helm4, append([]string{"install", "myticket", "myticket", "--dry-run=client", "--set", "image.repository=myticket"},
			values(append(modes()["external"], set...)...)...)...)
		require.NoError(t, err)
		_, text, found := strings.Cut(text, "NOTES:")
		require.True(t, found)
		return text
	}
	all := notes()
	for _, setting := range []string{"retention.enabled ", "monitoring.podMonitor.enabled ", "monitoring.prometheusRule.enabled "} {
		assert.Contains(t, all, "\n  "+setting)
	}
	assert.NotContains(t, all, "database.cluster.backup", "the backups of a Postgres of your own are yours")
	some := notes("retention.enabled=true")
	assert.NotContains(t, some, "retention.enabled")
	assert.Contains(t, some, "monitoring.prometheusRule.enabled ")
}

func TestGenerated_FilesAreNotBehind(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "myticket")
	require.NoError(t, os.CopyFS(dir, os.DirFS("myticket")))
	_, err := run(t, dir, "helm-values-schema-json", "-input", "values.yaml", "-draft", "7", "-indent", "2", "-noAdditionalProperties=true")
	require.NoError(t, err)
	_, err = run(t, dir, "helm-docs", "--chart-search-root", dir, "--sort-values-order", "file", "--log-level", "warning")
	require.NoError(t, err)
	for _, name := range []string{"values.schema.json", "README.md"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		have, err := os.ReadFile(filepath.Join("myticket", name))
		require.NoError(t, err)
		require.Equal(t, string(want), string(have), "%s lags behind values.yaml: run make chart", name)
	}
	readme, err := os.ReadFile(filepath.Join("myticket", "README.md"))
	require.NoError(t, err)
	for line := range strings.Lines(string(readme)) {
		require.NotRegexp(t, `\|  \|$`, strings.TrimSpace(line), "every value has a description in values.yaml")
	}
}

func TestChart_HasItsIcon(t *testing.T) {
	t.Parallel()
	icon, err := os.ReadFile("../docs/icon.svg")
	require.NoError(t, err)
	chart, err := os.ReadFile("myticket/Chart.yaml")
	require.NoError(t, err)
	require.Contains(t, string(chart), "\nicon: data:image/svg+xml;base64,"+base64.StdEncoding.EncodeToString(icon)+"\n",
		"docs/icon.svg has changed: write what `base64 -w0 docs/icon.svg` prints into Chart.yaml")
}

func TestChart_LintsAndPackages(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		for mode, set := range modes() {
			printed, err := run(t, ".", helm, append([]string{"lint", "myticket", "--strict", "--kube-version", "1.34.0", "--set", "image.repository=myticket"}, values(set...)...)...)
			require.NoError(t, err, "%s: %s", mode, printed)
			require.NotContains(t, printed, "[INFO]", "there is nothing to recommend")
		}
		_, err := run(t, ".", helm, "package", "myticket", "--destination", t.TempDir())
		require.NoError(t, err)
	}
}
