package devdb_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb"
	"myticket/internal/lab"
)

// patience bounds every wait for what must happen. Nothing takes nearly as long.
const patience = time.Minute

// ownerEnv makes this test binary a program that starts a server in the folder it names and waits.
const ownerEnv = "MYTICKET_DEVDB_TEST_OWNER"

// pausedEnv makes that program pause its server.
const pausedEnv = "MYTICKET_DEVDB_TEST_PAUSED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerEnv); dir != "" {
		server, err := devdb.Start(context.Background(), devdb.Config{Dir: dir, Settings: devdb.Volatile()})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if os.Getenv(pausedEnv) != "" {
			if err := server.Pause(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		fmt.Println(server.PID())
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// reachableDir returns a folder that the server's user can reach; t.TempDir is closed to everybody but root.
func reachableDir(t *testing.T) string {
	t.Helper()

	dir, err := os.MkdirTemp(devdb.TempRoot(), "devdb-test-") //nolint:usetesting // see above
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })

	return dir
}

func start(t *testing.T, config devdb.Config) *devdb.Server {
	t.Helper()

	if config.Settings == nil {
		config.Settings = devdb.Volatile()
	}
	server, err := devdb.Start(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop(context.Background())) })

	return server
}

func connect(t *testing.T, server *devdb.Server) *pgx.Conn {
	t.Helper()

	conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })

	return conn
}

func execute(t *testing.T, server *devdb.Server, sql string) {
	t.Helper()

	_, err := connect(t, server).Exec(t.Context(), sql)
	require.NoError(t, err)
}

func queryInt(t *testing.T, server *devdb.Server, sql string) int {
	t.Helper()

	var n int
	require.NoError(t, connect(t, server).QueryRow(t.Context(), sql).Scan(&n))

	return n
}

func TestStart_KeepsDataOverRestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(reachableDir(t), "made", "when missing")

	first := start(t, devdb.Config{Dir: dir})
	execute(t, first, "CREATE TABLE kept AS SELECT 42 AS n")
	require.NoError(t, first.Stop(t.Context()))
	assert.Zero(t, first.PID())
	require.NoError(t, first.Stop(t.Context()), "stopping twice is no error")

	second := start(t, devdb.Config{Dir: dir})
	assert.Equal(t, 42, queryInt(t, second, "SELECT n FROM kept"))
}

func TestStart_IsDurableByDefault(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{Settings: map[string]string{"application_name": `it's a \ test`}})

	conn := connect(t, server)
	for setting, want := range map[string]string{
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
		"server_encoding": "UTF8", "lc_collate": "C", "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
	} {
		var got string
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&got))
		assert.Equal(t, want, got, setting)
	}
	var source string
	require.NoError(t, conn.QueryRow(t.Context(),
		"SELECT setting FROM pg_file_settings WHERE name = 'application_name'").Scan(&source))
	assert.Equal(t, `it's a \ test`, source, "quotes in a setting")
}

func TestStart_AsksForThePassword(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{})

	u, err := url.Parse(server.URL("postgres"))
	require.NoError(t, err)
	u.User = url.UserPassword("postgres", "wrong")
	_, err = pgx.Connect(t.Context(), u.String())
	require.ErrorContains(t, err, "password authentication failed")

	info, err := os.Stat(filepath.Join(server.Dir(), "password"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestStart_RefusesAFolderInUse(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	server := start(t, devdb.Config{Dir: dir})

	_, err := devdb.Start(t.Context(), devdb.Config{Dir: dir})
	require.ErrorContains(t, err, fmt.Sprintf("in use by the Postgres of process %d", os.Getpid()))
	assert.Equal(t, 1, queryInt(t, server, "SELECT 1"), "the first server goes on")
}

func TestStart_RefusesATakenPort(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	port := listener.Addr().(*net.TCPAddr).Port

	_, err = devdb.Start(t.Context(), devdb.Config{Port: port, Settings: devdb.Volatile()})
	require.ErrorContains(t, err, fmt.Sprintf("127.0.0.1:%d: the port is taken", port))
}

func TestStart_RefusesAClusterOfAnotherVersion(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "data"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("8\n"), 0o600))

	_, err := devdb.Start(t.Context(), devdb.Config{Dir: dir})
	require.ErrorContains(t, err, "is of Postgres 8, but Postgres")
}

