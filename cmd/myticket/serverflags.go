package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// serverFlags are the settings of a server, except for its database URL.
type serverFlags struct {
	HTTPAddr    string `name:"http-addr" env:"MYTICKET_HTTP_ADDR" default:":9098" group:"Listeners" help:"Address of the webhook, /ping and /metrics. Default: ${default}."`
	AdminAddr   string `name:"admin-addr" env:"MYTICKET_ADMIN_ADDR" default:":9099" group:"Listeners" help:"Address of the internal listener: /livez, /readyz, /metrics, /openapi.yaml, /debug/pprof. It must not be reachable from outside. Default: ${default}."`
	SourcesFile string `env:"MYTICKET_SOURCES_FILE" placeholder:"FILE" group:"Listeners" help:"JSON file with the credentials and rates of sources (docs/webhook.md). A source that is not in the file may not send, unless the file has an entry for all others. Default: no credentials are needed."`

	IgnoreParameters []string `env:"MYTICKET_IGNORE_PARAMETERS" placeholder:"NAME" group:"Listeners" help:"Parameters of the webhook's URL that are ignored, separated by commas, for senders that add some and cannot be changed (docs/webhook.md). * means all. Default: none, so a ticket that is posted with a parameter is answered 400."`

	MaxBody               byteSize      `env:"MYTICKET_MAX_BODY" default:"1MiB" group:"Limits" help:"Maximum size of a ticket, in bytes. A larger one is answered 413. Default: ${default}."`
	MaxHeader             byteSize      `env:"MYTICKET_MAX_HEADER" default:"8KiB" group:"Limits" help:"Maximum size of a request's headers, in bytes. Larger ones are answered 431. Each connection holds a buffer of this size. Default: ${default}."`
	BodyBytes             byteSize      `env:"MYTICKET_BODY_BYTES" default:"0" group:"Limits" help:"Memory for all bodies that are being read or wait for their answer, at least 4 times --max-body. Tickets beyond it are answered 503. 0 derives it: an eighth of the memory limit. Default: ${default}."`
	MaxConnections        int           `env:"MYTICKET_MAX_CONNECTIONS" default:"0" group:"Limits" help:"Maximum open connections to the webhook. A new one beyond it replaces the one that has idled longest, or else one whose request arrives slowly. If there is none, it is answered 503. 0 derives it from the memory limit, at most 4096. Default: ${default}."`
	MaxConnectionsPerPeer int           `env:"MYTICKET_MAX_CONNECTIONS_PER_PEER" default:"-1" group:"Limits" help:"Maximum open connections from one address (IPv6: from one /64). More are answered 429. 0 means no limit; use it behind a proxy. -1 derives it: a quarter of --max-connections. Default: ${default}."`
	PeerHeader            string        `env:"MYTICKET_PEER_HEADER" placeholder:"NAME" group:"Limits" help:"Header in which the proxy in front puts the client's address last, such as X-Forwarded-For. --max-connections-per-peer then limits the requests of that address instead of its connections. Use it only if the webhook can be reached only through the proxy."`
	RequestTimeout        time.Duration `env:"MYTICKET_REQUEST_TIMEOUT" default:"4s" group:"Limits" help:"Longest time from a ticket to its answer. After it the answer is 503. Senders commonly give up after 5s. Default: ${default}."`
	ReadTimeout           time.Duration `env:"MYTICKET_READ_TIMEOUT" default:"10s" group:"Limits" help:"Longest time that a client may take to send a request. After it the answer is 408. Default: ${default}."`
	WriteTimeout          time.Duration `env:"MYTICKET_WRITE_TIMEOUT" default:"10s" group:"Limits" help:"Longest time that a client may take to read its answer. Default: ${default}."`
	IdleTimeout           time.Duration `env:"MYTICKET_IDLE_TIMEOUT" default:"75s" group:"Limits" help:"How long a connection may idle between requests. Set it longer than the idle timeout of the proxy in front. Default: ${default}."`

	DatabaseMaxConns int `env:"MYTICKET_DATABASE_MAX_CONNS" default:"8" group:"Database" help:"Maximum connections of this server to Postgres, at least --batches-in-flight plus 5. All servers together must stay below Postgres' max_connections. Default: ${default}."`

	BatchTickets    int           `env:"MYTICKET_BATCH_TICKETS" default:"256" group:"Batching" help:"Maximum tickets in one transaction. Default: ${default}."`
	BatchBytes      byteSize      `env:"MYTICKET_BATCH_BYTES" default:"4MiB" group:"Batching" help:"Maximum bytes of the tickets in one transaction: their bodies, what was read from them, and their rows. One ticket always fits. Default: ${default}."`
	BatchesInFlight int           `env:"MYTICKET_BATCHES_IN_FLIGHT" default:"2" group:"Batching" help:"Transactions in progress at the same time. Default: ${default}."`
	WaitingTickets  int           `env:"MYTICKET_WAITING_TICKETS" default:"10000" group:"Batching" help:"Maximum tickets that wait for a transaction. More are answered 503. Default: ${default}."`
	WaitingBytes    byteSize      `env:"MYTICKET_WAITING_BYTES" default:"0" group:"Batching" help:"Maximum bytes of the tickets that wait for a transaction: their bodies, what was read from them, and their rows. More are spooled, or answered 503. The same amount again is for reading them. 0 derives it: a sixteenth of the memory limit. Default: ${default}."`
	KeyTTL          time.Duration `env:"MYTICKET_KEY_TTL" default:"168h" group:"Batching" help:"How long an idempotency key is remembered. Default: ${default}."`
	TicketTimeLimit time.Duration `env:"MYTICKET_TICKET_TIME_LIMIT" default:"720h" group:"Batching" help:"How long ago a ticket may be by its header Ticket-Time (docs/webhook.md). An older one counts as that old. Keep it shorter than the retention. Default: ${default}."`

	NewProductsRate       float64 `env:"MYTICKET_NEW_PRODUCTS_RATE" default:"10" group:"Products" help:"Products a second that the tickets of one source may add through this server, unless its entry in the sources file has another value. A ticket beyond it is stored as ERROR. All sources without an entry share one rate. 0 means no limit. Default: ${default}."`
	NewProductsBurst      int     `env:"MYTICKET_NEW_PRODUCTS_BURST" default:"100000" group:"Products" help:"Products that the tickets of one source may add at once. The default is more than a shop sells. Default: ${default}."`
	AuthenticatedProducts bool    `env:"MYTICKET_AUTHENTICATED_PRODUCTS" group:"Products" help:"A source that asks for no credentials never overrules a source that asks for them (docs/server.md). Default: the newest ticket counts, whichever source it is from."`

	testSourcesFlag

	SpoolDir        string        `env:"MYTICKET_SPOOL_DIR" placeholder:"DIR" group:"Spool" help:"Folder on a durable disk that keeps tickets while Postgres is away or behind (docs/durability.md). Each server needs a folder of its own. Default: none, so such tickets are refused with 503. It is made if it is missing, but not the folders above it."`
	SpoolMaxTickets int           `env:"MYTICKET_SPOOL_MAX_TICKETS" default:"1000000" group:"Spool" help:"Maximum tickets in the spool. More are answered 503, unless Postgres takes them. Default: ${default}."`
	SpoolMaxBytes   byteSize      `env:"MYTICKET_SPOOL_MAX_BYTES" default:"1GiB" group:"Spool" help:"Maximum bytes in the spool. More are answered 503, unless Postgres takes them. The disk should have a quarter more. Default: ${default}."`
	OverflowWait    time.Duration `env:"MYTICKET_OVERFLOW_WAIT" default:"1s" group:"Spool" help:"How long a ticket waits for a transaction before it is spooled. Default: ${default}."`
	DatabaseTimeout time.Duration `env:"MYTICKET_DATABASE_TIMEOUT" default:"2s" group:"Spool" help:"How long a transaction may take before its tickets are spooled. Together with --overflow-wait it must be less than --request-timeout. Default: ${default}."`

	TreatInterval    time.Duration `env:"MYTICKET_TREAT_INTERVAL" default:"1s" group:"Treatment" help:"Time between searches for tickets that are TO_TREAT and due. Default: ${default}."`
	TreatLease       time.Duration `env:"MYTICKET_TREAT_LEASE" default:"1m" group:"Treatment" help:"How long only this server may treat a ticket that it has claimed. Default: ${default}."`
	TreatMaxAttempts int           `env:"MYTICKET_TREAT_MAX_ATTEMPTS" default:"10" group:"Treatment" help:"Attempts after which a ticket becomes ERROR. Default: ${default}."`
	TreatMinBackOff  time.Duration `env:"MYTICKET_TREAT_MIN_BACK_OFF" default:"1s" group:"Treatment" help:"Wait before the second attempt. It doubles with each further attempt. Default: ${default}."`
	TreatMaxBackOff  time.Duration `env:"MYTICKET_TREAT_MAX_BACK_OFF" default:"10m" group:"Treatment" help:"Longest wait before an attempt. Default: ${default}."`

	OrderLines bool `env:"MYTICKET_ORDER_LINES" default:"true" negatable:"" group:"Order lines" help:"Fill the view order_lines, for SQL and Grafana, a moment behind the tickets. One of the servers does so, and gives way while tickets wait to be stored. Default: ${default}."`

	PartitionPeriod string `env:"MYTICKET_PARTITION_PERIOD" default:"day" enum:"day,week,month" group:"Partitions" help:"Period of one partition, in UTC: day, week or month. Default: ${default}."`
	PartitionsAhead int    `env:"MYTICKET_PARTITIONS_AHEAD" default:"3" group:"Partitions" help:"Partitions to create ahead of time. Default: ${default}."`

	ShutdownDelay     time.Duration `env:"MYTICKET_SHUTDOWN_DELAY" default:"0s" group:"Shutdown" help:"How long to keep serving after SIGTERM while not ready, until load balancers have noticed. Default: ${default}."`
	ShutdownSpoolWait time.Duration `env:"MYTICKET_SHUTDOWN_SPOOL_WAIT" default:"0s" group:"Shutdown" help:"Longest time to keep serving, after --shutdown-delay, while the spool holds tickets because Postgres is away. What is left then stays in the folder for the next server on it, if there is one. A second SIGTERM ends the wait. Default: ${default}."`
	ShutdownTimeout   time.Duration `env:"MYTICKET_SHUTDOWN_TIMEOUT" default:"20s" group:"Shutdown" help:"Longest time to finish what is in progress, after --shutdown-delay and --shutdown-spool-wait. Default: ${default}."`

	LogFormat string `env:"MYTICKET_LOG_FORMAT" default:"json" enum:"json,text" group:"Log" help:"json or text. Default: ${default}."`
	LogLevel  string `env:"MYTICKET_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" group:"Log" help:"debug, info, warn or error. Default: ${default}."`
}

