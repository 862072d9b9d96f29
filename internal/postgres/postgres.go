// Package postgres is everything that speaks SQL: it keeps tickets, products and idempotency keys in PostgreSQL.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"
)

// Config says how to reach the database.
type Config struct {
	// URL is a libpq connection URI or keyword string
	// (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING). Required, or URLFrom.
	URL string

	// URLFrom returns the URL before each new connection, instead of URL. It is for a URL in a file that may change.
	URLFrom func() (string, error)

	// MaxConns bounds the connections of this process. Pods × MaxConns must stay below the server's max_connections.
	// Defaults to 8.
	MaxConns int32

	// ConnectTimeout bounds making one connection. Defaults to 2 s.
	ConnectTimeout time.Duration

	// ApplicationName is what pg_stat_activity shows. Defaults to "myticket".
	ApplicationName string

	// Sources are the policies for the products that tickets name, by source. Defaults to no limit.
	Sources Sources

	// AuthenticatedProducts makes tickets of authenticated sources overrule all others about a product, whichever is newer.
	// Without Sources no source is authenticated, and a product that comes from an authenticated source stays as it is.
	AuthenticatedProducts bool

	// Traces gets a span for each statement, without its parameters, if the context has a sampled span. Defaults to none.
	Traces trace.TracerProvider

	// Logger defaults to slog.Default.
	Logger *slog.Logger

	readOnly  bool // for a CheckUp: sessions cannot write
	anyServer bool // and one that takes no writes, such as a standby, will do
}

// Store keeps tickets in PostgreSQL. It is safe for use by several goroutines.
type Store struct {
	pool    *pgxpool.Pool
	queries pgx.QueryTracer // nil for none
	logger  *slog.Logger

	newProducts *newProducts
	newGroups   *newGroups
	known       *known
	sources     Sources
	readers     readers
	// authenticated reports whether a source overrules others about products; nil if all sources are equal.
	authenticated func(source string) bool
}

// Open prepares a store. It makes no connection yet, so a server that is away is an error only in the first call. If the URL
// cannot be read, the error does not show it, because it may hold a password.
func Open(ctx context.Context, config Config) (*Store, error) {
	if config.URLFrom == nil {
		config.URLFrom = func() (string, error) { return config.URL, nil }
	}
	if config.MaxConns == 0 {
		config.MaxConns = 8
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 2 * time.Second
	}
	if config.ApplicationName == "" {
		config.ApplicationName = "myticket"
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	in := &login{
		url: config.URLFrom, timeout: config.ConnectTimeout, application: config.ApplicationName,
		logger: config.Logger, anyServer: config.anyServer,
	}
	if config.Traces != nil {
		tracer := otelpgx.NewTracer(otelpgx.WithTracerProvider(config.Traces), otelpgx.WithDisableConnectionDetailsInAttributes())
		in.tracer = statements{tracer, tracer}
	}
	poolConfig, err := in.open()
	if err != nil {
		return nil, err
	}
	poolConfig.MaxConns = config.MaxConns
	poolConfig.MaxConnLifetime = 30 * time.Minute
	poolConfig.MaxConnLifetimeJitter = 5 * time.Minute
	poolConfig.HealthCheckPeriod = 15 * time.Second
	poolConfig.AfterConnect = prepareSession
	if config.readOnly {
		poolConfig.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, checkUpSession)
			return errors.Join(err, prepareSession(ctx, conn))
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("make the connection pool: %w", err)
	}
	s := &Store{
		pool: pool, queries: in.tracer, logger: config.Logger, newProducts: limitNewProducts(config.Sources),
		newGroups: watchNewGroups(config.Sources),
		known:     newKnown(config.AuthenticatedProducts), sources: config.Sources,
	}
	if config.AuthenticatedProducts {
		s.authenticated = config.Sources.authenticated
	}
	return s, nil
}

// statements hides the other methods of a tracer from pgx. With them pgx would make a span for each connection that is taken
// from the pool, and for each lookup of a prepared statement. Those take less time than their spans.
type statements struct {
	pgx.QueryTracer
	pgx.BatchTracer
}

// Describe returns which database a URL means, without secrets.
func Describe(url string) string {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return "unreadable"
	}
	return fmt.Sprintf("%s on %s:%d as %s", config.Database, config.Host, config.Port, config.User)
}

// closeTimeout is how long Close waits. A Postgres that answers needs some milliseconds.
const closeTimeout = 2 * time.Second

// Close waits for the connections that are in use, and closes all connections. It does not wait for a Postgres that hangs, to
// which pgx would give 15 seconds: a process that stops has waited for all that matters.
func (s *Store) Close() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
		s.logger.Debug("connections to a database that does not answer are left to the end of the process")
	}
}

// prepareSession forbids plans that are right only while a table is small. A server may prepare its statements on an empty
// database, and keeps the plans until ANALYZE runs. Every statement of the hot path reads and writes by key, so a sequential
// scan, a hash join or a merge join would become wrong as the tables grow.
//
// It forbids compiling, too (https://www.postgresql.org/docs/current/jit-decision.html): Postgres decides by the cost of all
// rows, and gives a plan that is forbidden and has to be used all the same, such as a sort of a few rows, an enormous cost. It
// compiles code for each partition before the first row, and no timeout ends that: seconds or a minute instead of milliseconds.
//
// It also has Postgres end a transaction whose process was paused before its COMMIT: see settleAfter.
func prepareSession(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
		SET jit = off; SET idle_in_transaction_session_timeout = '10s'`)
	return err
}
