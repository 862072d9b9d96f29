package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/lab"
)

// spooled reads a 202.
func spooled(t *testing.T, a answer) receipt {
	t.Helper()
	require.Equal(t, http.StatusAccepted, a.status, "%s", a)
	var r receipt
	require.NoError(t, json.Unmarshal(a.body, &r), "%s", a)
	require.Equal(t, "SPOOLED", string(r.Status))
	return r
}

func TestSpool_PostgresAway_TicketsAreTakenAndDrained(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	dir := t.TempDir()
	s := serve(t, databaseURL, "--spool-dir", dir)
	s.awaitReady(t)
	require.NoError(t, database.Kill())

	first := spooled(t, s.post(t, "/ticket/shop-1", sample(t), "Idempotency-Key", "k", "Content-Type", "text/till"))
	again := spooled(t, s.post(t, "/ticket/shop-1", sample(t), "Idempotency-Key", "k"))
	require.Equal(t, first.ID, again.ID)
	require.True(t, again.Duplicate)
	requireProblem(t, s.post(t, "/ticket/shop-1", "another", "Idempotency-Key", "k"), http.StatusUnprocessableEntity, "key_reused")
	unreadable := spooled(t, s.post(t, "/ticket", "\x00\xff"))
	require.InDelta(t, 2, s.metric(t, "myticket_spool_tickets"), 0)
	await(t, "it is ready, and says what is wrong", func() bool {
		r := s.readiness(t)
		require.True(t, r.Ready, "a ticket can be taken durably")
		return strings.Contains(r.failing("database"), "does not answer") && r.failing("spool") == ""
	})

	require.NoError(t, database.Restart(t.Context()))
	await(t, "the spool is drained", func() bool { return s.metric(t, "myticket_spool_tickets") == 0 })
	b := &testBundle{server: s, pool: openPool(t, databaseURL)}
	stored := b.ticket(t, first.ID)
	require.Equal(t, "TREATED", string(stored.Status))
	require.Equal(t, "shop-1", stored.Source)
	require.Equal(t, "text/till", stored.ContentType)
	requireSameBytes(t, sample(t), stored.Body)
	require.Equal(t, "\x00\xff", b.ticket(t, unreadable.ID).Body)
	require.Equal(t, map[string]string{"aZde": "Formule(s) midi 14.90", "IZ8z": "Café 2"}, b.products(t))
	await(t, "the database takes tickets again", func() bool {
		a := s.post(t, "/ticket/shop-1", sample(t), "Idempotency-Key", "k")
		return a.status == http.StatusOK && requireReceipt(t, a).ID == first.ID && requireReceipt(t, a).Duplicate
	})
	require.Equal(t, 2, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSpool_Full_Is503(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	s := serve(t, databaseURL, "--spool-dir", t.TempDir(), "--spool-max-tickets=2")
	s.awaitReady(t)
	require.NoError(t, database.Kill())
	for i := range 2 {
		spooled(t, s.post(t, "/ticket", fmt.Sprint("ticket ", i)))
	}
	a := s.post(t, "/ticket", "one too many")
	requireProblem(t, a, http.StatusServiceUnavailable, "spool_full")
	requireRetryAfter(t, a)
	await(t, "it is not ready", func() bool { return !s.readiness(t).Ready })
	require.Contains(t, s.readiness(t).failing("spool"), "full")
	require.NoError(t, database.Restart(t.Context()))
	s.awaitReady(t)
}

// A server that is scaled away has no successor on its folder, so it stops only when Postgres has its tickets.
func TestSpool_OfAServerThatStops_IsWaitedFor(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	s := serve(t, databaseURL, "--spool-dir", t.TempDir(), "--shutdown-spool-wait=10m")
	s.awaitReady(t)
	require.NoError(t, database.Kill())
	r := spooled(t, s.post(t, "/ticket", sample(t)))
	s.cancel()
	await(t, "it waits, and says so", func() bool {
		line := s.log.line("the spool holds tickets: serving until they are in Postgres, then stopping; a second SIGTERM stops at once")
		return line != nil && s.readiness(t).failing("serving") == "shutting down"
	})
	late := spooled(t, s.post(t, "/ticket", "a load balancer has not noticed")) // it serves meanwhile
	require.NoError(t, database.Restart(t.Context()))
	require.Zero(t, s.stop(), "exit code")
	stored := storedBodies(t, databaseURL)
	require.Equal(t, sample(t), stored[r.ID])
	require.Contains(t, stored, late.ID)
	require.Nil(t, s.log.line("tickets stay in the spool; the next server on this folder drains them, or \"myticket spool drain\""))
}

func TestSpool_OfAServerThatStops_IsLeftWhenTheWaitIsOver(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	dir := t.TempDir()
	s := serve(t, databaseURL, "--spool-dir", dir, "--shutdown-spool-wait=1s")
	s.awaitReady(t)
	require.NoError(t, database.Kill())
	spooled(t, s.post(t, "/ticket", sample(t)))
	require.Zero(t, s.stop(), "exit code")
	out, code := command(t, "spool", "status", "--output=json", dir)
	require.Zero(t, code, out)
	var report spoolReport
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.Equal(t, 1, report.Tickets)
}

// It runs as a process of its own, because a signal to this one would be one to every server of these tests.
func TestSpool_OfAServerThatStops_IsLeftAtASecondSignal_AlsoOneDuringTheDelay(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "myticket")
	built, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", built)
	var ports [3]string
	for i := range ports {
		ports[i], err = lab.FreeAddr(t.Context())
		require.NoError(t, err)
	}
	webhook, internal, nobody := ports[0], ports[1], ports[2]
	log := &lab.Tail{}
	command := exec.Command(program, "serve", "--http-addr", webhook, "--admin-addr", internal, "--spool-dir", t.TempDir(),
		"--database-url", "postgres://myticket@"+nobody+"/myticket", "--shutdown-delay=2s", "--shutdown-spool-wait=10m")
	command.Stdout, command.Stderr = log, log
	p, err := lab.Start(command, syscall.SIGKILL)
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	require.NoError(t, p.AwaitOK(t.Context(), "http://"+internal+"/readyz"))
	s := &server{webhook: "http://" + webhook, client: &http.Client{}}
	spooled(t, s.post(t, "/ticket", sample(t)))
	require.NoError(t, p.Signal(syscall.SIGTERM))
	await(t, "it stops", func() bool { return log.Contains("shutting down") })
	require.NoError(t, p.Signal(syscall.SIGTERM))
	select {
	case <-p.Exited():
		require.NoError(t, p.Wait(), "%s", log)
	case <-time.After(patience):
		t.Fatalf("it waits for its spool, although it was told twice:\n%s", log)
	}
}

// A node that vanishes leaves connections that are open and get no answer, and then an upgrade comes.
func TestSpool_OfAServerThatStops_PostgresHangs_EndsInTime(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	s := serve(t, databaseURL, "--spool-dir", t.TempDir(), "--shutdown-spool-wait=1s", "--shutdown-timeout=5s")
	s.awaitReady(t)
	s.submit(t, "/ticket", sample(t))
	require.NoError(t, database.Pause())
	t.Cleanup(func() { _ = database.Resume() })
	spooled(t, s.post(t, "/ticket", sample(t)))
	start := time.Now()
	require.Zero(t, s.stop(), "exit code")
	require.Less(t, time.Since(start), 12*time.Second, "it waits for connections that nobody will ever answer")
}

func TestSpool_AServerThatNeverSawItsDatabase_IsReadyAndSpools(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	require.NoError(t, database.Kill())
	s := serve(t, databaseURL, "--spool-dir", t.TempDir())
	s.awaitReady(t)
	r := spooled(t, s.post(t, "/ticket", sample(t)))
	require.NoError(t, database.Restart(t.Context()))
	await(t, "the spool is drained", func() bool { return s.metric(t, "myticket_spool_tickets") == 0 })
	// The first partitions are made at this moment. A query that is planned just then may miss what they take over.
	// Several partitions are made, one after the other, so each look may be such a query.
	await(t, "the ticket is in its partition", func() bool { return storedBodies(t, databaseURL)[r.ID] == sample(t) })
}

func TestSpool_ADatabaseThatIsNotFit_KeepsAServerFromBeingReady(t *testing.T) {
	t.Parallel()
	for name, databaseURL := range map[string]string{
		"no schema":        pgtest.Empty(t),
		"no such database": pgtest.New(t) + "x",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := databaseURL
			if name == "no such database" {
				url = strings.Replace(strings.TrimSuffix(databaseURL, "x"), "?", "x?", 1)
			}
			s := serve(t, url, "--spool-dir", t.TempDir())
			await(t, "it has looked", func() bool {
				return !strings.Contains(s.readiness(t).failing("schema"), "not asked yet")
			})
			require.False(t, s.readiness(t).Ready, "%v", s.readiness(t))
			spooled(t, s.post(t, "/ticket", sample(t))) // but no ticket is refused
		})
	}
}

