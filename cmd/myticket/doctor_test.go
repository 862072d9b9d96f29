package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb"
	"myticket/internal/devdb/pgtest"
	"myticket/internal/httpapi"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// diagnosis is what `myticket doctor` says.
type diagnosis struct {
	code   int
	report doctorReport
	stderr string
}

// diagnose runs the command, and checks what holds for every report.
func diagnose(t *testing.T, args ...string) diagnosis {
	t.Helper()
	began := time.Now()
	o := runCommand(t, nil, append([]string{"doctor", "--output=json"}, args...)...)
	require.Less(t, time.Since(began), doctorTimeout+5*time.Second, "it is bounded in time, whatever is wrong")
	d := diagnosis{code: o.code, stderr: o.stderr}
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &d.report), "%s%s", o.stdout, o.stderr)
	var names []string
	for _, f := range d.report.Checks {
		names = append(names, f.Name)
		require.NotEmpty(t, f.Found, f.Name)
		require.NotContains(t, f.Found, "\n", f.Name)
		switch f.Status {
		case isOK, isSkipped:
			require.Empty(t, f.Means+f.Do+f.Runbook, "%v", f)
		default:
			require.NotEmpty(t, f.Means, "%v", f)
			require.NotEmpty(t, f.Do, "%v", f)
		}
		if f.Runbook != "" {
			require.FileExists(t, filepath.Join("../..", f.Runbook))
		}
	}
	require.Equal(t, (&doctorCmd{}).examination().names(), names, "a check that fails hides no other")
	require.Equal(t, worst(d.report.Checks), d.report.Status)
	return d
}

func (d diagnosis) of(t *testing.T, name string) finding {
	t.Helper()
	i := slices.IndexFunc(d.report.Checks, func(f finding) bool { return f.Name == name })
	require.GreaterOrEqual(t, i, 0, name)
	return d.report.Checks[i]
}

// says requires a verdict, and a word of what was found.
func (d diagnosis) says(t *testing.T, name string, status verdict, found string) finding {
	t.Helper()
	f := d.of(t, name)
	require.Equal(t, status, f.Status, "%v", f)
	require.Contains(t, f.Found, found)
	return f
}

// not returns the checks that have none of the verdicts.
func (d diagnosis) not(verdicts ...verdict) (others []finding) {
	for _, f := range d.report.Checks {
		if !slices.Contains(verdicts, f.Status) {
			others = append(others, f)
		}
	}
	return others
}

// patient is a database with the schema, on a server that keeps what it confirms. Its role owns the tables and is no superuser.
type patient struct {
	server *devdb.Server
	url    string
	role   *pgxpool.Pool
	super  *pgxpool.Pool // of the same database
}

