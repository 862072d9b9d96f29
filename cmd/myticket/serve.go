package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime/debug"
	"sync"
	"sync/atomic"
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
	serverFlags `kong:"set='log_format=json',set='http_addr=:9098',set='admin_addr=:9099'"`
}

// serverFlags are the settings of a server, wherever its database is.
type serverFlags struct {
	HTTPAddr    string `name:"http-addr" env:"MYTICKET_HTTP_ADDR" default:"${http_addr}" group:"Listeners" help:"Address of the webhook, /ping and /metrics. Default: ${default}."`
	AdminAddr   string `name:"admin-addr" env:"MYTICKET_ADMIN_ADDR" default:"${admin_addr}" group:"Listeners" help:"Address of the internal listener: /livez, /readyz, /metrics, /debug/pprof. Never let it be reached from outside. Default: ${default}."`
	SourcesFile string `env:"MYTICKET_SOURCES_FILE" type:"path" placeholder:"FILE" group:"Listeners" help:"JSON file with the credentials and rates of sources (docs/webhook.md). Sources that are not in it may not send, unless it has an entry for all others. Default: every source is open."`

	MaxBody               byteSize      `env:"MYTICKET_MAX_BODY" default:"1MiB" group:"Limits" help:"Longest ticket, in bytes; beyond it 413. Default: ${default}."`
	MaxHeader             byteSize      `env:"MYTICKET_MAX_HEADER" default:"8KiB" group:"Limits" help:"Longest headers of a request, in bytes; beyond it 431. Each connection holds a buffer of this size. Default: ${default}."`
	BodyBytes             byteSize      `env:"MYTICKET_BODY_BYTES" default:"0" group:"Limits" help:"Memory of all bodies that are being read or wait for their answer, at least 4 times --max-body; beyond it 503. 0 derives it: an eighth of the memory limit. Default: ${default}."`
	MaxConnections        int           `env:"MYTICKET_MAX_CONNECTIONS" default:"0" group:"Limits" help:"Connections to the webhook at once; beyond it the one that idles longest is closed, and 503 if none does. 0 derives it from the memory limit, 4096 at most. Default: ${default}."`
	MaxConnectionsPerPeer int           `env:"MYTICKET_MAX_CONNECTIONS_PER_PEER" default:"-1" group:"Limits" help:"Connections of one address (IPv6: of one /64) at once; beyond it 429. 0 for no limit, which is right behind a proxy; -1 derives it: a quarter of --max-connections. Default: ${default}."`
	PeerHeader            string        `env:"MYTICKET_PEER_HEADER" placeholder:"NAME" group:"Limits" help:"Header in which the proxy in front names the client's address last, such as X-Forwarded-For. --max-connections-per-peer then bounds the requests of that address instead of its connections. Only where nobody reaches the webhook without the proxy."`
	RequestTimeout        time.Duration `env:"MYTICKET_REQUEST_TIMEOUT" default:"4s" group:"Limits" help:"Longest time from a ticket to its answer; beyond it 503. Senders commonly give up at 5s. Default: ${default}."`
	ReadTimeout           time.Duration `env:"MYTICKET_READ_TIMEOUT" default:"10s" group:"Limits" help:"Longest time that a client may take to send a request; beyond it 408. Default: ${default}."`
	WriteTimeout          time.Duration `env:"MYTICKET_WRITE_TIMEOUT" default:"10s" group:"Limits" help:"Longest time that a client may take to read its answer. Default: ${default}."`
	IdleTimeout           time.Duration `env:"MYTICKET_IDLE_TIMEOUT" default:"75s" group:"Limits" help:"How long a connection may idle between requests; longer than the proxy's in front. Default: ${default}."`

	DatabaseMaxConns int `env:"MYTICKET_DATABASE_MAX_CONNS" default:"8" group:"Database" help:"Connections of this server at most; at least --batches-in-flight and 5. Servers times this must stay below Postgres' max_connections. Default: ${default}."`

	BatchTickets    int           `env:"MYTICKET_BATCH_TICKETS" default:"256" group:"Batching" help:"Tickets in one transaction at most. Default: ${default}."`
	BatchBytes      byteSize      `env:"MYTICKET_BATCH_BYTES" default:"4MiB" group:"Batching" help:"Bytes that the tickets of one transaction may become at most: bodies, what was read, and the rows made of them. One ticket always fits. Default: ${default}."`
	BatchesInFlight int           `env:"MYTICKET_BATCHES_IN_FLIGHT" default:"2" group:"Batching" help:"Transactions under way at once. Default: ${default}."`
	WaitingTickets  int           `env:"MYTICKET_WAITING_TICKETS" default:"10000" group:"Batching" help:"Tickets waiting for a transaction at most; beyond it 503. Default: ${default}."`
	WaitingBytes    byteSize      `env:"MYTICKET_WAITING_BYTES" default:"0" group:"Batching" help:"Bytes that the tickets waiting for a transaction may become at most; beyond it they are spooled, or 503. As much again is for reading them. 0 derives it: a sixteenth of the memory limit. Default: ${default}."`
	KeyTTL          time.Duration `env:"MYTICKET_KEY_TTL" default:"168h" group:"Batching" help:"How long an idempotency key is remembered. Default: ${default}."`

	NewProductsRate       float64 `env:"MYTICKET_NEW_PRODUCTS_RATE" default:"10" group:"Products" help:"Products a second that the tickets of one source may add through this server, where its entry in the sources file says nothing else; a ticket beyond it is stored as ERROR. All sources without an entry share one rate. 0 for no limit. Default: ${default}."`
	NewProductsBurst      int     `env:"MYTICKET_NEW_PRODUCTS_BURST" default:"100000" group:"Products" help:"Products that the tickets of one source may add at once: more than a shop sells. Default: ${default}."`
	AuthenticatedProducts bool    `env:"MYTICKET_AUTHENTICATED_PRODUCTS" group:"Products" help:"What a source says that asks for credentials (docs/webhook.md) is never overruled by one that does not. Default: the newest ticket counts, whoever sent it."`

	SpoolDir        string        `env:"MYTICKET_SPOOL_DIR" type:"path" placeholder:"DIR" group:"Spool" help:"Folder on a durable disk where tickets are kept while Postgres is away or behind (docs/durability.md). One server a folder. Default: none, such tickets are refused with 503."`
	SpoolMaxTickets int           `env:"MYTICKET_SPOOL_MAX_TICKETS" default:"1000000" group:"Spool" help:"Tickets in the spool at most; beyond it 503. Default: ${default}."`
	SpoolMaxBytes   byteSize      `env:"MYTICKET_SPOOL_MAX_BYTES" default:"1GiB" group:"Spool" help:"Bytes in the spool at most; beyond it 503. Its disk should have a quarter more. Default: ${default}."`
	OverflowWait    time.Duration `env:"MYTICKET_OVERFLOW_WAIT" default:"1s" group:"Spool" help:"How long a ticket waits for a transaction before it is spooled. Default: ${default}."`
	DatabaseTimeout time.Duration `env:"MYTICKET_DATABASE_TIMEOUT" default:"2s" group:"Spool" help:"How long a transaction may take before its tickets are spooled; with --overflow-wait less than --request-timeout. Default: ${default}."`

	TreatInterval    time.Duration `env:"MYTICKET_TREAT_INTERVAL" default:"1s" group:"Treatment" help:"Time between looks for tickets that are TO_TREAT and due. Default: ${default}."`
	TreatLease       time.Duration `env:"MYTICKET_TREAT_LEASE" default:"1m" group:"Treatment" help:"How long a claimed ticket is this server's alone. Default: ${default}."`
	TreatMaxAttempts int           `env:"MYTICKET_TREAT_MAX_ATTEMPTS" default:"10" group:"Treatment" help:"Attempts after which a ticket becomes ERROR. Default: ${default}."`
	TreatMinBackOff  time.Duration `env:"MYTICKET_TREAT_MIN_BACK_OFF" default:"1s" group:"Treatment" help:"Wait before the second attempt; it doubles with each. Default: ${default}."`
	TreatMaxBackOff  time.Duration `env:"MYTICKET_TREAT_MAX_BACK_OFF" default:"10m" group:"Treatment" help:"Longest wait before an attempt. Default: ${default}."`

	PartitionPeriod string `env:"MYTICKET_PARTITION_PERIOD" default:"day" enum:"day,week,month" group:"Partitions" help:"What one partition holds, in UTC: day, week or month. Default: ${default}."`
	PartitionsAhead int    `env:"MYTICKET_PARTITIONS_AHEAD" default:"3" group:"Partitions" help:"Partitions made ahead of time. Default: ${default}."`

	ShutdownDelay   time.Duration `env:"MYTICKET_SHUTDOWN_DELAY" default:"0s" group:"Shutdown" help:"How long to go on serving after SIGTERM while not ready, until load balancers have noticed. Default: ${default}."`
	ShutdownTimeout time.Duration `env:"MYTICKET_SHUTDOWN_TIMEOUT" default:"20s" group:"Shutdown" help:"Longest time to finish what is in flight, after --shutdown-delay. Default: ${default}."`

	LogFormat string `env:"MYTICKET_LOG_FORMAT" default:"${log_format}" enum:"json,text" group:"Log" help:"json or text. Default: ${default}."`
	LogLevel  string `env:"MYTICKET_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" group:"Log" help:"debug, info, warn or error. Default: ${default}."`
}