func TestSpoolCommands_AFolderThatIsNoSpool_IsNotTakenForAnEmptyOne(t *testing.T) {
	t.Parallel()
	other := filepath.Dir(write(t, "something", "else"))
	for _, folder := range []string{other, t.TempDir()} {
		for _, args := range [][]string{{"spool", "status", folder}, {"spool", "export", folder, "--to", filepath.Join(folder, "to")}} {
			out, code := command(t, args...)
			require.Equal(t, 1, code)
			require.Contains(t, out, folder+" is not a spool")
		}
	}
	drain := []string{"spool", "drain", "--database-url", pgtest.New(t)}
	out, code := command(t, append(drain, other)...)
	require.Equal(t, 1, code)
	require.Contains(t, out, other+" is not a spool")
	files, err := os.ReadDir(other)
	require.NoError(t, err)
	require.Len(t, files, 1, "nothing was made in it")

	unused := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(unused, "lost+found"), 0o700))
	out, code = command(t, append(drain, unused)...)
	require.Zero(t, code, "a new disk that no server has used yet is no error for the job that drains it: %s", out)
	out, code = command(t, "spool", "status", unused)
	require.Zero(t, code, "it is one now: %s", out)
	require.Regexp(t, `(?m)^0 +0 B +-`, out)
}

