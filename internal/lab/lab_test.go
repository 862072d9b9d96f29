package lab_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/lab"
)

// patience bounds every wait for what must happen. Nothing takes nearly as long.
const patience = time.Minute

// shell starts a script. Its log is complete when the process has ended.
func shell(t *testing.T, script string) (*lab.Process, *lab.Tail) {
	t.Helper()
	log := &lab.Tail{}
	command := exec.Command("sh", "-c", script)
	command.Stdout, command.Stderr = log, log
	p, err := lab.Start(command, syscall.SIGKILL)
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	return p, log
}

func awaitLog(t *testing.T, log *lab.Tail, text string) {
	t.Helper()
	require.NoError(t, lab.Await(t.Context(), patience, text, func(context.Context) error {
		if !log.Contains(text) {
			return errors.New(log.String())
		}
		return nil
	}))
}

func TestFreePort_IsFree_AndBelowThoseOfOutgoingConnections(t *testing.T) {
	t.Parallel()
	port, err := lab.FreePort(t.Context())
	require.NoError(t, err)
	assert.Less(t, port, 32768)
	seen := map[int]bool{port: true}
	for range 200 { // of 17,000 ports: by chance alone, two would be the same in most runs
		again, err := lab.FreePort(t.Context())
		require.NoError(t, err)
		require.False(t, seen[again], "a port is given once, also while nothing listens on it")
		seen[again] = true
	}
	addr, err := lab.FreeAddr(t.Context())
	require.NoError(t, err)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", addr)
	require.NoError(t, err)
	require.NoError(t, listener.Close())
}

func TestStart_SaysWhatDidNotStart(t *testing.T) {
	t.Parallel()
	_, err := lab.Start(exec.Command("/no/such/program"), syscall.SIGKILL)
	require.ErrorContains(t, err, "/no/such/program")
}

func TestStop_EndsInOrder(t *testing.T) {
	t.Parallel()
	p, log := shell(t, "trap 'echo stopping; exit 0' TERM; echo ready; while :; do sleep 0.01; done")
	awaitLog(t, log, "ready")
	require.False(t, p.HasExited())
	require.True(t, lab.IsAlive(p.PID()))
	require.NoError(t, p.Stop(patience))
	assert.True(t, p.HasExited())
	assert.False(t, lab.IsAlive(p.PID()))
	assert.Equal(t, "ready\nstopping", log.String())
	assert.NoError(t, p.Stop(patience), "stopping twice is no error")
}

func TestStop_SaysHowItEnded(t *testing.T) {
	t.Parallel()
	p, _ := shell(t, "exit 3")
	err := p.Wait()
	code, ok := lab.ExitCode(err)
	assert.True(t, ok)
	assert.Equal(t, 3, code)
	assert.ErrorContains(t, p.Stop(patience), "exit status 3")
}

func TestStop_KillsAfterItsGrace(t *testing.T) {
	t.Parallel()
	p, log := shell(t, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	awaitLog(t, log, "ready")
	require.ErrorContains(t, p.Stop(10*time.Millisecond), "was killed")
	code, ok := lab.ExitCode(p.Wait())
	assert.True(t, ok)
	assert.Equal(t, 128+int(syscall.SIGKILL), code)
}

func TestExitCode_OfAnErrorThatIsNoEnd(t *testing.T) {
	t.Parallel()
	code, ok := lab.ExitCode(nil)
	assert.True(t, ok)
	assert.Zero(t, code)
	_, ok = lab.ExitCode(errors.New("pipe broken"))
	assert.False(t, ok)
}

func TestAwaitOK(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	p, _ := shell(t, "exec sleep 60")
	require.NoError(t, p.AwaitOK(t.Context(), server.URL))
	assert.Equal(t, int32(3), asked.Load())
}

func TestAwaitOK_EndsWithTheProcess(t *testing.T) {
	t.Parallel()
	addr, err := lab.FreeAddr(t.Context())
	require.NoError(t, err)
	p, _ := shell(t, "exit 4")
	require.ErrorContains(t, p.AwaitOK(t.Context(), "http://"+addr), "exit status 4")
}

func TestTail_KeepsTheEnd(t *testing.T) {
	t.Parallel()
	var next strings.Builder
	log := &lab.Tail{Next: &next}
	for i := range 10_000 {
		n, err := log.Write([]byte("line " + string(rune('a'+i%26)) + "\n"))
		require.NoError(t, err)
		require.Equal(t, 7, n)
	}
	_, _ = log.Write([]byte("last"))
	assert.True(t, strings.HasSuffix(log.String(), "\nlast"))
	assert.Len(t, strings.Split(log.String(), "\n"), 20)
	assert.Equal(t, 70_004, next.Len())
	assert.True(t, log.Contains("line a\nline b"))
}

func TestFigures_OfThisMachine(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has /proc")
	}
	p, log := shell(t, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 60 >/dev/null 2>&1 & echo ready; wait")
	awaitLog(t, log, "ready")
	children, err := lab.ChildrenOf(os.Getpid())
	require.NoError(t, err)
	assert.Contains(t, children, p.PID())
	children, err = lab.ChildrenOf(p.PID())
	require.NoError(t, err)
	require.Len(t, children, 1)
	defer func() { assert.NoError(t, lab.Signal(children[0], syscall.SIGKILL)) }()

	memory, err := lab.Memory(p.PID(), "VmHWM")
	require.NoError(t, err)
	assert.Greater(t, memory, int64(100<<10))
	assert.Less(t, memory, int64(1<<30))
	_, err = lab.Memory(p.PID(), "VmNone")
	require.ErrorContains(t, err, "VmNone")
	used, err := lab.CPUTime(p.PID())
	require.NoError(t, err)
	assert.Greater(t, used, 10*time.Millisecond)
	assert.Less(t, used, patience)

	require.NoError(t, p.Signal(syscall.SIGSTOP))
	require.NoError(t, lab.Await(t.Context(), patience, "the process to stop", func(context.Context) error {
		if !lab.IsFrozen(p.PID()) {
			return errors.New("it runs")
		}
		return nil
	}))
	assert.True(t, lab.IsAlive(p.PID()))
	p.Kill()
	require.NoError(t, p.Signal(syscall.SIGTERM), "a process that is gone is no error")
	_, err = lab.Memory(p.PID(), "VmHWM")
	require.Error(t, err)
	_, err = lab.CPUTime(p.PID())
	require.Error(t, err)
}