// connsBesides is how many connections a server needs besides those of its batches: for treatment, for maintenance, for
// draining the spool, for batches that the spool does not take, and one to ask whether the database answers, which must
// never wait behind tickets.
const connsBesides = 5

// headerName is a token (RFC 9110, section 5.6.2).
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// Validate is called by kong. Each error names the setting.
func (f *serverFlags) Validate() error {
	for _, s := range []struct {
		name  string
		value int64
		min   int64
	}{
		{"max-body", int64(f.MaxBody), 1},
		{"max-header", int64(f.MaxHeader), 1 << 10},
		{"max-connections", int64(f.MaxConnections), 0},
		{"max-connections-per-peer", int64(f.MaxConnectionsPerPeer), -1},
		{"request-timeout", int64(f.RequestTimeout), int64(100 * time.Millisecond)},
		{"read-timeout", int64(f.ReadTimeout), int64(time.Millisecond)},
		{"write-timeout", int64(f.WriteTimeout), int64(time.Millisecond)},
		{"idle-timeout", int64(f.IdleTimeout), int64(time.Millisecond)},
		{"batch-tickets", int64(f.BatchTickets), 1},
		{"batch-bytes", int64(f.BatchBytes), 1},
		{"batches-in-flight", int64(f.BatchesInFlight), 1},
		{"waiting-tickets", int64(f.WaitingTickets), 1},
		{"waiting-bytes", int64(f.WaitingBytes), 0},
		{"new-products-burst", int64(f.NewProductsBurst), 1},
		{"key-ttl", int64(f.KeyTTL), int64(time.Minute)},
		{"spool-max-tickets", int64(f.SpoolMaxTickets), 1},
		{"spool-max-bytes", int64(f.SpoolMaxBytes), 1 << 20},
		{"overflow-wait", int64(f.OverflowWait), int64(time.Millisecond)},
		{"database-timeout", int64(f.DatabaseTimeout), int64(time.Millisecond)},
		{"treat-interval", int64(f.TreatInterval), int64(10 * time.Millisecond)},
		{"treat-lease", int64(f.TreatLease), int64(time.Second)},
		{"treat-max-attempts", int64(f.TreatMaxAttempts), 1},
		{"treat-min-back-off", int64(f.TreatMinBackOff), int64(time.Millisecond)},
		{"treat-max-back-off", int64(f.TreatMaxBackOff), int64(f.TreatMinBackOff)},
		{"partitions-ahead", int64(f.PartitionsAhead), 1},
		{"shutdown-delay", int64(f.ShutdownDelay), 0},
		{"shutdown-timeout", int64(f.ShutdownTimeout), int64(time.Millisecond)},
		{"database-max-conns", int64(f.DatabaseMaxConns), int64(f.BatchesInFlight + connsBesides)},
	} {
		if s.value < s.min {
			return fmt.Errorf("--%s is too small: %s", s.name, f.smallest(s.name, s.min))
		}
	}
	if !(f.NewProductsRate >= 0 && f.NewProductsRate <= 1_000_000) { // NaN is neither
		return errors.New("--new-products-rate must be 0 to 1000000 a second; 0 is for no limit")
	}
	switch {
	case f.PeerHeader != "" && !headerName.MatchString(f.PeerHeader):
		return fmt.Errorf("--peer-header=%q is no name of a header; X-Forwarded-For is one", f.PeerHeader)
	case f.PeerHeader != "" && f.MaxConnectionsPerPeer == 0:
		return errors.New("--peer-header does nothing with --max-connections-per-peer=0: that is how many requests an address " +
			"may have under way; set it, or leave out --peer-header")
	}
	if limit := 1 << 30; int64(f.MaxBody) > int64(limit) {
		return errors.New("--max-body is too large: Postgres holds no value of more than 1 GiB")
	}
	if f.BodyBytes != 0 && f.BodyBytes < 4*f.MaxBody {
		return fmt.Errorf("--body-bytes is too small: it must be at least 4 times --max-body, which is %d, or 0", 4*f.MaxBody)
	}
	if f.SpoolDir != "" && f.OverflowWait+f.DatabaseTimeout >= f.RequestTimeout {
		return errors.New("--overflow-wait and --database-timeout together must be less than --request-timeout: " +
			"a ticket that Postgres did not take in time must still be spooled in time")
	}
	return nil
}

