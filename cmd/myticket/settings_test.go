package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
)

// outcome is the result of a run of the program.
type outcome struct {
	code           int
	stdout, stderr string
}

// runCommand runs the program as `myticket args…` would. The environment is only searched for unknown settings. Values of
// settings come from the real environment.
func runCommand(t *testing.T, environ []string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, environ, streams{stdout: &stdout, stderr: &stderr})
	require.NoError(t, ctx.Err(), "it should have ended by itself: %s", &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

// requireNotUnderstood requires exit code 2, and that the setting is named.
func requireNotUnderstood(t *testing.T, o outcome, setting string) {
	t.Helper()
	require.Equal(t, 2, o.code, "%s", o.stderr)
	require.Contains(t, o.stderr, setting, "a person must see which setting it is")
	require.Empty(t, o.stdout)
	require.NotContains(t, o.stderr, `"serving"`)
}

func TestSettings_ThatCannotBe_AreNamed(t *testing.T) {
	t.Parallel()
	for _, argument := range []string{
		"--no-such-setting=1", "--batch-ticket=1", "--max-body=0", "--max-body=many", "--max-body=2GiB", "--max-body=-1",
		"--max-header=10", "--max-connections=-1", "--max-connections=1.5", "--max-connections-per-peer=-2",
		"--body-bytes=4MB", "--request-timeout=1ms", "--request-timeout=4",
		"--read-timeout=0s", "--write-timeout=0s", "--idle-timeout=-1s", "--database-max-conns=4", "--batch-tickets=0",
		"--batch-bytes=0", "--batches-in-flight=0", "--waiting-tickets=0", "--waiting-bytes=-1", "--key-ttl=1s",
		"--treat-interval=0s", "--treat-lease=1ms", "--treat-max-attempts=0", "--treat-min-back-off=0s",
		"--treat-max-back-off=1ms", "--partition-period=year", "--partitions-ahead=0", "--shutdown-delay=-1s", "--shutdown-spool-wait=-1s",
		"--shutdown-timeout=0s", "--log-format=xml", "--log-level=loud",
		"--new-products-rate=NaN", "--new-products-rate=-1", "--new-products-burst=0", "--peer-header=X Forwarded",
		"--test-sources=a,Shop 1", "--ignore-parameters=a=b", "--ignore-parameters=a,,b",
	} {
		t.Run(argument, func(t *testing.T) {
			t.Parallel()
			setting, _, _ := strings.Cut(argument, "=")
			requireNotUnderstood(t, runCommand(t, nil, "serve", "--database-url", unreachable, argument), setting)
		})
	}
}

// With such settings a requested limit would be missing without a warning.
func TestSettings_ThatContradictEachOther_AreNamed(t *testing.T) {
	t.Parallel()
	o := runCommand(t, nil, "serve", "--database-url", unreachable, "--peer-header=X-Forwarded-For", "--max-connections-per-peer=0")
	requireNotUnderstood(t, o, "--peer-header")
	require.Contains(t, o.stderr, "--max-connections-per-peer")
}

// With these a person sees at once what to do.
func TestDatabaseURL_OfAnotherDatabase_IsNamed(t *testing.T) {
	t.Parallel()
	for url, scheme := range map[string]string{
		"mysql://root:hunter2@localhost/x": "mysql://", "jdbc:postgresql://localhost/x?password=hunter2": "jdbc:postgresql://",
		"Postgresql://a:hunter2@localhost/x": "Postgresql://",
	} {
		for _, command := range [][]string{{"tickets", "list"}, {"serve"}, {"migrate", "up"}} {
			o := runCommand(t, nil, append(command, "--database-url", url)...)
			require.Equal(t, 1, o.code)
			require.Contains(t, o.stderr, "the database URL begins with "+scheme+": MyTicket needs PostgreSQL")
			require.NotContains(t, o.stderr, "hunter2")
		}
	}
}

// unreachable is the URL of a database that does not answer.
const unreachable = "postgresql://myticket:hunter2@127.0.0.1:1/myticket"

func TestSettings_FromTheEnvironment_ThatCannotBe_AreNamed(t *testing.T) {
	for variable, setting := range map[string]string{
		"MYTICKET_BATCH_TICKETS=0":         "--batch-tickets",
		"MYTICKET_MAX_BODY=many":           "--max-body",
		"MYTICKET_REQUEST_TIMEOUT=soon":    "--request-timeout",
		"MYTICKET_PARTITION_PERIOD=year":   "--partition-period",
		"MYTICKET_DATABASE_MAX_CONNS=four": "--database-max-conns",
	} {
		t.Run(variable, func(t *testing.T) {
			name, value, _ := strings.Cut(variable, "=")
			t.Setenv(name, value)
			requireNotUnderstood(t, runCommand(t, os.Environ(), "serve", "--database-url", unreachable), setting)
		})
	}
}

func TestSettings_FlagWinsOverEnvironment(t *testing.T) {
	t.Setenv("MYTICKET_BATCH_TICKETS", "7")
	t.Setenv("MYTICKET_BATCHES_IN_FLIGHT", "3")
	databaseURL := pgtest.New(t)
	t.Setenv("DATABASE_URL", databaseURL)
	s := serveWith(t, "--batch-tickets=9")
	s.awaitReady(t)
	settings := s.log.line("settings")
	require.Equal(t, "9", settings["batch-tickets"])
	require.Equal(t, "3", settings["batches-in-flight"])
}

// An empty variable is what a template leaves of a value that is not set. It must not mean the current folder.
func TestSettings_EmptyInTheEnvironment_AreNotSet(t *testing.T) {
	t.Setenv("MYTICKET_SPOOL_DIR", "")
	t.Setenv("MYTICKET_SOURCES_FILE", "")
	t.Setenv("MYTICKET_IGNORE_PARAMETERS", "")
	t.Setenv("DATABASE_URL", pgtest.New(t))
	s := serveWith(t)
	s.awaitReady(t)
	require.NotNil(t, s.log.line("no --spool-dir: while Postgres is away, tickets are refused with 503, "+
		"and are lost unless their senders send them again"))
	require.Equal(t, http.StatusOK, s.post(t, "/ticket", sample(t)).status)
}

func TestEnvironment_WithAnUnknownSetting_IsAnError(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{
		"MYTICKET_BATCH_TICKET=5", "MYTICKET_DATABASE_URL=" + unreachable, "MYTICKET_SERVICE=1", "MYTICKET_PORTS=1",
		"MYTICKET_=1",
	} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			name, value, _ := strings.Cut(variable, "=")
			o := runCommand(t, []string{"HOME=/", variable}, "serve", "--database-url", unreachable)
			requireNotUnderstood(t, o, name)
			if len(value) > 1 {
				require.NotContains(t, o.stderr, value, "it may be a secret")
			}
		})
	}
}