func newPatient(t *testing.T, server *devdb.Server) *patient {
	t.Helper()
	p := &patient{server: server}
	admin := openPool(t, server.URL("postgres"))
	for _, sql := range []string{`CREATE ROLE till LOGIN PASSWORD 'till'`, `CREATE DATABASE tills OWNER till`} {
		_, err := admin.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	u, err := url.Parse(server.URL("tills"))
	require.NoError(t, err)
	u.User = url.UserPassword("till", "till")
	p.url = u.String()
	require.NoError(t, postgres.MigrateUp(t.Context(), p.url))
	p.role, p.super = openPool(t, p.url), openPool(t, server.URL("tills"))
	store, err := postgres.Open(t.Context(), postgres.Config{URL: p.url})
	require.NoError(t, err)
	defer store.Close()
	_, err = store.EnsurePartitions(t.Context(), postgres.Day, 3, time.Now())
	require.NoError(t, err)
	_, err = store.EnsureOutbox(t.Context())
	require.NoError(t, err)
	return p
}

func (p *patient) exec(t *testing.T, sql ...string) {
	t.Helper()
	for _, sql := range sql {
		_, err := p.super.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
}

// durable are the settings of a server that keeps what it confirms.
func durable() []string { return []string{"fsync", "on", "full_page_writes", "on"} }

// nobody is an address on which no server listens.
const nobody = "127.0.0.1:1"

func TestDoctor_OfAWholeInstallation_SaysThatAllIsWell(t *testing.T) {
	t.Parallel()
	primary, _, _ := pgtest.NewPair(t, durable()...)
	p := newPatient(t, primary)
	spoolDir := t.TempDir()
	s := serveWith(t, "--database-url", p.url, "--spool-dir", spoolDir, "--spool-max-bytes=1MiB", "--max-connections=100")
	s.awaitReady(t)
	s.awaitStoring(t)
	s.submit(t, "/ticket", sample(t))
	before, err := os.ReadDir(spoolDir)
	require.NoError(t, err)
	args := []string{
		"--database-url", p.url, "--spool-dir", spoolDir, "--spool-max-bytes=1MiB", "--max-connections=100",
		"--admin-addr", strings.TrimPrefix(s.internal, "http://"),
	}
	d := diagnose(t, args...)
	onlyDisk := func(f finding) bool { return f.Name == "spool_disk" } // a temporary folder may be in memory, or in a container
	require.Empty(t, slices.DeleteFunc(d.not(isOK), onlyDisk))
	require.Contains(t, d.of(t, "database").Found, "database tills on 127.0.0.1")
	d.says(t, "standbys", isOK, "a commit waits for 1 standbys, and 1 are attached; this role may not see")
	d.says(t, "spool_tickets", isOK, "it holds 0 tickets (by its server)")
	d.says(t, "connections", isOK, "1 servers may have 9")
	d.says(t, "rights", isOK, "is no superuser")
	after, err := os.ReadDir(spoolDir)
	require.NoError(t, err)
	require.Equal(t, before, after, "the folder is as it was")

	args = append(args, "--skip=spool_disk")
	o := runCommand(t, nil, append([]string{"doctor"}, args...)...)
	require.Zero(t, o.code, o.stdout)
	require.Regexp(t, `(?m)^ok       schema +the schema is at version \d+`, o.stdout)
	require.Regexp(t, `(?m)^skipped  spool_disk +left out by --skip$`, o.stdout)
	require.Contains(t, o.stdout, "All is well: 23 ok, 1 skipped\n")
	require.Empty(t, o.stderr)

	p.exec(t, `GRANT pg_monitor TO till`)
	diagnose(t, args...).says(t, "standbys", isOK, "a commit waits for 1 standbys, and 1 can confirm it")
	s.submit(t, "/ticket", sample(t)) // it goes on
}

func TestDoctor_SaysWhatIsWrongWithTheDatabase(t *testing.T) {
	t.Parallel()
	server, _ := pgtest.NewServer(t, durable()...)
	p := newPatient(t, server)
	args := []string{"--database-url", p.url, "--admin-addr", nobody, "--max-connections=100", "--skip=spool,standbys"}
	d := diagnose(t, args...)
	require.Empty(t, d.not(isOK, isSkipped))
	require.Zero(t, d.code)

	today := time.Now().UTC()
	partition := func(table string, days int) string {
		return table + "_" + today.AddDate(0, 0, days).Format("20060102") + "_" + today.AddDate(0, 0, days+1).Format("20060102")
	}
	bounds := func(days int) string {
		day := today.AddDate(0, 0, days)
		return fmt.Sprintf("FOR VALUES FROM ('%s 00:00Z') TO ('%s 00:00Z')", day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly))
	}
	later := today.AddDate(0, 0, 40).Format(time.DateOnly)
	const insert = `INSERT INTO tickets (id, received_at, source, body, status, next_attempt_at) SELECT gen_random_uuid(), `
	for _, wrong := range []struct {
		what           string
		breaks, mends  []string
		args           []string
		check          string
		status         verdict
		found, runbook string
	}{
		{
			"a right is missing", []string{`REVOKE UPDATE ON products FROM till`}, []string{`GRANT UPDATE ON products TO till`}, nil,
			"rights", isProblem, "this role lacks UPDATE on products", "MyticketDatabaseAway",
		},
		{
			"no right to read the version", []string{`REVOKE SELECT ON schema_migrations FROM till`},
			[]string{`GRANT SELECT ON schema_migrations TO till`}, nil,
			"schema", isUnknown, "too few rights", "",
		},
		{
			"another owner", []string{`ALTER TABLE outbox OWNER TO postgres`, `GRANT ALL ON outbox TO till`},
			[]string{`ALTER TABLE outbox OWNER TO till`}, nil,
			"rights", isWarning, "does not own", "MyticketMaintenanceFailing",
		},
		{
			"no right to create", []string{`REVOKE CREATE ON SCHEMA public FROM till, pg_database_owner, PUBLIC`},
			[]string{`GRANT CREATE ON SCHEMA public TO pg_database_owner`}, nil,
			"rights", isWarning, "may not create tables", "MyticketMaintenanceFailing",
		},
		{
			"a superuser", []string{`ALTER ROLE till SUPERUSER`}, []string{`ALTER ROLE till NOSUPERUSER`}, nil,
			"rights", isWarning, "this role is a superuser", "",
		},
		{
			"no partition for now", []string{`ALTER TABLE tickets DETACH PARTITION ` + partition("tickets", 0)},
			[]string{`ALTER TABLE tickets ATTACH PARTITION ` + partition("tickets", 0) + " " + bounds(0)}, nil,
			"partitions", isProblem, "tickets have no partition for " + today.Format(time.DateOnly), "MyticketMaintenanceFailing",
		},
		{
			"no partition for tomorrow", []string{`ALTER TABLE tickets DETACH PARTITION ` + partition("tickets", 1)},
			[]string{`ALTER TABLE tickets ATTACH PARTITION ` + partition("tickets", 1) + " " + bounds(1)}, nil,
			"partitions", isProblem, "tickets have no partition for " + today.AddDate(0, 0, 1).Format(time.DateOnly), "MyticketMaintenanceFailing",
		},
		{
			"too few partitions", nil, nil, []string{"--partitions-ahead=5"},
			"partitions", isWarning, "and none for " + today.AddDate(0, 0, 4).Format(time.DateOnly), "MyticketMaintenanceFailing",
		},
		{
			"no partition of the outbox", []string{`ALTER TABLE outbox DETACH PARTITION ` + partition("outbox", 1)},
			[]string{`ALTER TABLE outbox ATTACH PARTITION ` + partition("outbox", 1) + " " + bounds(1)}, nil,
			"partitions", isWarning, "the outbox has no partition for " + today.AddDate(0, 0, 1).Format(time.DateOnly), "MyticketMaintenanceFailing",
		},
		{
			"tickets in the default partition", []string{insert + `'` + later + `', 'x', '', 'TREATED', NULL`}, []string{`DELETE FROM tickets`}, nil,
			"partitions", isWarning, "the default partition holds 1 tickets", "MyticketMaintenanceFailing",
		},
		{
			"tickets set aside", []string{`CREATE TABLE tickets_strays_1 (LIKE tickets)`,
				`INSERT INTO tickets_strays_1 SELECT * FROM json_populate_record(NULL::tickets_strays_1, '{"id": "00000000-0000-0000-0000-000000000000",
				"received_at": "2026-01-01", "source": "x", "body": "", "status": "TREATED", "content_type": "", "parser_version": 0, "attempts": 0,
				"claims": 0, "dialect": 0, "version": 1}')`, `GRANT SELECT ON tickets_strays_1 TO till`},
			[]string{`DROP TABLE tickets_strays_1`}, nil,
			"partitions", isWarning, "1 tickets of a full default partition", "MyticketMaintenanceFailing",
		},
		{
			"an old schema", []string{`UPDATE schema_migrations SET version = 9`}, []string{`UPDATE schema_migrations SET version = 16`}, nil,
			"schema", isProblem, `the schema is at version 9 and this program needs 16: run "myticket migrate up"`, "MyticketSchemaBehind",
		},
		{
			"a dirty schema", []string{`UPDATE schema_migrations SET dirty = true`}, []string{`UPDATE schema_migrations SET dirty = false`}, nil,
			"schema", isProblem, `dirty`, "MyticketSchemaBehind",
		},
		{
			"a newer schema, dirty", []string{`UPDATE schema_migrations SET dirty = true, version = 99`},
			[]string{`UPDATE schema_migrations SET dirty = false, version = 16`}, nil,
			"schema", isWarning, "this program needs version 16 and can work", "MyticketSchemaBehind",
		},
		{
			"commits that are not awaited", []string{`ALTER ROLE till SET synchronous_commit = off`},
			[]string{`ALTER ROLE till RESET synchronous_commit`}, nil,
			"durability", isProblem, "off: synchronous_commit", "",
		},
		{
			"a timeout", []string{`ALTER ROLE till SET statement_timeout = '5s'`}, []string{`ALTER ROLE till RESET statement_timeout`}, nil,
			"timeouts", isWarning, "statement_timeout is 5s", "",
		},
		{
			"a role that only reads", []string{`ALTER ROLE till SET default_transaction_read_only = on`},
			[]string{`ALTER ROLE till RESET default_transaction_read_only`}, nil,
			"database", isProblem, "default_transaction_read_only is on", "MyticketDatabaseAway",
		},
		{
			"too many servers", nil, nil, []string{"--servers=40"},
			"connections", isWarning, "40 servers may have 360, and others have", "MyticketPoolSaturated",
		},
		{
			"a limit of the role", []string{`ALTER ROLE till CONNECTION LIMIT 8`}, []string{`ALTER ROLE till CONNECTION LIMIT -1`}, nil,
			"connections", isWarning, "but the role or the database is limited to 8", "MyticketPoolSaturated",
		},
		{
			"no connection left", []string{`ALTER ROLE till CONNECTION LIMIT 0`}, []string{`ALTER ROLE till CONNECTION LIMIT -1`}, nil,
			"database", isProblem, "too many connections for role", "MyticketDatabaseAway",
		},
		{
			"another password", []string{`ALTER ROLE till PASSWORD 'other'`}, []string{`ALTER ROLE till PASSWORD 'till'`}, nil,
			"database", isProblem, "password authentication failed", "MyticketDatabaseAway",
		},
		{
			"a backlog", []string{insert + `now(), 'x', '', 'TO_TREAT', now() - interval '1 hour'`}, []string{`DELETE FROM tickets`}, nil,
			"backlog", isWarning, "1 tickets are TO_TREAT", "MyticketBacklog",
		},
		{
			"many ERROR tickets", []string{insert + `now() - interval '1 s' * i, 'x', '', 'ERROR', NULL FROM generate_series(1, 12) i`},
			[]string{`DELETE FROM tickets`}, nil,
			"errors", isWarning, "12 tickets of the last day are ERROR, which is more than one in a hundred", "MyticketErrorJump",
		},
		{
			"few ERROR tickets", []string{insert + `now() - interval '1 ms' * i, 'x', '', CASE WHEN i > 1999 THEN 'ERROR' ELSE 'TREATED' END, NULL
				FROM generate_series(1, 2010) i`}, []string{`DELETE FROM tickets`}, nil,
			"errors", isOK, "11 tickets of the last day are ERROR", "",
		},
		{
			"order lines that are behind", []string{`INSERT INTO outbox (at, kind, tickets) VALUES (now() - interval '1 hour', 'stored', ''::bytea)`},
			[]string{`DELETE FROM outbox`}, nil,
			"order_lines", isWarning, "the oldest for 1h0m", "MyticketOrderLinesBehind",
		},
		{
			"a dialect of the future", []string{`INSERT INTO dialects (source, dialect, who, why) VALUES ('shop-1', '{"telepathy": true}', 'x', '')`},
			[]string{`ALTER TABLE dialects DISABLE TRIGGER only_added`, `DELETE FROM dialects`}, nil,
			"dialects", isWarning, "does not understand the dialects of shop-1", "MyticketDialectsNotUnderstood",
		},
		{
			"a subscription that is paused", []string{`INSERT INTO subscriptions (name, target, paused_at, paused_why) VALUES ('erp', 'https://h/', now(), 'no more')`},
			[]string{`DELETE FROM subscriptions`}, nil,
			"subscriptions", isWarning, "erp is paused (no more)", "",
		},
	} {
		p.exec(t, wrong.breaks...)
		d := diagnose(t, append(args, wrong.args...)...)
		f := d.says(t, wrong.check, wrong.status, wrong.found)
		if wrong.runbook != "" {
			require.Equal(t, "docs/runbooks/"+wrong.runbook+".md", f.Runbook, wrong.what)
		}
		require.Equal(t, exitCodes[d.report.Status], d.code, wrong.what)
		p.exec(t, wrong.mends...)
	}
	require.Empty(t, diagnose(t, args...).not(isOK, isSkipped), "everything is mended")

	t.Run("what needs the schema is skipped, and the rest is not", func(t *testing.T) {
		p.exec(t, `UPDATE schema_migrations SET version = 9`)
		d := diagnose(t, args...)
		require.Equal(t, 1, d.code)
		for _, name := range []string{"backlog", "errors", "order_lines", "dialects"} {
			d.says(t, name, isSkipped, "the schema is not the one")
		}
		require.Len(t, d.not(isOK, isSkipped), 1)
		p.exec(t, `UPDATE schema_migrations SET version = 16`)
	})
	t.Run("a table that is locked", func(t *testing.T) {
		tx, err := p.super.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), `LOCK TABLE tickets`)
		require.NoError(t, err)
		d := diagnose(t, args...)
		require.Equal(t, 4, d.code, "it could not be checked, which is no problem that was found")
		require.Contains(t, d.stderr, "unknown")
		d.says(t, "backlog", isUnknown, "lock timeout")
		d.says(t, "dialects", isOK, "")
		require.Zero(t, diagnose(t, append(args, "--fail-on=problem")...).code)
		require.NoError(t, tx.Rollback(t.Context()))
	})
	t.Run("a certificate is asked for, and there is none", func(t *testing.T) {
		other := []string{"--database-url", strings.Replace(p.url, "sslmode=disable", "sslmode=require", 1)}
		f := diagnose(t, append(other, args[2:]...)...).says(t, "database", isProblem, "refused TLS")
		require.Contains(t, f.Do, "PGSSLMODE")
	})
	t.Run("no such database", func(t *testing.T) {
		other := []string{"--database-url", strings.Replace(p.url, "/tills", "/nothing", 1)}
		f := diagnose(t, append(other, args[2:]...)...).says(t, "database", isProblem, `"nothing" does not exist`)
		require.Contains(t, f.Do, "Create the database")
	})
}

