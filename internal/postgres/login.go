package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	config.ConnConfig.ConnectTimeout = l.timeout
	config.ConnConfig.RuntimeParams["application_name"] = l.application
	config.ConnConfig.Tracer = l.tracer
	// After a failover a new connection may still reach the old primary, which is read-only by then.
	config.ConnConfig.ValidateConnect = validateReadWrite
	config.ConnConfig.OnNotice = noteCanceledWait
	return config, nil
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