// TestEnvironment_OfAServiceLink_IsIgnored: Kubernetes sets these in every container of a namespace with a Service named myticket.
func TestEnvironment_OfAServiceLink_IsIgnored(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{
		"MYTICKET_PORT=tcp://10.0.0.1:80", "MYTICKET_SERVICE_HOST=10.0.0.1", "MYTICKET_SERVICE_PORT=80",
		"MYTICKET_SERVICE_PORT_HTTP=80", "MYTICKET_PORT_80_TCP=tcp://10.0.0.1:80", "MYTICKET_PORT_80_TCP_PROTO=tcp",
		"MYTICKET_PORT_80_TCP_PORT=80", "MYTICKET_PORT_80_TCP_ADDR=10.0.0.1", "MYTICKET_ADMIN_SERVICE_HOST=10.0.0.1",
		"MYTICKET_ADMIN_PORT=tcp://10.0.0.1:9099", "MYTICKET_POSTGRES_RW_SERVICE_PORT_POSTGRES=5432",
		"MYTICKETS_ALL=1", "OTHER=1", "MYTICKET_DEV_DATA_DIR=/tmp", // cmd/myticket-dev looks at the latter
	} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			o := runCommand(t, []string{variable}, "version")
			require.Zero(t, o.code, "%s", o.stderr)
			require.Equal(t, "dev\n", o.stdout)
		})
	}
}

func TestDatabaseURL_FromAFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "uri")
	databaseURL := pgtest.New(t)
	require.NoError(t, os.WriteFile(file, []byte(databaseURL+"\n"), 0o600))
	s := serveWith(t, "--database-url-file", file)
	s.awaitReady(t)
	r := s.submit(t, "/ticket", sample(t))
	require.Contains(t, storedBodies(t, databaseURL), r.ID)
}

// writeParts writes the parts of a URI as CloudNativePG's Secret has them.
func writeParts(t *testing.T, databaseURL string) (dir string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	password, _ := u.User.Password()
	dir = t.TempDir()
	for part, value := range map[string]string{
		"host": u.Hostname(), "port": u.Port(), "dbname": strings.TrimPrefix(u.Path, "/"), "username": u.User.Username(), "password": password,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, part), []byte(value+"\n"), 0o600))
	}
	return dir
}