// connsBesides is how many connections a server needs besides those of its batches: one each for treatment, for maintenance,
// for draining the spool, for batches that the spool does not take, and for checking whether the database answers. That check
// must never wait behind tickets. Filling order lines takes one only while two are free. A server with one more holds it to be
// told of new dialects.
const connsBesides = 5

// headerName is a token (RFC 9110, section 5.6.2).
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// Validate is called by kong. Each error names the setting.
func (f *serverFlags) Validate() error {
	if err := f.smallest(); err != nil {
		return err
	}
	if !(f.NewProductsRate >= 0 && f.NewProductsRate <= 1_000_000) { // also if it is NaN
		return errors.New("--new-products-rate must be 0 to 1000000 a second; 0 means no limit")
	}
	switch {
	case f.PeerHeader != "" && !headerName.MatchString(f.PeerHeader):
		return fmt.Errorf("--peer-header=%q is not the name of a header, such as X-Forwarded-For", f.PeerHeader)
	case f.PeerHeader != "" && f.MaxConnectionsPerPeer == 0:
		return errors.New("--peer-header has no effect with --max-connections-per-peer=0, which means no limit: set " +
			"--max-connections-per-peer to the requests that an address may have in progress, or leave out --peer-header")
	}
	for _, name := range f.IgnoreParameters {
		if name == "" || strings.ContainsAny(name, "?&=#% ") {
			return fmt.Errorf("--ignore-parameters: %q is not the name of a parameter, such as utm_source", name)
		}
	}
	if limit := 1 << 30; int64(f.MaxBody) > int64(limit) {
		return errors.New("--max-body is too large: Postgres stores no value of more than 1 GiB")
	}
	if f.BodyBytes != 0 && f.BodyBytes < 4*f.MaxBody {
		return fmt.Errorf("--body-bytes is too small: it must be 0, or at least 4 times --max-body, which is %d", 4*f.MaxBody)
	}
	if f.SpoolDir != "" && f.OverflowWait+f.DatabaseTimeout >= f.RequestTimeout {
		return errors.New("--overflow-wait and --database-timeout together must be less than --request-timeout: " +
			"a ticket that Postgres did not take in time must still be spooled in time")
	}
	return nil
}

