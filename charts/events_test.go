package charts

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEvents_AreOffUnlessTurnedOn(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		for _, name := range renderWith(t, helm).names() {
			assert.NotContains(t, name, "events", helm)
			assert.NotContains(t, name, "archive", helm)
		}
		for mode, set := range modes() {
			names := renderWith(t, helm, values(slices.Concat(set, sending(), []string{"monitoring.podMonitor.enabled=true"})...)...).names()
			for _, want := range []string{
				"ConfigMap/myticket-events", "Deployment/myticket-events", "NetworkPolicy/myticket-events", "PodDisruptionBudget/myticket-events",
				"PodMonitor/myticket-events",
			} {
				assert.Contains(t, names, want, "%s %s", helm, mode)
			}
		}
	}
}

// sender is the container that sends events.
func sender(t *testing.T, o objects) any {
	t.Helper()
	return at(o.find(t, "Deployment", "myticket-events"), "spec.template.spec.containers.0")
}

func TestEvents_HaveTheirSubscriptionsAndSecrets(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		all := renderWith(t, helm, values(append(sending(), "events.secrets={nats,erp}")...)...)
		deployment := all.find(t, "Deployment", "myticket-events")
		assert.Equal(t, 2, at(deployment, "spec.replicas"))
		assert.Equal(t, []any{"events"}, at(sender(t, all), "args"))
		var file struct {
			Subscriptions []map[string]any `json:"subscriptions"`
		}
		text := all.find(t, "ConfigMap", "myticket-events")["data"].(object)["subscriptions.json"].(string)
		require.NoError(t, json.Unmarshal([]byte(text), &file), text)
		require.Len(t, file.Subscriptions, 1)
		assert.Equal(t, map[string]any{
			"name": "loyalty", "target": "nats://nats.nats:4223/TICKETS", "secret": "file:/etc/myticket/targets/nats/creds",
		}, file.Subscriptions[0])
		assert.Equal(t, "/etc/myticket/subscriptions/subscriptions.json", env(sender(t, all))["MYTICKET_SUBSCRIPTIONS_FILE"])

		mounts := map[any]any{}
		for _, mount := range at(sender(t, all), "volumeMounts").([]any) {
			mounts[at(mount, "mountPath")] = at(mount, "name")
			assert.Equal(t, true, at(mount, "readOnly"))
		}
		secrets := map[any]any{}
		for _, volume := range at(deployment, "spec.template.spec.volumes").([]any) {
			secrets[at(volume, "name")] = at(volume, "secret.secretName")
		}
		assert.Equal(t, "nats", secrets[mounts["/etc/myticket/targets/nats"]])
		assert.Equal(t, "erp", secrets[mounts["/etc/myticket/targets/erp"]])
		assert.NotContains(t, strings.Join(all.names(), " "), "Secret/", "the chart makes no Secret")
	}
}

// A changed file changes the pods: if it has an error, the new pod says so, and the others go on. Another value changes nothing.
func TestEvents_StartAnewWhenSubscriptionsChange(t *testing.T) {
	t.Parallel()
	pod := func(set ...string) any {
		return at(render(t, append(sending(), set...)...).find(t, "Deployment", "myticket-events"), "spec.template")
	}
	assert.Equal(t, pod(), pod("retention.enabled=true"))
	assert.NotEqual(t, at(pod(), "metadata.annotations"), at(pod("events.subscriptions[0].types={ticket.error}"), "metadata.annotations"))
}