// The operator of a Cluster sets a new password as soon as it is in the Secret, and leaves the URI in it as it was.
func TestDatabaseDir_PasswordAlone_IsRenewed(t *testing.T) {
	t.Parallel()
	server, databaseURL := pgtest.NewServer(t)
	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	u.User = url.UserPassword("till @:/?#", "correct horse@:/?#%41")
	pool := openPool(t, databaseURL)
	exec := func(sql string) {
		_, err := pool.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	exec(`CREATE ROLE "till @:/?#" SUPERUSER LOGIN PASSWORD 'correct horse@:/?#%41'`)
	dir := writeParts(t, u.String())
	s := serveWith(t, "--database-dir", dir)
	s.awaitReady(t)
	exec(`ALTER ROLE "till @:/?#" PASSWORD 'battery-staple'`)
	require.NoError(t, server.Restart(t.Context())) // ends every connection
	await(t, "the old password is refused", func() bool { return strings.Contains(s.readiness(t).failing("database"), "28P01") })
	require.NoError(t, os.WriteFile(filepath.Join(dir, "password"), []byte("battery-staple"), 0o600))
	s.awaitReady(t)
	r := s.submit(t, "/ticket", sample(t))
	require.Contains(t, storedBodies(t, databaseURL), r.ID)
}

func TestDatabaseDir_PortIsTheOnlyPartThatMayBeMissing(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"host", "dbname", "username", "password"} {
		dir := writeParts(t, "postgresql://u:p@h:1/d")
		require.NoError(t, os.WriteFile(filepath.Join(dir, part), []byte("\n"), 0o600))
		_, err := databaseFlags{DatabaseDir: dir}.url()
		require.ErrorContains(t, err, filepath.Join(dir, part)+" is empty")
		require.NoError(t, os.Remove(filepath.Join(dir, part)))
		_, err = databaseFlags{DatabaseDir: dir}.url()
		require.ErrorContains(t, err, filepath.Join(dir, part))
	}
	dir := writeParts(t, "postgresql://u:p@h:1/d")
	require.NoError(t, os.Remove(filepath.Join(dir, "port")))
	uri, err := databaseFlags{DatabaseDir: dir}.url()
	require.NoError(t, err)
	require.Equal(t, "postgresql://u:p@h:5432/d", uri)
}

func TestDatabaseURL_ThatIsMissingOrUnclear_IsNamed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "uri")
	require.NoError(t, os.WriteFile(file, []byte(unreachable), 0o600))
	for name, test := range map[string]struct {
		args  []string
		named string
	}{
		"none":            {nil, "--database-url"},
		"both":            {[]string{"--database-url", unreachable, "--database-url-file", file}, "--database-url-file"},
		"both in files":   {[]string{"--database-dir", filepath.Dir(file), "--database-url-file", file}, "unset the others"},
		"no such folder":  {[]string{"--database-dir", file + "-not"}, "--database-dir"},
		"no such file":    {[]string{"--database-url-file", file + "-not"}, "--database-url-file"},
		"unreadable":      {[]string{"--database-url", strings.Replace(unreachable, ":1/", ":port/", 1)}, "database URL"},
		"unreadable host": {[]string{"--database-url", "postgresql://myticket:hunter2@[::1:5432/myticket"}, "database URL"},
		"unknown setting": {[]string{"--database-url", unreachable + "?sslmode=maybe"}, "sslmode"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := runCommand(t, nil, append([]string{"serve", "--http-addr=127.0.0.1:0"}, test.args...)...)
			require.NotZero(t, o.code)
			require.Contains(t, o.stderr, test.named)
			require.NotContains(t, o.stderr, "hunter2", "it is a password")
		})
	}
}

func TestSettings_AreLoggedOnce_WithoutThePassword(t *testing.T) {
	t.Parallel()
	b := setup(t, "--batch-tickets=77", "--log-level=debug")
	b.submit(t, "/ticket", sample(t))
	require.Zero(t, b.stop())
	settings := b.log.lines("settings")
	require.Len(t, settings, 1)
	require.Equal(t, "77", settings[0]["batch-tickets"])
	require.Equal(t, "4s", settings[0]["request-timeout"])
	u, err := url.Parse(b.databaseURL)
	require.NoError(t, err)
	require.Contains(t, settings[0]["database"], strings.TrimPrefix(u.Path, "/"))
	if password, ok := u.User.Password(); ok { // a server of MYTICKET_TEST_DATABASE_URL may ask for none
		require.NotContains(t, b.log.String(), password)
	}
	for line := range strings.Lines(b.log.String()) {
		require.True(t, json.Valid([]byte(line)), "not JSON: %s", line)
	}
}