func TestStart_SaysWhyTheServerEnded(t *testing.T) {
	t.Parallel()

	_, err := devdb.Start(t.Context(), devdb.Config{Settings: map[string]string{"shared_buffers": "many"}})
	require.ErrorContains(t, err, `invalid value for parameter "shared_buffers": "many"`)
}

func TestStart_SaysThatThePasswordIsLost(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	require.NoError(t, start(t, devdb.Config{Dir: dir}).Stop(t.Context()))

	require.NoError(t, os.WriteFile(filepath.Join(dir, "password"), []byte("another"), 0o600))
	_, err := devdb.Start(t.Context(), devdb.Config{Dir: dir})
	require.ErrorContains(t, err, "is not the one of the cluster beside it")

	require.NoError(t, os.Remove(filepath.Join(dir, "password")))
	_, err = devdb.Start(t.Context(), devdb.Config{Dir: dir})
	require.ErrorContains(t, err, "read the password")
}

func TestStart_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()

	_, err := devdb.Start(ctx, devdb.Config{Dir: dir, Settings: devdb.Volatile()})
	require.Error(t, err)

	server := start(t, devdb.Config{Dir: dir})
	assert.Equal(t, 1, queryInt(t, server, "SELECT 1"), "what was half made does not stand in the way")
}

func TestStart_TakesOverAStalePIDOfAnotherProgram(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	server := start(t, devdb.Config{Dir: dir})
	require.NoError(t, server.Kill())

	// After a reboot the postmaster's process id can be anybody's, of the same user too.
	sleeper := exec.CommandContext(t.Context(), "sleep", "60")
	sleeper.SysProcAttr = &syscall.SysProcAttr{}
	if info, err := os.Stat(filepath.Join(dir, "data")); os.Geteuid() == 0 && assert.NoError(t, err) {
		stat := info.Sys().(*syscall.Stat_t)
		sleeper.SysProcAttr.Credential = &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
	}
	require.NoError(t, sleeper.Start())
	defer func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}()
	pidFile := filepath.Join(dir, "data", "postmaster.pid")
	text, err := os.ReadFile(pidFile)
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(text), "\n")
	stale := strconv.Itoa(sleeper.Process.Pid) + "\n" + rest
	require.NoError(t, os.WriteFile(pidFile, []byte(stale), 0o600))

	require.NoError(t, server.Restart(t.Context()))
	assert.Equal(t, 1, queryInt(t, server, "SELECT 1"))
}

func TestStart_RemovesItsTemporaryFolder(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{})

	require.DirExists(t, server.Dir())
	require.NoError(t, server.Stop(t.Context()))
	assert.NoDirExists(t, server.Dir())
}

func TestStart_AsRootRunsAsAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root has to")
	}
	server := start(t, devdb.Config{})

	info, err := os.Stat(fmt.Sprintf("/proc/%d", server.PID()))
	require.NoError(t, err)
	assert.NotZero(t, info.Sys().(*syscall.Stat_t).Uid)
}

func TestStart_AsRootNoticesAFolderThatItsUserCannotReach(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root runs the server as another user")
	}
	closed := filepath.Join(reachableDir(t), "closed")
	require.NoError(t, os.Mkdir(closed, 0o700))

	_, err := devdb.Start(t.Context(), devdb.Config{Dir: filepath.Join(closed, "db")})
	require.ErrorContains(t, err, "cannot reach the folder "+closed)
	assert.NoDirExists(t, filepath.Join(closed, "db"))
}

func TestKill_LosesNoCommit(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{})
	execute(t, server, "CREATE TABLE kept AS SELECT 42 AS n")
	busy := connect(t, server)
	failed := make(chan error, 1)
	go func() {
		_, err := busy.Exec(context.Background(), "SELECT pg_sleep(60)")
		failed <- err
	}()
	url, pid := server.URL("postgres"), server.PID()

	require.NoError(t, server.Kill())
	assert.Zero(t, server.PID())
	select {
	case err := <-failed:
		require.Error(t, err)
	case <-time.After(patience):
		t.Fatal("a query survived the server")
	}
	_, err := pgx.Connect(t.Context(), url)
	require.Error(t, err, "the port is closed")

	require.NoError(t, server.Restart(t.Context()))
	assert.Equal(t, url, server.URL("postgres"))
	assert.NotEqual(t, pid, server.PID())
	assert.Equal(t, 42, queryInt(t, server, "SELECT n FROM kept"))
}

