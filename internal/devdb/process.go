package devdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// errorLines is how many lines of a program's output an error carries.
	errorLines = 20
	// tailBytes is how much of the log is kept for errors.
	tailBytes = 16 << 10
	// quitGrace is how long an immediate shutdown may take.
	quitGrace = 5 * time.Second
	// goneGrace is how long killed processes may take to disappear.
	goneGrace = 10 * time.Second
	// connectTimeout bounds one attempt to reach a server that starts.
	connectTimeout = 2 * time.Second
)

var errPortTaken = errors.New("the port is taken")

// process is a running postmaster.
type process struct {
	cmd    *exec.Cmd
	log    *logTail
	exited chan struct{}
	err    error  // how it ended, once exited is closed
	waker  *waker // nil unless the server is paused
}

func startPostmaster(
	b binaries, f folder, as *account, port int, lock *folderLock, log io.Writer,
) (*process, error) {
	// These are not in postgresql.conf because nothing, not even ALTER SYSTEM, may open the server to others.
	cmd := exec.Command(b.postgres(), "-D", f.data(), //nolint:noctx // it outlives the context of Start
		"-c", "listen_addresses=127.0.0.1", "-c", "port="+strconv.Itoa(port), "-c", "unix_socket_directories=")
	cmd.Dir, cmd.Env = f.path, serverEnvironment(os.Environ())
	cmd.SysProcAttr = childAttributes(syscall.SIGINT)
	as.apply(cmd.SysProcAttr)
	cmd.ExtraFiles = []*os.File{lock.file}
	p := &process{cmd: cmd, log: &logTail{next: log}, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	// A child of the postmaster that does not end keeps the log's pipe open.
	cmd.WaitDelay = goneGrace

	started := make(chan error, 1)
	go func() {
		// The kernel takes the end of the thread that forked for the parent's death. This goroutine keeps its thread
		// for as long as the server lives; both end together.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err

			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", b.postgres(), err)
	}

	return p, nil
}

// runLocked runs a command to its end on a thread that lives as long, for the same reason as above.
func runLocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	return cmd.Run()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// waitReady returns when connect succeeds.
func (p *process) waitReady(ctx context.Context, connect func(context.Context) error, passwordFile string) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, connectTimeout)
		err := connect(attempt)
		cancel()
		// The process is looked at after the connection: who answered may be a stranger who has the port.
		if p.hasExited() {
			return p.failure()
		}
		if err == nil {
			return nil
		}
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "28P01" && p.log.contains(readyMessage) {
			return fmt.Errorf("the password in %s is not the one of the cluster beside it: put the right one back, "+
				"or remove the folder to begin with an empty database: %w", passwordFile, err)
		}

		select {
		case <-p.exited:
			return p.failure()
		case <-ctx.Done():
			return fmt.Errorf("wait for Postgres to be ready: %w; its last answer: %w; its log ends with:\n%s",
				ctx.Err(), err, p.log.last(errorLines))
		case <-time.After(pollInterval):
		}
	}
}

const (
	readyMessage    = "database system is ready to accept connections"
	portMessage     = "could not bind IPv4 address"
	portTakenReason = "Address already in use"
)

// failure says why a server that ended while it started did so.
func (p *process) failure() error {
	if p.log.contains(portMessage) && p.log.contains(portTakenReason) {
		return errPortTaken
	}

	return fmt.Errorf("the Postgres server ended while it started (%w); its log ends with:\n%s",
		p.exitError(), p.log.last(errorLines))
}

func (p *process) exitError() error {
	if p.err == nil {
		return errors.New("without an error")
	}

	return p.err
}

// stop asks for a fast shutdown, then for an immediate one, then kills.
func (p *process) stop(ctx context.Context) error {
	if p.hasExited() {
		return nil
	}

	if err := p.thaw(); err != nil { // a paused server hears nothing
		return err
	}
	if err := p.signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
	}
	err := fmt.Errorf("the Postgres server did not stop in time (%w) and was ended as by a crash; its log ends with:\n%s",
		ctx.Err(), p.log.last(errorLines))

	if signalErr := p.signal(syscall.SIGQUIT); signalErr != nil {
		return errors.Join(err, signalErr)
	}
	select {
	case <-p.exited:
		return err
	case <-time.After(quitGrace):
		return errors.Join(err, p.kill())
	}
}

