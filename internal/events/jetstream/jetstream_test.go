package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	client "github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/events/eventstest"
	"myticket/internal/events/jetstream"
	"myticket/internal/lab"
)

func open(t testing.TB, address events.Address, options ...string) events.Target {
	t.Helper()
	for i := 0; i < len(options); i += 2 {
		if address.Options == nil {
			address.Options = make(map[string]string)
		}
		address.Options[options[i]] = options[i+1]
	}
	target, err := jetstream.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(target.Close)
	return target
}

func TestSend_StoresEventsInOrderOfEachKey(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stream("tickets")
	for _, order := range [][]string{nil, {"order", "strict"}, {"window", "1"}} {
		target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"), order...)
		batch := eventstest.Batch(2000, 700, "shop-1", "shop-2", "shop-3")
		eventstest.RequireAll(t, target.Send(t.Context(), batch))
		messages := s.stored("tickets")
		require.Len(t, messages, 2000)
		eventstest.RequireOrder(t, batch, bodies(messages))
		require.Equal(t, "tickets.ticket.treated."+batch[0].Key, messages[0].Subject)
		require.Equal(t, batch[0].ID, messages[0].Header.Get("Nats-Msg-Id"))
		require.Equal(t, []string{events.ContentType}, messages[0].Header["content-type"])

		stream, err := s.jetStream().Stream(t.Context(), "TICKETS")
		require.NoError(t, err)
		eventstest.RequireAll(t, target.Send(t.Context(), batch[:500]))
		info, err := stream.Info(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 2000, info.State.Msgs, "repeats are dropped by their ids")
		require.NoError(t, stream.Purge(t.Context()))
	}
}

func TestSend_ServerKilled_WhatWasAcknowledgedIsThere(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stream("tickets")
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"), "timeout", "5s")
	batch := eventstest.Batch(100_000, 700, "shop-1", "shop-2")
	ended := make(chan []error)
	go func() { ended <- target.Send(t.Context(), batch) }()
	js := s.jetStream()
	require.NoError(t, lab.Await(t.Context(), patience, "some events in the stream", func(ctx context.Context) error {
		stream, err := js.Stream(ctx, "TICKETS")
		if err == nil && stream.CachedInfo().State.Msgs < 1000 {
			err = errors.New("too few")
		}
		return err
	}))
	s.process.Kill()
	outcomes := <-ended

	// The place of the target is at the first event that failed. It goes on from there once the server is back.
	var failed int
	for _, err := range outcomes {
		if err != nil {
			failed++
			require.NotErrorIs(t, err, events.ErrRejected)
		}
	}
	require.NotZero(t, failed, "the server was killed after the end of Send")
	require.NotEqual(t, len(batch), failed)
	t.Logf("%d of %d events failed: %v", failed, len(batch), outcomes[len(outcomes)-1])
	again := target.Send(t.Context(), batch[len(batch)-1:])
	require.ErrorContains(t, again[0], "connect to NATS at "+s.addr)

	s.start()
	stored := make(map[string]bool)
	for _, m := range s.stored("tickets") {
		stored[m.Header.Get("Nats-Msg-Id")] = true
	}
	var rest []events.Event
	for i, err := range outcomes {
		if err == nil {
			require.Truef(t, stored[batch[i].ID], "event %d was acknowledged and is missing", i)
		} else {
			rest = append(rest, batch[i])
		}
	}
	eventstest.RequireAll(t, target.Send(t.Context(), rest))
	eventstest.RequireOrder(t, batch, bodies(s.stored("tickets")))
}

