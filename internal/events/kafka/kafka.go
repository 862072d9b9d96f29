// Package kafka sends events to a topic of Kafka.
//
// An event is a record in the structured mode of CloudEvents' binding for Kafka
// (https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/kafka-protocol-binding.md#33-structured-content-mode):
// its value is the event as JSON, and the header content-type says so. Its key is the event's key, the source of the ticket, so
// the events of a source are in one partition, in their order, as long as the number of partitions stays the same.
//
// An event is delivered once all replicas in sync have it (acks=all,
// https://kafka.apache.org/documentation/#producerconfigs_acks). The producer is idempotent
// (https://kafka.apache.org/documentation/#producerconfigs_enable.idempotence): what the client itself sends again is stored
// once and in its place. The topic must exist: this package never makes one.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"myticket/internal/events"
)

const (
	// defaultPatience is how long a Send waits for the next acknowledgement, and how long connecting may take.
	defaultPatience = 10 * time.Second
	// defaultWindow is how many events wait for their acknowledgement.
	defaultWindow = 1024
	// metadataAge bounds how often the client asks for the brokers of the topic while it has trouble.
	metadataAge = 250 * time.Millisecond
	// recordOverhead is more than what a batch with one record has beside the record's key, value and header
	// (https://kafka.apache.org/documentation/#recordbatch).
	recordOverhead = 128
)

// target is a topic. Only one goroutine uses it at a time.
type target struct {
	address  events.Address
	topic    string
	patience time.Duration
	window   int
	options  []kgo.Opt
	logger   *slog.Logger

	client *kgo.Client // nil if there is none
	watch  *watch      // of the client
	limit  int         // of a batch of records, in bytes
	alone  bool        // one event at a time, because the topic refused a batch
}

// Open returns the target of an address such as kafka://user@broker:9092,broker2:9092/topic. It does not connect: Send does.
// Brokers in the address are only asked for the others.
//
// The secret is the user's password. Options are "tls" ("true" for TLS), "sasl" ("plain", "scram-sha-256" or "scram-sha-512"),
// "timeout" (how long to wait for an acknowledgement, 10s by default) and "window" (how many events wait for theirs, 1024 by
// default).
func Open(_ context.Context, address events.Address, logger *slog.Logger) (events.Target, error) {
	settings, err := address.Settings("tls", "sasl", "timeout", "window")
	if err != nil {
		return nil, err
	}
	t := &target{address: address, logger: logger}
	if t.patience, err = events.Patience(settings, defaultPatience); err != nil {
		return nil, err
	}
	if t.window, err = events.Window(settings, defaultWindow); err != nil {
		return nil, err
	}
	if t.topic, err = topicOf(address.URL.Path); err != nil {
		return nil, err
	}
	brokers := strings.Split(address.URL.Host, ",")
	for _, broker := range brokers {
		if broker == "" || strings.HasPrefix(broker, ":") {
			return nil, errors.New("a broker in the address of the target has no name: it is kafka://broker:9092/topic, with commas " +
				"between several brokers")
		}
	}
	t.options = []kgo.Opt{
		kgo.SeedBrokers(brokers...),
		kgo.ClientID("myticket"),
		kgo.DefaultProduceTopic(t.topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		// Only for a moment there are more than fit into the window: the client counts one less after it reported the outcome.
		kgo.MaxBufferedRecords(2 * t.window),
		kgo.UnknownTopicRetries(1),
		kgo.MetadataMinAge(metadataAge),
		kgo.DialTimeout(t.patience),
		kgo.RequestTimeoutOverhead(t.patience),
		kgo.ProduceRequestTimeout(t.patience),
		kgo.RetryTimeout(t.patience),
	}
	switch settings["tls"] {
	case "true":
		config, err := address.TLS()
		if err != nil {
			return nil, err
		}
		t.options = append(t.options, kgo.DialTLSConfig(config))
	case "", "false":
		if len(address.Authorities) > 0 {
			return nil, errors.New("the target has authorities and does not use TLS: add the option tls=true")
		}
	default:
		return nil, fmt.Errorf("the option \"tls\" of the target is %q: it is true or false", settings["tls"])
	}
	mechanism, err := mechanismOf(settings["sasl"], address)
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		t.options = append(t.options, kgo.SASL(mechanism))
	}
	return t, nil
}

// validTopic is what Kafka takes for a name (org.apache.kafka.common.internals.Topic).
var validTopic = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

func topicOf(path string) (string, error) {
	topic := strings.TrimPrefix(path, "/")
	if topic == "" {
		return "", errors.New("the address of the target has no topic: add one, such as kafka://broker:9092/tickets")
	}
	if !validTopic.MatchString(topic) || topic == "." || topic == ".." {
		return "", fmt.Errorf("the path of the target, %q, is no topic of Kafka: that has at most 249 letters, digits, '.', '_' "+
			"and '-'", path)
	}
	return topic, nil
}

