package rabbitmq_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/events/eventstest"
	"myticket/internal/events/rabbitmq"
	"myticket/internal/lab"
)

func open(t *testing.T, address events.Address) events.Target {
	t.Helper()
	target, err := rabbitmq.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(target.Close)
	return target
}

// address returns the address of an exchange, with the right password.
func (r *rabbit) address(t *testing.T, exchange, options string) events.Address {
	t.Helper()
	address := eventstest.Address(t, "amqp://"+user+"@"+r.addr()+"/?exchange="+exchange+options)
	address.Secret = []byte(password)
	return address
}

func TestSend_QueuesEventsInOrderOfEachKey(t *testing.T) {
	t.Parallel()
	r := shared(t)
	for name, options := range map[string]string{"plain": "", "strict": "&order=strict", "one": "&window=1"} {
		r.exchange(t, name)
		r.queue(t, name, nil)
		batch := eventstest.Batch(500, 700, "shop-1", "shop-2", "shop-3")
		batch[0].ID += strings.Repeat("x", 300)
		batch[0].Time = time.Unix(1_800_000_000, 0)
		eventstest.RequireAll(t, open(t, r.address(t, name, options)).Send(t.Context(), batch))
		messages := r.messages(t, name)
		require.Len(t, messages, len(batch))
		eventstest.RequireOrder(t, batch, bodies(messages))
		m := messages[1]
		require.Equal(t, "ticket.treated.shop-2", m.RoutingKey)
		require.Equal(t, batch[1].ID, m.MessageId)
		require.Equal(t, events.TicketTreated, m.Type)
		require.Equal(t, events.ContentType, m.ContentType)
		require.Equal(t, amqp.Persistent, m.DeliveryMode)
		require.Len(t, messages[0].MessageId, 64, "an id that is too long is hashed")
		require.WithinDuration(t, batch[0].Time, messages[0].Timestamp, 0)
	}
}

// TestSend_AsThePageSays makes exchange, queue and user by the commands of docs/events.md.
func TestSend_AsThePageSays(t *testing.T) {
	t.Parallel()
	r := shared(t)
	page, err := os.ReadFile("../../../docs/events.md")
	require.NoError(t, err)
	part := regexp.MustCompile("(?s)`rabbitmqctl import_definitions FILE`:\n\n```json\n(.*?)```.*?`rabbitmqctl (set_permissions [^`]*)`").
		FindStringSubmatch(string(page))
	require.NotNil(t, part)
	file := filepath.Join(t.TempDir(), "definitions.json")
	require.NoError(t, os.WriteFile(file, []byte(part[1]), 0o644)) // the server's user reads it
	r.control(t, "import_definitions", file)
	r.control(t, "add_user", "myticket", password)
	r.control(t, strings.Fields(strings.ReplaceAll(part[2], "'", ""))...)

	address := eventstest.Address(t, "amqp://myticket@"+r.addr()+"/?exchange=tickets")
	address.Secret = []byte(password)
	target := open(t, address)
	batch := eventstest.Batch(500, 700, "shop-1", "shop-2")
	require.NoError(t, lab.Await(t.Context(), patience, "the queue's leader", func(ctx context.Context) error {
		return target.Send(ctx, batch[:1])[0]
	}))
	eventstest.RequireAll(t, target.Send(t.Context(), batch[1:]))
	messages := r.messages(t, "tickets")
	require.Len(t, messages, len(batch))
	eventstest.RequireOrder(t, batch, bodies(messages))

	address.URL.RawQuery = "exchange=amq.topic"
	require.ErrorContains(t, open(t, address).Send(t.Context(), batch[:1])[0], "ACCESS_REFUSED", "it may write nowhere else")
	r.control(t, "delete_user", "myticket")
}