func TestDoctor_WithoutASchema_SaysHowToMakeIt(t *testing.T) {
	t.Parallel()
	d := diagnose(t, "--database-url", pgtest.Empty(t), "--admin-addr", nobody)
	f := d.says(t, "schema", isProblem, "the schema is at version 0")
	require.Contains(t, f.Do, "myticket migrate up")
	d.says(t, "partitions", isSkipped, "the schema")
	d.says(t, "durability", isProblem, "off: fsync, full_page_writes") // as the servers of tests are
	require.Equal(t, 1, d.code)
}

// A port without a server, and a server that does not answer. What needs no database is examined all the same.
func TestDoctor_DatabaseAway_ExaminesTheRest(t *testing.T) {
	t.Parallel()
	paused, pausedURL := pgtest.NewServer(t)
	require.NoError(t, paused.Pause())
	t.Cleanup(func() { assert.NoError(t, paused.Resume()) })
	dir := t.TempDir()
	for _, databaseURL := range []string{unreachable, pausedURL} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			d := diagnose(t, "--database-url", databaseURL, "--spool-dir", dir, "--spool-max-bytes=1MiB", "--admin-addr", nobody)
			require.Equal(t, 1, d.code)
			f := d.says(t, "database", isProblem, "log in to the database")
			require.Contains(t, f.Do, "Start Postgres")
			require.NotContains(t, fmt.Sprint(d), "hunter2", "it is a password")
			require.Contains(t, d.stderr, "The database cannot be reached; trying for up to 10s")
			for _, name := range []string{"schema", "rights", "partitions", "standbys", "backlog", "dialects"} {
				d.says(t, name, isSkipped, "there is no connection to the database")
			}
			d.says(t, "settings", isOK, "")
			d.says(t, "spool", isOK, dir)
			d.says(t, "spool_tickets", isOK, "it holds 0 tickets (by its files)")
		})
	}
}

