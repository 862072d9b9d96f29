// Package pgtest gives every test a Postgres database of its own: a copy of a migrated template, in milliseconds.
//
// The server is the one of MYTICKET_TEST_DATABASE_URL, whose role must be allowed to create databases (`make test` sets
// it, so that all packages share one server), or else a throwaway one that starts with the first test that asks. A test
// package calls Main from its TestMain; without that, its throwaway server still ends with it, but less tidily.
//
// Tests of internal/postgres that use this package belong to package postgres_test: it migrates with internal/postgres.
package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/devdb"
	"myticket/internal/postgres"
	"myticket/migrations"
)

const (
	// URLEnv names a database on the server that tests use. Its own content is not touched.
	URLEnv = "MYTICKET_TEST_DATABASE_URL"

	// keepEnv, set to 1, keeps the databases of failed tests.
	keepEnv = "MYTICKET_TEST_KEEP"

	// cleanupTimeout bounds the cleanup after a test, when the test's own context has ended.
	cleanupTimeout = 30 * time.Second

	// templateLock is the advisory lock under which the template is made. Advisory locks are per database, which is
	// why all connections here go to the database of the URL.
	templateLock = 0x6d797469636b6574 // "myticket"
)

// New returns the URL of a new database with the newest schema. It is dropped after the test, even if connections
// are still open; with MYTICKET_TEST_KEEP=1, that of a failed test stays, and its URL is logged.
func New(tb testing.TB) string {
	tb.Helper()

	server := sharedServer(tb)
	template, err := theTemplate(server)
	if err != nil {
		tb.Fatal(err)
	}

	return clone(tb, server, template)
}

// Empty is like New, but the database has no schema.
func Empty(tb testing.TB) string {
	tb.Helper()

	return clone(tb, sharedServer(tb), "template0")
}

// NewServer returns a server of the test's own and the URL of a database with the newest schema on it, for tests that
// kill or pause their server. It ends with the test. Settings, name and value in turn, are those of postgresql.conf.
func NewServer(tb testing.TB, settings ...string) (server *devdb.Server, databaseURL string) {
	tb.Helper()

	return newServer(tb, devdb.Volatile(), settings)
}

// NewPair is like NewServer, with a streaming standby of the server beside it. Each commit waits for the standby to have
// it: while that does not run, no commit ends.
func NewPair(tb testing.TB, settings ...string) (primary, standby *devdb.Server, databaseURL string) {
	tb.Helper()

	primary, databaseURL = newServer(tb, devdb.Replicated(), settings)
	standby, err := primary.StartStandby(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	stopAfter(tb, standby)
	if err := primary.RequireStandby(tb.Context(), true); err != nil {
		tb.Fatal(err)
	}

	return primary, standby, databaseURL
}

// Database is the name of the database that NewServer and NewPair make.
const Database = "myticket"

func newServer(tb testing.TB, all map[string]string, settings []string) (server *devdb.Server, databaseURL string) {
	tb.Helper()

	for pair := range slices.Chunk(settings, 2) {
		all[pair[0]] = pair[1]
	}
	server, err := devdb.Start(tb.Context(), devdb.Config{Settings: all})
	if err != nil {
		tb.Fatal(err)
	}
	stopAfter(tb, server)

	if err := server.CreateDatabase(tb.Context(), Database); err != nil {
		tb.Fatal(err)
	}
	databaseURL = server.URL(Database)
	if err := postgres.MigrateUp(tb.Context(), databaseURL); err != nil {
		tb.Fatal(err)
	}

	return server, databaseURL
}

func stopAfter(tb testing.TB, server *devdb.Server) {
	tb.Helper()

	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			tb.Error(err)
		}
	})
}

// Main runs the tests of a package, stops its server, and exits: func TestMain(m *testing.M) { pgtest.Main(m) }.
func Main(m *testing.M) {
	code := m.Run()

	if own := ownServer.server; own != nil {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		if err := own.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		cancel()
	}
	os.Exit(code)
}

// One server per process makes tests fast. That can only be a global variable.
var ownServer struct {
	once   sync.Once
	server *devdb.Server
	err    error
}

