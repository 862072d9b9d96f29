package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"myticket/internal/lab"
)

// brokerCommand makes this program a NATS server.
const brokerCommand = "nats"

// isBroker reports whether this process is a NATS server.
func isBroker() bool { return len(os.Args) == 4 && os.Args[1] == brokerCommand }

// serveBroker serves NATS with JetStream in a folder until it is told to end.
func serveBroker(addr, folder string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	s, err := natsserver.NewServer(&natsserver.Options{
		Host: at.Addr().String(), Port: int(at.Port()), JetStream: true, StoreDir: folder,
	})
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	s.WaitForShutdown()
	return nil
}

// broker is a NATS server that can be killed and started again.
type broker struct {
	addr, folder string
	log          lab.Tail
	process      *lab.Process
}

// eventsStream is the name of the stream, and the prefix of its subjects.
const eventsStream = "tickets"

func newBroker(ctx context.Context, folder string) (*broker, error) {
	addr, err := lab.FreeAddr(ctx)
	return &broker{addr: addr, folder: folder}, err
}

func (b *broker) target() string { return "nats://" + b.addr + "/" + eventsStream }

// start starts it, and returns when it takes connections and has its streams.
func (b *broker) start(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	command := exec.CommandContext(context.WithoutCancel(ctx), program, brokerCommand, b.addr, b.folder)
	command.Stdout, command.Stderr = &b.log, &b.log
	if b.process, err = lab.Start(command, syscall.SIGKILL); err != nil {
		return err
	}
	err = b.ask(ctx, func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.AccountInfo(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w; the broker's log ends with:\n%s", err, &b.log)
	}
	return nil
}

func (b *broker) kill() {
	if b.process != nil {
		b.process.Kill()
	}
}

// ask asks the server until it answers.
func (b *broker) ask(ctx context.Context, question func(context.Context, jetstream.JetStream) error) error {
	return lab.Await(ctx, time.Minute, "the NATS server", func(ctx context.Context) error {
		conn, err := nats.Connect("nats://" + b.addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			return err
		}
		return question(ctx, js)
	})
}

// makeStream makes a stream that drops nearly no repeats, so that they are counted.
func (b *broker) makeStream(ctx context.Context) error {
	return b.ask(ctx, func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: eventsStream, Subjects: []string{eventsStream + ".>"}, Storage: jetstream.FileStorage,
			Duplicates: 100 * time.Millisecond, // the least
		})
		return err
	})
}

// told is what the broker stored: when each event came first, by its id, and when events came that had come before. The ids of
// products are without their sum.
type told struct {
	first map[string]time.Time
	again []time.Time
}

// told reads the whole stream.
func (b *broker) told(ctx context.Context) (told, error) {
	const atOnce = 5000
	all := told{first: map[string]time.Time{}}
	whole := map[string]bool{}
	conn, err := nats.Connect("nats://" + b.addr)
	if err != nil {
		return all, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return all, err
	}
	stream, err := js.Stream(ctx, eventsStream)
	if err != nil {
		return all, err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return all, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return all, err
	}
	for left := int(info.State.Msgs); left > 0; {
		batch, err := consumer.Fetch(min(left, atOnce), jetstream.FetchMaxWait(time.Minute))
		if err != nil {
			return all, err
		}
		got := 0
		for m := range batch.Messages() {
			got++
			meta, err := m.Metadata()
			if err != nil {
				return all, err
			}
			id := m.Headers().Get(jetstream.MsgIDHeader)
			if whole[id] {
				all.again = append(all.again, meta.Timestamp)
				continue
			}
			whole[id] = true
			if parts := strings.Split(id, "."); len(parts) > 2 {
				id = strings.Join(parts[:len(parts)-1], ".")
			}
			if _, ok := all.first[id]; !ok {
				all.first[id] = meta.Timestamp
			}
		}
		if err := batch.Error(); err != nil {
			return all, err
		}
		if got == 0 {
			return all, errors.New("the broker does not return all that it has")
		}
		left -= got
	}
	return all, nil
}
