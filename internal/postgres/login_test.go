package postgres_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb"
	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
)

// authority is a CA that signs certificates of 127.0.0.1.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a := &authority{key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "a CA"}, IsCA: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	a.cert.Raw, err = x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	require.NoError(t, err)
	return a
}

func (a *authority) rootFile() string { return pemOf("CERTIFICATE", a.cert.Raw) }

// issue returns a certificate for a server, and its key.
func (a *authority) issue(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	issued, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}, a.cert, private.Public(), a.key)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pemOf("CERTIFICATE", issued), pemOf("PRIVATE KEY", der)
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), text)
}

// disconnect ends every connection of the stores, so that they must make new ones.
func disconnect(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	_, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
		WHERE application_name = 'myticket' AND pid <> pg_backend_pid() AND datname = current_database()`)
	require.NoError(t, err)
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// awaitPing pings until the database answers: the first connections may be ones that were ended.
func awaitPing(t *testing.T, store *postgres.Store) {
	t.Helper()
	require.Eventually(t, func() bool { return store.Ping(t.Context()) == nil }, 30*time.Second, 10*time.Millisecond,
		"the store should find into the database")
}

// encrypt gives a server a certificate. It begins to use TLS some time after that.
func encrypt(t *testing.T, server *devdb.Server, a *authority) {
	t.Helper()
	data := filepath.Join(server.Dir(), "data")
	info, err := os.Stat(data)
	require.NoError(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	cert, key := a.issue(t)
	for name, content := range map[string]string{"server.crt": cert, "server.key": key} {
		path := filepath.Join(data, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		require.NoError(t, os.Chown(path, int(owner.Uid), int(owner.Gid)))
	}
	admin := connect(t, server.URL(pgtest.Database))
	for _, sql := range []string{`ALTER SYSTEM SET ssl = on`, `SELECT pg_reload_conf()`} {
		_, err := admin.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	require.NoError(t, admin.Close(t.Context()))
}

func TestStore_CertificateAuthorityThatIsRenewed_IsTakenUp(t *testing.T) {
	t.Parallel()
	server, url := pgtest.NewServer(t)
	admin := connect(t, url)
	serve := func(a *authority) { encrypt(t, server, a) }
	root := filepath.Join(t.TempDir(), "ca.crt")
	trust := func(content string) { require.NoError(t, os.WriteFile(root, []byte(content), 0o600)) }
	url = strings.Replace(url, "sslmode=disable", "sslmode=verify-full&sslrootcert="+root, 1)
	first, second := newAuthority(t), newAuthority(t)

	serve(first)
	trust(first.rootFile())
	var log lockedBuffer
	store, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 2, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	awaitPing(t, store) // the server begins to use TLS some time after it was told to
	require.NoError(t, postgres.MigrateUp(t.Context(), url))

	serve(second)
	require.Eventually(t, func() bool {
		disconnect(t, admin)
		err := store.Ping(t.Context())
		return err != nil && strings.Contains(err.Error(), "certificate signed by unknown authority")
	}, 30*time.Second, 10*time.Millisecond, "a server of an authority that is not trusted must be refused")
	require.ErrorContains(t, postgres.MigrateUp(t.Context(), url), "certificate signed by unknown authority")
	trust(second.rootFile())
	require.NoError(t, store.Ping(t.Context()), "the new authority should be trusted without opening the store again")
	require.NoError(t, postgres.MigrateUp(t.Context(), url))
	var encrypted bool
	require.NoError(t, admin.QueryRow(t.Context(), `SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
		WHERE application_name = 'myticket'`).Scan(&encrypted))
	require.True(t, encrypted)

	// Half-written, or gone: what was trusted before is still trusted, and said once.
	const complaint = "cannot be used; new connections use the previous ones"
	trust("-----BEGIN")
	for range 3 {
		disconnect(t, admin)
		awaitPing(t, store)
	}
	require.Equal(t, 1, log.count(complaint), "%s", &log.text)
	require.NoError(t, os.Remove(root))
	disconnect(t, admin)
	awaitPing(t, store)
	require.Equal(t, 2, log.count(complaint), "%s", &log.text)
	trust(second.rootFile())
	disconnect(t, admin)
	awaitPing(t, store)
	require.Equal(t, 1, log.count("can be read again, and new connections use them"), "%s", &log.text)
}

func TestStore_URLThatCannotBeTakenOver_LeavesTheOneBefore(t *testing.T) {
	t.Parallel()
	url, other := pgtest.New(t), pgtest.New(t)
	admin := connect(t, url)
	urls := make(chan func() (string, error), 1)
	set := func(url string, err error) { urls <- func() (string, error) { return url, err } }
	set(url, nil)
	var log lockedBuffer
	store, err := postgres.Open(t.Context(), postgres.Config{
		URLFrom: func() (string, error) {
			now := <-urls
			urls <- now
			return now()
		},
		MaxConns: 1, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	awaitPing(t, store)
	for name, test := range map[string]struct {
		url     string
		err     error
		warning string
	}{
		"unreadable":       {"", errors.New("the file is away"), "the file is away"},
		"empty":            {"", nil, "no database"},
		"no URL":           {"postgresql://till:hunter2@localhost:port/name", nil, "invalid port"},
		"another database": {other, nil, "restart this process"}, // or half of the tickets would go there
	} {
		<-urls
		set(test.url, test.err)
		disconnect(t, admin)
		awaitPing(t, store)
		require.Equal(t, 1, log.count(test.warning), "%s: %s", name, &log.text)
	}
	require.Zero(t, log.count("hunter2"))
}

//nolint:paralleltest // it sets a variable of the environment
func TestOpen_URLThatAsksForLessThanTheEnvironmentDemands_IsRefused(t *testing.T) {
	root := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(root, []byte(newAuthority(t).rootFile()), 0o600))
	const server = "postgres://till:hunter2@db.example/myticket"
	for _, test := range []struct{ demanded, url, refused string }{
		{"verify-full", server + "?sslmode=disable", "none"},
		{"verify-full", server + "?sslmode=prefer", "none"},
		{"verify-full", server + "?sslmode=require", "require"},
		{"verify-full", server + "?sslmode=verify-ca&sslrootcert=" + root, "verify-ca"},
		{"verify-full", server + "?sslmode=verify-full", ""},
		{"verify-full", server, ""},
		{"verify-full", server + "?sslmode=disable&host=/run/postgresql", ""}, // a Unix socket
		{"verify-full", "host=db.example dbname=myticket sslmode = 'disable'", "none"},
		{"verify-ca", server + "?sslmode=require&sslrootcert=" + root, ""}, // which is verify-ca
		{"verify-ca", server + "?sslmode=require", "require"},
		{"verify-ca", server + "?sslmode=verify-full", ""},
		{"require", server + "?sslmode=allow", "none"},
		{"require", server + "?sslmode=verify-ca&sslrootcert=" + root, ""},
		{"prefer", server + "?sslmode=disable", ""}, // it demands nothing
		{"", server + "?sslmode=disable", ""},
	} {
		t.Setenv("PGSSLMODE", test.demanded)
		store, err := postgres.Open(t.Context(), postgres.Config{URL: test.url})
		if test.refused == "" {
			require.NoError(t, err, "PGSSLMODE=%s %s", test.demanded, test.url)
			store.Close()
			continue
		}
		require.ErrorContains(t, err, "("+test.refused+")", "PGSSLMODE=%s %s", test.demanded, test.url)
		require.ErrorContains(t, err, "PGSSLMODE="+test.demanded)
		require.NotContains(t, err.Error(), "hunter2")
		require.ErrorContains(t, postgres.Migrate(t.Context(), postgres.MigrateConfig{URL: test.url}), "PGSSLMODE="+test.demanded)
	}
}
