package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"myticket/internal/admin"
	"myticket/internal/events"
	"myticket/internal/postgres"
	"myticket/internal/telemetry"
	"myticket/internal/ticket"
)

// eventsCmd is `myticket events`. It has a process of its own, so that targets' secrets, and the time and memory that sending
// takes, are not in the servers of the webhook.
type eventsCmd struct {
	databaseFlags
	testSourcesFlag
	SubscriptionsFile string        `env:"MYTICKET_SUBSCRIPTIONS_FILE" placeholder:"FILE" group:"Events" help:"YAML or JSON file with subscriptions (docs/events.md). They are created and changed as it says, also when the file changes. One that is not in it any more is paused. Default: none; subscriptions that people make are served in any case."`
	AdminAddr         string        `name:"admin-addr" env:"MYTICKET_ADMIN_ADDR" default:":9099" group:"Listeners" help:"Address of the internal listener: /livez, /readyz, /metrics, /debug/pprof. It must not be reachable from outside. Default: ${default}."`
	DatabaseMaxConns  int           `env:"MYTICKET_DATABASE_MAX_CONNS" default:"8" group:"Database" help:"Maximum connections of this process to Postgres. Each subscription that it sends for uses one or two at a time. Default: ${default}."`
	GiveWay           time.Duration `env:"MYTICKET_GIVE_WAY" default:"10s" group:"Events" help:"Age of waiting events up to which sending gives way to a burst of tickets: while many tickets are being stored it takes a fortieth of the time at first, and more the older they are. 0 means that it never gives way. Default: ${default}."`
	ShutdownTimeout   time.Duration `env:"MYTICKET_SHUTDOWN_TIMEOUT" default:"20s" group:"Shutdown" help:"Longest time to finish what is being sent after SIGTERM. What is not finished is sent again by another process. Default: ${default}."`
	LogFormat         string        `env:"MYTICKET_LOG_FORMAT" default:"json" enum:"json,text" group:"Log" help:"json or text. Default: ${default}."`
	LogLevel          string        `env:"MYTICKET_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" group:"Log" help:"debug, info, warn or error. Default: ${default}."`
}

// Help is shown by --help.
func (*eventsCmd) Help() string {
	return "Several processes share the subscriptions. When one is killed, another one goes on within seconds; the last events " +
		"may be sent twice then, with the same ids."
}

// Validate is called by kong.
func (c *eventsCmd) Validate() error {
	switch {
	case c.DatabaseMaxConns < 2:
		return errors.New("--database-max-conns is too small: it must be at least 2")
	case c.GiveWay < 0:
		return errors.New("--give-way must not be negative: 0 means that sending never gives way")
	case c.ShutdownTimeout < time.Millisecond:
		return errors.New("--shutdown-timeout is too small: it must be at least 1ms")
	}
	return nil
}

// Run sends events until ctx ends.
func (c *eventsCmd) Run(ctx context.Context, std streams, command *kong.Context) error {
	url, err := c.url()
	if err != nil {
		return err
	}
	logger, err := telemetry.NewLogger(std.stderr, c.LogFormat, c.LogLevel)
	if err != nil {
		return err
	}
	logSettings(logger, command, url)
	warnSecretsInArgs(logger, command.Args)
	var declared []events.Subscription
	if c.SubscriptionsFile != "" {
		if declared, err = readSubscriptionsFile(c.SubscriptionsFile); err != nil {
			return err
		}
	}
	store, err := postgres.Open(ctx, postgres.Config{
		URLFrom: c.url, MaxConns: int32(c.DatabaseMaxConns), ApplicationName: "myticket events", Logger: logger,
		Sources: postgres.Sources{Tests: c.testSources()},
	})
	if err != nil {
		return err
	}
	defer store.Close()
	return c.send(ctx, store, declared, logger)
}

// send runs the parts of the process until ctx ends.
func (c *eventsCmd) send(ctx context.Context, store *postgres.Store, declared []events.Subscription, logger *slog.Logger) error {
	registry := telemetry.NewRegistry(version)
	health := &eventsHealth{store: store}
	internal := admin.NewServer(registry, health.checks, nil)
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", c.AdminAddr)
	if err != nil {
		return cannotListen("--admin-addr", err)
	}
	sender := c.newSender(store, registry, logger)

	sending, stop := context.WithCancel(ctx)
	defer stop()
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stopServing()
	failed := make(chan error, 1)
	parts.Go(func() { health.watch(serving) })
	parts.Go(func() {
		if err := internal.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve the internal listener: %w", err)
		}
	})
	if c.SubscriptionsFile != "" {
		d := declarer{store: store, logger: logger, file: c.SubscriptionsFile, wanted: declared}
		parts.Go(func() { d.run(sending) })
	}
	ended := make(chan struct{})
	parts.Go(func() {
		defer close(ended)
		sender.Run(sending)
	})
	logger.Info("sending events", "version", version, "internal", listener.Addr().String())

	var failure error
	select {
	case <-ctx.Done():
		logger.Info("shutting down: finishing what is being sent; a second Ctrl-C ends at once", "timeout", c.ShutdownTimeout.String())
	case failure = <-failed:
	}
	health.draining.Store(true)
	stop()
	<-ended
	stopServing()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := internal.Shutdown(ending); err != nil && failure == nil {
		_ = internal.Close() // somebody still reads a profile
	}
	if failure == nil {
		logger.Info("stopped; what was delivered is noted, and the rest is sent by another process, or later")
	}
	return failure
}

