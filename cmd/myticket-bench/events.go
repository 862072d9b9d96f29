package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"myticket/internal/lab"
)

const (
	eventsStream  = "bench"
	eventsUser    = "bench" // the subscription's name
	deliveryLimit = 10 * time.Minute
)

// serveNATS is a NATS server with JetStream that stores in a folder, until it gets a signal.
func serveNATS(addr, folder string) error {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return err
	}
	s, err := server.NewServer(&server.Options{
		Host: tcp.IP.String(), Port: tcp.Port, JetStream: true, StoreDir: folder, NoSigs: false,
	})
	if err != nil {
		return err
	}
	s.Start()
	s.WaitForShutdown()
	return nil
}

// natsServer is a NATS server that was started for a measurement, with a stream in a file.
type natsServer struct {
	*process

	stream jetstream.Stream
	close  func() // of what asks it
}

// startNATS starts a NATS server, which is this program.
func startNATS(ctx context.Context, folder string) (_ *natsServer, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	n := &natsServer{process: &process{addr: addr, log: &lab.Tail{}}, close: func() {}}
	command := exec.Command(program, "nats", addr, folder)
	command.Stderr, command.Stdout = n.log, n.log
	if n.Process, err = lab.Start(command, syscall.SIGTERM); err != nil {
		return nil, err
	}
	err = lab.Await(ctx, stopLimit, "the NATS server", func(ctx context.Context) error {
		conn, err := nats.Connect("nats://" + addr)
		if err != nil {
			return err
		}
		n.close = conn.Close
		js, err := jetstream.New(conn)
		if err != nil {
			return err
		}
		n.stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: eventsStream, Subjects: []string{eventsStream + ".>"}, Storage: jetstream.FileStorage,
		})
		return err
	})
	if err != nil {
		n.stop()
		return nil, fmt.Errorf("%w; its log ends with:\n%s", err, n.log)
	}
	return n, nil
}

// stop ends the server. What it stores is not needed any more.
func (n *natsServer) stop() {
	n.close()
	n.Kill()
}

func (n *natsServer) target() string { return "nats://" + n.addr + "/" + eventsStream }

// messages returns how many messages the stream has.
func (n *natsServer) messages(ctx context.Context) (int, error) {
	info, err := n.stream.Info(ctx)
	if err != nil {
		return 0, err
	}
	return int(info.State.Msgs), nil
}

// hangingTarget takes connections and requests, and never answers.
func hangingTarget(ctx context.Context) (target string, stop func(), err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	var open []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			open = append(open, conn)
		}
	}()
	stop = func() {
		_ = listener.Close()
		<-done
		for _, conn := range open {
			_ = conn.Close()
		}
	}
	return "http://" + listener.Addr().String() + "/", stop, nil
}

// subscribe makes a subscription that begins now.
func (b *bench) subscribe(url, target string) error {
	command, err := b.startCommand("subscriptions", "create", eventsUser, target, "--type", "ticket.treated", "--database-url", url)
	if err != nil {
		return err
	}
	return command.Wait()
}

func (b *bench) unsubscribe(url string) error {
	command, err := b.startCommand("subscriptions", "delete", eventsUser, "--yes", "--database-url", url)
	if err != nil {
		return err
	}
	return command.Wait()
}

// startSender starts a process that sends events, with further arguments, and returns when it is ready.
func (b *bench) startSender(ctx context.Context, url string, args ...string) (*process, error) {
	admin, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	command := exec.Command(b.settings.server, slices.Concat([]string{
		"events", "--admin-addr", admin, "--database-url", url, "--log-level", "error", "--shutdown-timeout", "1s",
	}, args)...)
	return start(ctx, command, "", admin, "http://"+admin+"/readyz")
}