// sharedServer returns the URL of the server that this process's tests share.
func sharedServer(tb testing.TB) *url.URL {
	tb.Helper()

	raw := os.Getenv(URLEnv)
	if raw == "" {
		ownServer.once.Do(func() {
			ownServer.server, ownServer.err = devdb.Start(context.Background(), devdb.Config{
				Settings: devdb.Volatile(),
				Progress: os.Stderr,
			})
		})
		if ownServer.err != nil {
			tb.Fatalf("start a Postgres for the tests: %v", ownServer.err)
		}
		raw = ownServer.server.URL("postgres")
	}

	server, err := url.Parse(raw)
	if err != nil || (server.Scheme != "postgres" && server.Scheme != "postgresql") {
		// The parser's error is left out because it would print the password.
		tb.Fatalf("%s is not a URL like postgres://user:password@host:5432/database", URLEnv)
	}

	return server
}

func withDatabase(server *url.URL, database string) string {
	u := *server
	u.Path = "/" + database

	return u.String()
}

func clone(tb testing.TB, server *url.URL, template string) string {
	tb.Helper()

	name := databaseName(tb.Name())
	if err := execute(tb.Context(), server, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		tb.Fatalf("make a database for the test: %v", err)
	}
	databaseURL := withDatabase(server, name)

	tb.Cleanup(func() {
		if tb.Failed() && os.Getenv(keepEnv) == "1" {
			tb.Logf("kept the database of this test: %s", databaseURL)

			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		if err := execute(ctx, server, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			tb.Errorf("drop the database of the test: %v", err)
		}
	})

	return databaseURL
}

// databaseName returns a new name that contains the test's name and needs no quotes.
func databaseName(test string) string {
	const maxSlug = 40 // Postgres cuts names at 63 bytes
	slug := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return '_'
		}
	}, test)
	slug = slug[:min(len(slug), maxSlug)]

	return "t_" + slug + "_" + strings.ToLower(rand.Text()[:12])
}

// templates are the templates that this process knows to exist.
var templates struct {
	mu    sync.Mutex
	names map[string]string // by server
}

func theTemplate(server *url.URL) (string, error) {
	templates.mu.Lock()
	defer templates.mu.Unlock()

	if name, ok := templates.names[server.String()]; ok {
		return name, nil
	}
	name, err := makeTemplate(context.Background(), server)
	if err != nil {
		return "", fmt.Errorf("make the template of the test databases: %w", err)
	}
	if templates.names == nil {
		templates.names = make(map[string]string)
	}
	templates.names[server.String()] = name

	return name, nil
}

// makeTemplate makes the template unless another process did. A template gets its name when it is complete, so an incomplete one
// is never copied.
func makeTemplate(ctx context.Context, server *url.URL) (name string, err error) {
	hash, err := migrationsHash()
	if err != nil {
		return "", err
	}
	name = "myticket_template_" + hash
	building := name + "_building"

	conn, err := pgx.Connect(ctx, server.String())
	if err != nil {
		return "", err
	}
	// This ends the session's advisory lock, too.
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()

	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(templateLock)); err != nil {
		return "", err
	}
	var exists bool
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	if err != nil || exists {
		return name, err
	}

	for _, sql := range []string{
		"DROP DATABASE IF EXISTS " + building + " WITH (FORCE)",
		"CREATE DATABASE " + building + " TEMPLATE template0",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", err
		}
	}
	if err := postgres.MigrateUp(ctx, withDatabase(server, building)); err != nil {
		return "", err
	}
	// A database can be copied only while it has no connections.
	for _, sql := range []string{
		"ALTER DATABASE " + building + " ALLOW_CONNECTIONS false",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" + building + "'",
		"ALTER DATABASE " + building + " RENAME TO " + name,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", err
		}
	}

	return name, nil
}

// migrationsHash makes a template's name depend on the schema, so that a server that is kept never serves an old one.
func migrationsHash() (string, error) {
	hash := sha256.New()
	err := fs.WalkDir(migrations.FS, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(migrations.FS, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(hash, "%s %d\n", path, len(content))
		hash.Write(content)

		return nil
	})
	if err != nil {
		return "", fmt.Errorf("read the migrations: %w", err)
	}

	return hex.EncodeToString(hash.Sum(nil)[:6]), nil
}

func execute(ctx context.Context, server *url.URL, sql string) error {
	conn, err := pgx.Connect(ctx, server.String())
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)

	return errors.Join(err, conn.Close(ctx))
}