func TestSend_NoQueue_IsToBeTriedAgain(t *testing.T) {
	t.Parallel()
	r := shared(t)
	r.exchange(t, "lonely")
	target := open(t, r.address(t, "lonely", ""))
	batch := eventstest.Batch(100, 700, "shop-1", "shop-2")
	for range 2 {
		outcomes := target.Send(t.Context(), batch)
		require.EqualError(t, outcomes[0], `no queue takes a message of the exchange "lonely" with the routing key "ticket.treated.shop-1", `+
			`so the event is in none: bind one (312 NO_ROUTE)`)
		for _, err := range outcomes {
			require.Error(t, err)
			require.NotErrorIs(t, err, events.ErrRejected)
		}
	}
	r.queue(t, "lonely", nil)
	eventstest.RequireAll(t, target.Send(t.Context(), batch))
	eventstest.RequireOrder(t, batch, bodies(r.messages(t, "lonely")))
}

func TestSend_NoExchange_IsToBeTriedAgain(t *testing.T) {
	t.Parallel()
	r := shared(t)
	target := open(t, r.address(t, "missing", ""))
	batch := eventstest.Batch(100, 700, "shop-1")
	outcomes := target.Send(t.Context(), batch)
	require.ErrorContains(t, outcomes[0], "no exchange 'missing' in vhost '/'")
	require.NotErrorIs(t, outcomes[0], events.ErrRejected)
	require.Error(t, outcomes[99])
	r.exchange(t, "missing")
	r.queue(t, "missing", nil)
	eventstest.RequireAll(t, target.Send(t.Context(), batch))
}

func TestSend_TooLarge_IsRejectedAndNoOtherOne(t *testing.T) {
	t.Parallel()
	r := shared(t)
	r.exchange(t, "large")
	r.queue(t, "large", nil)
	target := open(t, r.address(t, "large", ""))
	large := eventstest.Batch(1, 2*maxMessageSize, "shop-1")
	batch := eventstest.Batch(20, 700, "shop-1", "shop-2")
	batch[4] = large[0]
	outcomes := target.Send(t.Context(), batch)
	require.ErrorIs(t, outcomes[4], events.ErrRejected)
	var rest []events.Event
	for i, err := range outcomes {
		if i != 4 && err != nil {
			require.NotErrorIs(t, err, events.ErrRejected)
			rest = append(rest, batch[i])
		}
	}
	require.NotEmpty(t, rest)
	eventstest.RequireAll(t, target.Send(t.Context(), rest))
	eventstest.RequireOrder(t, append(batch[:4:4], batch[5:]...), bodies(r.messages(t, "large")))

	// From now on the target knows the limit, and an event that is too large costs no connection.
	outcomes = target.Send(t.Context(), []events.Event{batch[0], large[0], batch[1]})
	require.ErrorIs(t, outcomes[1], events.ErrRejected)
	eventstest.RequireAll(t, []error{outcomes[0], outcomes[2]})
}

func TestSend_QueueFull_IsToBeTriedAgain(t *testing.T) {
	t.Parallel()
	r := shared(t)
	r.exchange(t, "full")
	r.queue(t, "full", amqp.Table{"x-max-length": 10, "x-overflow": "reject-publish"})
	target := open(t, r.address(t, "full", "&order=strict"))
	batch := eventstest.Batch(20, 700, "shop-1")
	outcomes := target.Send(t.Context(), batch)
	eventstest.RequireAll(t, outcomes[:10])
	require.ErrorContains(t, outcomes[10], "a queue is full")
	require.NotErrorIs(t, outcomes[10], events.ErrRejected)
	require.ErrorIs(t, outcomes[11], events.ErrNotSent)
	require.Len(t, r.messages(t, "full"), 10)
	eventstest.RequireAll(t, target.Send(t.Context(), batch[10:15]))
}

func TestSend_RoutingKeyOfAQueue(t *testing.T) {
	t.Parallel()
	r := shared(t)
	_, err := r.channel(t).QueueDeclare("direct", true, false, false, false, nil)
	require.NoError(t, err)
	address := eventstest.Address(t, "amqp://"+user+"@"+r.addr()+"?routing-key=direct")
	address.Secret = []byte(password)
	batch := eventstest.Batch(10, 700, "shop-1")
	eventstest.RequireAll(t, open(t, address).Send(t.Context(), batch))
	eventstest.RequireOrder(t, batch, bodies(r.messages(t, "direct")))
}

