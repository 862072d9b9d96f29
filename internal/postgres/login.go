package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// login is how this process gets into the database. pgx reads a URL, and the files that it or the environment names
// (certificates, passwords), only once; they change under a running server, above all where they are mounted secrets.
// So login reads them again before each connection, which takes a tenth of a millisecond.
type login struct {
	url         func() (string, error)
	timeout     time.Duration // of making one connection
	application string        // what pg_stat_activity shows
	tracer      pgx.QueryTracer
	logger      *slog.Logger

	mu        sync.Mutex
	last      *pgx.ConnConfig // that could be read
	complaint string          // why it could not be read since then; empty when it could
}

// open reads everything for the first time. The pool's settings of the URL are in what it returns, those of this
// process are not.
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
		return nil, errors.New("no database: set DATABASE_URL, --database-url or --database-url-file")
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the database URL: %w", err)
	}
	if err := checkEncryption(os.Getenv(sslModeEnv), config.ConnConfig); err != nil {
		return nil, err
	}
	config.ConnConfig.ConnectTimeout = l.timeout
	config.ConnConfig.RuntimeParams["application_name"] = l.application
	config.ConnConfig.Tracer = l.tracer
	// After a failover a new connection may still reach the old primary, which is read-only by then.
	config.ConnConfig.ValidateConnect = validateReadWrite
	config.ConnConfig.OnNotice = noteCanceledWait
	return config, nil
}

// sslModeEnv demands encryption of every connection that this process makes. pgx lets a URL overrule it without a word.
const sslModeEnv = "PGSSLMODE"

// encryption is how well a connection is protected, the weakest first. What may be made without encryption is none.
var encryption = []string{"none", "require", "verify-ca", "verify-full"}

// checkEncryption refuses a URL that asks for less than is demanded. The modes disable, allow and prefer demand nothing
// (https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-SSLMODE-STATEMENTS), and a Unix socket is never encrypted.
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
		"none is made, and no ticket is stored; put sslmode=%[2]s into the URL, or unset %[1]s if less is meant",
		sslModeEnv, demanded, host, encryption[weakest])
}

// encryptionOf returns the place in encryption of what pgx made of a mode.
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

// refresh is for pgx to call before it makes a connection. It returns no error: a secret that cannot be read now may
// still be the right one, and if not, the server says so.
func (l *login) refresh(_ context.Context, config *pgx.ConnConfig) error {
	fresh, err := l.read()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		if was, is := whichDatabase(l.last), whichDatabase(fresh.ConnConfig); was != is {
			// Half of the connections would be to the one and half to the other.
			err = fmt.Errorf("the URL now means %s and no longer %s: restart this process to move it there", is, was)
		}
	}
	switch {
	case err == nil:
		if l.complaint != "" {
			l.logger.Info("the database's URL and certificates are as they should be again, and in use")
		}
		l.last, l.complaint = fresh.ConnConfig, ""
	case reason(err) != l.complaint:
		l.complaint = reason(err)
		l.logger.Warn("the database's URL or certificates cannot be taken over; new connections are made with those before",
			"reason", l.complaint)
	}
	*config = *l.last.Copy()
	return nil
}

// whichDatabase says which database is meant.
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
