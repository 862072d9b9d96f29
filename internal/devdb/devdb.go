// Package devdb runs a throwaway Postgres from the binaries on this machine, for `make run`, the tests, the benchmark
// and chaos.
//
// The server listens on 127.0.0.1 only, asks for a password, and ends with the process that started it.
package devdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"myticket/internal/lab"
)

const (
	// superuser is the role of every URL. A throwaway server has no other.
	superuser = "postgres"
	// stopGrace is how long a fast shutdown may take before Stop asks for an immediate one.
	stopGrace = 30 * time.Second
	// portAttempts is how many free ports are tried: another process can take one between its choice and its use.
	portAttempts = 10
)

// Server is one Postgres. Its methods may be called from any goroutine.
type Server struct {
	config   Config
	folder   folder
	binaries binaries
	account  *account
	password string
	port     int
	isTemp   bool

	mu      sync.Mutex
	lock    *folderLock // held while the server runs, and over Kill when the folder is temporary
	process *process    // nil when the server does not run
}

// Start runs a server and returns once it answers queries, or when ctx ends. A folder that another server uses, or
// whose cluster no installed version can read, is an error. When Start fails it undoes what it began, except for the content of
// the folder.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.Port < 0 || config.Port > 65535 {
		return nil, fmt.Errorf("%d is not a TCP port on which Postgres can start: choose 1 to 65535, or 0 for a free one",
			config.Port)
	}
	if config.Log == nil {
		config.Log = io.Discard
	}
	if config.Progress == nil {
		config.Progress = io.Discard
	}

	server := &Server{config: config, port: config.Port}
	if err := server.prepare(ctx); err != nil {
		return nil, err
	}
	if err := server.start(ctx); err != nil {
		return nil, errors.Join(err, server.removeTemp())
	}

	return server, nil
}

// prepare finds what Start needs and makes the folder.
func (s *Server) prepare(ctx context.Context) error {
	installed, err := findOrInstall(ctx, s.config)
	if err != nil {
		return err
	}
	if s.account, err = serverAccount(); err != nil {
		return err
	}

	parent := s.config.Dir
	if parent == "" {
		parent = tempRoot(s.config.isVolatile())
	}
	if err := s.account.checkAccess(ctx, installed[0], parent); err != nil {
		return err
	}

	if s.config.Dir == "" {
		s.isTemp = true
		s.folder, err = makeTempFolder(parent)
	} else {
		s.folder, err = makeFolder(s.config.Dir)
	}
	if err != nil {
		return err
	}
	s.binaries, err = s.folder.chooseBinaries(installed)

	return err
}

// start locks the folder and runs the server in it. The caller must hold s.mu, unless no other goroutine knows s.
func (s *Server) start(ctx context.Context) error {
	if s.lock == nil {
		var err error
		if s.lock, err = s.folder.acquire(ctx); err != nil {
			return err
		}
	}

	if err := s.launch(ctx, s.lock); err != nil {
		s.forget()

		return err
	}

	return nil
}

func (s *Server) launch(ctx context.Context, lock *folderLock) error {
	var err error
	if s.password, err = s.folder.ensureCluster(ctx, s.config, s.binaries, s.account, lock); err != nil {
		return err
	}
	if err := s.folder.clearStalePID(); err != nil {
		return err
	}
	if err := s.folder.writeSettings(s.config.Settings, s.account); err != nil {
		return err
	}

	for attempt := 1; ; attempt++ {
		port := s.port
		if port == 0 {
			if port, err = lab.FreePort(ctx); err != nil {
				return err
			}
		}

		err := s.launchOn(ctx, port, lock)
		if err == nil {
			s.port = port

			return nil
		}
		if !errors.Is(err, errPortTaken) {
			return err
		}
		if s.port != 0 {
			return fmt.Errorf("start Postgres on 127.0.0.1:%d: %w: stop the program that listens there, "+
				"or choose another port", port, err)
		}
		if attempt == portAttempts {
			return fmt.Errorf("start Postgres: no port was free in %d attempts: %w", attempt, err)
		}
	}
}

// launchOn runs the server on a port and waits until it answers.
func (s *Server) launchOn(ctx context.Context, port int, lock *folderLock) error {
	process, err := startPostmaster(s.binaries, s.folder, s.account, port, lock, s.config.Log)
	if err != nil {
		return err
	}

	connect := func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, s.urlAt(port, "postgres"))
		if err != nil {
			return err
		}

		return conn.Close(ctx)
	}
	if err := process.waitReady(ctx, connect, s.folder.passwordFile()); err != nil {
		return errors.Join(err, process.kill())
	}
	s.process = process

	return nil
}

// URL returns the connection string of a database on this server. It stays the same over Restart.
func (s *Server) URL(database string) string {
	return s.urlAt(s.port, database)
}

func (s *Server) urlAt(port int, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, s.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}

	return u.String()
}

// Port returns the server's port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Dir returns the folder that keeps the server's data.
func (s *Server) Dir() string { return s.folder.path }

// PID returns the process id of the postmaster, or 0 when the server does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()

	if !s.isRunning() {
		return 0
	}

	return s.process.PID()
}

// CreateDatabase makes a database unless there is one of that name.
func (s *Server) CreateDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "42P04" { // duplicate_database
		return nil
	}
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}

	return nil
}

// Stop ends the server: open transactions are rolled back, and what was committed is on disk (Postgres's fast
// shutdown). A server that does not end by itself, within half a minute or until ctx ends, is killed, which Stop returns as an
// error. Postgres recovers at the next start. A temporary folder is removed. It is no error if the server does not run.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	return errors.Join(s.stop(ctx), s.removeTemp())
}

func (s *Server) stop(ctx context.Context) error {
	if s.process == nil {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	err := s.process.stop(ctx)
	s.forget()

	return err
}

// Kill ends the server at once, as a crash does: the postmaster and all its children die by SIGKILL. The folder
// stays, even a temporary one; Restart recovers from it.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.process == nil {
		return nil
	}
	err := s.process.kill()
	s.forget()

	return err
}

// Restart runs the server again on the same folder, port and password, after Kill; a server that runs is stopped
// first. It does not bring back a temporary folder that Stop removed.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	if err := s.stop(ctx); err != nil {
		return err
	}

	return s.start(ctx)
}

// Pause freezes the postmaster and all its children (SIGSTOP): connections stay open, and get no answer. Only
// Resume, Stop, Kill, and the end of this process get the server out of this state.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()

	if !s.isRunning() {
		return errNotRunning
	}
	if err := s.process.pause(); err != nil {
		return fmt.Errorf("pause Postgres: %w", err)
	}

	return nil
}

// Resume lets a paused server go on.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()

	if !s.isRunning() {
		return errNotRunning
	}
	if err := s.process.thaw(); err != nil {
		return fmt.Errorf("resume Postgres: %w", err)
	}

	return nil
}

var errNotRunning = errors.New("the Postgres server does not run: it was stopped or killed")

func (s *Server) isRunning() bool {
	return s.process != nil && !s.process.HasExited()
}

// forget lets go of a server that ended. A temporary folder stays locked until it is removed, because other processes remove
// those that are not locked.
func (s *Server) forget() {
	s.process = nil
	if !s.isTemp {
		s.unlock()
	}
}

func (s *Server) unlock() {
	if s.lock != nil {
		s.lock.release()
		s.lock = nil
	}
}

func (s *Server) removeTemp() error {
	if !s.isTemp {
		return nil
	}
	defer s.unlock()
	if err := os.RemoveAll(s.folder.path); err != nil {
		return fmt.Errorf("remove the temporary folder of Postgres: %w", err)
	}

	return nil
}