func (c *eventsCmd) newSender(store *postgres.Store, registry prometheus.Registerer, logger *slog.Logger) *events.Sender {
	giveWay := c.GiveWay
	if giveWay == 0 {
		giveWay = -1 // never
	}
	return events.NewSender(events.SenderConfig{
		Store: store, Open: targets{logger: logger, open: openTarget}.forSubscription,
		Registry: registry, Logger: logger, GiveWay: giveWay, Grace: c.ShutdownTimeout,
	})
}

// How often it is looked whether the database answers and whether the file changed, and how long an answer may take.
const (
	eventsWatch  = 2 * time.Second
	eventsAnswer = 5 * time.Second
	fileInterval = 10 * time.Second
)

// eventsHealth says whether the database can be used.
type eventsHealth struct {
	store    *postgres.Store
	found    atomic.Pointer[eventsFound] // nil before the first look
	draining atomic.Bool
}

type eventsFound struct {
	schema postgres.SchemaStatus
	err    error
}

func (h *eventsHealth) watch(ctx context.Context) {
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, eventsAnswer)
		schema, err := h.store.Schema(limited)
		cancel()
		h.found.Store(&eventsFound{schema, err})
		select {
		case <-ctx.Done():
		case <-time.After(eventsWatch):
		}
	}
}

// checks is for the internal listener. Whether targets answer is not checked, because a restart would not help.
func (h *eventsHealth) checks() (bool, []admin.Check) {
	found := h.found.Load()
	if found == nil {
		found = &eventsFound{err: errors.New("not asked yet")}
	}
	database := admin.Check{Name: "database", OK: true, Detail: "answers"}
	schema := admin.Check{Name: "schema", OK: found.schema.Ready(), Detail: found.schema.String()}
	if found.err != nil {
		database = admin.Check{Name: "database", Detail: "does not answer: " + found.err.Error()}
		schema = admin.Check{Name: "schema", Detail: "unknown, because the database does not answer"}
	}
	sending := admin.Check{Name: "sending", OK: !h.draining.Load(), Detail: "sends events"}
	if !sending.OK {
		sending.Detail = "shutting down"
	}
	return database.OK && schema.OK && sending.OK, []admin.Check{database, schema, sending}
}

// declarer makes the subscriptions of the database what a file says.
type declarer struct {
	store  *postgres.Store
	logger *slog.Logger
	file   string
	wanted []events.Subscription // what the file says
	away   bool                  // the database was away at the last attempt
}

// run declares what the file said at the start, and later what it says when it has changed. It tries again until it succeeds.
func (d *declarer) run(ctx context.Context) {
	done, away := d.declare(ctx)
	for {
		pause := fileInterval
		if away { // a new subscription gets only what is stored after it is there
			pause = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		now, err := readSubscriptionsFile(d.file)
		switch {
		case err != nil:
			d.logger.Error("the subscriptions file cannot be used, so the subscriptions stay as they are; it is read again", "error", err)
			continue
		case !reflect.DeepEqual(now, d.wanted):
			d.wanted, done = now, false
		}
		if !done {
			done, away = d.declare(ctx)
		}
	}
}

// declare reports whether the database is as the file says, and if not, whether the database is away.
func (d *declarer) declare(ctx context.Context) (done, away bool) {
	host, _ := os.Hostname()
	by := postgres.Person{Who: "myticket events@" + host, Why: "the subscriptions file"}
	changes, err := d.store.DeclareSubscriptions(ctx, by, d.wanted)
	if len(changes.Created)+len(changes.Changed)+len(changes.Resumed)+len(changes.Paused) > 0 {
		d.logger.Info("the subscriptions are now as the file says", "created", changes.Created, "changed", changes.Changed,
			"resumed", changes.Resumed, "paused", changes.Paused)
	}
	away = errors.Is(err, ticket.ErrUnavailable)
	if err != nil && ctx.Err() == nil && !(away && d.away) {
		d.logger.Error("the subscriptions of the file are not all in the database; those that are there are served, and it is tried "+
			"again", "error", err)
	}
	d.away = away
	return err == nil, away
}
