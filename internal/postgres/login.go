package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// login is how this process logs in to the database. pgx reads a URL, and the files that the URL or the environment names
// (certificates, passwords), only once. They may change while a server runs, above all if they are mounted secrets. So login
// reads them again before each connection, which takes 0.1 ms.
type login struct {
	url         func() (string, error)
	timeout     time.Duration // of making one connection
	application string        // what pg_stat_activity shows
	anyServer   bool          // also one that takes no writes
	tracer      pgx.QueryTracer
	logger      *slog.Logger

	mu        sync.Mutex      // guards last and complaint
	last      *pgx.ConnConfig // the last that could be read
	complaint string          // why a newer one cannot be read or used; empty if it can
}

// open reads everything for the first time. The result has the pool settings of the URL, but not those of this process.
func (l *login) open() (*pgxpool.Config, error) {
	config, err := l.read()
	if err != nil {
		return nil, err
	}
	config.BeforeConnect = l.refresh
	l.last = config.ConnConfig.Copy()
	return config, nil
}

func (l *login) read() (*pgxpool.Config, error) {
	url, err := l.url()
	if err != nil {
		return nil, err
	}
	if url == "" { // pgx would look for a server on this machine
		return nil, errors.New("no database: set DATABASE_URL, --database-url, --database-url-file or --database-dir")
	}
	if scheme := urlScheme.FindString(url); scheme != "" && scheme != "postgresql://" && scheme != "postgres://" {
		return nil, fmt.Errorf("the database URL begins with %s: MyTicket needs PostgreSQL, as in "+
			"postgresql://user:password@host:5432/name", scheme) // pgx would take it for a list of keywords
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the database URL: %w", err)
	}
	// What follows the first @ of a password is taken for the host, and errors would show it. A path is that of a socket.
	if host := config.ConnConfig.Host; !strings.HasPrefix(host, "/") && strings.LastIndex(host, "@") > 0 {
		return nil, errAtInPassword
	}
	if err := checkEncryption(os.Getenv(sslModeEnv), config.ConnConfig); err != nil {
		return nil, err
	}
	config.ConnConfig.ConnectTimeout = l.timeout
	config.ConnConfig.RuntimeParams["application_name"] = l.application
	config.ConnConfig.Tracer = l.tracer
	// After a failover a new connection may still reach the old primary, which is read-only by then.
	config.ConnConfig.ValidateConnect = validateReadWrite
	if l.anyServer {
		config.ConnConfig.ValidateConnect = nil
	}
	config.ConnConfig.OnNotice = noteCanceledWait
	return config, nil
}

// urlScheme is how a URL begins.
var urlScheme = regexp.MustCompile(`^(jdbc:)?[A-Za-z][A-Za-z0-9+.-]*://`)

// sslModeEnv is the variable that demands encryption for every connection of this process. In pgx a URL silently overrules
// it.
const sslModeEnv = "PGSSLMODE"

// encryption are the levels of protection of a connection, the weakest first. "none" means that encryption is not required.
var encryption = []string{"none", "require", "verify-ca", "verify-full"}

// checkEncryption rejects a URL that asks for less encryption than is demanded. The modes disable, allow and prefer demand
// nothing (https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-SSLMODE-STATEMENTS), and a Unix socket is never
// encrypted.
func checkEncryption(demanded string, config *pgx.ConnConfig) error {
	least, weakest, host := slices.Index(encryption, demanded), len(encryption), ""
	first := &pgconn.FallbackConfig{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}
	for _, s := range append([]*pgconn.FallbackConfig{first}, config.Fallbacks...) {
		network, _ := pgconn.NetworkAddress(s.Host, s.Port)
		if has := encryptionOf(s.TLSConfig); network != "unix" && has < weakest {
			weakest, host = has, s.Host
		}
	}
	if weakest >= least {
		return nil
	}
	return fmt.Errorf("the database URL contradicts %[1]s=%[2]s, because connections to %[3]s may have less encryption (%[4]s): "+
		"no connection is made, and no ticket is stored; put sslmode=%[2]s into the URL, or unset %[1]s if less is intended",
		sslModeEnv, demanded, host, encryption[weakest])
}

// encryptionOf returns the index in encryption of the level that pgx made from a mode.
func encryptionOf(config *tls.Config) int {
	switch {
	case config == nil:
		return 0
	case !config.InsecureSkipVerify:
		return 3
	case config.VerifyPeerCertificate != nil || config.VerifyConnection != nil:
		return 2
	}
	return 1
}