// compareEvents measures what events cost the webhook: a server without them, one whose tickets' events are sent to JetStream by
// a process beside it, and one whose events' target hangs, in turn.
func (b *bench) compareEvents(ctx context.Context) (err error) {
	folder, err := os.MkdirTemp("", "myticket-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	broker, err := startNATS(ctx, folder)
	if err != nil {
		return err
	}
	defer broker.stop()
	hanging, stop, err := hangingTarget(ctx)
	if err != nil {
		return err
	}
	defer stop()
	variants := []*variant{
		{contender: contender{name: "no events"}},
		{contender: contender{name: "events to JetStream"}, target: broker.target()},
		{contender: contender{name: "a target that hangs"}, target: hanging},
	}
	for _, v := range variants {
		// The server that fills order lines gives way only to its own tickets, so the slices of the others would be slower.
		v.program, v.environment = b.settings.server, []string{"MYTICKET_ORDER_LINES=false"}
	}
	return b.compareVariants(ctx, variants)
}

// beside measures a variant while another process sends the events of its tickets.
func (b *bench) beside(ctx context.Context, url string, v *variant, l load) (err error) {
	if v.target == "" {
		return v.measure(ctx, l, b.database.PID())
	}
	if err := b.subscribe(url, v.target); err != nil {
		return err
	}
	s, err := b.startSender(ctx, url)
	if err != nil {
		return err
	}
	err = v.measure(ctx, l, b.database.PID())
	return errors.Join(err, s.stop(), b.unsubscribe(url))
}

// deliver measures how fast events that wait are sent to JetStream, with everything on this machine.
func (b *bench) deliver(ctx context.Context) error {
	fmt.Fprintf(b.out, "\n%d tickets are stored while nothing sends their events. Then a process sends them to JetStream, which "+
		"stores them in a file; meanwhile no tickets come. Processor time is in µs an event, of the process that sends, of Postgres "+
		"and of NATS.\n\n| tickets of | events/s | least and most | peak memory | processor time |\n|---|--:|--:|--:|--:|\n",
		b.settings.events)
	for _, lines := range []int{2, 40} {
		t := newTickets(lines, b.settings.products)
		if !b.wants(t.name+", events", spoolConcurrency) {
			continue
		}
		var all []float64
		var works []string
		var memory int64
		for range b.settings.rounds {
			d, err := b.deliverOnce(ctx, t)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			all, works, memory = append(all, d.perSecond), append(works, d.work), max(memory, d.memory)
		}
		fmt.Fprintf(b.out, "| %s | **%.0f** | %.0f–%.0f | %s | %s |\n", t.name, median(all), slices.Min(all), slices.Max(all),
			describeMemory(memory), works[len(works)/2])
	}
	return nil
}

// delivery is what one round measured.
type delivery struct {
	perSecond float64
	memory    int64
	work      string
}

func (b *bench) deliverOnce(ctx context.Context, t *tickets) (d delivery, err error) {
	folder, err := os.MkdirTemp("", "myticket-bench-")
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	db, receiver, err := b.fresh(ctx, t.products)
	if err != nil {
		return d, err
	}
	broker, err := startNATS(ctx, folder)
	if err != nil {
		return d, errors.Join(err, receiver.stop())
	}
	defer broker.stop()
	if err := b.subscribe(db.url, broker.target()); err != nil {
		return d, errors.Join(err, receiver.stop())
	}
	l := b.slice(spoolConcurrency, t)
	l.addr, l.count = receiver.addr, b.settings.events
	r, err := l.run(ctx)
	if err = errors.Join(err, receiver.stop()); err != nil {
		return d, err
	}
	s, err := b.startSender(ctx, db.url, "--give-way", "0")
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	pids := []int{s.PID(), b.database.PID(), broker.PID()}
	var begin time.Time
	var had int
	before := cpuTimes(pids)
	err = lab.Await(ctx, deliveryLimit, "the events", func(ctx context.Context) error {
		n, err := broker.messages(ctx)
		if err == nil && n > 0 && begin.IsZero() {
			begin, had = time.Now(), n
		}
		if err == nil && n < r.acked {
			err = fmt.Errorf("%d of %d are delivered", n, r.acked)
		}
		return err
	})
	if err != nil {
		return d, err
	}
	took := time.Since(begin)
	if n, err := broker.messages(ctx); err != nil || n != r.acked {
		return d, errors.Join(err, fmt.Errorf("%d tickets were acknowledged, and the stream has %d messages", r.acked, n))
	}
	var work []string
	for i, after := range cpuTimes(pids) {
		work = append(work, fmt.Sprintf("%.0f", 1e6*(after-before[i]).Seconds()/float64(r.acked)))
	}
	return delivery{float64(r.acked-had) / took.Seconds(), s.peakMemory(), strings.Join(work, " + ")}, nil
}

// cpuTimes returns the processor times of processes and what they started; 0 if the machine does not say.
func cpuTimes(pids []int) []time.Duration {
	times := make([]time.Duration, len(pids))
	for i, pid := range pids {
		times[i], _ = lab.TreeCPUTime(pid)
	}
	return times
}