// TestSend_LeadersOfThreeKilled_NothingIsMissing kills the server that leads the stream, twice. Its place is taken by another one.
func TestSend_LeadersOfThreeKilled_NothingIsMissing(t *testing.T) {
	t.Parallel()
	servers := startCluster(t)
	addrs := servers[0].addr + "," + servers[1].addr + "," + servers[2].addr
	conn, err := nats.Connect(addrs, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := client.New(conn)
	require.NoError(t, err)
	require.NoError(t, lab.Await(t.Context(), patience, "the stream", func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, client.StreamConfig{
			Name: "TICKETS", Subjects: []string{"tickets.>"}, Storage: client.FileStorage, Replicas: 3, Duplicates: 10 * time.Minute,
		})
		return err
	}))
	state := func(ctx context.Context) (*client.StreamInfo, error) {
		stream, err := js.Stream(ctx, "TICKETS")
		if err != nil {
			return nil, err
		}
		return stream.Info(ctx)
	}
	// With the order strict, a new leader cannot take an event whose predecessor the old one refused.
	target := open(t, eventstest.Address(t, "nats://"+addrs+"/tickets"), "timeout", "5s", "order", "strict")
	batch := eventstest.Batch(9000, 700, "shop-1", "shop-2", "shop-3")
	sending, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan struct{})
	var failures int
	go func() { // as a worker does: what failed is sent again
		defer close(ended)
		for rest := batch; len(rest) > 0 && sending.Err() == nil; lab.Pause(sending, 50*time.Millisecond) {
			var failed []events.Event
			for i, err := range target.Send(sending, rest) {
				if err != nil {
					assert.NotErrorIs(t, err, events.ErrRejected)
					failed = append(failed, rest[i])
				}
			}
			failures, rest = failures+len(failed), failed
		}
	}()
	for _, stored := range []uint64{500, 3000} {
		var leader string
		require.NoError(t, lab.Await(t.Context(), patience, "some events in the stream", func(ctx context.Context) error {
			info, err := state(ctx)
			switch {
			case err != nil:
				return err
			case info.Cluster == nil || info.Cluster.Leader == "" || info.State.Msgs < stored:
				return errors.New("not yet")
			}
			leader = info.Cluster.Leader
			return nil
		}))
		server := servers[slices.IndexFunc([]int{0, 1, 2}, func(i int) bool { return serverName(i) == leader })]
		server.process.Kill()
		server.start()
	}
	select {
	case <-ended:
	case <-time.After(patience):
		require.Fail(t, "not all events are delivered")
	}
	require.NotZero(t, failures, "both servers were killed after the end")
	require.NoError(t, lab.Await(t.Context(), patience, "all servers of the stream", func(ctx context.Context) error {
		info, err := state(ctx)
		switch {
		case err != nil:
			return err
		case info.Cluster == nil || info.Cluster.Leader == "" || len(info.Cluster.Replicas) != 2:
			return errors.New("no leader")
		case slices.ContainsFunc(info.Cluster.Replicas, func(p *client.PeerInfo) bool { return !p.Current || p.Offline }):
			return errors.New("a server has not all events yet")
		}
		return nil
	}))
	messages := servers[0].stored("tickets")
	require.Len(t, messages, len(batch), "the stream drops what comes again")
	eventstest.RequireOrder(t, batch, bodies(messages))
}