func TestDoctor_WithoutADatabaseURL_SaysSo(t *testing.T) {
	t.Parallel()
	d := diagnose(t, "--skip=spool", "--admin-addr", nobody)
	f := d.says(t, "database", isProblem, "no database: set DATABASE_URL")
	require.Contains(t, f.Do, "as a server gets it")
	d = diagnose(t, "--skip=spool", "--admin-addr", nobody, "--database-url=postgresql://u:hunter2@[::1:5/x")
	d.says(t, "database", isProblem, "database URL")
	require.NotContains(t, fmt.Sprint(d), "hunter2")
}

func TestDoctor_OnAStandby_AndWithoutOne(t *testing.T) {
	t.Parallel()
	primary, standby, _ := pgtest.NewPair(t, durable()...)
	p := newPatient(t, primary)
	rest := []string{"--admin-addr", nobody, "--skip=spool", "--max-connections=100"}
	host, _ := url.Parse(standby.URL("tills"))
	_, there := swapHost(t, p.url, host.Host)
	var d diagnosis
	await(t, "the standby has what the primary has", func() bool {
		d = diagnose(t, append(rest, "--database-url", there)...)
		return d.of(t, "partitions").Status == isOK
	})
	f := d.says(t, "database", isProblem, "it is a standby, which takes no writes")
	require.Contains(t, f.Do, "Name the primary")
	d.says(t, "schema", isOK, "")
	require.Equal(t, 1, d.code)

	require.NoError(t, standby.Kill())
	here := append([]string{"--database-url", p.url}, rest...)
	await(t, "the primary knows that its standby is gone", func() bool {
		return diagnose(t, here...).of(t, "standbys").Status == isProblem
	})
	f = diagnose(t, here...).says(t, "standbys", isProblem, "a commit waits for 1 standbys, and 0")
	require.Equal(t, "docs/runbooks/MyticketStandbyMissing.md", f.Runbook)

	committed := make(chan error, 1)
	go func() { // as a server's batch
		_, err := p.role.Exec(t.Context(), `INSERT INTO outbox (kind, tickets) VALUES ('stored', '')`)
		committed <- err
	}()
	await(t, "it says that commits wait", func() bool {
		return strings.Contains(diagnose(t, here...).of(t, "standbys").Found, "1 commits wait for a standby, for up to")
	})
	require.NoError(t, primary.RequireStandby(t.Context(), false))
	require.NoError(t, <-committed)
	diagnose(t, here...).says(t, "standbys", isWarning, "commits wait for no standby (synchronous_standby_names is empty); 0 are attached")
}