func mechanismOf(name string, address events.Address) (sasl.Mechanism, error) {
	user, password := address.URL.User.Username(), string(address.Secret)
	if name == "" {
		if user != "" || password != "" {
			return nil, errors.New("the target has a user or a password, and no option says how to use them: add sasl=plain, " +
				"sasl=scram-sha-256 or sasl=scram-sha-512")
		}
		return nil, nil //nolint:nilnil // there is none
	}
	if user == "" || password == "" {
		return nil, errors.New("the option \"sasl\" of the target needs a user in its address (kafka://user@broker:9092/topic) " +
			"and a secret, " +
			"which is the password")
	}
	switch name {
	case "plain":
		return plain.Auth{User: user, Pass: password}.AsMechanism(), nil
	case "scram-sha-256":
		return scram.Auth{User: user, Pass: password}.AsSha256Mechanism(), nil
	case "scram-sha-512":
		return scram.Auth{User: user, Pass: password}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("the option \"sasl\" of the target is %q: it is plain, scram-sha-256 or scram-sha-512", name)
}

// Close ends the connections. What is on its way is not waited for.
func (t *target) Close() {
	if t.client != nil {
		t.client.Close()
		t.client = nil
	}
}

// outcome is what the client says of an event.
type outcome struct {
	event int
	err   error
}

// Send implements events.Target. It waits at most the option "timeout" for the next acknowledgement.
func (t *target) Send(ctx context.Context, batch []events.Event) []error {
	window, alone := t.window, t.alone
	if alone {
		window = 1
	}
	flight := events.NewFlight(batch, window, false)
	if err := t.connect(ctx); err != nil {
		return flight.Errors(err)
	}
	err := t.send(ctx, flight, batch, alone)
	if err != nil {
		// The client goes on trying with what it has, and must not.
		t.Close()
	}
	return flight.Errors(err)
}

// send returns an error if the client did not say of each event what became of it.
func (t *target) send(ctx context.Context, flight *events.Flight, batch []events.Event, alone bool) error {
	outcomes := make(chan outcome, t.window) // as many as can be on their way, so the client never waits
	patience := time.NewTimer(t.patience)
	defer patience.Stop()
	for {
		for {
			i, ok := flight.Next()
			if !ok {
				break
			}
			if size := len(batch[i].JSON) + len(batch[i].Key) + len(events.ContentType) + recordOverhead; size > t.limit {
				flight.Failed(i, fmt.Errorf("%w: it has %d bytes, and the topic %s takes %d in a batch (max.message.bytes)",
					events.ErrRejected, len(batch[i].JSON), t.topic, t.limit))
				continue
			}
			t.client.Produce(ctx, record(&batch[i]), func(_ *kgo.Record, err error) { outcomes <- outcome{i, err} })
		}
		if flight.Waiting() == 0 {
			return nil
		}
		select {
		case o := <-outcomes:
			if o.err == nil {
				flight.Delivered(o.event)
				patience.Reset(t.patience)
			} else {
				flight.Failed(o.event, t.failure(&batch[o.event], o.err, alone))
			}
		case <-patience.C:
			return fmt.Errorf("the topic %s acknowledged nothing for %s%s", t.topic, t.patience, t.watch.last())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// record has no time, so that of the sending counts: Kafka would soon delete an old event of a replay again, by the retention
// of the topic.
func record(e *events.Event) *kgo.Record {
	return &kgo.Record{
		Key: []byte(e.Key), Value: e.JSON,
		Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte(events.ContentType)}},
	}
}

// failure says why the topic does not have an event. A broker refuses a batch of several events as a whole, although it may
// take each of them, or all but one. So they are sent one by one from then on: only what is refused alone is rejected.
func (t *target) failure(e *events.Event, err error, alone bool) error {
	if errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.InvalidRecord) {
		if alone {
			return fmt.Errorf("%w: the topic %s does not take it: %w", events.ErrRejected, t.topic, err)
		}
		if !t.alone {
			t.alone = true
			t.logger.Warn("A topic refused several events together. They are sent one by one from now on, which is slower. "+
				"If the batch is too large: let the user describe the topic's configuration, or raise its max.message.bytes.",
				"topic", t.topic, "error", err)
		}
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("there is no topic %s, so the event is not stored: create it (kafka-topics.sh --create --topic %s): "+
			"%w", t.topic, t.topic, err)
	}
	return fmt.Errorf("the topic %s did not store the event %s: %w", t.topic, e.ID, err)
}
