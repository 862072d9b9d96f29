//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// The images of the servers that events and archives are sent to.
const (
	imageNATS = "myticket-e2e-nats:v2"
	imageS3   = "myticket-e2e-s3:v1"
)

const (
	tellsStream = "tells-stream" // the subscription
	s3Key       = "e2e"
	s3Secret    = "e2e-secret-key"
)

// Tickets are sent while the primary's pod is lost, and then the pod that sends events. What was acknowledged is in the stream in the end.
// Then an old partition is archived, and its tickets are found there.
func TestEventsAndArchive_ThroughAFailover(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "events", 15*time.Minute)
	r.serverImage(imageNATS, "nats-server")
	r.serverImage(imageS3, "versitygw")
	r.apply(brokerAndStore)
	r.kubectl("wait", "--for=condition=Ready", "pod/nats", "pod/s3", "--timeout=120s")
	r.kubectl("exec", "s3", "--", "/versitygw", "admin", "--access", s3Key, "--secret", s3Secret, "--endpoint-url", "http://127.0.0.1:7070",
		"create-bucket", "--bucket", "tickets", "--owner", s3Key)
	stream := r.stream()
	r.upgrade(helm4, imageOne, "database.cluster.instances=3", "database.cluster.synchronous.enabled=true",
		"events.enabled=true", "events.subscriptions[0].name="+tellsStream, "events.subscriptions[0].target=nats://nats:4222/tickets",
		"events.resources.requests.cpu=20m", "events.resources.requests.memory=64Mi",
		"archive.enabled=true", "archive.url=s3://tickets?endpoint=http://s3:7070&region=us-east-1&use_path_style=true", "archive.keep=30d",
		"archive.schedule=0 0 1 1 *", "archive.envFrom[0].secretRef.name=s3", "archive.resources.requests.cpu=20m")

	r.until("the subscription is there, which gets what is stored from then on", func() (bool, string) {
		n := r.sql("SELECT count(*) FROM subscriptions")
		return strings.TrimSpace(n) == "1", n
	})
	began := time.Now()
	l := r.startLoad()
	r.until("events are in the stream", func() (bool, string) {
		have := len(r.inStream(stream))
		return have > 50, fmt.Sprint(have, " tickets")
	})
	old := r.primary()
	r.kubectl("delete", "pod", old, "--wait=false", "--grace-period=0", "--force")
	r.until("there is another primary", func() (bool, string) { now := r.primary(); return now != old, now })
	l.await(100)
	leader := r.sendingPod()
	killed := time.Now()
	r.kubectl("delete", "pod", leader, "--wait=false", "--grace-period=0", "--force")
	before := len(r.inStream(stream))
	r.until("another process sends", func() (bool, string) {
		have := len(r.inStream(stream))
		return have > before+tills, fmt.Sprintf("%d tickets, %d before", have, before)
	})
	t.Logf("MEASURED events: another process sent %s after the one that sent was deleted", time.Since(killed).Round(100*time.Millisecond))
	l.await(100)
	deliveries := l.stop()
	r.kubectl("wait", "--for=condition=Ready", "clusters.postgresql.cnpg.io/myticket-db", "--timeout=180s")
	r.nothingLost(deliveries)
	r.allInStream(stream)
	t.Logf("MEASURED events: %d tickets in %s through a failover, all in the stream", len(deliveries), time.Since(began).Round(time.Second))

	t.Run("a paused subscription gets nothing, and all of it when it is resumed", func(*testing.T) { r.pauseAndResume(stream) })
	t.Run("an old partition is archived", func(*testing.T) { r.archiveOnce() })
}

// serverImage makes an image of a program in bin/e2e, and loads it on the nodes: none can be pulled everywhere.
func (r *release) serverImage(image, program string) {
	r.t.Helper()
	dockerfile := "FROM scratch\nCOPY " + program + " /" + program + "\nUSER 65532:65532\nENTRYPOINT [\"/" + program + "\"]\n"
	_, err := output(r.ctx, root(), dockerfile, "docker", "build", "--quiet", "--tag", image, "--file", "-", filepath.Join("bin", "e2e"))
	require.NoError(r.t, err)
	_, err = output(r.ctx, root(), "", "go", "tool", "kind", "load", "docker-image", "--name", strings.TrimPrefix(kubeContext, "kind-"), image)
	require.NoError(r.t, err)
}

