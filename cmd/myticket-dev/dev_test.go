package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/lab"
)

// patience bounds every wait. Nothing takes nearly as long.
const patience = time.Minute

// folder holds the real programs, as `make run` builds them.
var folder string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if folder, err = os.MkdirTemp("", "myticket-dev-"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(folder)
		return m.Run()
	}())
}

var build = sync.OnceValue(func() error {
	for _, name := range []string{"myticket", "myticket-dev"} {
		command := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(folder, name), "myticket/cmd/"+name)
		if printed, err := command.CombinedOutput(); err != nil {
			return errors.Join(err, errors.New(string(printed)))
		}
	}
	return nil
})

// dev is the program, started by a test.
type dev struct {
	*lab.Process

	stdout, stderr lab.Tail
}

// startDev starts the program with an environment in which only what is given here is a setting.
func startDev(t *testing.T, environ []string, args ...string) *dev {
	t.Helper()
	require.NoError(t, build())
	d := &dev{}
	command := exec.Command(filepath.Join(folder, "myticket-dev"), args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "MYTICKET_") && !strings.HasPrefix(variable, "DATABASE_URL") {
			command.Env = append(command.Env, variable)
		}
	}
	command.Env = append(command.Env, environ...)
	command.Stdout, command.Stderr = &d.stdout, &d.stderr
	var err error
	d.Process, err = lab.Start(command, syscall.SIGTERM)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = d.Stop(patience) // in order, so that nothing stays behind
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", &d.stdout, &d.stderr)
		}
	})
	return d
}

// awaitServing returns what the program tells a newcomer to try: the URL of the webhook, and that of the database.
func (d *dev) awaitServing(t *testing.T) (webhook, databaseURL string) {
	t.Helper()
	require.NoError(t, lab.Await(t.Context(), patience, "the program to say what to try", func(context.Context) error {
		if !d.stdout.Contains("Ctrl-C") && !d.HasExited() {
			return errors.New("it has not")
		}
		return nil
	}))
	said := d.stdout.String()
	try := regexp.MustCompile(`(?s)@testdata/ticket.txt (http://localhost:\d+)/ticket.*DATABASE_URL='([^']+)'`).FindStringSubmatch(said)
	require.NotNil(t, try, "%s\n%s", said, &d.stderr)
	return try[1], try[2]
}