func TestSend_ServerHangs_FailsInTimeAndGoesOnLater(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stream("tickets")
	const timeout = "500ms"
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"), "timeout", timeout)
	// More than what the network's buffers take, so that also writing hangs.
	batch := eventstest.Batch(400, 50_000, "shop-1")
	eventstest.RequireAll(t, target.Send(t.Context(), batch[:1]))
	require.NoError(t, s.process.Signal(syscall.SIGSTOP))
	for range 2 { // on a connection, and while connecting
		outcomes := within(t, func() []error { return target.Send(t.Context(), batch) })
		for _, err := range outcomes {
			require.Error(t, err)
			require.NotErrorIs(t, err, events.ErrRejected)
		}
	}
	require.NoError(t, s.process.Signal(syscall.SIGCONT))
	eventstest.RequireAll(t, target.Send(t.Context(), batch))
	eventstest.RequireOrder(t, batch, bodies(s.stored("tickets")))
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

func TestSend_ContextEnds_Returns(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stream("tickets")
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"), "timeout", "5m")
	batch := eventstest.Batch(400, 50_000, "shop-1", "shop-2")
	eventstest.RequireAll(t, target.Send(t.Context(), batch[:1]))
	require.NoError(t, s.process.Signal(syscall.SIGSTOP))
	for range 2 { // on a connection, and while connecting
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		for _, err := range within(t, func() []error { return target.Send(ctx, batch) }) {
			require.Error(t, err)
		}
	}
	require.NoError(t, s.process.Signal(syscall.SIGCONT))
	eventstest.RequireAll(t, target.Send(t.Context(), batch))
}

func TestSend_TooLarge_IsRejected(t *testing.T) {
	t.Parallel()
	s := startServer(t, "max_payload: 100000")
	s.stream("tickets", func(c *client.StreamConfig) { c.MaxMsgSize = 50_000 })
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"))
	small, forStream, forServer := eventstest.Batch(3, 700, "shop-1"), eventstest.Batch(1, 60_000, "shop-2"), eventstest.Batch(1, 200_000, "shop-3")
	batch := append(append(small[:2:2], forStream[0], forServer[0]), small[2])
	outcomes := target.Send(t.Context(), batch)
	require.ErrorIs(t, outcomes[2], events.ErrRejected)
	require.ErrorContains(t, outcomes[2], "max_msg_size")
	require.ErrorIs(t, outcomes[3], events.ErrRejected)
	require.ErrorContains(t, outcomes[3], "max_payload")
	eventstest.RequireAll(t, []error{outcomes[0], outcomes[1], outcomes[4]})
	require.Len(t, s.stored("tickets"), 3)

	after := eventstest.Batch(1, 700, "shop-3")
	outcomes = target.Send(t.Context(), []events.Event{forServer[0], after[0]})
	require.ErrorIs(t, outcomes[0], events.ErrRejected)
	require.ErrorIs(t, outcomes[1], events.ErrNotSent)
	eventstest.RequireAll(t, target.Send(t.Context(), after))
}

func TestSend_NoStream_SaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"))
	batch := eventstest.Batch(100, 700, "shop-1")
	outcomes := target.Send(t.Context(), batch)
	require.EqualError(t, outcomes[0], "no stream takes the subject tickets.ticket.treated.shop-1, so the event is not stored: "+
		"create one (nats stream add NAME --subjects 'tickets.>'), or wait until the stream's servers have a leader")
	require.Error(t, outcomes[99])
	streams := s.jetStream().StreamNames(t.Context())
	require.Empty(t, <-streams.Name(), "Send makes no stream")
	s.stream("tickets")
	eventstest.RequireAll(t, target.Send(t.Context(), batch))
}

func TestSend_StreamFull_IsToBeTriedAgain(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stream("tickets", func(c *client.StreamConfig) { c.MaxMsgs, c.Discard = 10, client.DiscardNew })
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"), "order", "strict")
	batch := eventstest.Batch(20, 700, "shop-1")
	outcomes := target.Send(t.Context(), batch)
	eventstest.RequireAll(t, outcomes[:10])
	require.ErrorContains(t, outcomes[10], "maximum messages exceeded")
	require.NotErrorIs(t, outcomes[10], events.ErrRejected)
	require.ErrorIs(t, outcomes[11], events.ErrNotSent)
}

func TestSend_WrongCredentials_Fails(t *testing.T) {
	t.Parallel()
	const password = "right-0123456789"
	s := startServer(t, `authorization { users: [
		{ user: app, password: "`+password+`" }
		{ user: other, password: "`+password+`", permissions: { publish: "elsewhere.>", subscribe: "_INBOX.>" } }
		{ user: deaf, password: "`+password+`", permissions: { publish: ">", subscribe: "elsewhere.>" } }
	] }`, nats.UserInfo("app", password))
	s.stream("tickets")
	batch := eventstest.Batch(2, 700, "shop-1")
	for name, c := range map[string]struct{ user, password, want string }{
		"wrong":                {"app@", "wrong-0123456789", "Authorization Violation"},
		"none":                 {"", "", "Authorization Violation"},
		"right":                {"app@", password, ""},
		"may not publish":      {"other@", password, "does not let this user publish"},
		"may not hear of acks": {"deaf@", password, "does not permit acknowledgements"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := eventstest.Address(t, "nats://"+c.user+s.addr+"/tickets")
			address.Secret = []byte(c.password)
			outcomes := open(t, address).Send(t.Context(), batch)
			if c.want == "" {
				eventstest.RequireAll(t, outcomes)
				return
			}
			require.ErrorContains(t, outcomes[0], c.want)
			require.NotErrorIs(t, outcomes[0], events.ErrRejected)
			require.NotContains(t, outcomes[0].Error(), "0123456789")
			require.Error(t, outcomes[1])
		})
	}
}