func TestSpoolFolder_IsMadeOnlyBelowOneThatExists(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	s := serve(t, unreachable, "--spool-dir", filepath.Join(parent, "spool"))
	await(t, "it serves", func() bool { return s.log.line("serving") != nil })
	require.NotNil(t, s.log.line("made the spool folder, which was not there"))
	require.Zero(t, s.stop())

	out, code := command(t, "serve", "--database-url", unreachable, "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0",
		"--spool-dir", filepath.Join(parent, "not", "there"))
	require.Equal(t, 1, code)
	require.Contains(t, out, "open --spool-dir: the spool folder "+filepath.Join(parent, "not", "there")+" and the folder above it do not exist")
	require.NoDirExists(t, filepath.Join(parent, "not"))
}

func TestSpoolCommands_GetTheTicketsOut(t *testing.T) {
	t.Parallel()
	database, databaseURL := pgtest.NewServer(t)
	dir := t.TempDir()
	s := serve(t, databaseURL, "--spool-dir", dir)
	s.awaitReady(t)
	require.NoError(t, database.Kill())
	first := spooled(t, s.post(t, "/ticket/shop-1", sample(t), "Idempotency-Key", "k"))
	spooled(t, s.post(t, "/ticket", "not readable"))

	out, code := command(t, "spool", "status", dir)
	require.Equal(t, 1, code)
	require.Contains(t, out, "another process is working on this spool folder")
	require.Zero(t, s.stop())

	out, code = command(t, "spool", "status", dir)
	require.Zero(t, code, out)
	require.Regexp(t, `(?m)^2 +[0-9]+ B +20..-`, out)
	out, code = command(t, "spool", "status", "--output=json", dir)
	require.Zero(t, code, out)
	var report spoolReport
	require.NoError(t, json.Unmarshal([]byte(out), &report), out)
	require.Equal(t, 2, report.Tickets)

	to := filepath.Join(t.TempDir(), "export")
	out, code = command(t, "spool", "export", "--to", to, dir)
	require.Zero(t, code, out)
	body, err := os.ReadFile(filepath.Join(to, first.ID.String()+".txt"))
	require.NoError(t, err)
	require.Equal(t, sample(t), string(body))
	list, err := os.ReadFile(filepath.Join(to, "tickets.jsonl"))
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(list), "\n")
	var got exported
	require.NoError(t, json.Unmarshal([]byte(line), &got))
	require.Equal(t, exported{
		ID: first.ID.String(), ReceivedAt: got.ReceivedAt, Source: "shop-1", ContentType: "", IdempotencyKey: "k",
		File: first.ID.String() + ".txt", Bytes: len(sample(t)),
	}, got)
	out, code = command(t, "spool", "export", "--to", to, dir)
	require.Equal(t, 1, code)
	require.Contains(t, out, "not empty")

	out, code = command(t, "spool", "drain", "--database-url", databaseURL, dir)
	require.Equal(t, 1, code, "the database is away")
	require.Contains(t, out, "nothing was changed")
	restarted := make(chan error, 1)
	time.AfterFunc(time.Second, func() { restarted <- database.Restart(t.Context()) }) // the first drain waits for it
	for range 2 {
		out, code = command(t, "spool", "drain", "--database-url", databaseURL, dir)
		require.Zero(t, code, out)
	}
	require.NoError(t, <-restarted)
	require.Contains(t, out, "0 tickets are in the database now, 0 are left")
	bodies := storedBodies(t, databaseURL)
	require.Len(t, bodies, 2)
	require.Equal(t, sample(t), bodies[first.ID])
}

// command runs a command of the program, and returns all its output.
func command(t *testing.T, args ...string) (string, int) {
	t.Helper()
	out := &logText{}
	code := run(t.Context(), args, nil, streams{stdout: out, stderr: out})
	if out.String() == "" {
		assert.NotZero(t, code)
	}
	if i := strings.Index(out.String(), "{"); i > 0 && args[1] == "status" {
		return out.String()[i:], code
	}
	return out.String(), code
}

func TestSpoolFlags_ThatCannotHold_AreRefused(t *testing.T) {
	t.Parallel()
	out, code := command(t, "serve", "--database-url=postgres://localhost/x", "--spool-dir", t.TempDir(), "--overflow-wait=3s")
	require.Equal(t, 2, code)
	require.Contains(t, out, "--overflow-wait and --database-timeout together")
}
