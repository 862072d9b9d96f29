package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// CheckUp looks into a database for an operator (myticket doctor). It changes nothing: all its transactions are read-only. Of the
// store's methods, those that only read may be called, too. Each method may fail by itself, for example for lack of a right.
type CheckUp struct {
	*Store

	Server DatabaseServer
}

// DatabaseServer is what a connection says about the server behind it.
type DatabaseServer struct {
	Version           string // as "17.2"
	VersionNumber     int    // as 170002
	Address           string // which database it is, without secrets
	Standby           bool   // it is in recovery, so it takes no writes
	ReadOnlyByDefault bool   // default_transaction_read_only
	Superuser         bool   // of the role
	TLS               string // the version of TLS; empty if the connection is not encrypted
	Verified          bool   // the server's certificate was verified
	Local             bool   // the server is on this machine
	// Settings are the values that a new session has.
	Settings map[string]string
}

// checkUpSession makes a session that cannot write, and that neither waits nor works for long.
const checkUpSession = `SET default_transaction_read_only = on; SET lock_timeout = '2s'; SET statement_timeout = '10s'`

// settingsOfInterest are those that DatabaseServer has.
var settingsOfInterest = []string{
	"fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names", "autovacuum", "autovacuum_freeze_max_age",
	"statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout", "default_transaction_read_only",
	"max_connections", "superuser_reserved_connections", "reserved_connections",
}

const describeServer = `
SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),
       coalesce((SELECT rolsuper FROM pg_roles WHERE rolname = current_user), false),
       (SELECT jsonb_object_agg(name, reset_val) FROM pg_settings WHERE name = ANY ($1))`

// OpenCheckUp connects as a server does, and waits for a database that cannot be reached for at most wait: see Await. If the
// database takes no writes, which a server would not accept, it looks into that.
func OpenCheckUp(ctx context.Context, config Config, wait time.Duration, waiting func(why error)) (*CheckUp, error) {
	config.MaxConns, config.readOnly = 2, true
	store, err := Open(ctx, config)
	if err != nil {
		return nil, err
	}
	err = store.Await(ctx, wait, waiting)
	if errors.Is(err, pgconn.ErrReadOnlyConnection) {
		store.Close()
		config.anyServer = true
		if store, err = Open(ctx, config); err != nil {
			return nil, err
		}
		err = store.Await(ctx, wait, waiting)
	}
	if err == nil {
		c := &CheckUp{Store: store}
		if err = c.describe(ctx); err == nil {
			return c, nil
		}
		err = explain("ask the database what it is", err)
	}
	store.Close()
	return nil, err
}

func (c *CheckUp) describe(ctx context.Context) error {
	return c.pool.AcquireFunc(ctx, func(pooled *pgxpool.Conn) error {
		conn, s := pooled.Conn(), &c.Server
		config := conn.Config()
		s.Address = fmt.Sprintf("database %s on %s as %s", config.Database, server(config.Host, config.Port), config.User)
		wire := conn.PgConn().Conn()
		if encrypted, ok := wire.(*tls.Conn); ok {
			s.TLS, s.Verified = tls.VersionName(encrypted.ConnectionState().Version), encryptionOf(config.TLSConfig) > 1
		}
		address, isIP := wire.RemoteAddr().(*net.TCPAddr)
		s.Local = !isIP || address.IP.IsLoopback()
		err := conn.QueryRow(ctx, describeServer, settingsOfInterest).
			Scan(&s.Version, &s.VersionNumber, &s.Standby, &s.Superuser, &s.Settings)
		s.Version, _, _ = strings.Cut(s.Version, " ") // without the name of a distribution
		s.ReadOnlyByDefault = s.Settings["default_transaction_read_only"] == "on"
		return err
	})
}

// read runs a read-only transaction in UTC.
func (c *CheckUp) read(ctx context.Context, doing string, read func(pgx.Tx) error) error {
	return explain(doing, pgx.BeginTxFunc(ctx, c.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'`); err != nil {
			return err
		}
		return read(tx)
	}))
}

// Obstacle is what keeps a process from working with a database.
type Obstacle int

// The obstacles that an error can tell.
const (
	UnknownObstacle Obstacle = iota
	NoSuchHost
	NoAnswer
	BadEncryption
	LoginRefused
	NoSuchDatabase
	NoConnectionLeft
	Starting
	WrongURL
)