func TestDoctor_ClocksThatDiffer(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.New(t)
	e := (&doctorCmd{databaseFlags: databaseFlags{DatabaseURL: databaseURL}}).examination()
	require.Equal(t, isOK, e.checkDatabase(t.Context()).Status)
	defer e.database.Close()
	require.Equal(t, isOK, e.checkClock(t.Context()).Status)
	for ahead, want := range map[time.Duration]struct {
		status verdict
		found  string
	}{
		1500 * time.Millisecond:         {isWarning, "ahead of"},
		-time.Minute:                    {isWarning, "behind"},
		2 * httpapi.SignatureTolerance:  {isProblem, "ahead of"},
		-2 * httpapi.SignatureTolerance: {isProblem, "behind"},
	} {
		e.now = func() time.Time { return ticket.Now().Add(ahead) }
		f := e.checkClock(t.Context())
		require.Equal(t, want.status, f.Status, f)
		require.Contains(t, f.Found, want.found)
		require.Equal(t, want.status == isProblem, strings.Contains(f.Means, "401"))
	}
}

func TestDoctor_Encryption(t *testing.T) {
	t.Parallel()
	for want, server := range map[verdict][]postgres.DatabaseServer{
		isOK:      {{Local: true}, {TLS: "TLS 1.3"}, {TLS: "TLS 1.3", Verified: true}},
		isWarning: {{}},
	} {
		for _, s := range server {
			f := (&examination{database: &postgres.CheckUp{Server: s}}).checkEncryption(t.Context())
			require.Equal(t, want, f.Status, f)
			require.Equal(t, want == isOK, f.Do == "")
		}
	}
}

