package kafka_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"myticket/internal/events"
	"myticket/internal/events/eventstest"
	"myticket/internal/events/kafka"
	"myticket/internal/lab"
)

// runBroker is the variable that makes a process of the tests run a broker on this port, with the data in this folder.
const runBroker = "MYTICKET_TEST_KAFKA"

type brokerConfig struct {
	Port   int
	Folder string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(runBroker); text != "" {
		var c brokerConfig
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			panic(err)
		}
		kfake.MustCluster(kfake.Ports(c.Port), kfake.SeedTopics(3, "tickets"), kfake.DataDir(c.Folder), kfake.SyncWrites())
		select {}
	}
	os.Exit(m.Run())
}

// patience bounds every wait for a condition. No condition takes nearly as long.
const patience = time.Minute

// broker is kfake in a process of its own.
type broker struct {
	t       *testing.T
	config  brokerConfig
	process *lab.Process
}

func startBroker(t *testing.T) *broker {
	t.Helper()
	port, err := lab.FreePort(t.Context())
	require.NoError(t, err)
	b := &broker{t: t, config: brokerConfig{Port: port, Folder: t.TempDir()}}
	t.Cleanup(func() { b.process.Kill() })
	b.start()
	return b
}

func (b *broker) start() {
	b.t.Helper()
	text, err := json.Marshal(b.config)
	require.NoError(b.t, err)
	command := exec.Command(os.Args[0])
	command.Env, command.Stderr = append(os.Environ(), runBroker+"="+string(text)), os.Stderr
	b.process, err = lab.Start(command, syscall.SIGKILL)
	require.NoError(b.t, err)
	require.NoError(b.t, lab.Await(b.t.Context(), patience, "the broker", func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", b.addr())
		if err == nil {
			_ = conn.Close()
		}
		return err
	}))
}

func (b *broker) addr() string { return "127.0.0.1:" + strconv.Itoa(b.config.Port) }

// cluster is kfake in this process, which can be told to fail.
func cluster(t *testing.T, options ...kfake.Opt) (c *kfake.Cluster, addr string) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(3, "tickets")}, options...)...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, c.ListenAddrs()[0]
}

func open(t *testing.T, address events.Address) events.Target {
	t.Helper()
	target, err := kafka.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(target.Close)
	return target
}

// records returns the records of a topic, those of each partition in their order, up to where n different ones are among them.
func records(t *testing.T, addr string, n int) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumeTopics("tickets"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var records []*kgo.Record
	different := make(map[string]bool)
	for len(different) < n {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err(), "%d of %d records", len(different), n)
		for _, r := range fetches.Records() {
			records = append(records, r)
			different[string(r.Value)] = true
		}
	}
	return records
}

func bodies(records []*kgo.Record) []string {
	texts := make([]string, len(records))
	for i, r := range records {
		texts[i] = string(r.Value)
	}
	return texts
}

func TestSend_StoresEventsInOrderOfEachKey(t *testing.T) {
	t.Parallel()
	_, addr := cluster(t)
	target := open(t, eventstest.Address(t, "kafka://127.0.0.1:1,"+addr+"/tickets")) // the first of the brokers is away
	batch := eventstest.Batch(5000, 700, "shop-1", "shop-2", "shop-3", "shop-4")
	for chunk := range 5 {
		eventstest.RequireAll(t, target.Send(t.Context(), batch[chunk*1000:chunk*1000+1000]))
	}
	stored := records(t, addr, len(batch))
	require.Len(t, stored, len(batch))
	eventstest.RequireOrder(t, batch, bodies(stored))
	partition := make(map[string]int32)
	for _, r := range stored {
		before, ok := partition[string(r.Key)]
		require.True(t, !ok || before == r.Partition, "the events of a source are in one partition")
		partition[string(r.Key)] = r.Partition
		require.Equal(t, []kgo.RecordHeader{{Key: "content-type", Value: []byte(events.ContentType)}}, r.Headers)
	}
	require.Len(t, partition, 4)
}