// brokerAndStore are a NATS with JetStream and an S3 server, with the names nats and s3.
const brokerAndStore = `
apiVersion: v1
kind: Secret
metadata: {name: s3}
stringData: {AWS_ACCESS_KEY_ID: ` + s3Key + `, AWS_SECRET_ACCESS_KEY: ` + s3Secret + `}
---
apiVersion: v1
kind: Service
metadata: {name: nats}
spec:
  selector: {app: nats}
  ports: [{port: 4222}]
---
apiVersion: v1
kind: Service
metadata: {name: s3}
spec:
  selector: {app: s3}
  ports: [{port: 7070}]
---
apiVersion: v1
kind: Pod
metadata: {name: nats, labels: {app: nats}}
spec:
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: nats
      image: ` + imageNATS + `
      imagePullPolicy: Never
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      args: [--jetstream, --store_dir, /data, --port, "4222", --http_port, "8222"]
      readinessProbe: {httpGet: {path: /healthz, port: 8222}, periodSeconds: 1}
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: s3, labels: {app: s3}}
spec:
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: s3
      image: ` + imageS3 + `
      imagePullPolicy: Never
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      env: [{name: ROOT_ACCESS_KEY, value: ` + s3Key + `}, {name: ROOT_SECRET_KEY, value: ` + s3Secret + `}]
      args: [--port, ":7070", posix, --sidecar, /meta, /data]
      readinessProbe: {tcpSocket: {port: 7070}, periodSeconds: 1}
      volumeMounts: [{name: data, mountPath: /data}, {name: meta, mountPath: /meta}, {name: tmp, mountPath: /tmp}]
  volumes: [{name: data, emptyDir: {}}, {name: meta, emptyDir: {}}, {name: tmp, emptyDir: {}}]
`

// stream makes a stream for all events, and returns it. It is reached through kubectl port-forward, until the test ends.
func (r *release) stream() jetstream.Stream {
	r.t.Helper()
	forward := exec.CommandContext(r.ctx, "kubectl", "--context", kubeContext, "--namespace", r.namespace, "port-forward", "pod/nats", ":4222")
	said, err := forward.StdoutPipe()
	require.NoError(r.t, err)
	require.NoError(r.t, forward.Start())
	r.t.Cleanup(func() {
		_ = forward.Process.Kill()
		_ = forward.Wait()
	})
	line, err := bufio.NewReader(said).ReadString('\n')
	require.NoError(r.t, err, line)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	require.NotEmpty(r.t, address, line)
	connection, err := nats.Connect("nats://"+address, nats.MaxReconnects(-1))
	require.NoError(r.t, err)
	r.t.Cleanup(connection.Close)
	js, err := jetstream.New(connection)
	require.NoError(r.t, err)
	stream, err := js.CreateStream(r.ctx, jetstream.StreamConfig{
		Name: "TICKETS", Subjects: []string{"tickets.>"}, Storage: jetstream.FileStorage, Duplicates: time.Second, // so that repeats are seen
	})
	require.NoError(r.t, err)
	return stream
}

// inStream returns the tickets whose events are in the stream, each with the number of its events, by id.
func (r *release) inStream(stream jetstream.Stream) map[string]int {
	r.t.Helper()
	found := map[string]int{}
	info, err := stream.Info(r.ctx)
	require.NoError(r.t, err)
	if info.State.Msgs == 0 {
		return found
	}
	consumer, err := stream.OrderedConsumer(r.ctx, jetstream.OrderedConsumerConfig{})
	require.NoError(r.t, err)
	for seen := uint64(0); seen < info.State.Msgs; {
		require.NoError(r.t, r.ctx.Err(), "the stream has %d messages, and gives %d", info.State.Msgs, seen)
		batch, err := consumer.Fetch(1000, jetstream.FetchMaxWait(5*time.Second))
		require.NoError(r.t, err)
		for message := range batch.Messages() {
			seen++
			var event struct {
				ID   string `json:"id"`
				Type string `json:"type"`
			}
			require.NoError(r.t, json.Unmarshal(message.Data(), &event), "%s", message.Data())
			if id, _, ok := strings.Cut(event.ID, "."); ok && strings.HasPrefix(event.Type, "ticket.") {
				found[id]++
			}
		}
		require.NoError(r.t, batch.Error())
	}
	return found
}

// allInStream waits until every ticket that is stored is in the stream.
func (r *release) allInStream(stream jetstream.Stream) {
	r.t.Helper()
	ids, _ := r.stored()
	r.until("every stored ticket is in the stream", func() (bool, string) {
		have, missing := r.inStream(stream), 0
		for id := range ids {
			if have[id] == 0 {
				missing++
			}
		}
		return missing == 0, fmt.Sprintf("%d of %d are missing", missing, len(ids))
	})
	have, repeats := r.inStream(stream), 0
	for id, times := range have {
		require.Contains(r.t, ids, id, "the stream has a ticket that is not stored")
		repeats += times - 1
	}
	r.t.Logf("%d tickets in the stream, %d events more", len(have), repeats)
}

// eventsPods are the pods that send events.
func (r *release) eventsPods() []string {
	r.t.Helper()
	return strings.Fields(r.kubectl("get", "pods", "-l", "app.kubernetes.io/component=events", "--field-selector=status.phase=Running",
		"-o", "jsonpath={.items[*].metadata.name}"))
}

// sendingPod returns the pod that sends the events of the subscription: the one whose count grows.
func (r *release) sendingPod() (pod string) {
	r.t.Helper()
	before := map[string]float64{}
	r.until("a pod sends events", func() (bool, string) {
		for _, name := range r.eventsPods() {
			now, err := r.metric(name, "9099", "myticket_events_sent_total/"+tellsStream)
			if last, known := before[name]; err == nil && known && now > last {
				pod = name
				return true, ""
			}
			before[name] = now
		}
		return false, fmt.Sprint(before)
	})
	return pod
}

