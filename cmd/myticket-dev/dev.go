package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"myticket/internal/devdb"
	"myticket/internal/lab"
)

const (
	databaseName = "myticket"
	// stopLimit is how long each of the two may take to end in order.
	stopLimit = time.Minute
)

// run starts Postgres, migrates it and serves, until ctx ends. Then it stops both.
func (c *cli) run(ctx context.Context, forServe, environ []string, std streams) (err error) {
	if err := c.complete(ctx); err != nil {
		return err
	}
	database, err := devdb.Start(ctx, devdb.Config{Dir: c.DataDir, Port: c.PostgresPort, Progress: std.stderr})
	if inUse, ok := errors.AsType[*devdb.InUseError](err); ok {
		return fmt.Errorf("another `make run` is running, as process %d, on the folder %s. Stop it first: Ctrl-C in its terminal, or "+
			"`kill %[1]d`. To run both, give this one a folder and ports of its own: make run ARGS='--data-dir=DIR "+
			"--http-addr=127.0.0.1:0 --admin-addr=127.0.0.1:0'", inUse.Owner, inUse.Dir)
	}
	if err != nil {
		return fmt.Errorf("start a throwaway Postgres: %w", err)
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		err = errors.Join(err, database.Stop(ending))
	}()
	if err := database.CreateDatabase(ctx, databaseName); err != nil {
		return err
	}
	url := database.URL(databaseName)
	environ = c.environment(environ, url)

	migration, err := c.start(environ, std.stderr, std.stderr, "migrate", "up")
	if err != nil {
		return err
	}
	err = await(ctx, migration, "myticket migrate up")
	if err != nil || ctx.Err() != nil {
		return err
	}

	server, err := c.start(environ, std.stdout, std.stderr, append([]string{"serve"}, forServe...)...)
	if err != nil {
		return err
	}
	switch err := server.AwaitOK(ctx, "http://"+c.AdminAddr+"/readyz"); {
	case err == nil:
		fmt.Fprint(std.stdout, c.whatToTry(url))
	case ctx.Err() == nil && !server.HasExited():
		return errors.Join(err, server.Stop(stopLimit))
	}
	if err := await(ctx, server, "myticket serve"); err != nil || ctx.Err() != nil {
		return err
	}
	return &endError{what: "myticket serve"}
}

// complete fills in what the command line leaves open.
func (c *cli) complete(ctx context.Context) (err error) {
	if c.Myticket == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the myticket program: %w", err)
		}
		c.Myticket = filepath.Join(filepath.Dir(self), "myticket")
	}
	if _, err := os.Stat(c.Myticket); err != nil {
		return fmt.Errorf("find the myticket program (`make build` builds it, --myticket names another): %w", err)
	}
	if c.DataDir == "" {
		if c.DataDir, err = devdb.DefaultDir(); err != nil {
			return err
		}
	}
	for _, addr := range []*string{&c.HTTPAddr, &c.AdminAddr} {
		host, port, err := net.SplitHostPort(*addr)
		if err != nil {
			return fmt.Errorf("listen on %q: %w", *addr, err)
		}
		if port == "0" {
			free, err := lab.FreePort(ctx)
			if err != nil {
				return err
			}
			*addr = net.JoinHostPort(host, strconv.Itoa(free))
		}
	}
	return nil
}

// environment returns the variables of myticket.
func (c *cli) environment(environ []string, url string) []string {
	// Of two values of a variable the last one counts.
	defaults := []string{"MYTICKET_LOG_FORMAT=text", "MYTICKET_SPOOL_DIR=" + filepath.Join(c.DataDir, "spool")}
	all := slices.DeleteFunc(append(defaults, environ...), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		// The throwaway Postgres is on this machine and has no certificate, whatever PGSSLMODE demands of others.
		return name == "PGSSLMODE" || name == "DATABASE_URL_FILE" || name == "DATABASE_DIR" || strings.HasPrefix(name, "MYTICKET_DEV_")
	})
	// The URL has a password, and so is no argument.
	return append(all, "DATABASE_URL="+url, "MYTICKET_HTTP_ADDR="+c.HTTPAddr, "MYTICKET_ADMIN_ADDR="+c.AdminAddr)
}

// start starts a command of myticket. It ends with this program.
func (c *cli) start(environ []string, stdout, stderr io.Writer, args ...string) (*lab.Process, error) {
	command := exec.Command(c.Myticket, args...) //nolint:gosec,noctx // the user names the program; await stops it in order
	command.Env = environ
	command.Stdout, command.Stderr = stdout, stderr
	return lab.Start(command, syscall.SIGTERM)
}

// await waits until a process ends by itself, which is an error unless it exits with 0. When ctx ends, it stops the process.
func await(ctx context.Context, process *lab.Process, what string) error {
	select {
	case <-ctx.Done():
		return process.Stop(stopLimit)
	case <-process.Exited():
	}
	err := process.Wait()
	if code, ok := lab.ExitCode(err); ok && code != 0 {
		return &endError{what, code}
	}
	return err
}

// endError says that myticket ended although nothing asked it to.
type endError struct {
	what string
	code int // exit code
}

func (e *endError) Error() string {
	if number := syscall.Signal(e.code - 128); number > 0 {
		return fmt.Sprintf("%s was ended by signal %d (%s)", e.what, number, number)
	}
	return fmt.Sprintf("%s ended by itself with exit code %d. Its messages above say why", e.what, e.code)
}

// whatToTry is what a newcomer reads.
func (c *cli) whatToTry(url string) string {
	host, port, _ := net.SplitHostPort(c.HTTPAddr) // complete has checked it
	local := ""
	if host == "localhost" || net.ParseIP(host).IsLoopback() {
		local = "\nOnly this machine can reach it; with --http-addr=:9098 others can, too."
	}
	return fmt.Sprintf(`
MyTicket serves on http://localhost:%[1]s. Its Postgres keeps its data in %[2]s.%[4]s

Send a ticket:        curl --data-binary @testdata/ticket.txt http://localhost:%[1]s/ticket
See what was stored:  export DATABASE_URL='%[3]s'
                      bin/myticket tickets list
                      bin/myticket products list
                      psql "$DATABASE_URL" -c 'SELECT * FROM order_lines'
Stop both:            Ctrl-C

`, port, c.DataDir, url, local)
}