func TestSend_BrokerKilled_WhatWasAcknowledgedIsThere(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	target := open(t, eventstest.Address(t, "kafka://"+b.addr()+"/tickets?timeout=2s&window=50"))
	batch := eventstest.Batch(50_000, 700, "shop-1", "shop-2")
	eventstest.RequireAll(t, target.Send(t.Context(), batch[:500]))
	ended := make(chan []error)
	go func() { ended <- target.Send(t.Context(), batch[500:]) }()
	records(t, b.addr(), 600)
	b.process.Kill()
	outcomes := append(make([]error, 500), within(t, func() []error { return <-ended })...)
	var rest []events.Event
	for i, err := range outcomes {
		if err != nil {
			require.NotErrorIs(t, err, events.ErrRejected)
			rest = append(rest, batch[i])
		}
	}
	t.Logf("%d of %d events failed: %v", len(rest), len(batch), outcomes[len(outcomes)-1])
	require.NotEmpty(t, rest, "the broker was killed after the end of Send")
	require.ErrorContains(t, within(t, func() []error { return target.Send(t.Context(), batch[:1]) })[0], "connect to Kafka at "+b.addr())

	b.start()
	delivered := len(batch) - len(rest)
	stored := make(map[string]bool)
	for _, body := range bodies(records(t, b.addr(), delivered)) {
		stored[body] = true
	}
	for i, err := range outcomes {
		if err == nil {
			require.Truef(t, stored[string(batch[i].JSON)], "event %d was acknowledged and is missing", i)
		}
	}
	rest = rest[:min(len(rest), 1000)]
	eventstest.RequireAll(t, target.Send(t.Context(), rest))
}

func TestSend_BrokerHangs_FailsInTimeAndGoesOnLater(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	const size = 50_000 // more together than what the network's buffers take
	batch := eventstest.Batch(400, size, "shop-1")
	target := open(t, eventstest.Address(t, "kafka://"+b.addr()+"/tickets?timeout=500ms"))
	patient := open(t, eventstest.Address(t, "kafka://"+b.addr()+"/tickets?timeout=5m"))
	eventstest.RequireAll(t, target.Send(t.Context(), batch[:1]))
	eventstest.RequireAll(t, patient.Send(t.Context(), batch[:1]))
	require.NoError(t, b.process.Signal(syscall.SIGSTOP))
	for range 2 { // on a connection, and while connecting
		for _, err := range within(t, func() []error { return target.Send(t.Context(), batch) }) {
			require.Error(t, err)
			require.NotErrorIs(t, err, events.ErrRejected)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		require.ErrorIs(t, within(t, func() []error { return patient.Send(ctx, batch) })[0], context.Canceled)
	}
	require.NoError(t, b.process.Signal(syscall.SIGCONT))
	last := open(t, eventstest.Address(t, "kafka://"+b.addr()+"/tickets")) // with time enough for a broker that catches up
	eventstest.RequireAll(t, last.Send(t.Context(), batch))
	eventstest.RequireOrder(t, batch, bodies(records(t, b.addr(), len(batch))))
}

// within fails the test if a call does not return.
func within(t *testing.T, call func() []error) []error {
	t.Helper()
	ended := make(chan []error, 1)
	go func() { ended <- call() }()
	select {
	case outcomes := <-ended:
		return outcomes
	case <-time.After(patience):
		require.Fail(t, "Send does not return")
		return nil
	}
}

func TestSend_TooLarge_IsRejected(t *testing.T) {
	t.Parallel()
	c, addr := cluster(t)
	limit := "20000"
	require.NoError(t, c.DeleteTopic("tickets"))
	require.NoError(t, c.CreateTopic("tickets", 3, map[string]string{"max.message.bytes": limit}))
	target := open(t, eventstest.Address(t, "kafka://"+addr+"/tickets"))
	batch := eventstest.Batch(100, 1000, "shop-1") // much more than the limit together
	large := eventstest.Batch(1, 20_000, "shop-2")
	outcomes := target.Send(t.Context(), append(large, batch...))
	require.ErrorIs(t, outcomes[0], events.ErrRejected)
	require.ErrorContains(t, outcomes[0], "takes 20000 in a batch (max.message.bytes)")
	eventstest.RequireAll(t, outcomes[1:])
}

func TestSend_BatchRefused_RejectsOnlyWhatIsRefusedAlone(t *testing.T) {
	t.Parallel()
	c, addr := cluster(t)
	// The topic does not say its limit, and refuses what is larger than 2000 bytes: a batch, or the event 7.
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Resource: "tickets", Err: kerr.TopicAuthorizationFailed, Count: -1})
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "tickets", Err: kerr.MessageTooLarge, Count: -1, When: func(r kmsg.Request) bool {
		for _, topic := range r.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				var batch kmsg.RecordBatch
				if batch.ReadFrom(p.Records) == nil && (batch.NumRecords > 1 || len(p.Records) > 2000) {
					return true
				}
			}
		}
		return false
	}})
	target := open(t, eventstest.Address(t, "kafka://"+addr+"/tickets"))
	batch := eventstest.Batch(20, 700, "shop-1", "shop-2")
	noise := make([]byte, 3000) // cannot be compressed
	_, err := rand.Read(noise)
	require.NoError(t, err)
	large := &batch[7]
	large.JSON = fmt.Appendf(nil, "%x", noise)
	var rejected []string
	for sends := 0; len(batch) > 0; sends++ {
		require.Less(t, sends, 5)
		var rest []events.Event
		for i, err := range target.Send(t.Context(), batch) {
			switch {
			case errors.Is(err, events.ErrRejected):
				rejected = append(rejected, batch[i].ID)
			case err != nil:
				rest = append(rest, batch[i])
			}
		}
		batch = rest
	}
	require.Equal(t, []string{large.ID}, rejected)
	require.Len(t, records(t, addr, 19), 19)
}