// dataDir returns a folder that Postgres' user can reach, which t.TempDir is not for root.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "myticket-dev-test-") //nolint:usetesting // see above
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func post(t *testing.T, webhook string) {
	t.Helper()
	file, err := os.Open("../../testdata/ticket.txt")
	require.NoError(t, err)
	defer file.Close()
	response, err := http.Post(webhook+"/ticket", "text/plain", file)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func countTickets(t *testing.T, databaseURL string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer func() { assert.NoError(t, conn.Close(context.Background())) }()
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM tickets`).Scan(&n))
	return n
}

// onFreePorts are the arguments of every test that serves.
var onFreePorts = []string{"--http-addr=127.0.0.1:0", "--admin-addr", "127.0.0.1:0"}

func TestDev_ServesAndKeepsItsData(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	environ := []string{
		"MYTICKET_DEV_DATA_DIR=" + dir, "MYTICKET_LOG_LEVEL=debug",
		// None of these is meant for the throwaway Postgres.
		"PGSSLMODE=verify-full", "DATABASE_URL=postgres://127.0.0.1:1/x", "DATABASE_URL_FILE=/no/such/file", "DATABASE_DIR=/no/such/folder",
	}
	first := startDev(t, environ, onFreePorts...)
	webhook, databaseURL := first.awaitServing(t)
	post(t, webhook)
	assert.Equal(t, 1, countTickets(t, databaseURL))
	assert.True(t, first.stderr.Contains("level=DEBUG"), "the variables of serve are passed on, and the log is text:\n%s", &first.stderr)
	assert.DirExists(t, filepath.Join(dir, "spool"))
	assert.True(t, first.stdout.Contains("Only this machine can reach it"))
	another := startDev(t, environ, onFreePorts...)
	require.Error(t, another.Wait())
	for _, says := range []string{"another `make run` is running", fmt.Sprintf("`kill %d`", first.PID()), "--data-dir=DIR"} {
		assert.True(t, another.stderr.Contains(says), "%s: %s", says, &another.stderr)
	}
	require.NoError(t, first.Signal(syscall.SIGINT)) // Ctrl-C
	require.NoError(t, first.Wait())
	_, err := pgx.Connect(t.Context(), databaseURL)
	require.Error(t, err, "Postgres has ended")

	spool := filepath.Join(t.TempDir(), "spool")
	second := startDev(t, nil, append(onFreePorts, "--log-format=json", "--data-dir", dir, "--", "--spool-dir", spool)...)
	_, databaseURL = second.awaitServing(t)
	assert.Equal(t, 1, countTickets(t, databaseURL), "the data survive a restart")
	assert.True(t, second.stderr.Contains(`"msg":"serving"`), "flags of serve are passed on:\n%s", &second.stderr)
	assert.DirExists(t, spool)
	require.NoError(t, second.Stop(patience))
}

func TestDev_EndsWithMyticket(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	d := startDev(t, nil, append(onFreePorts, "--data-dir", dir, "--batch-tickets=0")...)
	code, ok := lab.ExitCode(d.Wait())
	assert.True(t, ok)
	assert.Equal(t, 2, code, "that of myticket")
	assert.Contains(t, d.stderr.String(), "--batch-tickets is too small")
	assert.Contains(t, d.stderr.String(), "myticket serve ended by itself with exit code 2")
	assert.NotContains(t, d.stdout.String(), "Ctrl-C")
	assert.NoFileExists(t, filepath.Join(dir, "data", "postmaster.pid"), "Postgres has ended in order")
}

func TestDev_WithoutMyticket_SaysWhatToDo(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	assert.Equal(t, 1, run(t.Context(), []string{"--myticket=/no/such/program"}, nil, streams{&stdout, &stderr}))
	assert.Contains(t, stderr.String(), "make build")
}

func TestDev_RefusesWhatItWouldIgnore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ variable, argument, named string }{
		"unknown variable": {"MYTICKET_DEV_DATA=/tmp", "", "MYTICKET_DEV_DATA"},
		"another database": {"", "--database-url=postgres://127.0.0.1:1/x", "--database-url"},
		"no port":          {"", "--postgres-port=many", "--postgres-port"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			assert.Equal(t, 2, run(t.Context(), []string{c.argument}, []string{c.variable}, streams{&stdout, &stderr}))
			assert.Contains(t, stderr.String(), c.named)
			assert.Empty(t, stdout.String())
		})
	}
}

// What is started to try MyTicket needs no credentials, so other machines must not reach it.
func TestDev_ListensOnThisMachineOnly_UnlessToldOtherwise(t *testing.T) {
	t.Parallel()
	parse := func(args ...string) *cli {
		c := &cli{}
		parser, err := kong.New(c)
		require.NoError(t, err)
		_, err = parser.Parse(args)
		require.NoError(t, err)
		return c
	}
	c := parse()
	require.Equal(t, []string{"127.0.0.1:9098", "127.0.0.1:9099"}, []string{c.HTTPAddr, c.AdminAddr})
	require.Contains(t, c.whatToTry("URL"), "--http-addr=:9098")
	require.Contains(t, parse("--http-addr=[::1]:1").whatToTry("URL"), "--http-addr=:9098")
	for _, open := range []string{":1", "[::]:1", "0.0.0.0:1", "192.0.2.1:1"} {
		c := parse("--http-addr=" + open)
		require.Equal(t, open, c.HTTPAddr)
		require.NotContains(t, c.whatToTry("URL"), "--http-addr", open)
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	parser, err := kong.New(&cli{})
	require.NoError(t, err)
	own, forServe := split(parser.Model, []string{
		"--log-level=debug", "--data-dir", "/a", "--batch-tickets", "5", "--postgres-port=6", "--help", "--", "--data-dir=/b",
	})
	assert.Equal(t, []string{"--data-dir", "/a", "--postgres-port=6", "--help"}, own)
	assert.Equal(t, []string{"--log-level=debug", "--batch-tickets", "5", "--data-dir=/b"}, forServe)
}

// TestMyticket_HasNoToolsOfDevelopment keeps what installs packages, stops processes and changes users out of the program
// that runs in production.
func TestMyticket_HasNoToolsOfDevelopment(t *testing.T) {
	t.Parallel()
	listed, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "myticket/cmd/myticket").Output()
	require.NoError(t, err)
	packages := strings.Fields(string(listed))
	assert.Contains(t, packages, "myticket/internal/postgres")
	assert.NotContains(t, packages, "myticket/internal/devdb")
	assert.NotContains(t, packages, "myticket/internal/lab")
	require.NoError(t, build())
	program, err := os.ReadFile(filepath.Join(folder, "myticket"))
	require.NoError(t, err)
	assert.False(t, bytes.Contains(program, []byte("apt-get")), "bin/myticket contains apt-get")
}

func TestEndError_SaysHowItEnded(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "myticket serve was ended by signal 9 (killed)", (&endError{"myticket serve", 128 + 9}).Error())
	assert.Contains(t, (&endError{"myticket serve", 2}).Error(), "ended by itself with exit code 2")
}