func TestEvents_TakeWhatIsWanted(t *testing.T) {
	t.Parallel()
	all := render(t, append(sending(), "events.extraEnv[0].name=A", "events.extraEnv[0].value=b", "events.extraEnvFrom[0].secretRef.name=more",
		"events.podLabels.pod=p", "events.podAnnotations.note=n", "events.priorityClassName=low", "events.affinity.nodeAffinity.x=y",
		"events.settings.MYTICKET_LOG_LEVEL=debug", "events.shutdownSeconds=7", "events.resources.limits.memory=256Mi",
		"commonLabels.team=tills", "nodeSelector.disk=fast", "podLabels.server=s", "test.otherSources={t-1}")...)
	pod, container := at(all.find(t, "Deployment", "myticket-events"), "spec.template"), sender(t, all)
	assert.Equal(t, "b", env(container)["A"])
	assert.Equal(t, "debug", env(container)["MYTICKET_LOG_LEVEL"])
	assert.Equal(t, "7s", env(container)["MYTICKET_SHUTDOWN_TIMEOUT"])
	assert.Equal(t, "6", env(container)["MYTICKET_DATABASE_MAX_CONNS"])
	assert.Greater(t, at(pod, "spec.terminationGracePeriodSeconds"), 7)
	assert.Equal(t, "241591910", env(container)["GOMEMLIMIT"])
	assert.Equal(t, "helm-test,t-1", env(container)["MYTICKET_TEST_SOURCES"], "they get no events unless a filter names them")
	assert.Equal(t, "more", at(container, "envFrom.0.secretRef.name"))
	labels := at(pod, "metadata.labels").(object)
	assert.Equal(t, "p", labels["pod"])
	assert.Equal(t, "tills", labels["team"])
	assert.NotContains(t, labels, "server", "podLabels are those of the servers")
	assert.Equal(t, "n", annotation(pod.(object), "note"))
	assert.Equal(t, "low", at(pod, "spec.priorityClassName"))
	assert.Equal(t, "fast", at(pod, "spec.nodeSelector.disk"))
	assert.Equal(t, "y", at(pod, "spec.affinity.nodeAffinity.x"))
	assert.NotContains(t, env(sender(t, render(t, append(sending(), "events.resources.limits=null")...))), "GOMEMLIMIT")
}

func TestEvents_OutliveANode(t *testing.T) {
	t.Parallel()
	all := render(t, sending()...)
	deployment := all.find(t, "Deployment", "myticket-events")
	selector := at(deployment, "spec.selector.matchLabels")
	const other = "podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution.0.podAffinityTerm."
	affinity := at(deployment, "spec.template.spec.affinity")
	assert.Equal(t, "kubernetes.io/hostname", at(affinity, other+"topologyKey"))
	assert.Equal(t, selector, at(affinity, other+"labelSelector.matchLabels"), "not the servers")
	assert.Equal(t, selector, at(deployment, "spec.template.spec.topologySpreadConstraints.0.labelSelector.matchLabels"))
	budget := all.find(t, "PodDisruptionBudget", "myticket-events")
	assert.Equal(t, 1, at(budget, "spec.maxUnavailable"))
	assert.Equal(t, selector, at(budget, "spec.selector.matchLabels"))
	assert.NotEqual(t, selector, at(all.find(t, "PodDisruptionBudget", "myticket"), "spec.selector.matchLabels"))
	assert.False(t, render(t, append(sending(), "events.replicas=1")...).has("PodDisruptionBudget", "myticket-events"), "it would keep a node from being drained")
	for probe, path := range map[string]string{"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"} {
		assert.Equal(t, object{"path": path, "port": "internal"}, at(sender(t, all), probe+".httpGet"))
	}
}

func TestEvents_SpeakWithTheirTargetsOnly(t *testing.T) {
	t.Parallel()
	for target, want := range map[string][]int{
		"https://a.example.com/events": {443}, "http://a:8080/events?x=1:2": {8080}, "nats://nats.nats/TICKETS": {4222}, "tls://n:4443": {4443},
		`kafka://k-1:9093\,k-2\,[2001:db8::1]:9094/tickets`: {9093, 9092, 9094}, "amqps://user@rabbit/%2F": {5671}, "amqp://rabbit": {5672},
	} {
		policy := render(t, "events.enabled=true", "events.subscriptions[0].name=a", "events.subscriptions[0].target="+target).
			find(t, "NetworkPolicy", "myticket-events")
		require.Len(t, at(policy, "spec.egress"), 3, "DNS, the database, targets: %s", target)
		assert.Equal(t, want, ports(at(policy, "spec.egress.2")), target)
		assert.Nil(t, at(policy, "spec.egress.2.to"), "the addresses behind a name are not known")
	}
	policy := render(t, append(sending(), "networkPolicy.eventsPorts={4222,9092}", "networkPolicy.eventsTo[0].ipBlock.cidr=10.0.0.0/8",
		"networkPolicy.eventsEgress[0].ports[0].port=8443")...).find(t, "NetworkPolicy", "myticket-events")
	assert.Equal(t, []int{4223, 4222, 9092}, ports(at(policy, "spec.egress.2")))
	assert.Equal(t, "10.0.0.0/8", at(policy, "spec.egress.2.to.0.ipBlock.cidr"))
	assert.Equal(t, []int{8443}, ports(at(policy, "spec.egress.3")))
	require.Len(t, at(policy, "spec.ingress"), 1)
	assert.Equal(t, "internal", at(policy, "spec.ingress.0.ports.0.port"))
	assert.Equal(t, "prometheus", at(policy, "spec.ingress.0.from.0.podSelector.matchLabels").(object)["app.kubernetes.io/name"])
	none := render(t, "events.enabled=true").find(t, "NetworkPolicy", "myticket-events")
	assert.Len(t, at(none, "spec.egress"), 2, "no target is known")
}

