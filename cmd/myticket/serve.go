package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"myticket/internal/admin"
	"myticket/internal/httpapi"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/spool"
	"myticket/internal/telemetry"
	"myticket/internal/treatment"
)

// serveCmd is `myticket serve`.
type serveCmd struct {
	databaseFlags
	serverFlags
}

// Run serves until ctx ends.
func (c *serveCmd) Run(ctx context.Context, std streams, command *kong.Context) error {
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
	return c.serve(ctx, c.url, logger)
}

// serve runs the server on a database until ctx ends. Then it finishes all tickets that it accepted.
func (f *serverFlags) serve(ctx context.Context, url func() (string, error), logger *slog.Logger) (err error) {
	sources, err := f.readSources()
	if err == nil {
		err = f.checkKeyTTL(sources)
	}
	if err != nil {
		return err
	}
	logSources(logger, sources, f.SourcesFile)
	memory, memoryFrom := memoryLimit("")
	defer runtime.KeepAlive(make([]byte, reservedHeap))
	limits := f.deriveLimits(memory)
	limits.log(logger, memory, memoryFrom)
	f.warnOfLimits(logger, limits, memory)
	tracing, err := telemetry.NewTracing(ctx, version, logger)
	if err != nil {
		return err
	}
	store, err := postgres.Open(ctx, postgres.Config{
		URLFrom: url, MaxConns: int32(f.DatabaseMaxConns), ApplicationName: postgres.ServeApplication,
		Traces: tracing.Work(), Logger: logger,
		Sources: f.productPolicies(sources), AuthenticatedProducts: f.AuthenticatedProducts,
	})
	if err != nil {
		return err
	}
	defer store.Close()

	registry := telemetry.NewRegistry(version)
	store.Register(registry)
	dialects, unread := f.readDialects(ctx, store, registry)
	treatConfig := treatment.Config{
		Interval: f.TreatInterval, Lease: f.TreatLease, MaxAttempts: f.TreatMaxAttempts,
		MinBackOff: f.TreatMinBackOff, MaxBackOff: f.TreatMaxBackOff, Logger: logger,
		Metrics: treatment.NewMetrics(registry), Parse: dialects.Parse,
	}
	treater := treatment.New(treatConfig, tracing.TraceTreatment(store)) // of tickets that a sender waits for
	queue, err := f.openSpool(logger, registry)
	if err != nil {
		return err
	}
	intakeConfig := intake.Config{
		BatchTickets: f.BatchTickets, BatchBytes: int(f.BatchBytes), BatchesInFlight: f.BatchesInFlight,
		WaitingTickets: f.WaitingTickets, WaitingBytes: limits.waitingBytes, Timeout: f.RequestTimeout,
		KeyTTL: f.KeyTTL, TimeLimit: f.TicketTimeLimit, Lease: f.TreatLease, Logger: logger, Metrics: intake.NewMetrics(registry),
		OverflowWait: f.OverflowWait, StoreTimeout: f.DatabaseTimeout, Parse: dialects.Parse, StartAway: unread,
	}
	if queue != nil {
		intakeConfig.Spool = tracing.TraceSpool(queue)
		defer func() { err = errors.Join(err, queue.Close()) }()
	}
	in := intake.New(intakeConfig, tracing.TraceStore(dialects.Store()), treater) //nolint:contextcheck // it lives until Close
	in.Register(registry)
	treatConfig.Busy = in.Busy
	waiting := treatment.New(treatConfig, tracing.TraceTreatment(dialects.Treatment())) // of tickets that nobody waits for
	maintainer := postgres.NewMaintainer(
		postgres.MaintainConfig{Period: postgres.Period(f.PartitionPeriod), Ahead: f.PartitionsAhead, OrderLines: f.OrderLines}, store)
	registry.MustRegister(maintainer)
	webhook := httpapi.New(httpapi.Config{
		MaxBody: int(f.MaxBody), MaxHeader: int(f.MaxHeader), BodyBytes: limits.bodyBytes,
		MaxConnections: limits.connections, MaxPerPeer: limits.perPeer, PeerHeader: f.PeerHeader,
		ReadTimeout: f.ReadTimeout, WriteTimeout: f.WriteTimeout, IdleTimeout: f.IdleTimeout,
		IgnoreParameters: f.IgnoreParameters, Logger: logger, Registry: registry, Tracer: tracing.Requests(),
	}, in, sources)
	var draining atomic.Bool
	internal := admin.NewServer(registry, func() (bool, []admin.Check) {
		return checks(maintainer, in, queue, draining.Load())
	}, httpapi.OpenAPI)

	var listen net.ListenConfig
	webhookListener, err := listen.Listen(ctx, "tcp", f.HTTPAddr)
	if err != nil {
		return cannotListen("--http-addr", err)
	}
	internalListener, err := listen.Listen(ctx, "tcp", f.AdminAddr)
	if err != nil {
		return errors.Join(cannotListen("--admin-addr", err), webhookListener.Close())
	}

	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stopBackground()
	failed := make(chan error, 2)
	parts.Go(func() { maintainer.Run(background) })
	parts.Go(func() { dialects.Run(background) })
	parts.Go(func() {
		if dialects.Await(background) {
			waiting.Run(background)
		}
	})
	if f.OrderLines {
		lines := postgres.NewOrderLines(postgres.OrderLinesConfig{
			Period: postgres.Period(f.PartitionPeriod), Registry: registry,
			Ready: func() bool { return maintainer.Health().Ready }, Busy: in.Busy,
		}, store)
		parts.Go(func() { lines.Run(background) })
	}
	if queue != nil {
		parts.Go(func() { queue.Watch(background) })
		parts.Go(func() { verifySpool(background, queue, logger) })
	}
	parts.Go(func() {
		if err := webhook.Serve(webhookListener); err != nil {
			failed <- err
		}
	})
	parts.Go(func() {
		if err := internal.Serve(internalListener); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve the internal listener: %w", err)
		}
	})
	logger.Info("serving", "version", version,
		"webhook", webhookListener.Addr().String(), "internal", internalListener.Addr().String())

	var failure error
	select {
	case <-ctx.Done():
		logger.Info("shutting down: not ready from now on, finishing what is in progress; a second Ctrl-C ends at once",
			"delay", f.ShutdownDelay.String(), "timeout", f.ShutdownTimeout.String())
		draining.Store(true)
		again, forget := secondSignal()
		defer forget()
		time.Sleep(f.ShutdownDelay)
		if queue != nil {
			failure = f.awaitDrained(queue, again, failed, logger)
		}
	case failure = <-failed:
		draining.Store(true)
	}
	// The shutdown has a time limit of its own, because ctx may have ended.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.ShutdownTimeout)
	defer cancel()
	err = errors.Join(failure, webhook.Shutdown(ending), in.Close(ending))
	stopBackground() // treatment finishes its present ticket
	err = errors.Join(err, internal.Shutdown(ending))
	if err := tracing.Shutdown(ending); err != nil {
		logger.Warn("the last traces could not be sent; tickets are not affected", "error", err)
	}
	if queue != nil {
		if left := queue.Stats(); left.Tickets > 0 || left.Unverified > 0 {
			logger.Warn("tickets stay in the spool; the next server on this folder drains them, or \"myticket spool drain\"",
				"tickets", left.Tickets, "unverified_files", left.Unverified, "folder", f.SpoolDir)
		}
	}
	if err != nil && ending.Err() != nil {
		err = fmt.Errorf("--shutdown-timeout (%s) is over, and not all is finished: a request without an answer has to be sent again; "+
			"a ticket that was answered 2xx is safe: %w", f.ShutdownTimeout, err)
	}
	if err == nil {
		logger.Info("stopped; every ticket that was accepted has been answered")
	}
	return err
}