func (f *serverFlags) smallest(name string, least int64) string {
	switch name {
	case "database-max-conns":
		return fmt.Sprintf("it must be at least --batches-in-flight and %d more, which is %d", connsBesides, least)
	case "treat-max-back-off":
		return "it must be at least --treat-min-back-off"
	case "request-timeout", "read-timeout", "write-timeout", "idle-timeout", "key-ttl", "treat-interval", "treat-lease",
		"overflow-wait", "database-timeout", "treat-min-back-off", "shutdown-delay", "shutdown-timeout":
		return fmt.Sprintf("it must be at least %s", time.Duration(least))
	}
	return fmt.Sprintf("it must be at least %d", least)
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

// gcPercent lets garbage grow to five times what is in use before it is collected, instead of to two times. A server
// uses a few MiB and makes garbage with each ticket, so it collects several times less often for tens of MiB
// (docs/benchmarks.md). GOMEMLIMIT still bounds it all, and GOGC overrules it.
const gcPercent = 400

// serve runs the server on a database until ctx ends, then lets go of nothing that was accepted.
func (f *serverFlags) serve(ctx context.Context, url func() (string, error), logger *slog.Logger) (err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	sources := httpapi.OpenSources()
	if f.SourcesFile != "" {
		if sources, err = httpapi.ReadSources(f.SourcesFile); err != nil {
			return err
		}
	}
	if least := 2 * httpapi.SignatureTolerance; sources.Signed() && f.KeyTTL < least {
		return fmt.Errorf("--key-ttl must be at least %s, because a source signs its tickets: "+
			"a captured one could be sent again as a new ticket once its key is forgotten", least)
	}
	logSources(logger, sources, f.SourcesFile)
	memory, memoryFrom := memoryLimit("")
	limits := f.deriveLimits(memory)
	limits.log(logger, memory, memoryFrom)
	f.warnOfLimits(logger, limits, memory)
	tracing, err := telemetry.NewTracing(ctx, version, logger)
	if err != nil {
		return err
	}
	store, err := postgres.Open(ctx, postgres.Config{
		URLFrom: url, MaxConns: int32(f.DatabaseMaxConns), ApplicationName: "myticket serve", Traces: tracing.Work(), Logger: logger,
		Sources: f.productPolicies(sources), AuthenticatedProducts: f.AuthenticatedProducts,
	})
	if err != nil {
		return err
	}
	defer store.Close()

	registry := telemetry.NewRegistry(version)
	store.Register(registry)
	treater := treatment.New(treatment.Config{
		Interval: f.TreatInterval, Lease: f.TreatLease, MaxAttempts: f.TreatMaxAttempts,
		MinBackOff: f.TreatMinBackOff, MaxBackOff: f.TreatMaxBackOff, Logger: logger,
		Metrics: treatment.NewMetrics(registry),
	}, tracing.TraceTreatment(store))
	queue, err := f.openSpool(logger, registry)
	if err != nil {
		return err
	}
	intakeConfig := intake.Config{
		BatchTickets: f.BatchTickets, BatchBytes: int(f.BatchBytes), BatchesInFlight: f.BatchesInFlight,
		WaitingTickets: f.WaitingTickets, WaitingBytes: limits.waitingBytes, Timeout: f.RequestTimeout,
		KeyTTL: f.KeyTTL, Lease: f.TreatLease, Logger: logger, Metrics: intake.NewMetrics(registry),
		OverflowWait: f.OverflowWait, StoreTimeout: f.DatabaseTimeout,
	}
	if queue != nil {
		intakeConfig.Spool = tracing.TraceSpool(queue)
		defer func() { err = errors.Join(err, queue.Close()) }()
	}
	in := intake.New(intakeConfig, tracing.TraceStore(store), treater)
	in.Register(registry)
	maintainer := postgres.NewMaintainer(
		postgres.MaintainConfig{Period: postgres.Period(f.PartitionPeriod), Ahead: f.PartitionsAhead}, store)
	registry.MustRegister(maintainer)
	webhook := httpapi.New(httpapi.Config{
		MaxBody: int(f.MaxBody), MaxHeader: int(f.MaxHeader), BodyBytes: limits.bodyBytes,
		MaxConnections: limits.connections, MaxPerPeer: limits.perPeer, PeerHeader: f.PeerHeader,
		ReadTimeout: f.ReadTimeout, WriteTimeout: f.WriteTimeout, IdleTimeout: f.IdleTimeout,
		Logger: logger, Registry: registry, Tracer: tracing.Requests(),
	}, in, sources)
	var draining atomic.Bool
	internal := admin.NewServer(registry, func() (bool, []admin.Check) {
		return checks(maintainer, in, queue, draining.Load())
	})

	var listen net.ListenConfig
	webhookListener, err := listen.Listen(ctx, "tcp", f.HTTPAddr)
	if err != nil {
		return fmt.Errorf("listen on --http-addr: %w", err)
	}
	internalListener, err := listen.Listen(ctx, "tcp", f.AdminAddr)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on --admin-addr: %w", err), webhookListener.Close())
	}

	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stopBackground()
	failed := make(chan error, 2)
	parts.Go(func() { maintainer.Run(background) })
	parts.Go(func() { treater.Run(background) })
	if queue != nil {
		parts.Go(func() { queue.Watch(background) })
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
		logger.Info("shutting down: not ready from now on, finishing what is in flight",
			"delay", f.ShutdownDelay.String(), "timeout", f.ShutdownTimeout.String())
		draining.Store(true)
		time.Sleep(f.ShutdownDelay)
	case failure = <-failed:
		draining.Store(true)
	}
	// What follows has its own time: ctx has ended already.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.ShutdownTimeout)
	defer cancel()
	err = errors.Join(failure, webhook.Shutdown(ending), in.Close(ending))
	stopBackground() // treatment finishes the ticket it is at
	err = errors.Join(err, internal.Shutdown(ending))
	if err := tracing.Shutdown(ending); err != nil {
		logger.Warn("the last traces could not be sent; tickets are not affected", "error", err)
	}
	if queue != nil {
		if left := queue.Stats().Tickets; left > 0 {
			logger.Warn("tickets stay in the spool; the next server on this folder drains them, or \"myticket spool drain\"",
				"tickets", left, "folder", f.SpoolDir)
		}
	}
	if err == nil {
		logger.Info("stopped; every ticket that was accepted has been answered")
	}
	return err
}