// refresh is called by pgx before it makes a connection. It returns no error: if the secrets cannot be read now, the previous
// ones may still be right, and if not, the server rejects them.
func (l *login) refresh(_ context.Context, config *pgx.ConnConfig) error {
	fresh, err := l.read()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		if was, is := whichDatabase(l.last), whichDatabase(fresh.ConnConfig); was != is {
			// Otherwise some connections would be to one database and some to the other.
			err = fmt.Errorf("the URL now means %s and no longer %s: restart this process to use it", is, was)
		}
	}
	switch {
	case err == nil:
		if l.complaint != "" {
			l.logger.Info("the database URL and its certificates can be read again, and new connections use them")
		}
		l.last, l.complaint = fresh.ConnConfig, ""
	case reason(err) != l.complaint:
		l.complaint = reason(err)
		l.logger.Warn("the new database URL or its certificates cannot be used; new connections use the previous ones",
			"reason", l.complaint)
	}
	*config = *l.last.Copy()
	return nil
}

// whichDatabase returns the name and the servers of a database.
func whichDatabase(config *pgx.ConnConfig) string {
	servers := []string{server(config.Host, config.Port)}
	for _, f := range config.Fallbacks { // other servers, and the same without encryption
		servers = append(servers, server(f.Host, f.Port))
	}
	return config.Database + " on " + strings.Join(slices.Compact(servers), ", ")
}

func server(host string, port uint16) string {
	_, address := pgconn.NetworkAddress(host, port)
	return address
}

// awaitInterval is the time between two attempts to connect.
const awaitInterval = time.Second

// await returns as soon as a login succeeds, or with the last error after wait. Every failure to connect is tried again: the
// database, its role, its password and its certificate may be created one after another while we wait.
func (l *login) await(ctx context.Context, wait time.Duration) error {
	began := time.Now()
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var last error
	connect := func() (struct{}, error) {
		var config pgx.ConnConfig
		_ = l.refresh(waiting, &config)
		conn, err := pgx.ConnectConfig(waiting, &config)
		if err == nil {
			_ = conn.Close(waiting)
			return struct{}{}, nil
		}
		if last == nil || waiting.Err() == nil { // the end of the wait itself is not a reason
			last = err
		}
		return struct{}{}, err
	}
	said := ""
	_, err := backoff.Retry(waiting, connect,
		backoff.WithBackOff(backoff.NewConstantBackOff(awaitInterval)),
		backoff.WithMaxElapsedTime(0), // waiting ends after wait
		backoff.WithNotify(func(err error, _ time.Duration) {
			if why := reason(err); why != said {
				said = why
				l.logger.Info("waiting for the database", "reason", why, "until", began.Add(wait).Format(time.RFC3339))
			}
		}))
	switch {
	case err == nil && said != "":
		l.logger.Info("the database answers", "waited", time.Since(began).Round(time.Millisecond).String())
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted during the wait for the database; nothing was changed")
	case err != nil:
		return fmt.Errorf("no login to the database succeeded for %s, so nothing was changed; "+
			"fix the cause, or wait longer, and run it again: %s", wait, reason(last))
	}
	return nil
}

// Await returns as soon as a login succeeds. While the database cannot be reached it tries again, for wait at most, and calls
// waiting once with the reason. What the server itself answers, such as a wrong password, is returned at once, and so is what
// waiting does not mend.
func (s *Store) Await(ctx context.Context, wait time.Duration, waiting func(why error)) error {
	said := false
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := s.pool.AcquireFunc(ctx, func(*pgxpool.Conn) error { return nil })
		if err != nil && !unreachable(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(wait), backoff.WithNotify(func(err error, _ time.Duration) {
		if !said {
			waiting(err)
		}
		said = true
	}))
	return explain("log in to the database", err)
}

// unreachable reports whether there was no answer, or the server is starting. A host name or a socket that does not exist counts
// as a wrong URL.
func unreachable(err error) bool {
	if sqlState(err) != "" {
		return isCode(err, cannotConnectNow)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound || errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

var errAtInPassword = errors.New("read the database URL: there is an @ in its host: write one in a user or password as %40")

// localPort matches the part that differs between two attempts that fail for the same reason.
var localPort = regexp.MustCompile(`:\d+->`)

// reason returns an error in one line, which is equal for equal reasons.
func reason(err error) string {
	return localPort.ReplaceAllString(strings.Join(strings.Fields(err.Error()), " "), "->")
}