// cannotListen explains why a server cannot start.
func cannotListen(flag string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on %s: %w: another process has this port, perhaps another MyTicket. Stop it, or give another "+
			"address with %[1]s", flag, err)
	}
	return fmt.Errorf("listen on %s: %w", flag, err)
}

// secondSignal returns what gets a SIGTERM that asks to stop once more, until forget. A second Ctrl-C ends the process: see main.
func secondSignal() (again <-chan os.Signal, forget func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	return signals, func() { signal.Stop(signals) }
}

// dialectsPatience is how long a server waits for the dialects before it listens. It takes tickets without them, and reads none.
const dialectsPatience = 3 * time.Second

// readDialects reads the dialects. If it cannot now, unread is why, and intake must not read a ticket before they were read.
func (f *serverFlags) readDialects(
	ctx context.Context, store *postgres.Store, registry prometheus.Registerer,
) (dialects *postgres.LiveDialects, unread error) {
	// A server with few connections asks for changes on them, and does not hold one to be told of them.
	dialects = postgres.NewLiveDialects(store, f.DatabaseMaxConns > f.BatchesInFlight+connsBesides)
	registry.MustRegister(dialects)
	ctx, cancel := context.WithTimeout(ctx, dialectsPatience)
	defer cancel()
	return dialects, dialects.Load(ctx)
}

