package jetstream_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	client "github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"myticket/internal/lab"
)

// runServer is the variable that makes a process of the tests run a NATS server with this configuration file.
const runServer = "MYTICKET_TEST_NATS"

func TestMain(m *testing.M) {
	if file := os.Getenv(runServer); file != "" {
		if err := serve(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(file string) error {
	options, err := server.ProcessConfigFile(file)
	if err != nil {
		return err
	}
	s, err := server.NewServer(options)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	s.WaitForShutdown()
	return nil
}

// patience bounds every wait for a condition. No condition takes nearly as long.
const patience = time.Minute

// natsServer is a NATS server in a process of its own.
type natsServer struct {
	t       testing.TB
	addr    string
	config  string // path
	process *lab.Process
	log     *lab.Tail
	login   []nats.Option // of the test's own connection
}

// startServer starts a server with JetStream in files, and further lines of its configuration.
func startServer(t testing.TB, config string, login ...nats.Option) *natsServer {
	t.Helper()
	addr, err := lab.FreeAddr(t.Context())
	require.NoError(t, err)
	dir := t.TempDir()
	s := &natsServer{t: t, addr: addr, config: filepath.Join(dir, "nats.conf"), log: &lab.Tail{}, login: login}
	text := fmt.Sprintf("listen: %q\njetstream: { store_dir: %q }\n%s\n", addr, filepath.Join(dir, "store"), config)
	require.NoError(t, os.WriteFile(s.config, []byte(text), 0o600))
	t.Cleanup(func() {
		_ = s.process.Signal(syscall.SIGCONT)
		s.process.Kill()
		if t.Failed() {
			t.Logf("the server said:\n%s", s.log)
		}
	})
	s.start()
	return s
}

func (s *natsServer) start() {
	s.t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), runServer+"="+s.config)
	command.Stdout, command.Stderr = s.log, s.log
	var err error
	s.process, err = lab.Start(command, syscall.SIGKILL)
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	go func() {
		select {
		case <-s.process.Exited():
			cancel()
		case <-ctx.Done():
		}
	}()
	require.NoError(s.t, lab.Await(ctx, patience, "the NATS server", func(context.Context) error {
		conn, err := nats.Connect("nats://"+s.addr, s.login...)
		if err == nil {
			conn.Close()
		}
		return err
	}), s.log)
}

// startCluster starts three servers that share their streams.
func startCluster(t testing.TB) []*natsServer {
	t.Helper()
	var routes [3]string
	for i := range routes {
		addr, err := lab.FreeAddr(t.Context())
		require.NoError(t, err)
		routes[i] = addr
	}
	servers := make([]*natsServer, len(routes))
	for i, addr := range routes {
		servers[i] = startServer(t, fmt.Sprintf("server_name: %q\ncluster: { name: tickets, listen: %q, routes: [%q, %q, %q] }",
			serverName(i), addr, "nats://"+routes[0], "nats://"+routes[1], "nats://"+routes[2]))
	}
	return servers
}

func serverName(i int) string { return fmt.Sprint("nats-", i+1) }

// jetStream is the test's own connection.
func (s *natsServer) jetStream() client.JetStream {
	s.t.Helper()
	conn, err := nats.Connect("nats://"+s.addr, s.login...)
	require.NoError(s.t, err)
	s.t.Cleanup(conn.Close)
	js, err := client.New(conn)
	require.NoError(s.t, err)
	return js
}

// stream makes a stream for the subjects of a prefix, which stores in files.
func (s *natsServer) stream(prefix string, change ...func(*client.StreamConfig)) {
	s.t.Helper()
	config := client.StreamConfig{Name: strings.ToUpper(prefix), Subjects: []string{prefix + ".>"}, Storage: client.FileStorage}
	for _, c := range change {
		c(&config)
	}
	_, err := s.jetStream().CreateStream(s.t.Context(), config)
	require.NoError(s.t, err)
}

// stored returns the messages of the stream of a prefix.
func (s *natsServer) stored(prefix string) []*client.RawStreamMsg {
	s.t.Helper()
	ctx := s.t.Context()
	js := s.jetStream()
	stream, err := js.Stream(ctx, strings.ToUpper(prefix))
	require.NoError(s.t, err)
	info, err := stream.Info(ctx)
	require.NoError(s.t, err)
	if info.State.Msgs == 0 {
		return nil
	}
	consumer, err := js.OrderedConsumer(ctx, strings.ToUpper(prefix), client.OrderedConsumerConfig{})
	require.NoError(s.t, err)
	messages := make([]*client.RawStreamMsg, 0, info.State.Msgs)
	for len(messages) < int(info.State.Msgs) {
		batch, err := consumer.Fetch(int(info.State.Msgs)-len(messages), client.FetchMaxWait(patience))
		require.NoError(s.t, err)
		for m := range batch.Messages() {
			messages = append(messages, &client.RawStreamMsg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()})
		}
		require.NoError(s.t, batch.Error())
	}
	return messages
}

func bodies(messages []*client.RawStreamMsg) []string {
	texts := make([]string, len(messages))
	for i, m := range messages {
		texts[i] = string(m.Data)
	}
	return texts
}