func TestPause_LeavesConnectionsOpenAndUnanswered(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{})
	conn := connect(t, server)
	require.NoError(t, server.Pause())

	answered := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT 1")
		answered <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := pgx.Connect(ctx, server.URL("postgres"))
	require.ErrorIs(t, err, context.DeadlineExceeded, "new connections get no answer")
	select {
	case err := <-answered:
		t.Fatalf("a paused server answered: %v", err)
	default:
	}

	require.NoError(t, server.Resume())
	select {
	case err := <-answered:
		require.NoError(t, err, "the open connection goes on")
	case <-time.After(patience):
		t.Fatal("a resumed server does not answer")
	}
}

func TestPause_StopAndKillStillWork(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{})
	require.NoError(t, server.Pause())
	require.NoError(t, server.Kill())
	require.Error(t, server.Pause())
	require.NoError(t, server.Restart(t.Context()))
	require.NoError(t, server.Pause())
	require.NoError(t, server.Stop(t.Context()))
}

func TestStop_EndsAServerThatDoesNotEndByItself(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	// With no time at all, a fast shutdown cannot be over.
	require.ErrorContains(t, server.Stop(ctx), "did not stop in time")
	assert.Zero(t, server.PID())
}

func TestCreateDatabase_IsNoErrorTwice(t *testing.T) {
	t.Parallel()
	server := start(t, devdb.Config{})

	for range 2 {
		require.NoError(t, server.CreateDatabase(t.Context(), `my"ticket`))
	}
	conn, err := pgx.Connect(t.Context(), server.URL(`my"ticket`))
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}

// startOwner runs a process that owns a server in a folder, and returns it and the server's process id.
func startOwner(t *testing.T, dir string, env ...string) (owner *exec.Cmd, pid int) {
	t.Helper()

	owner = exec.CommandContext(t.Context(), os.Args[0])
	owner.Env = append(append(os.Environ(), ownerEnv+"="+dir), env...)
	owner.Stderr = os.Stderr
	_, err := owner.StdinPipe()
	require.NoError(t, err)
	out, err := owner.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, owner.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	pid, err = strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	require.True(t, lab.IsAlive(pid))

	return owner, pid
}

func TestServer_EndsWhenItsOwnerIsKilled(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process that its parent died")
	}
	for name, env := range map[string]string{"running": "", "paused": pausedEnv + "=1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			owner, pid := startOwner(t, reachableDir(t), env)
			children, err := lab.ChildrenOf(pid)
			require.NoError(t, err)
			require.NotEmpty(t, children)

			require.NoError(t, owner.Process.Kill())
			_ = owner.Wait()
			for _, pid := range append(children, pid) {
				assert.Eventually(t, func() bool { return !lab.IsAlive(pid) }, patience, 10*time.Millisecond)
			}
		})
	}
}

func TestStart_TakesOverFromAnOwnerThatWasKilled(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	owner, pid := startOwner(t, dir)
	_, err := devdb.Start(t.Context(), devdb.Config{Dir: dir})
	require.ErrorContains(t, err, fmt.Sprintf("in use by the Postgres of process %d", owner.Process.Pid))

	// With a child frozen, the server is sure to be there still when the next one asks for the folder.
	children, err := lab.ChildrenOf(pid)
	require.NoError(t, err)
	require.NotEmpty(t, children)
	require.NoError(t, syscall.Kill(children[0], syscall.SIGSTOP))
	require.NoError(t, owner.Process.Kill())
	_ = owner.Wait()
	time.AfterFunc(300*time.Millisecond, func() { _ = syscall.Kill(children[0], syscall.SIGCONT) })
	server := start(t, devdb.Config{Dir: dir})
	assert.NotEqual(t, pid, server.PID())
	assert.Equal(t, 1, queryInt(t, server, "SELECT 1"))
}
