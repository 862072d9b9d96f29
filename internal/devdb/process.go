package devdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"myticket/internal/lab"
)

const (
	// quitGrace is how long an immediate shutdown may take.
	quitGrace = 5 * time.Second
	// goneGrace is how long killed processes may take to disappear.
	goneGrace = 10 * time.Second
	// connectTimeout bounds one attempt to reach a server that starts.
	connectTimeout = 2 * time.Second
)

var errPortTaken = errors.New("the port is taken")

// process is a postmaster that was started.
type process struct {
	*lab.Process

	log   *lab.Tail
	waker *waker // nil unless the server is paused
}

func startPostmaster(
	b binaries, f folder, as *account, port int, lock *folderLock, log io.Writer,
) (*process, error) {
	// These are not in postgresql.conf, because not even ALTER SYSTEM may open the server to other machines.
	cmd := exec.Command(b.postgres(), "-D", f.data(), //nolint:noctx // it outlives the context of Start
		"-c", "listen_addresses=127.0.0.1", "-c", "port="+strconv.Itoa(port), "-c", "unix_socket_directories=")
	cmd.Dir, cmd.Env = f.path, serverEnvironment(os.Environ())
	p := &process{log: &lab.Tail{Next: log}}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	var err error
	if p.Process, err = as.start(cmd, lock, syscall.SIGINT); err != nil {
		return nil, err
	}

	return p, nil
}

// waitReady returns when connect succeeds.
func (p *process) waitReady(ctx context.Context, connect func(context.Context) error, passwordFile string) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, connectTimeout)
		err := connect(attempt)
		cancel()
		// The process is checked after the connection, because the answer may come from another program that has the port.
		if p.HasExited() {
			return p.failure()
		}
		if err == nil {
			return nil
		}
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "28P01" && p.log.Contains(readyMessage) {
			return fmt.Errorf("the password in %s is not the one of the cluster beside it: put the right one back, "+
				"or remove the folder to begin with an empty database: %w", passwordFile, err)
		}

		select {
		case <-p.Exited():
			return p.failure()
		case <-ctx.Done():
			return fmt.Errorf("wait for Postgres to be ready: %w; its last answer: %w; its log ends with:\n%s",
				ctx.Err(), err, p.log)
		case <-time.After(pollInterval):
		}
	}
}

const (
	readyMessage    = "database system is ready to accept connections"
	portMessage     = "could not bind IPv4 address"
	portTakenReason = "Address already in use"
)

// failure returns why a server ended while it started.
func (p *process) failure() error {
	if p.log.Contains(portMessage) && p.log.Contains(portTakenReason) {
		return errPortTaken
	}

	return fmt.Errorf("the Postgres server ended while it started (%w); its log ends with:\n%s",
		p.exitError(), p.log)
}

func (p *process) exitError() error {
	if err := p.Wait(); err != nil {
		return err
	}

	return errors.New("without an error")
}

// stop asks for a fast shutdown, then for an immediate one, then kills.
func (p *process) stop(ctx context.Context) error {
	if p.HasExited() {
		return nil
	}

	if err := p.thaw(); err != nil { // a paused server does not handle signals
		return err
	}
	if err := p.Signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-p.Exited():
		return nil
	case <-ctx.Done():
	}
	err := fmt.Errorf("the Postgres server did not stop in time (%w) and was ended as by a crash; its log ends with:\n%s",
		ctx.Err(), p.log)

	if signalErr := p.Signal(syscall.SIGQUIT); signalErr != nil {
		return errors.Join(err, signalErr)
	}
	select {
	case <-p.Exited():
		return err
	case <-time.After(quitGrace):
		return errors.Join(err, p.kill())
	}
}

// kill ends the postmaster and its children and waits until they are gone.
func (p *process) kill() error {
	if p.HasExited() {
		return nil
	}

	defer p.endWaker()
	// A frozen postmaster starts no children between the listing and the kill.
	children, err := p.freeze()
	if err != nil {
		return fmt.Errorf("kill Postgres: %w", err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill Postgres: %w", err)
	}
	for _, child := range children {
		if err := lab.Signal(child, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill Postgres: %w", err)
		}
	}

	<-p.Exited()
	for deadline := time.Now().Add(goneGrace); ; {
		alive := 0
		for _, child := range children {
			if lab.IsAlive(child) {
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
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	waitFrozen(p.PID())

	children, err := lab.ChildrenOf(p.PID())
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		if err := lab.Signal(child, syscall.SIGSTOP); err != nil {
			return nil, err
		}
	}
	for _, child := range children {
		waitFrozen(child)
	}

	return children, nil
}

// waitFrozen waits until a process that was sent SIGSTOP has stopped.
func waitFrozen(pid int) {
	for deadline := time.Now().Add(goneGrace); !lab.IsFrozen(pid) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
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
	if p.waker, err = startWaker(append(children, p.PID())); err != nil {
		return errors.Join(err, p.thaw())
	}

	return nil
}

// thaw undoes freeze. It has no effect on a process that is not frozen.
func (p *process) thaw() error {
	defer p.endWaker()
	children, err := lab.ChildrenOf(p.PID())
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := lab.Signal(child, syscall.SIGCONT); err != nil {
			return err
		}
	}

	return p.Signal(syscall.SIGCONT)
}

func (p *process) endWaker() {
	if p.waker != nil {
		p.waker.end()
		p.waker = nil
	}
}

// waker is a small process that wakes others when this process ends, however it ends. Nothing else would: a frozen process
// does not receive the signal that stops it, and would keep its memory until the machine restarts.
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
	// In a process group of its own, so that a Ctrl-C at the terminal does not end it before its work is done.
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

// end lets it wake the others now. It prints errors about those that are gone; they are ignored.
func (w *waker) end() {
	_ = w.life.Close()
	_ = w.cmd.Wait()
}

// serverEnvironment leaves out what would change the server's behaviour: PGDATA and the like, the locale, and the socket of the
// service manager.
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