// smallest returns an error for a setting that is below the least that makes sense.
func (f *serverFlags) smallest() error {
	for _, s := range []struct {
		name         string
		value, least time.Duration
	}{
		{"request-timeout", f.RequestTimeout, 100 * time.Millisecond},
		{"read-timeout", f.ReadTimeout, time.Millisecond},
		{"write-timeout", f.WriteTimeout, time.Millisecond},
		{"idle-timeout", f.IdleTimeout, time.Millisecond},
		{"key-ttl", f.KeyTTL, time.Minute},
		{"ticket-time-limit", f.TicketTimeLimit, time.Minute},
		{"overflow-wait", f.OverflowWait, time.Millisecond},
		{"database-timeout", f.DatabaseTimeout, time.Millisecond},
		{"treat-interval", f.TreatInterval, 10 * time.Millisecond},
		{"treat-lease", f.TreatLease, time.Second},
		{"treat-min-back-off", f.TreatMinBackOff, time.Millisecond},
		{"shutdown-delay", f.ShutdownDelay, 0},
		{"shutdown-spool-wait", f.ShutdownSpoolWait, 0},
		{"shutdown-timeout", f.ShutdownTimeout, time.Millisecond},
	} {
		if s.value < s.least {
			return fmt.Errorf("--%s is too small: it must be at least %s", s.name, s.least)
		}
	}
	for _, s := range []struct {
		name         string
		value, least int
	}{
		{"max-body", int(f.MaxBody), 1},
		{"max-header", int(f.MaxHeader), 1 << 10},
		{"max-connections", f.MaxConnections, 0},
		{"max-connections-per-peer", f.MaxConnectionsPerPeer, -1},
		{"batch-tickets", f.BatchTickets, 1},
		{"batch-bytes", int(f.BatchBytes), 1},
		{"batches-in-flight", f.BatchesInFlight, 1},
		{"waiting-tickets", f.WaitingTickets, 1},
		{"waiting-bytes", int(f.WaitingBytes), 0},
		{"new-products-burst", f.NewProductsBurst, 1},
		{"spool-max-tickets", f.SpoolMaxTickets, 1},
		{"spool-max-bytes", int(f.SpoolMaxBytes), 1 << 20},
		{"treat-max-attempts", f.TreatMaxAttempts, 1},
		{"partitions-ahead", f.PartitionsAhead, 1},
	} {
		if s.value < s.least {
			return fmt.Errorf("--%s is too small: it must be at least %d", s.name, s.least)
		}
	}
	if f.TreatMaxBackOff < f.TreatMinBackOff {
		return errors.New("--treat-max-back-off is too small: it must be at least --treat-min-back-off")
	}
	if least := f.BatchesInFlight + connsBesides; f.DatabaseMaxConns < least {
		return fmt.Errorf("--database-max-conns is too small: it must be at least --batches-in-flight and %d more, which is %d",
			connsBesides, least)
	}
	return nil
}