// No test can make so many transactions.
func TestDoctor_AgeOfTransactionNumbers(t *testing.T) {
	t.Parallel()
	for age, want := range map[int64]verdict{10: isOK, 300_000_000: isOK, 1_100_000_000: isWarning, 1_700_000_000: isProblem} {
		f := sizeFinding(postgres.DatabaseSize{Bytes: 1 << 30, Age: age}, "on")
		require.Equal(t, want, f.Status, f)
		require.Equal(t, want == isOK, strings.Contains(f.Found, "the database has 1.0 GiB; autovacuum is on, and ran last never"))
	}
	require.Equal(t, isWarning, sizeFinding(postgres.DatabaseSize{}, "off").Status)
}

// away are the flags of a run that needs no database, and waits for none.
func away(args ...string) []string {
	return append([]string{"--database-url=", "--admin-addr", nobody}, args...)
}

func TestDoctor_Settings(t *testing.T) {
	t.Parallel()
	signed := write(t, "signed.json", `{"shop-1": {"webhook_secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}}`)
	for _, wrong := range []struct {
		args   []string
		check  string
		status verdict
		found  string
	}{
		{[]string{"--overflow-wait=3s", "--spool-dir=/tmp"}, "settings", isProblem, "--overflow-wait and --database-timeout together"},
		{[]string{"--database-max-conns=4"}, "settings", isProblem, "--database-max-conns is too small"},
		{[]string{"--body-bytes=1MiB"}, "settings", isProblem, "--body-bytes is too small"},
		{[]string{"--sources-file", signed, "--key-ttl=2m"}, "settings", isProblem, "--key-ttl must be at least 10m0s"},
		{[]string{"--sources-file", signed}, "settings", isOK, ""},
		{[]string{"--sources-file", signed}, "sources", isOK, "every source needs credentials"},
		{[]string{"--sources-file", signed + "-not"}, "sources", isProblem, "no such file"},
		{[]string{"--sources-file", write(t, "s.json", `{"shop-1": {"bearer": "one"}}`)}, "sources", isProblem, "line 1"},
		{[]string{"--sources-file", write(t, "s.json", `{}`)}, "sources", isProblem, "names no source"},
		{[]string{"--sources-file", write(t, "s.json", `{"shop-1": {"hold": true}, "*": {}}`)}, "sources", isWarning, "on hold: shop-1"},
		{[]string{"--sources-file", write(t, "s.json", `{"*": {}}`)}, "sources", isOK, "without credentials may send: *"},
		{nil, "sources", isOK, "every source may send"},
		{[]string{"--body-bytes=900GiB"}, "memory", isWarning, "a server uses at most"},
		{[]string{"--max-connections=90000", "--body-bytes=4MiB"}, "memory", isWarning, ""},
		{[]string{"--max-connections=1000000000", "--skip=memory"}, "open_files", isWarning, "a server needs at most 1000000"},
	} {
		d := diagnose(t, append(away("--skip=spool,database"), wrong.args...)...)
		d.says(t, wrong.check, wrong.status, wrong.found)
	}
}