// awaitDrained keeps a server that was told to stop until its spool is empty, for --shutdown-spool-wait at most. Intake goes on
// and drains the spool when Postgres is back. A second signal or a listener that fails ends it.
func (f *serverFlags) awaitDrained(queue *spool.Spool, again <-chan os.Signal, failed <-chan error, logger *slog.Logger) error {
	over := time.After(f.ShutdownSpoolWait)
	for said := false; ; said = true {
		left := queue.Stats()
		if left.Tickets == 0 && left.Unverified == 0 {
			return nil
		}
		if !said && f.ShutdownSpoolWait > 0 {
			logger.Warn("the spool holds tickets: serving until they are in Postgres, then stopping; a second SIGTERM stops at once",
				"tickets", left.Tickets, "unverified_files", left.Unverified, "for", f.ShutdownSpoolWait.String(), "folder", f.SpoolDir)
		}
		select {
		case <-over:
			return nil
		case <-again:
			return nil
		case err := <-failed:
			return err
		case <-time.After(spoolLook):
		}
	}
}

// spoolLook is the time between two looks at a spool that is to become empty.
const spoolLook = 100 * time.Millisecond

// openSpool opens the spool. Without --spool-dir it returns nil.
func (f *serverFlags) openSpool(logger *slog.Logger, registry prometheus.Registerer) (*spool.Spool, error) {
	if f.SpoolDir == "" {
		logger.Warn("no --spool-dir: while Postgres is away, tickets are refused with 503, " +
			"and are lost unless their senders send them again")
		return nil, nil //nolint:nilnil // no spool is no error
	}
	queue, err := spool.Open(spool.Config{
		Dir: f.SpoolDir, MaxTickets: f.SpoolMaxTickets, MaxBytes: int64(f.SpoolMaxBytes), Logger: logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open --spool-dir: %w", err)
	}
	queue.Register(registry)
	if have := queue.Stats(); have.Tickets > 0 || have.Unverified > 0 {
		logger.Info("the spool holds tickets of an earlier process; its files are verified and drained now",
			"tickets", have.Tickets, "oldest", have.Oldest, "unverified_files", have.Unverified)
	}
	return queue, nil
}

// verifySpool verifies what an earlier process left in the spool, while the server takes tickets.
func verifySpool(ctx context.Context, queue *spool.Spool, logger *slog.Logger) {
	start, files := time.Now(), queue.Stats().Unverified
	switch err := queue.Verify(ctx); {
	case ctx.Err() != nil: // the next server verifies the rest
	case err != nil:
		logger.Error("files of the spool cannot be read; their tickets stay in them, and a repeated delivery of one may get "+
			"another id; the server keeps trying", "error", err)
	case files > 0:
		logger.Info("the files of the spool are verified", "files", files, "took", time.Since(start).Round(time.Millisecond).String())
	}
}
