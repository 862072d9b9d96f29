package kafka

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// defaultLimit is the largest batch if the topic does not say its limit: a little less than what Kafka takes by default.
	defaultLimit = 1_000_012
	// minLimit and maxLimit are what the client takes.
	minLimit, maxLimit = 1 << 10, 64 << 20
)

// connect makes a client if there is none, and sees whether a broker answers it.
func (t *target) connect(ctx context.Context) error {
	if t.client != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	watch := &watch{}
	options := append(slices.Clone(t.options), kgo.WithHooks(watch))
	asking, err := kgo.NewClient(options...)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %s: %w", t.address.URL.Host, err)
	}
	defer asking.Close()
	if err := asking.Ping(ctx); err != nil {
		return fmt.Errorf("connect to Kafka at %s: %w%s", t.address.URL.Host, err, watch.last())
	}
	limit := topicLimit(ctx, asking, t.topic)
	client, err := kgo.NewClient(append(options, kgo.ProducerBatchMaxBytes(int32(limit)), kgo.MaxBufferedBytes(0))...)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %s: %w", t.address.URL.Host, err)
	}
	t.client, t.watch, t.limit = client, watch, limit
	t.logger.InfoContext(ctx, "connected to Kafka", "brokers", t.address.URL.Host, "topic", t.topic, "max_batch_bytes", limit)
	return nil
}

// topicLimit returns the largest batch that the topic takes, in bytes. A user who may not ask gets the default.
func topicLimit(ctx context.Context, client *kgo.Client, topic string) int {
	request := kmsg.NewPtrDescribeConfigsRequest()
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	resource.ConfigNames = []string{"max.message.bytes"}
	request.Resources = append(request.Resources, resource)
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return defaultLimit
	}
	for _, r := range response.Resources {
		if kerr.ErrorForCode(r.ErrorCode) != nil {
			continue
		}
		for _, c := range r.Configs {
			if c.Name != "max.message.bytes" || c.Value == nil {
				continue
			}
			if limit, err := strconv.Atoi(*c.Value); err == nil {
				return min(max(limit, minLimit), maxLimit)
			}
		}
	}
	return defaultLimit
}

// watch keeps why the last connection to a broker could not be made: the client only goes on trying.
type watch struct {
	mu      sync.Mutex // guards failure
	failure error
}

var _ kgo.HookBrokerConnect = (*watch)(nil)

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (w *watch) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure = err
}

// last returns what an error says of it.
func (w *watch) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure == nil {
		return ""
	}
	return " (the last connection: " + w.failure.Error() + ")"
}