// kill ends the postmaster and its children and waits until they are gone.
func (p *process) kill() error {
	if p.hasExited() {
		return nil
	}

	defer p.endWaker()
	// Frozen, the postmaster has no more children between the look and the kill.
	children, err := p.freeze()
	if err != nil {
		return fmt.Errorf("kill Postgres: %w", err)
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill Postgres: %w", err)
	}
	for _, child := range children {
		if err := signal(child, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill Postgres: %w", err)
		}
	}

	<-p.exited
	for deadline := time.Now().Add(goneGrace); ; {
		alive := 0
		for _, child := range children {
			if isAlive(child) {
				alive++
			}
		}
		if alive == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill Postgres: %d of its processes are still there after %s", alive, goneGrace)
		}
		time.Sleep(time.Millisecond)
	}
}

// freeze stops the postmaster, then its children, and returns these.
func (p *process) freeze() ([]int, error) {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	waitFrozen(p.pid())

	children, err := childrenOf(p.pid())
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		if err := signal(child, syscall.SIGSTOP); err != nil {
			return nil, err
		}
	}
	for _, child := range children {
		waitFrozen(child)
	}

	return children, nil
}

// pause freezes the server until resume, or until this process ends.
func (p *process) pause() error {
	children, err := p.freeze()
	if err != nil {
		return err
	}
	if p.waker != nil {
		return nil
	}
	if p.waker, err = startWaker(append(children, p.pid())); err != nil {
		return errors.Join(err, p.thaw())
	}

	return nil
}

// thaw undoes freeze; what is not frozen does not notice.
func (p *process) thaw() error {
	defer p.endWaker()
	children, err := childrenOf(p.pid())
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := signal(child, syscall.SIGCONT); err != nil {
			return err
		}
	}

	return p.signal(syscall.SIGCONT)
}

func (p *process) endWaker() {
	if p.waker != nil {
		p.waker.end()
		p.waker = nil
	}
}

// waker is a small process that wakes others when this process ends, however it ends. Nobody else would: what is frozen
// does not hear that it shall stop, and would keep its memory until the machine restarts.
type waker struct {
	cmd  *exec.Cmd
	life io.Closer
}

func startWaker(pids []int) (*waker, error) {
	args := []string{"-c", `read -r _; kill -CONT "$@"`, "sh"}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	cmd := exec.Command("sh", args...) //nolint:noctx // it lives until its input ends
	// In a process group of its own, a Ctrl-C at the terminal does not end it before its work is done.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}

	return &waker{cmd: cmd, life: life}, nil
}

// end lets it wake the others now. It complains about those that are gone; that is no news.
func (w *waker) end() {
	_ = w.life.Close()
	_ = w.cmd.Wait()
}

func (p *process) signal(sig syscall.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}

	return err
}

// signal does not mind when the process is gone.
func signal(pid int, sig syscall.Signal) error {
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", sig, pid, err)
	}

	return nil
}

// serverEnvironment leaves out what would change the server's mind: PGDATA and the like, the locale, and the service
// manager's socket.
func serverEnvironment(environ []string) []string {
	env := []string{"LC_ALL=C"}
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "LC_") || name == "LANG" || name == "LANGUAGE" ||
			name == "TZ" || name == "NOTIFY_SOCKET" {
			continue
		}
		env = append(env, entry)
	}

	return env
}

// logTail hands the log on and keeps its end. It is safe for concurrent use.
type logTail struct {
	next io.Writer

	mu   sync.Mutex
	tail []byte
}

func (l *logTail) Write(text []byte) (int, error) {
	l.mu.Lock()
	l.tail = append(l.tail, text...)
	if excess := len(l.tail) - tailBytes; excess > 0 {
		l.tail = append(l.tail[:0], l.tail[excess:]...)
	}
	l.mu.Unlock()

	// A broken log must not break the server: an error here would close its pipe.
	_, _ = l.next.Write(text)

	return len(text), nil
}

func (l *logTail) contains(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()

	return bytes.Contains(l.tail, []byte(text))
}

func (l *logTail) last(lines int) string {
	l.mu.Lock()
	defer l.mu.Unlock()

	return lastLines(l.tail, lines)
}

func lastLines(text []byte, count int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if excess := len(lines) - count; excess > 0 {
		lines = lines[excess:]
	}

	return strings.Join(lines, "\n")
}