func TestArchive_HasAnAccountAndCredentialsOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		all := renderWith(t, helm, values(append(archiving(), "archive.unfinished=archive", "archive.schedule=5 4 * * 0", "archive.deadlineSeconds=100",
			"archive.envFrom[0].secretRef.name=keys", "archive.env[0].name=AWS_REGION,archive.env[0].value=eu-1",
			"archive.serviceAccountAnnotations.role=archive", "serviceAccountAnnotations.role=servers", "serviceAccountAnnotations.note=n",
			"archive.podLabels.identity=used", "jobs.podLabels.cost=tills", "archive.resources.limits.memory=1Gi")...)...)
		spec := at(all.find(t, "CronJob", "myticket-archive"), "spec")
		assert.Equal(t, "5 4 * * 0", at(spec, "schedule"))
		assert.Equal(t, "Forbid", at(spec, "concurrencyPolicy"))
		assert.Equal(t, 100, at(spec, "jobTemplate.spec.activeDeadlineSeconds"))
		pod := at(spec, "jobTemplate.spec.template")
		container := at(pod, "spec.containers.0")
		assert.Equal(t, []any{"archive", "run", "--keep", "30d", "--unfinished", "archive", "--apply", "--by", "CronJob/myticket-archive"}, at(container, "args"))
		assert.Equal(t, "s3://tickets?region=eu-central-1", env(container)["MYTICKET_ARCHIVE"])
		assert.Equal(t, "eu-1", env(container)["AWS_REGION"])
		assert.Equal(t, "966367641", env(container)["GOMEMLIMIT"])
		assert.Equal(t, "keys", at(container, "envFrom.0.secretRef.name"))
		assert.Equal(t, "used", at(pod, "metadata.labels.identity"))
		assert.Equal(t, "tills", at(pod, "metadata.labels.cost"))
		assert.Equal(t, "myticket-archive", at(pod, "spec.serviceAccountName"))
		account := all.find(t, "ServiceAccount", "myticket-archive")
		assert.Equal(t, object{"role": "archive", "note": "n"}, annotations(account))
		assert.Equal(t, "servers", annotation(all.find(t, "ServiceAccount", "myticket"), "role"), "the servers can change no archive")
		assert.NotContains(t, env(all.server(t)), "MYTICKET_ARCHIVE")
	}
	mine := render(t, append(archiving(), "archive.serviceAccountName=mine")...)
	assert.False(t, mine.has("ServiceAccount", "myticket-archive"))
	assert.Equal(t, "mine", at(mine.pods()["CronJob/myticket-archive"], "spec.serviceAccountName"))
}

func TestArchive_HasABoundedVolumeForItsFiles(t *testing.T) {
	t.Parallel()
	volume := func(set ...string) any {
		pod := render(t, append(archiving(), set...)...).pods()["CronJob/myticket-archive"]
		assert.Equal(t, "/tmp", env(containers(pod)[0])["MYTICKET_ARCHIVE_TMP"])
		for _, volume := range at(pod, "spec.volumes").([]any) {
			if at(volume, "name") == "tmp" {
				return volume
			}
		}
		return nil
	}
	assert.Equal(t, "4Gi", at(volume(), "emptyDir.sizeLimit"))
	own := at(volume("archive.tmp.size=20Gi", "archive.tmp.storageClass=fast"), "ephemeral.volumeClaimTemplate.spec")
	assert.Equal(t, "fast", at(own, "storageClassName"))
	assert.Equal(t, "20Gi", at(own, "resources.requests.storage"))
}