func TestDoctor_ArgumentsThatCannotBe_AreNamed(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--skip=everything"}, {"--skip=spool,clocks"}, {"--servers=-1"}, {"--fail-on=ok"}, {"--max-body=many"}, {"--partition-period=year"},
	} {
		setting, _, _ := strings.Cut(args[0], "=")
		requireNotUnderstood(t, runCommand(t, nil, append([]string{"doctor"}, args...)...), setting)
	}
	requireNotUnderstood(t, runCommand(t, []string{"MYTICKET_BATCH_TICKET=5"}, "doctor"), "MYTICKET_BATCH_TICKET")
}

func TestDoctor_ExitCodes(t *testing.T) {
	t.Parallel()
	all := "--skip=settings,sources,memory,open_files,database,encryption,clock,schema,rights,partitions,durability,standbys,connections," +
		"timeouts,size,backlog,errors,order_lines,dialects,subscriptions,server"
	for want, args := range map[int][]string{
		0: away(all, "--skip=spool"),
		1: away(all, "--spool-dir=/nowhere/at/all"),
		2: away("--skip=nothing"),
		3: away(all),
	} {
		o := runCommand(t, nil, append([]string{"doctor"}, args...)...)
		require.Equal(t, want, o.code, "%s%s", o.stdout, o.stderr)
		require.Equal(t, want == 0, o.stderr == "")
	}
	require.Zero(t, diagnose(t, away(all, "--fail-on=problem")...).code, "a warning")
	require.Equal(t, 1, diagnose(t, away(all, "--fail-on=problem", "--spool-dir=/nowhere/at/all")...).code)
}

func TestDoctor_Spool(t *testing.T) {
	t.Parallel()
	of := func(dir string, more ...string) diagnosis {
		return diagnose(t, append(away("--skip=database", "--spool-max-bytes=1MiB", "--spool-dir", dir), more...)...)
	}
	d := diagnose(t, away("--skip=database")...)
	d.says(t, "spool", isWarning, "no --spool-dir")
	d.says(t, "spool_disk", isSkipped, "no --spool-dir")

	dir := t.TempDir()
	d = of(filepath.Join(dir, "a"))
	f := d.says(t, "spool", isWarning, "a does not exist")
	require.Contains(t, f.Do, "mount the disk")
	d.says(t, "spool_tickets", isSkipped, "does not exist")
	require.NoDirExists(t, filepath.Join(dir, "a"), "it makes none")
	of(filepath.Join(dir, "a", "b")).says(t, "spool", isProblem, "neither")
	d = of(write(t, "file", ""))
	d.says(t, "spool", isProblem, "is not a folder")
	d.says(t, "spool_tickets", isUnknown, "")

	d = of(spoolOf(t, body("1", "Coffee,c,2"), body("2", "Tea,t,2")))
	d.says(t, "spool", isOK, "fsync took")
	f = d.says(t, "spool_tickets", isWarning, "it holds 2 tickets, the oldest for 0s")
	require.Equal(t, "docs/runbooks/MyticketSpoolLeftBehind.md", f.Runbook)
	unreadable := spoolOf(t, body("1", "Coffee,c,2"))
	require.NoError(t, os.WriteFile(filepath.Join(unreadable, strings.Repeat("0", 15)+"9-"+strings.Repeat("0", 16)+".spool"), []byte("rotten"), 0o600))
	f = of(unreadable).says(t, "spool_tickets", isUnknown, "1 of its files cannot be read")
	require.Contains(t, f.Do, "as the user of the server")
	full := spoolOf(t, body("1", "Coffee,c,2"), body("2", "Tea,t,2"))
	of(full, "--spool-max-tickets=2").says(t, "spool_tickets", isProblem, "is full to 100 %")
	damaged := filepath.Join(full, strings.Repeat("0", 15)+"9-"+strings.Repeat("0", 16)+".damaged")
	require.NoError(t, os.WriteFile(damaged, []byte("rotten"), 0o600))
	f = of(full).says(t, "spool_tickets", isProblem, "1 files are set aside")
	require.Equal(t, "docs/runbooks/MyticketSpoolFilesAside.md", f.Runbook)
	out, code := command(t, "spool", "status", "--output=json", spoolOf(t, body("1", "Coffee,c,2")))
	require.Zero(t, code, out)
}