func TestSend_WrongCredentials_Fails(t *testing.T) {
	t.Parallel()
	r := shared(t)
	address := r.address(t, "any", "")
	address.Secret = []byte("wrong-0123456789")
	outcomes := open(t, address).Send(t.Context(), eventstest.Batch(2, 700, "shop-1"))
	require.ErrorContains(t, outcomes[0], "username or password not allowed")
	require.NotErrorIs(t, outcomes[0], events.ErrRejected)
	require.NotContains(t, outcomes[0].Error(), "0123456789")
	require.Error(t, outcomes[1])

	address = r.address(t, "any", "")
	address.URL.Path = "/elsewhere"
	require.ErrorContains(t, open(t, address).Send(t.Context(), eventstest.Batch(1, 700, "shop-1"))[0], "vhost elsewhere not found")
}

func TestSend_TLSWithOwnAuthority(t *testing.T) {
	t.Parallel()
	r := shared(t)
	r.exchange(t, "tls")
	r.queue(t, "tls", nil)
	address := r.address(t, "tls", "")
	address.URL.Scheme, address.URL.Host = "amqps", "127.0.0.1:"+strconv.Itoa(r.tlsPort)
	batch := eventstest.Batch(10, 700, "shop-1")
	require.ErrorContains(t, open(t, address).Send(t.Context(), batch)[0], "certificate")
	address.Authorities = r.certificate.Authority
	eventstest.RequireAll(t, open(t, address).Send(t.Context(), batch))
}

func TestSend_TwoTargetsOnOneServer(t *testing.T) {
	t.Parallel()
	r := shared(t)
	ended := make(chan []error)
	batch := eventstest.Batch(1000, 700, "shop-1", "shop-2")
	for _, name := range []string{"first", "second"} {
		r.exchange(t, name)
		r.queue(t, name, nil)
		address := r.address(t, name, "")
		address.URL.Host = "127.0.0.1:1," + r.addr() // the first of the servers is away
		target := open(t, address)
		go func() { ended <- target.Send(t.Context(), batch) }()
	}
	eventstest.RequireAll(t, <-ended)
	eventstest.RequireAll(t, <-ended)
	eventstest.RequireOrder(t, batch, bodies(r.messages(t, "first")))
	eventstest.RequireOrder(t, batch, bodies(r.messages(t, "second")))
}