func TestSend_CredentialsFile(t *testing.T) {
	t.Parallel()
	operator, err := nkeys.CreateOperator()
	require.NoError(t, err)
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	public := func(k nkeys.KeyPair) string {
		p, err := k.PublicKey()
		require.NoError(t, err)
		return p
	}
	operatorJWT, err := jwt.NewOperatorClaims(public(operator)).Encode(operator)
	require.NoError(t, err)
	system, err := nkeys.CreateAccount()
	require.NoError(t, err)
	systemJWT, err := jwt.NewAccountClaims(public(system)).Encode(operator)
	require.NoError(t, err)
	claims := jwt.NewAccountClaims(public(account))
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	accountJWT, err := claims.Encode(operator)
	require.NoError(t, err)
	credentials := func(signer nkeys.KeyPair) []byte {
		user, err := nkeys.CreateUser()
		require.NoError(t, err)
		userClaims := jwt.NewUserClaims(public(user))
		userClaims.IssuerAccount = ""
		userJWT, err := userClaims.Encode(signer)
		require.NoError(t, err)
		seed, err := user.Seed()
		require.NoError(t, err)
		file, err := jwt.FormatUserConfig(userJWT, seed)
		require.NoError(t, err)
		return file
	}
	right := credentials(account)
	s := startServer(t, fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }",
		operatorJWT, public(system), public(system), systemJWT, public(account), accountJWT),
		nats.UserCredentialBytes(right))
	s.stream("tickets")
	address := eventstest.Address(t, "nats://"+s.addr+"/tickets")
	address.Secret = right
	eventstest.RequireAll(t, open(t, address).Send(t.Context(), eventstest.Batch(10, 700, "shop-1")))

	stranger, err := nkeys.CreateAccount()
	require.NoError(t, err)
	address.Secret = credentials(stranger)
	require.ErrorContains(t, open(t, address).Send(t.Context(), eventstest.Batch(1, 700, "shop-1"))[0], "Authorization Violation")
}

func TestSend_TLSWithOwnAuthority(t *testing.T) {
	t.Parallel()
	certificate := eventstest.NewCertificate(t)
	s := startServer(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", certificate.File, certificate.Key), nats.RootCAs(certificate.RootFile))
	s.stream("tickets")
	address := eventstest.Address(t, "tls://"+s.addr+"/tickets")
	batch := eventstest.Batch(10, 700, "shop-1")
	require.ErrorContains(t, open(t, address).Send(t.Context(), batch)[0], "certificate")
	address.Authorities = certificate.Authority
	eventstest.RequireAll(t, open(t, address).Send(t.Context(), batch))
	address.Authorities = eventstest.NewCertificate(t).Authority
	require.ErrorContains(t, open(t, address).Send(t.Context(), batch)[0], "certificate")
}

func TestSend_TLSWantedAndNotThere_SendsNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stream("tickets")
	require.ErrorContains(t, open(t, eventstest.Address(t, "tls://"+s.addr+"/tickets")).Send(t.Context(), eventstest.Batch(1, 700, "shop-1"))[0],
		"secure connection not available")
	require.Empty(t, s.stored("tickets"))
}