func TestPassword_IsNowhere_WhenTheDatabaseRefusesIt(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(pgtest.New(t))
	require.NoError(t, err)
	if _, ok := u.User.Password(); !ok {
		t.Skip("the server of " + pgtest.URLEnv + " asks for no password")
	}
	const password = "correct-horse-battery-staple"
	u.User = url.UserPassword(u.User.Username(), password)
	s := serve(t, u.String(), "--log-level=debug")
	await(t, "readiness says why", func() bool { return strings.Contains(s.readiness(t).failing("database"), "password") })
	a := s.post(t, "/ticket", sample(t))
	requireProblem(t, a, http.StatusServiceUnavailable, "database_unavailable")
	require.NotContains(t, string(a.body), password)
	require.NotContains(t, string(s.get(t, s.internal+"/readyz").body), password)
	require.NotContains(t, string(s.get(t, s.internal+"/debug/pprof/cmdline").body), password)
	require.Zero(t, s.stop())
	require.NotContains(t, s.log.String(), password)
}

func TestServe_OnAnAddressThatIsTaken_SaysWhich(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for setting, args := range map[string][]string{
		"--http-addr":  {"--http-addr", strings.TrimPrefix(b.webhook, "http://"), "--admin-addr=127.0.0.1:0"},
		"--admin-addr": {"--http-addr=127.0.0.1:0", "--admin-addr", strings.TrimPrefix(b.internal, "http://")},
	} {
		o := runCommand(t, nil, append([]string{"serve", "--database-url", b.databaseURL}, args...)...)
		require.Equal(t, 1, o.code, "%s", o.stderr)
		require.Contains(t, o.stderr, "listen on "+setting)
		require.Contains(t, o.stderr, "another process has this port")
		require.Contains(t, o.stderr, "or give another address with "+setting)
	}
	b.submit(t, "/ticket", sample(t))
}

func TestServe_WithASourcesFileThatCannotBe_DoesNotStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"shop-1": {"bearer_token": "one"}}`), 0o600))
	o := runCommand(t, nil, "serve", "--database-url", unreachable, "--sources-file", file)
	require.NotZero(t, o.code)
	require.Contains(t, o.stderr, "bearer_token")
	require.NotContains(t, o.stderr, `"serving"`)
}

// TestServe_WithoutADatabase_AnswersAll: pods start in any order.
func TestServe_WithoutADatabase_AnswersAll(t *testing.T) {
	t.Parallel()
	s := serve(t, unreachable)
	await(t, "readiness says why", func() bool { return s.readiness(t).failing("database") != "" })
	require.Equal(t, http.StatusOK, s.get(t, s.internal+"/livez").status)
	require.Equal(t, "Pong", string(s.get(t, s.webhook+"/ping").body))
	h := watchHiccups(t, s)
	begin := time.Now()
	a := s.post(t, "/ticket", sample(t))
	requireProblem(t, a, http.StatusServiceUnavailable, "database_unavailable")
	requireRetryAfter(t, a)
	require.Less(t, time.Since(begin), h.beyond(requestTimeout+slack))
	require.NotContains(t, s.log.String(), "hunter2", "it is a password")
}

func TestDatabaseURL_FromAFile_IsReadAgain(t *testing.T) {
	t.Parallel()
	server, databaseURL := pgtest.NewServer(t)
	pool := openPool(t, databaseURL)
	exec := func(sql string) {
		_, err := pool.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	file := filepath.Join(t.TempDir(), "uri")
	write := func(password string) {
		u, err := url.Parse(databaseURL)
		require.NoError(t, err)
		u.User = url.UserPassword("till", password)
		require.NoError(t, os.WriteFile(file, []byte(u.String()+"\n"), 0o600))
	}
	exec(`CREATE ROLE till SUPERUSER LOGIN PASSWORD 'correct-horse'`)
	write("correct-horse")
	s := serveWith(t, "--database-url-file", file)
	s.awaitReady(t)

	exec(`ALTER ROLE till PASSWORD 'battery-staple'`)
	require.NoError(t, server.Restart(t.Context())) // ends every connection
	await(t, "the old password is refused", func() bool { return strings.Contains(s.readiness(t).failing("database"), "28P01") })
	write("battery-staple")
	s.awaitReady(t)
	s.submit(t, "/ticket", sample(t))
	require.NotContains(t, s.log.String(), "correct-horse")
	require.NotContains(t, s.log.String(), "battery-staple")
}