func TestSend_NoTopic_SaysWhatToDo(t *testing.T) {
	t.Parallel()
	c, addr := cluster(t)
	target := open(t, eventstest.Address(t, "kafka://"+addr+"/missing"))
	batch := eventstest.Batch(10, 700, "shop-1")
	outcomes := target.Send(t.Context(), batch)
	require.ErrorContains(t, outcomes[0], "there is no topic missing, so the event is not stored: create it")
	require.NotErrorIs(t, outcomes[0], events.ErrRejected)
	require.Nil(t, c.TopicInfo("missing"), "Send makes no topic")
	require.NoError(t, c.CreateTopic("missing", 1, nil))
	require.NoError(t, lab.Await(t.Context(), patience, "the topic", func(ctx context.Context) error { return target.Send(ctx, batch)[9] }))
}

func TestSend_TooFewReplicas_FailsInTime(t *testing.T) {
	t.Parallel()
	c, addr := cluster(t)
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "tickets", Err: kerr.NotEnoughReplicas, Count: -1})
	target := open(t, eventstest.Address(t, "kafka://"+addr+"/tickets?timeout=1s"))
	batch := eventstest.Batch(10, 700, "shop-1")
	for _, err := range within(t, func() []error { return target.Send(t.Context(), batch) }) {
		require.Error(t, err)
		require.NotErrorIs(t, err, events.ErrRejected)
	}
	fault.Remove()
	eventstest.RequireAll(t, target.Send(t.Context(), batch))
	require.Len(t, records(t, addr, 10), 10)
}

func TestSend_Credentials(t *testing.T) {
	t.Parallel()
	const password = "right-0123456789"
	_, addr := cluster(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "plain", password),
		kfake.Superuser("SCRAM-SHA-256", "scram", password), kfake.Superuser("SCRAM-SHA-512", "scram", password))
	for _, c := range []struct{ user, mechanism string }{{"plain", "plain"}, {"scram", "scram-sha-256"}, {"scram", "scram-sha-512"}} {
		t.Run(c.mechanism, func(t *testing.T) {
			t.Parallel()
			address := eventstest.Address(t, "kafka://"+c.user+"@"+addr+"/tickets?sasl="+c.mechanism)
			address.Secret = []byte(password)
			eventstest.RequireAll(t, open(t, address).Send(t.Context(), eventstest.Batch(10, 700, "shop-1")))
			address.Secret = []byte("wrong-0123456789")
			outcomes := within(t, func() []error { return open(t, address).Send(t.Context(), eventstest.Batch(2, 700, "shop-1")) })
			require.ErrorContains(t, outcomes[0], "connect to Kafka at") // kfake ends the connection and does not say why
			require.NotErrorIs(t, outcomes[0], events.ErrRejected)
			require.NotContains(t, outcomes[0].Error(), "0123456789")
			require.Error(t, outcomes[1])
		})
	}
	none := open(t, eventstest.Address(t, "kafka://"+addr+"/tickets?timeout=2s"))
	require.Error(t, within(t, func() []error { return none.Send(t.Context(), eventstest.Batch(1, 700, "shop-1")) })[0])
}