// subscriptions runs a command for the subscription in one of the pods.
func (r *release) subscriptions(command string) {
	r.t.Helper()
	r.until("subscriptions "+command+" works", func() (bool, string) {
		printed, err := r.try("exec", "deploy/myticket-events", "--", "/myticket", "subscriptions", command, tellsStream, "--by", "e2e")
		return err == nil, fmt.Sprint(printed, err)
	})
}

func (r *release) pauseAndResume(stream jetstream.Stream) {
	r.t.Helper()
	r.subscriptions("pause")
	shown := func(metric string, least float64) func() (bool, string) {
		return func() (bool, string) {
			for _, pod := range r.eventsPods() {
				if have, err := r.metric(pod, "9099", metric+"/"+tellsStream); err != nil || have < least {
					return false, fmt.Sprint(pod, ": ", have, " ", err)
				}
			}
			return true, ""
		}
	}
	r.until("every pod knows of the pause", shown("myticket_events_paused", 1))
	sent := map[string]bool{}
	for i := range 20 {
		id, status, err := post(r.ctx, newClient(), r.host, "/ticket/e2e", fmt.Appendf(nil, "unreadable, while it is paused: %d", i), uuid.NewString())
		require.NoError(r.t, err)
		require.Equal(r.t, http.StatusOK, status)
		sent[id] = true
	}
	r.until("they wait", shown("myticket_events_waiting_tickets", float64(len(sent))))
	for id := range r.inStream(stream) {
		require.NotContains(r.t, sent, id, "it was sent, although the subscription is paused")
	}
	require.Contains(r.t, r.kubectl("exec", "deploy/myticket-events", "--", "/myticket", "subscriptions", "list"), tellsStream)
	r.subscriptions("resume")
	r.allInStream(stream)
}

// archiveOnce archives tickets of long ago. They are in a partition of their own, as if this installation were that old.
func (r *release) archiveOnce() {
	r.t.Helper()
	day := time.Now().UTC().AddDate(0, 0, -60).Truncate(24 * time.Hour)
	owner := r.sql("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'tickets'::regclass")
	var statement strings.Builder
	fmt.Fprintf(&statement, `SET ROLE %q; CREATE TABLE tickets_e2e PARTITION OF tickets FOR VALUES FROM ('%s') TO ('%s');`,
		owner, day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339))
	ids := map[string]bool{}
	var one string
	for i := range 100 {
		at := day.Add(time.Duration(i) * time.Minute)
		one = idAt(at).String()
		ids[one] = true
		fmt.Fprintf(&statement, ` INSERT INTO tickets (id, received_at, source, body, status, problems) VALUES ('%s', '%s', 'long-ago', 'of long ago %d', 'DISMISSED', '[]');`,
			one, at.Format(time.RFC3339Nano), i)
	}
	r.sql(statement.String())

	r.runAsArchive("archive-run", nil)
	require.Equal(r.t, "0", r.sql("SELECT count(*) FROM tickets WHERE source = 'long-ago'"), "what is archived is dropped")
	require.Contains(r.t, r.kubectl("exec", "myticket-0", "--", "/myticket", "archive", "list"), day.Format(time.DateOnly))
	r.t.Logf("archive verify: %s", last(r.runAsArchive("archive-verify", []string{"archive", "verify"}), 5))
	require.Contains(r.t, r.runAsArchive("archive-show", []string{"tickets", "show", one}), "of long ago 99")
	r.runAsArchive("archive-retention", []string{"retention", "--keep", "30d", "--apply", "--by", "e2e"}) // it knows of the archive, and ends well
}

// runAsArchive runs a command as the CronJob does, with its account and its credentials, as docs/archive.md says. Nil is the CronJob's own.
// It returns what the command printed.
func (r *release) runAsArchive(name string, command []string) string {
	r.t.Helper()
	job := r.kubectl("create", "job", name, "--from=cronjob/myticket-archive", "--dry-run=client", "-o", "json")
	if command != nil {
		args, err := json.Marshal(command)
		require.NoError(r.t, err)
		job, err = output(r.ctx, root(), job, "kubectl", "patch", "--local", "--filename", "-", "--type=json", "-o", "json",
			"--patch", `[{"op":"replace","path":"/spec/template/spec/containers/0/args","value":`+string(args)+`}]`)
		require.NoError(r.t, err)
	}
	r.apply(job)
	printed := func() string { text, _ := r.try("logs", "job/"+name); return text }
	r.until("the Job "+name+" is complete", func() (bool, string) {
		status := r.kubectl("get", "job", name, "-o", "jsonpath={.status.conditions[?(@.status=='True')].type}")
		require.NotContains(r.t, status, "Failed", printed())
		return strings.Contains(status, "Complete"), status
	})
	return printed()
}

// idAt returns a ticket's id with a time of its own (RFC 9562, UUIDv7).
func idAt(at time.Time) uuid.UUID {
	id := uuid.Must(uuid.NewV7())
	for i, ms := 5, at.UnixMilli(); i >= 0; i, ms = i-1, ms>>8 {
		id[i] = byte(ms)
	}
	return id
}