func TestSend_TwoTargetsOnOneServer(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stream("tickets")
	s.stream("other")
	ended := make(chan []error)
	batch := eventstest.Batch(5000, 700, "shop-1", "shop-2")
	for _, prefix := range []string{"tickets", "other"} {
		// The first of the servers is away.
		target := open(t, eventstest.Address(t, "nats://127.0.0.1:1,"+s.addr+"/"+prefix))
		go func() { ended <- target.Send(t.Context(), batch) }()
	}
	eventstest.RequireAll(t, <-ended)
	eventstest.RequireAll(t, <-ended)
	eventstest.RequireOrder(t, batch, bodies(s.stored("tickets")))
	eventstest.RequireOrder(t, batch, bodies(s.stored("other")))
}

// stand stands in for a stream: it answers what a test says.
func (s *natsServer) stand(answer func(n int64) string) (received *atomic.Int64) {
	s.t.Helper()
	conn, err := nats.Connect("nats://" + s.addr)
	require.NoError(s.t, err)
	s.t.Cleanup(conn.Close)
	received = new(atomic.Int64)
	_, err = conn.Subscribe("tickets.>", func(m *nats.Msg) {
		if text := answer(received.Add(1)); text != "" {
			_ = m.Respond([]byte(text))
		}
	})
	require.NoError(s.t, err)
	require.NoError(s.t, conn.Flush())
	return received
}

func TestSend_SendsNoMoreThanTheWindowUnacknowledged(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	received := s.stand(func(int64) string { return "" })
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets?window=7&timeout=1s"))
	for _, err := range target.Send(t.Context(), eventstest.Batch(100, 700, "shop-1")) {
		require.Error(t, err)
	}
	require.EqualValues(t, 7, received.Load())
}

func TestSend_AfterAFailureSendsNoLaterOneOfItsKey(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stand(func(n int64) string {
		if n == 2 {
			return `{"error":{"code":503,"err_code":10077,"description":"insufficient storage"},"stream":"T","seq":0}`
		}
		return `{"stream":"T","seq":1}`
	})
	target := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets"), "order", "strict")
	outcomes := target.Send(t.Context(), eventstest.Batch(6, 700, "shop-1", "shop-2"))
	require.ErrorContains(t, outcomes[1], "insufficient storage")
	require.ErrorIs(t, outcomes[3], events.ErrNotSent)
	require.ErrorIs(t, outcomes[5], events.ErrNotSent)
	eventstest.RequireAll(t, []error{outcomes[0], outcomes[2], outcomes[4]})
}

func TestSend_AnswerOfSomethingElse_IsNoAcknowledgement(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.stand(func(int64) string { return "thanks" })
	outcomes := open(t, eventstest.Address(t, "nats://"+s.addr+"/tickets")).Send(t.Context(), eventstest.Batch(1, 700, "shop-1"))
	require.ErrorContains(t, outcomes[0], "none of JetStream")
}

func TestOpen_WrongAddress_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"nats://localhost:4222":                      "no prefix for subjects",
		"nats://localhost:4222/a.*":                  "no prefix of a subject",
		"nats://localhost:4222/a/b":                  "no prefix of a subject",
		"nats://localhost:4222/a..b":                 "no prefix of a subject",
		"nats://a,,b:4222/tickets":                   "no name",
		"nats://localhost/tickets?windows=1":         `has no option "windows": those of nats are timeout, window, order, inbox`,
		"nats://localhost/tickets?window=0":          "from 1 to 4096",
		"nats://localhost/tickets?timeout=1":         "from 100ms to 5m",
		"nats://localhost/tickets?order=no":          `it is "strict", or left out`,
		"nats://localhost/tickets?window=1&window=2": "given twice",
	} {
		_, err := jetstream.Open(t.Context(), eventstest.Address(t, address), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want, address)
	}
	address := eventstest.Address(t, "nats://localhost/tickets")
	address.Secret = []byte("0123456789")
	_, err := jetstream.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "no credentials file")
	address.Secret, address.Authorities = nil, []byte("none")
	_, err = jetstream.Open(t.Context(), address, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "PEM")
}