// ObstacleOf returns what an error of OpenCheckUp means.
func ObstacleOf(err error) Obstacle {
	var dns *net.DNSError
	var parse *pgconn.ParseConfigError
	switch {
	case isCode(err, "28", insufficientPrivilege):
		return LoginRefused
	case isCode(err, invalidCatalogName):
		return NoSuchDatabase
	case isCode(err, "53"):
		return NoConnectionLeft
	case isCode(err, cannotConnectNow):
		return Starting
	case sqlState(err) != "":
		return UnknownObstacle
	case errors.As(err, &parse), errors.Is(err, errAtInPassword):
		return WrongURL
	case isTLS(err):
		return BadEncryption
	case errors.As(err, &dns):
		return NoSuchHost
	case unreachable(err), errors.Is(err, context.DeadlineExceeded):
		return NoAnswer
	}
	return UnknownObstacle
}

// isTLS reports whether the two sides found no common way to encrypt, or the server's certificate is not trusted.
func isTLS(err error) bool {
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	return errors.As(err, &certificate) || errors.As(err, &alert) || errors.As(err, &record) || errors.As(err, &authority) ||
		errors.As(err, &host) || strings.Contains(err.Error(), "server refused TLS connection")
}

// Rights are what the role may do of what a server needs.
type Rights struct {
	Missing []string // as "UPDATE on products"
	Owner   bool     // of the tables whose partitions servers make
	Create  bool     // tables in their schema, which partitions are
}

// neededRights are those of a server on its tables. A table that does not exist is a matter of the schema.
const neededRights = `
SELECT p.name || ' on ' || t.name
FROM (VALUES
    ('tickets', 'SELECT,INSERT,UPDATE,DELETE'), ('products', 'SELECT,INSERT,UPDATE,DELETE'),
    ('deliveries', 'SELECT,INSERT,UPDATE'), ('outbox', 'SELECT,INSERT,UPDATE,DELETE'),
    ('outbox_readers', 'SELECT,INSERT,UPDATE'), ('ticket_lines', 'SELECT,INSERT,UPDATE,DELETE'),
    ('subscriptions', 'SELECT,UPDATE'), ('dead_letters', 'SELECT,INSERT,UPDATE,DELETE'),
    ('dialects', 'SELECT'), ('corrections', 'SELECT'), ('schema_migrations', 'SELECT')
) t (name, needed), unnest(string_to_array(t.needed, ',')) WITH ORDINALITY p (name, place)
WHERE NOT has_table_privilege(to_regclass(t.name), p.name) ORDER BY t.name, p.place`

const ownership = `
SELECT coalesce(bool_and(pg_has_role(relowner, 'USAGE')), true),
       coalesce(bool_and(has_schema_privilege(relnamespace, 'CREATE')), true)
FROM pg_class WHERE oid IN (to_regclass('tickets'), to_regclass('outbox'), to_regclass('ticket_lines'))`

// Rights returns the rights of the role.
func (c *CheckUp) Rights(ctx context.Context) (r Rights, err error) {
	err = c.read(ctx, "look at the rights of this role", func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, neededRights)
		if err != nil {
			return err
		}
		if r.Missing, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return err
		}
		return tx.QueryRow(ctx, ownership).Scan(&r.Owner, &r.Create)
	})
	return r, err
}

// PartitionsAhead is how far tickets have partitions.
type PartitionsAhead struct {
	Until     time.Time // from now on without a gap; the zero time if there is none for now
	Missing   []string  // spans that servers should have made a partition for
	Next      bool      // the period after this one has its partition
	InDefault int       // tickets in the default partition; at most pieceTickets+1 are counted
	Strays    int       // tickets of a full default partition that wait for their partitions: see Strays
	Outbox    []string  // spans that the outbox has no partition for
}

