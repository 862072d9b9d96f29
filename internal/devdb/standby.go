package devdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// StartStandby runs a streaming standby of the server, on a free port and in a temporary folder, and returns once it
// streams. The server's settings must allow standbys, as Replicated does. The standby is a Server of its own: Kill
// takes it away, Restart brings it back, Promote makes it a primary, and Stop ends it and removes its folder. No commit
// waits for it unless RequireStandby says so.
func (s *Server) StartStandby(ctx context.Context) (*Server, error) {
	standby := &Server{config: s.config}
	standby.config.Dir, standby.config.Port, standby.config.BinDir = "", 0, s.binaries.dir
	if err := standby.prepare(ctx); err != nil {
		return nil, err
	}
	if err := standby.follow(ctx, s); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standby: %w", err), standby.Stop(context.WithoutCancel(ctx)))
	}

	return standby, nil
}

// follow copies the primary, runs the copy, and waits until it streams.
func (s *Server) follow(ctx context.Context, primary *Server) error {
	var err error
	if s.lock, err = s.folder.acquire(ctx); err != nil {
		return err
	}
	if err := s.copyFrom(ctx, primary); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}

	return primary.await(ctx, "the standby streams",
		`SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')`)
}

// copyFrom makes the folder's cluster a copy of the primary's, set up to follow it.
func (s *Server) copyFrom(ctx context.Context, primary *Server) error {
	if err := os.WriteFile(s.folder.passwordFile(), []byte(primary.password+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(s.folder.data(), 0o700); err != nil {
		return err
	}
	if err := s.account.own(s.folder.data()); err != nil {
		return err
	}
	program, err := s.binaries.basebackup()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "--pgdata="+s.folder.data(), "--write-recovery-conf", "--wal-method=stream",
		"--checkpoint=fast", "--no-sync", "--host=127.0.0.1", "--port="+strconv.Itoa(primary.port), "--username="+superuser)
	cmd.Dir = s.folder.path
	cmd.Env = append(serverEnvironment(os.Environ()), "PGPASSWORD="+primary.password, "PGSSLMODE=disable")
	return s.account.run(cmd, s.lock)
}

// basebackup finds pg_basebackup beside the server's binaries, or beside what they are links to, or else in PATH.
func (b binaries) basebackup() (string, error) {
	const name = "pg_basebackup"
	candidates := []string{filepath.Join(b.dir, name)}
	if linked, err := filepath.EvalSymlinks(b.postgres()); err == nil {
		candidates = append(candidates, filepath.Join(filepath.Dir(linked), name))
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("a standby begins as a copy that %s makes, which is not installed here: %w", name, err)
	}

	return path, nil
}

// RequireStandby decides whether each commit waits for a standby to have it on disk (synchronous_standby_names). While
// it is required and there is none, no commit ends. It returns when the setting holds for new transactions.
func (s *Server) RequireStandby(ctx context.Context, required bool) error {
	names := ""
	if required {
		names = "*"
	}

	return s.alter(ctx, "synchronous_standby_names", names)
}

// Promote makes a standby the primary, on its own port; its former primary should be dead. What it commits from then
// on waits for no standby.
func (s *Server) Promote(ctx context.Context) error {
	if err := s.alter(ctx, "synchronous_standby_names", ""); err != nil { // the primary's, when it was copied with it
		return err
	}
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("promote the standby: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var promoted bool
	if err := conn.QueryRow(ctx, `SELECT pg_promote(true, 60)`).Scan(&promoted); err != nil {
		return fmt.Errorf("promote the standby: %w", err)
	}
	if !promoted {
		return errors.New("promote the standby: it did not become a primary within a minute")
	}

	return nil
}

// alter changes a setting of a running server, and returns when it holds.
func (s *Server) alter(ctx context.Context, name, value string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("set %s of Postgres: %w", name, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, sql := range []string{
		"ALTER SYSTEM SET " + name + " = '" + strings.ReplaceAll(value, "'", "''") + "'",
		"SELECT pg_reload_conf()",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("set %s of Postgres: %w", name, err)
		}
	}
	err = s.await(ctx, name+" holds", `SELECT current_setting('`+name+`') = '`+strings.ReplaceAll(value, "'", "''")+`'`)
	if err != nil {
		return err
	}
	// The checkpointer decides for all processes whether commits wait for standbys. It reads the settings before it begins a
	// requested checkpoint.
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("set %s of Postgres: %w", name, err)
	}

	return nil
}

// await returns when a query answers true. Each look is a new connection, which has the newest settings.
func (s *Server) await(ctx context.Context, what, query string) error {
	for {
		ok, err := s.ask(ctx, query)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait until %s: %w", what, ctx.Err()), err)
		case <-time.After(pollInterval):
		}
	}
}

func (s *Server) ask(ctx context.Context, query string) (answer bool, err error) {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = conn.QueryRow(ctx, query).Scan(&answer)

	return answer, err
}