func TestSend_TLSWithOwnAuthority(t *testing.T) {
	t.Parallel()
	certificate := eventstest.NewCertificate(t)
	pair, err := tls.LoadX509KeyPair(certificate.File, certificate.Key)
	require.NoError(t, err)
	_, addr := cluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}))
	address := eventstest.Address(t, "kafka://"+addr+"/tickets?tls=true&timeout=2s")
	batch := eventstest.Batch(10, 700, "shop-1")
	require.ErrorContains(t, within(t, func() []error { return open(t, address).Send(t.Context(), batch) })[0], "certificate")
	address.Authorities = certificate.Authority
	eventstest.RequireAll(t, open(t, address).Send(t.Context(), batch))
}

func TestSend_TwoTargetsOnOneBroker(t *testing.T) {
	t.Parallel()
	_, addr := cluster(t)
	ended := make(chan []error)
	batch := eventstest.Batch(2000, 700, "shop-1", "shop-2")
	for part := range 2 {
		target := open(t, eventstest.Address(t, "kafka://"+addr+"/tickets"))
		go func() { ended <- target.Send(t.Context(), batch[part*1000:part*1000+1000]) }()
	}
	eventstest.RequireAll(t, <-ended)
	eventstest.RequireAll(t, <-ended)
	require.Len(t, records(t, addr, 2000), 2000)
}

func TestSend_SendsNoMoreThanTheWindowUnacknowledged(t *testing.T) {
	t.Parallel()
	c, addr := cluster(t)
	var sent atomic.Int64
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "tickets", Err: kerr.NotEnoughReplicas, Count: -1, When: func(r kmsg.Request) bool {
		var n int64
		for _, topic := range r.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				var batch kmsg.RecordBatch
				if batch.ReadFrom(p.Records) == nil {
					n += int64(batch.NumRecords)
				}
			}
		}
		sent.Store(max(sent.Load(), n))
		return true
	}})
	target := open(t, eventstest.Address(t, "kafka://"+addr+"/tickets?window=7&timeout=1s"))
	for _, err := range within(t, func() []error { return target.Send(t.Context(), eventstest.Batch(100, 700, "shop-1")) }) {
		require.Error(t, err)
	}
	require.NotZero(t, sent.Load())
	require.LessOrEqual(t, sent.Load(), int64(7))
}

func TestOpen_WrongAddress_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"kafka://localhost":                    "no topic",
		"kafka://localhost/a/b":                "no topic of Kafka",
		"kafka://,localhost/tickets":           "no name",
		"kafka://localhost/tickets?acks=1":     `has no option "acks": those of kafka are tls, sasl, timeout, window`,
		"kafka://localhost/tickets?tls=yes":    "true or false",
		"kafka://a@localhost/tickets":          "add sasl=plain",
		"kafka://localhost/tickets?sasl=plain": "needs a user",
		"kafka://localhost/tickets?window=-1":  "from 1 to 4096",
	} {
		_, err := kafka.Open(t.Context(), eventstest.Address(t, address), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want, address)
	}
	address := eventstest.Address(t, "kafka://a@localhost/tickets?sasl=gssapi")
	address.Secret = []byte("0123456789")
	_, err := kafka.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "plain, scram-sha-256 or scram-sha-512")
	address = eventstest.Address(t, "kafka://localhost/tickets")
	address.Authorities = []byte("none")
	_, err = kafka.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "add the option tls=true")
}