// PartitionsAhead looks at the partitions as a server with these settings does.
func (c *CheckUp) PartitionsAhead(ctx context.Context, period Period, ahead int, now time.Time) (p PartitionsAhead, err error) {
	now = now.UTC()
	err = c.read(ctx, "look at the partitions", func(tx pgx.Tx) error {
		up := upkeep{Tx: tx}
		have, err := up.partitions(ctx, "tickets")
		if err != nil {
			return err
		}
		covered := spansOf(have)
		wanted := span{from: period.start(now)}
		next := period.next(wanted.from)
		wanted.to = next
		for range ahead {
			wanted.to = period.next(wanted.to)
		}
		p.Next = len(span{next, period.next(next)}.gaps(covered)) == 0
		p.Missing = between(span{now, wanted.to}.gaps(covered))
		for i := within(covered, now); i >= 0; i = within(covered, p.Until) {
			p.Until = covered[i].to
		}
		if err := tx.QueryRow(ctx, defaultPartition).Scan(&up.schema, &up.partition, &up.defaultName); err != nil {
			return err
		}
		if up.partition != "" {
			count := fmt.Sprintf(`SELECT count(*) FROM (SELECT FROM %s LIMIT %d) t`, up.partition, pieceTickets+1)
			if err := tx.QueryRow(ctx, count).Scan(&p.InDefault); err != nil {
				return err
			}
		}
		var today time.Time
		var rest string
		if err := tx.QueryRow(ctx, outboxNow).Scan(&today, &rest); err != nil {
			return err
		}
		outbox, err := up.partitions(ctx, "outbox")
		today = today.UTC()
		p.Outbox = between(span{today, Day.next(Day.start(today)).AddDate(0, 0, outboxAhead)}.gaps(spansOf(outbox)))
		return err
	})
	if err == nil {
		p.Strays, err = c.Strays(ctx)
	}
	return p, err
}

// between says which times spans cover.
func between(spans []span) (words []string) {
	for _, s := range spans {
		words = append(words, s.from.Format(time.DateTime)+" to "+s.to.Format(time.DateTime))
	}
	return words
}

// Standbys are those that stream from the server, and the commits that wait for them.
type Standbys struct {
	Needed      int           // that a commit waits for; 0 for none
	Attached    int           // that stream
	Visible     bool          // whether this role may see which are synchronous
	Synchronous int           // of those attached that a commit may wait for
	Waiting     int           // commits of MyTicket that wait for a standby
	Longest     time.Duration // of these waits
}

// A role without pg_read_all_stats sees that there is a standby, but not what it does. It sees its own sessions, though.
const listStandbys = `
SELECT count(*), count(state), count(*) FILTER (WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')),
       (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'),
       (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(query_start)), 0)::float8
        FROM pg_stat_activity WHERE wait_event = 'SyncRep')
FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup'`

// Standbys returns the standbys of the server.
func (c *CheckUp) Standbys(ctx context.Context) (s Standbys, err error) {
	s.Needed = standbysNeeded(c.Server.Settings["synchronous_standby_names"])
	err = c.read(ctx, "look at the standbys", func(tx pgx.Tx) error {
		var visible int
		var longest float64
		err := tx.QueryRow(ctx, listStandbys).Scan(&s.Attached, &visible, &s.Synchronous, &s.Waiting, &longest)
		s.Visible, s.Longest = visible == s.Attached, seconds(longest)
		return err
	})
	return s, err
}

// standbysOf is the beginning of synchronous_standby_names with a number
// (https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES).
var standbysOf = regexp.MustCompile(`(?i)^\s*(?:FIRST\s+|ANY\s+)?([0-9]+)\s*\(`)

// standbysNeeded returns how many standbys must confirm a commit.
func standbysNeeded(names string) int {
	if strings.TrimSpace(names) == "" {
		return 0
	}
	if number := standbysOf.FindStringSubmatch(names); number != nil {
		n, _ := strconv.Atoi(number[1]) // Postgres allows no number that is too large
		return n
	}
	return 1
}

// ConnectionsFound are the connections of the whole server.
type ConnectionsFound struct {
	Most    int // that roles without special rights may have
	Used    int
	Servers int // of MyTicket, by their addresses
	Theirs  int // connections of those
	OfRole  int // the most that the role or the database may have; -1 for no limit of their own
	RoleHas int
}