// A server that has the folder goes on as if nobody had looked.
func TestDoctor_BesideAServer_WhosePostgresIsAway(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	dir := t.TempDir()
	s := serve(t, databaseURL, "--spool-dir", dir, "--spool-max-bytes=1MiB")
	s.awaitReady(t)
	s.awaitStoring(t)
	bare := serve(t, databaseURL)
	bare.awaitReady(t)
	require.NoError(t, database.Kill())
	for range 3 {
		spooled(t, s.post(t, "/ticket", sample(t)))
	}
	// Before its check fails, a server that could not store a ticket says only that the database does not take any.
	await(t, "both servers have asked the database", func() bool {
		asked := func(s *server) bool { return strings.HasPrefix(s.readiness(t).failing("database"), "does not answer") }
		return asked(s) && asked(bare)
	})
	args := func(s *server) []string {
		return []string{
			"--database-url", databaseURL, "--spool-max-bytes=1MiB", "--max-connections=100",
			"--admin-addr", strings.TrimPrefix(s.internal, "http://"), "--skip=database",
		}
	}
	d := diagnose(t, append(args(s), "--spool-dir", dir)...)
	d.says(t, "spool_tickets", isOK, "it holds 3 tickets")
	require.Contains(t, d.of(t, "spool_tickets").Found, "(by its server)")
	f := d.says(t, "server", isWarning, "is ready, but database: does not answer")
	require.Equal(t, "docs/runbooks/MyticketServerDown.md", f.Runbook)
	diagnose(t, append(args(bare), "--skip=spool")...).says(t, "server", isProblem, "is not ready: database: does not answer")
	d = diagnose(t, away("--skip=database", "--spool-dir", dir)...)
	d.says(t, "spool_tickets", isSkipped, "a server uses the folder, and cannot be asked")
	d.says(t, "server", isSkipped, "no server listens")
	require.NoError(t, database.Restart(t.Context()))
	await(t, "the spool is drained", func() bool { return s.metric(t, "myticket_spool_tickets") == 0 })
	s.awaitStoring(t)
	bare.awaitReady(t)
}

// TestDoctor_IsAsItsPageSays keeps the table and the JSON of docs/server.md true.
func TestDoctor_IsAsItsPageSays(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/server.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(page), "\n## The first command\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n## ")
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(section, -1) {
		names = append(names, row[1])
	}
	require.Equal(t, (&doctorCmd{}).examination().names(), names)
	codes := map[string]string{"0": string(isOK)}
	for v, code := range exitCodes {
		codes[fmt.Sprint(code)] = string(v)
	}
	codes["2"] = "not understood"
	for code, word := range codes {
		require.Regexp(t, `(?m)^\| `+code+` \| .*`+map[bool]string{true: "well", false: word}[code == "0"], section)
	}
	example := regexp.MustCompile("(?s)```json\n(.*?)```").FindStringSubmatch(section)
	require.NotNil(t, example)
	var said, says map[string]any
	require.NoError(t, json.Unmarshal([]byte(example[1]), &said))
	o := runCommand(t, nil, append([]string{"doctor", "--output=json"}, away("--skip=database")...)...)
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &says))
	keys := func(object any) []string { return slices.Sorted(maps.Keys(object.(map[string]any))) }
	require.Equal(t, keys(said), keys(says))
	require.Equal(t, keys(said["checks"].([]any)[0]), keys(says["checks"].([]any)[0]))
}