// productPolicies is what the sources file says about the products that tickets name, and the settings where it says nothing.
func (f *serverFlags) productPolicies(sources *httpapi.Sources) postgres.Sources {
	policies := map[string]postgres.SourcePolicy{}
	for name, entry := range sources.ProductPolicies() {
		policy := postgres.SourcePolicy{
			Label: httpapi.EntryLabel(name), Authenticated: entry.Authenticated,
			NewProductsRate: f.NewProductsRate, NewProductsBurst: f.NewProductsBurst,
		}
		if entry.NewProductsRate != nil {
			policy.NewProductsRate = *entry.NewProductsRate
		}
		if entry.NewProductsBurst != nil {
			policy.NewProductsBurst = *entry.NewProductsBurst
		}
		policies[name] = policy
	}
	return postgres.Sources{Policies: policies, Entry: sources.Entry}
}

// openSpool opens the spool, where there is one.
func (f *serverFlags) openSpool(logger *slog.Logger, registry prometheus.Registerer) (*spool.Spool, error) {
	if f.SpoolDir == "" {
		logger.Warn("no --spool-dir: while Postgres is away, tickets are refused with 503, " +
			"and a sender that does not repeat them loses them")
		return nil, nil //nolint:nilnil // no spool is no error
	}
	queue, err := spool.Open(spool.Config{
		Dir: f.SpoolDir, MaxTickets: f.SpoolMaxTickets, MaxBytes: int64(f.SpoolMaxBytes), Logger: logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open --spool-dir: %w", err)
	}
	queue.Register(registry)
	if have := queue.Stats(); have.Tickets > 0 {
		logger.Info("the spool holds tickets of an earlier process; they are drained now",
			"tickets", have.Tickets, "oldest", have.Oldest)
	}
	return queue, nil
}

// checks is what readiness hangs on: that a ticket can be stored durably right now, in the database or in the spool. A
// database that answers and is not fit for this program keeps a server from being ready in any case: something is wrong
// with the rollout, and the servers before it should stay.
func checks(maintainer *postgres.Maintainer, in *intake.Intake, queue *spool.Spool, draining bool) (bool, []admin.Check) {
	health := maintainer.Health()
	database := admin.Check{Name: "database", OK: true, Detail: "answers"}
	schema := admin.Check{Name: "schema", OK: health.Ready, Detail: health.Schema.String()}
	serving := admin.Check{Name: "serving", OK: !draining, Detail: "accepts tickets"}
	unknown := false // whether the schema is right
	switch {
	case health.Err != nil:
		database = admin.Check{Name: "database", Detail: "does not answer: " + health.Err.Error()}
		schema.Detail = "unknown, because the database does not answer"
		unknown = !health.Misconfigured
	case !in.Available():
		database = admin.Check{Name: "database", Detail: "does not take tickets; it is asked again and again"}
	case health.Schema.Latest == 0:
		database = admin.Check{Name: "database", Detail: "not asked yet"}
		schema.Detail = "not asked yet"
	}
	if draining {
		serving.Detail = "shutting down"
	}
	list := []admin.Check{database, schema, serving}
	if queue == nil {
		return database.OK && schema.OK && serving.OK, list
	}
	have := queue.Stats()
	kept := admin.Check{Name: "spool", OK: have.Failure == nil, Detail: "empty"}
	switch {
	case have.Failure != nil:
		kept.Detail = "takes no tickets: " + have.Failure.Error()
	case !database.OK:
		kept.Detail = fmt.Sprintf("takes the tickets while the database is away; it holds %d", have.Tickets)
	case have.Tickets > 0:
		kept.Detail = fmt.Sprintf("holds %d tickets, the oldest since %s", have.Tickets, have.Oldest.Format(time.RFC3339))
	}
	return serving.OK && (database.OK && schema.OK || kept.OK && (schema.OK || unknown)), append(list, kept)
}