const countConnections = `
SELECT count(*), count(*) FILTER (WHERE application_name = $1), count(DISTINCT client_addr) FILTER (WHERE application_name = $1),
       count(*) FILTER (WHERE usename = current_user),
       (SELECT min(most) FROM (
            SELECT nullif(rolconnlimit, -1) AS most FROM pg_roles WHERE rolname = current_user AND NOT rolsuper
            UNION ALL SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()) l)
FROM pg_stat_activity WHERE datid IS NOT NULL`

// ServeApplication is the name of a server's connections.
const ServeApplication = "myticket serve"

// Connections counts the connections.
func (c *CheckUp) Connections(ctx context.Context) (n ConnectionsFound, err error) {
	for name, sign := range map[string]int{"max_connections": 1, "superuser_reserved_connections": -1, "reserved_connections": -1} {
		value, _ := strconv.Atoi(c.Server.Settings[name]) // a version that does not know one has none reserved
		n.Most += sign * value
	}
	err = c.read(ctx, "count the connections", func(tx pgx.Tx) error {
		var limit *int
		err := tx.QueryRow(ctx, countConnections, ServeApplication).Scan(&n.Used, &n.Theirs, &n.Servers, &n.RoleHas, &limit)
		if n.OfRole = -1; limit != nil {
			n.OfRole = *limit
		}
		if n.Servers == 0 && n.Theirs > 0 { // over a socket there is no address
			n.Servers = 1
		}
		return err
	})
	return n, err
}

// ClockOffset returns how much the database's clock is ahead of now, and by how much that may be wrong.
func (c *CheckUp) ClockOffset(ctx context.Context, now func() time.Time) (offset, uncertain time.Duration, err error) {
	err = c.read(ctx, "ask for the database's time", func(tx pgx.Tx) error {
		uncertain = time.Hour
		for range 3 {
			var theirs time.Time
			before, began := now(), time.Now()
			if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
				return err
			}
			if half := time.Since(began) / 2; half < uncertain {
				offset, uncertain = theirs.Sub(before.Add(half)), half
			}
		}
		return nil
	})
	return offset, uncertain, err
}

// DatabaseSize is how large the database is, and how near to the end of its transaction numbers
// (https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND).
type DatabaseSize struct {
	Bytes        int64
	Age          int64     // of the oldest transaction number or multixact in use
	LastVacuumed time.Time // by autovacuum, any table; zero for never
}

const databaseSize = `
SELECT pg_database_size(oid), greatest(age(datfrozenxid), mxid_age(datminmxid))::int8,
       (SELECT max(last_autovacuum) FROM pg_stat_user_tables)
FROM pg_database WHERE datname = current_database()`

// Size returns the size and the age of the database.
func (c *CheckUp) Size(ctx context.Context) (s DatabaseSize, err error) {
	err = c.read(ctx, "ask for the size of the database", func(tx pgx.Tx) error {
		var last *time.Time
		err := tx.QueryRow(ctx, databaseSize).Scan(&s.Bytes, &s.Age, &last)
		if last != nil {
			s.LastVacuumed = last.UTC()
		}
		return err
	})
	return s, err
}

// errorsLimit is how many ERROR tickets of a day are counted.
const errorsLimit = 1000

// ErrorsOfDay returns how many tickets of the last day are ERROR, of which at most errorsLimit are counted, and whether they are
// more than one in a hundred. It reads no more than 100 tickets of an index for each.
func (c *CheckUp) ErrorsOfDay(ctx context.Context) (n int, many bool, err error) {
	err = c.read(ctx, "count the ERROR tickets of the last day", func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM tickets
			WHERE status = 'ERROR' AND received_at > now() - interval '1 day' LIMIT $1) e`, errorsLimit).Scan(&n)
		if err != nil || n == 0 {
			return err
		}
		var all int
		err = tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM tickets
			WHERE received_at > now() - interval '1 day' LIMIT $1) a`, 100*n).Scan(&all)
		many = all < 100*n
		return err
	})
	return n, many, err
}

// ForeignDialects returns how many sources have a dialect, and those whose dialect this program does not understand.
func (c *CheckUp) ForeignDialects(ctx context.Context) (all int, foreign []string, err error) {
	current, err := c.Dialects(ctx)
	for _, v := range current {
		if _, err := c.readers.of(v.Version, v.Dialect); err != nil {
			foreign = append(foreign, v.Source)
		}
	}
	slices.Sort(foreign)
	return len(current), foreign, err
}