// The steps have one server, which takes seconds to start.
func TestSend_ServerInTrouble(t *testing.T) {
	t.Parallel()
	r := own(t)
	r.exchange(t, "tickets")
	r.queue(t, "tickets", nil)
	purge := func(t *testing.T) {
		t.Helper()
		_, err := r.channel(t).QueuePurge("tickets", false)
		require.NoError(t, err)
	}

	t.Run("hangs", func(t *testing.T) {
		target := open(t, r.address(t, "tickets", "&timeout=500ms"))
		batch := eventstest.Batch(400, 50_000, "shop-1")
		eventstest.RequireAll(t, target.Send(t.Context(), batch[:1]))
		require.NoError(t, r.signal(syscall.SIGSTOP))
		for range 2 { // on a connection, and while connecting
			for _, err := range within(t, func() []error { return target.Send(t.Context(), batch) }) {
				require.Error(t, err)
				require.NotErrorIs(t, err, events.ErrRejected)
			}
		}
		patient := open(t, r.address(t, "tickets", "&timeout=5m"))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		require.ErrorIs(t, within(t, func() []error { return patient.Send(ctx, batch) })[0], context.Canceled)
		require.NoError(t, r.signal(syscall.SIGCONT))

		last := open(t, r.address(t, "tickets", "")) // with time enough for a server that catches up
		eventstest.RequireAll(t, last.Send(t.Context(), batch))
		eventstest.RequireOrder(t, batch, bodies(r.messages(t, "tickets")))
		require.NoError(t, r.signal(syscall.SIGSTOP))
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		require.ErrorIs(t, within(t, func() []error { return last.Send(ctx, batch) })[0], context.Canceled)
		require.NoError(t, r.signal(syscall.SIGCONT))
		purge(t)
	})

	t.Run("has too little memory", func(t *testing.T) {
		target := open(t, r.address(t, "tickets", "&timeout=1s"))
		batch := eventstest.Batch(10, 700, "shop-1")
		eventstest.RequireAll(t, target.Send(t.Context(), batch))
		r.control(t, "set_vm_memory_high_watermark", "0.00001")
		for range 2 {
			outcomes := within(t, func() []error { return target.Send(t.Context(), batch) })
			require.ErrorContains(t, outcomes[0], "takes no messages at present, because of an alarm: low on memory")
			require.NotErrorIs(t, outcomes[0], events.ErrRejected)
		}
		r.control(t, "set_vm_memory_high_watermark", "0.6")
		require.NoError(t, lab.Await(t.Context(), patience, "the end of the alarm", func(ctx context.Context) error {
			return target.Send(ctx, batch)[0]
		}))
		purge(t)
	})

	t.Run("is killed", func(t *testing.T) {
		target := open(t, r.address(t, "tickets", "&timeout=5s"))
		batch := eventstest.Batch(50_000, 700, "shop-1", "shop-2")
		ended := make(chan []error)
		go func() { ended <- target.Send(t.Context(), batch) }()
		r.awaitSome(t, "tickets", 500)
		require.NoError(t, r.kill())
		outcomes := within(t, func() []error { return <-ended })
		var rest []events.Event
		for i, err := range outcomes {
			if err != nil {
				require.NotErrorIs(t, err, events.ErrRejected)
				rest = append(rest, batch[i])
			}
		}
		t.Logf("%d of %d events failed", len(rest), len(batch))
		require.NotEmpty(t, rest, "the server was killed after the end of Send")
		require.Less(t, len(rest), len(batch))
		require.ErrorContains(t, target.Send(t.Context(), batch[:1])[0], "connect to RabbitMQ at "+r.addr())

		require.NoError(t, r.start())
		messages := r.messages(t, "tickets")
		stored := make(map[string]bool)
		for _, m := range messages {
			stored[m.MessageId] = true
		}
		for i, err := range outcomes {
			if err == nil {
				require.Truef(t, stored[batch[i].ID], "event %d was confirmed and is missing", i)
			}
		}
		rest = rest[:min(len(rest), 2000)]
		eventstest.RequireAll(t, target.Send(t.Context(), rest))
		eventstest.RequireOrder(t, rest, bodies(r.messages(t, "tickets")))
	})
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

func TestOpen_WrongAddress_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"amqp://localhost":                             "no exchange",
		"amqp://localhost/a/b?exchange=x":              "no virtual host",
		"amqp://,localhost/?exchange=x":                "no name",
		"amqp://localhost/?exchange=x&heartbeat=1":     `has no option "heartbeat": those of amqp are exchange, routing-key, timeout, window, order`,
		"amqp://localhost/?exchange=x&exchange=y":      "given twice",
		"amqp://localhost/?exchange=x&window=many":     "from 1 to 4096",
		"amqp://localhost/?exchange=x&timeout=forever": "from 100ms to 5m",
		"amqp://localhost/?exchange=x&routing-key=":    "is empty",
	} {
		_, err := rabbitmq.Open(t.Context(), eventstest.Address(t, address), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want, address)
	}
	address := eventstest.Address(t, "amqp://localhost/?exchange=x")
	address.Secret = []byte("0123456789")
	_, err := rabbitmq.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "names no user")
	address.Secret, address.Authorities = nil, []byte("none")
	_, err = rabbitmq.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "amqps://")
}