// What is not archived must not be dropped by the other CronJob.
func TestRetention_KnowsTheArchive(t *testing.T) {
	t.Parallel()
	retention := func(set ...string) map[string]string {
		return env(containers(render(t, append(set, "retention.enabled=true")...).pods()["CronJob/myticket-retention"])[0])
	}
	assert.Equal(t, "s3://tickets?region=eu-central-1", retention(archiving()...)["MYTICKET_ARCHIVE"])
	assert.NotContains(t, retention(), "MYTICKET_ARCHIVE")
	render(t, append(archiving(), "archive.keep=2w", "retention.enabled=true", "retention.keep=14d")...)
}

func TestArchive_SpeaksWithTheObjectStoreOnly(t *testing.T) {
	t.Parallel()
	for url, want := range map[string][]int{
		"s3://b?prefix=shop/": {443}, "s3://b?region=r&endpoint=http://minio.minio:9000": {443, 9000},
		"s3://b?endpoint=https%3A%2F%2Fs3.example.com%3A8443&region=r": {443, 8443}, "gs://b": {443},
	} {
		policy := render(t, append(archiving(), "archive.url="+url)...).find(t, "NetworkPolicy", "myticket-archive")
		assert.Equal(t, want, ports(at(policy, "spec.egress.2")), url)
		assert.Equal(t, "169.254.0.0/16", at(policy, "spec.egress.3.to.0.ipBlock.cidr"), "the cloud's own credentials")
		assert.Nil(t, at(policy, "spec.ingress"))
	}
	policy := render(t, append(archiving(), "archive.envFrom[0].secretRef.name=keys", "networkPolicy.archivePorts={9000}",
		"networkPolicy.archiveEgress[0].ports[0].port=3128")...).find(t, "NetworkPolicy", "myticket-archive")
	assert.Equal(t, []int{9000, 443}, ports(at(policy, "spec.egress.2")))
	assert.Equal(t, []int{3128}, ports(at(policy, "spec.egress.3")))
	assert.Len(t, at(policy, "spec.egress"), 4, "credentials of its own, so none of the cloud's")
}

func TestNotes_SayHowToLookAtEventsAndArchive(t *testing.T) {
	t.Parallel()
	notes := func(set ...string) string {
		text, err := run(t, ".", helm4, append([]string{"install", "myticket", "myticket", "--dry-run=client", "--set", "image.repository=myticket"},
			values(append(modes()["external"], set...)...)...)...)
		require.NoError(t, err)
		_, text, found := strings.Cut(text, "NOTES:")
		require.True(t, found)
		return text
	}
	assert.NotContains(t, notes(), "events")
	all := notes(slices.Concat(sending(), archiving())...)
	assert.Contains(t, all, "exec deploy/myticket-events -- /myticket subscriptions list")
	assert.Contains(t, all, "events    to the ports 4223\n")
	assert.Contains(t, all, "archive   to the ports 443\n")
	assert.Contains(t, all, "Tickets that are older than 30d leave Postgres for s3://tickets.")
	assert.Contains(t, notes("events.enabled=true", "autoscaling.maxReplicas=8"), "events    to the ports of no target: set networkPolicy.eventsPorts")
	assert.Contains(t, notes(append(sending(), "events.replicas=1")...), "WARNING: only one process sends events.")
	assert.Contains(t, notes(append(sending(), "events.enabled=false")...), "WARNING: events.enabled is false, so no event is sent.")
}

// The examples in docs/operations.md are values that both Helms take.
func TestExamples_OfEventsAndArchiveRender(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	require.NoError(t, err)
	examples := regexp.MustCompile("(?ms)^```yaml\n((?:events|archive):\n.*?)^```$").FindAllStringSubmatch(string(text), -1)
	require.Len(t, examples, 5, "NATS, Kafka, a webhook, S3, MinIO")
	for i, example := range examples {
		file := filepath.Join(t.TempDir(), fmt.Sprintf("%d.yaml", i))
		require.NoError(t, os.WriteFile(file, []byte(example[1]), 0o600))
		for _, helm := range helms {
			all := renderWith(t, helm, "--values", file)
			require.True(t, all.has("Deployment", "myticket-events") || all.has("CronJob", "myticket-archive"), "%s: %s", helm, example[1])
		}
	}
}
