package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"myticket/internal/events/eventstest"
	"myticket/internal/lab"
)

// programs is where Debian has RabbitMQ's own scripts. Those in PATH run the server as another user, in its folders.
const programs = "/usr/lib/rabbitmq/bin"

const (
	user, password = "app", "right-0123456789"
	maxMessageSize = 100_000
)

// patience bounds every wait for a condition. No condition takes nearly as long.
const patience = 2 * time.Minute

var (
	sharedOnce   sync.Once
	sharedServer *rabbit
	errShared    error
)

func TestMain(m *testing.M) {
	code := m.Run()
	if sharedServer != nil {
		sharedServer.stop()
	}
	os.Exit(code)
}

// rabbit is a RabbitMQ with a folder, ports and a node of its own, and the name server that Erlang's nodes need.
type rabbit struct {
	port, tlsPort int
	certificate   eventstest.Certificate
	env           []string
	dir           string
	names, node   *lab.Process
	log           *lab.Tail
}

// shared returns the server of the tests that leave it as it is.
func shared(t *testing.T) *rabbit {
	t.Helper()
	need(t)
	sharedOnce.Do(func() { sharedServer, errShared = newRabbit() })
	require.NoError(t, errShared)
	return sharedServer
}

// own returns a server that a test may kill and stop.
func own(t *testing.T) *rabbit {
	t.Helper()
	need(t)
	r, err := newRabbit()
	require.NoError(t, err)
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("the server said:\n%s", r.log)
		}
	})
	return r
}

func need(t *testing.T) {
	t.Helper()
	_, err := os.Stat(programs + "/rabbitmq-server")
	if err == nil {
		_, err = exec.LookPath("epmd")
	}
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		require.NoError(t, err, "RabbitMQ is missing: apt-get install --no-install-recommends rabbitmq-server")
	default:
		t.Skip("not tested here: RabbitMQ is not installed (apt-get install --no-install-recommends rabbitmq-server)")
	}
}

func newRabbit() (_ *rabbit, err error) {
	dir, err := os.MkdirTemp("", "myticket-rabbitmq-")
	if err != nil {
		return nil, err
	}
	r := &rabbit{dir: dir, log: &lab.Tail{}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start RabbitMQ: %w; it said:\n%s", err, r.log)
			r.stop()
		}
	}()
	if r.certificate, err = eventstest.WriteCertificate(dir); err != nil {
		return nil, err
	}
	var ports [4]int
	for i := range ports {
		if ports[i], err = lab.FreePort(context.Background()); err != nil {
			return nil, err
		}
	}
	r.port, r.tlsPort = ports[0], ports[1]
	config := fmt.Sprintf(`listeners.tcp.1 = 127.0.0.1:%d
listeners.ssl.1 = 127.0.0.1:%d
ssl_options.cacertfile = %s
ssl_options.certfile = %s
ssl_options.keyfile = %s
default_user = %s
default_pass = %s
max_message_size = %d
log.console = true
log.file = false
`, r.port, r.tlsPort, r.certificate.RootFile, r.certificate.File, r.certificate.Key, user, password, maxMessageSize)
	for name, text := range map[string]string{"rabbitmq.conf": config, "plugins": "[].\n", "env.conf": "", "advanced.config": "[].\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	r.env = append(os.Environ(),
		"HOME="+dir, // of the cookie
		"ERL_EPMD_PORT="+strconv.Itoa(ports[2]),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_FLAGS=-start_epmd false", // the name server that Erlang starts by itself would stay behind
		"RABBITMQ_NODENAME=myticket-"+strconv.Itoa(r.port)+"@localhost",
		"RABBITMQ_DIST_PORT="+strconv.Itoa(ports[3]),
		"RABBITMQ_CONF_ENV_FILE="+filepath.Join(dir, "env.conf"),
		"RABBITMQ_CONFIG_FILE="+filepath.Join(dir, "rabbitmq.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE="+filepath.Join(dir, "advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(dir, "plugins"),
		"RABBITMQ_MNESIA_BASE="+filepath.Join(dir, "data"),
		"RABBITMQ_LOG_BASE="+filepath.Join(dir, "log"),
		"RABBITMQ_GENERATED_CONFIG_DIR="+filepath.Join(dir, "generated"),
		"RABBITMQ_PID_FILE="+filepath.Join(dir, "pid"),
		"RABBITMQ_ALLOW_INPUT=1", // the script becomes the server, so a signal reaches it
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput -kernel inet_dist_use_interface {127,0,0,1}",
	)
	names := exec.Command("epmd")
	names.Env, names.Stdout, names.Stderr = r.env, r.log, r.log
	if r.names, err = lab.Start(names, syscall.SIGKILL); err != nil {
		return nil, err
	}
	err = lab.Await(context.Background(), patience, "Erlang's name server", func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", "127.0.0.1:"+strconv.Itoa(ports[2]))
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, r.start()
}

// start starts the node, and returns when it takes connections.
func (r *rabbit) start() error {
	command := exec.Command(programs + "/rabbitmq-server")
	command.Env, command.Dir, command.Stdout, command.Stderr = r.env, r.dir, r.log, r.log
	var err error
	if r.node, err = lab.Start(command, syscall.SIGKILL); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		select {
		case <-r.node.Exited():
			cancel()
		case <-ctx.Done():
		}
	}()
	return lab.Await(ctx, patience, "RabbitMQ", func(context.Context) error {
		conn, err := amqp.Dial(r.url())
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// signal sends a signal to the server and its children.
func (r *rabbit) signal(signal syscall.Signal) error { return lab.Signal(-r.node.PID(), signal) }

func (r *rabbit) kill() error {
	err := r.signal(syscall.SIGKILL)
	<-r.node.Exited()
	return err
}

func (r *rabbit) stop() {
	if r.node != nil {
		_ = r.kill()
	}
	if r.names != nil {
		r.names.Kill()
	}
	_ = os.RemoveAll(r.dir)
}

// control runs rabbitmqctl.
func (r *rabbit) control(t *testing.T, arguments ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), programs+"/rabbitmqctl", arguments...)
	command.Env, command.Dir = r.env, r.dir
	out, err := command.CombinedOutput()
	require.NoError(t, err, string(out))
}

func (r *rabbit) addr() string { return "127.0.0.1:" + strconv.Itoa(r.port) }

func (r *rabbit) url() string { return "amqp://" + user + ":" + password + "@" + r.addr() + "/" }

// channel is the test's own.
func (r *rabbit) channel(t *testing.T) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(r.url())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) })
	channel, err := conn.Channel()
	require.NoError(t, err)
	return channel
}

// exchange makes a topic exchange.
func (r *rabbit) exchange(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, r.channel(t).ExchangeDeclare(name, amqp.ExchangeTopic, true, false, false, false, nil))
}

// queue makes a durable queue that takes all messages of an exchange.
func (r *rabbit) queue(t *testing.T, exchange string, arguments amqp.Table) {
	t.Helper()
	channel := r.channel(t)
	_, err := channel.QueueDeclare(exchange, true, false, false, false, arguments)
	require.NoError(t, err)
	require.NoError(t, channel.QueueBind(exchange, "#", exchange, false, nil))
}

// messages takes all messages out of a queue.
func (r *rabbit) messages(t *testing.T, queue string) []amqp.Delivery {
	t.Helper()
	channel := r.channel(t)
	var messages []amqp.Delivery
	for {
		m, ok, err := channel.Get(queue, true)
		require.NoError(t, err)
		if !ok {
			return messages
		}
		messages = append(messages, m)
	}
}

// awaitSome waits until a queue has n messages.
func (r *rabbit) awaitSome(t *testing.T, queue string, n int) {
	t.Helper()
	channel := r.channel(t)
	require.NoError(t, lab.Await(t.Context(), patience, "messages in the queue", func(context.Context) error {
		q, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err == nil && q.Messages < n {
			err = errors.New("too few")
		}
		return err
	}))
}

func bodies(messages []amqp.Delivery) []string {
	texts := make([]string, len(messages))
	for i := range messages {
		texts[i] = string(messages[i].Body)
	}
	return texts
}
