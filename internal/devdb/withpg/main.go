// Withpg runs a command with a throwaway Postgres for tests:
//
//	go run ./internal/devdb/withpg -- go test ./...
//
// The command finds the server in MYTICKET_TEST_DATABASE_URL. When that is set already, its server is used instead.
// With -dir, the data stay in a folder for the next run; see MYTICKET_TEST_KEEP in package pgtest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"myticket/internal/devdb"
	"myticket/internal/lab"
)

// urlEnv is the same as pgtest.URLEnv. Importing that package would make this one depend on the migrations, and so keep
// every test from running when a single file there does not compile.
const urlEnv = "MYTICKET_TEST_DATABASE_URL"

func main() {
	dir := flag.String("dir", "", "`folder` that keeps the data (default: a temporary one, removed at the end)")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: withpg [-dir folder] -- command [argument …]")
		flag.PrintDefaults()
	}
	flag.Parse()

	code, err := run(context.Background(), *dir, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "withpg:", err)
	}
	os.Exit(code)
}

// run returns the exit code of the command, or 1 and what kept it from running.
func run(ctx context.Context, dir string, command []string) (code int, err error) {
	if len(command) == 0 {
		flag.Usage()

		return 2, nil
	}

	// From here on, signals are for the command. When it ends, the server and this program end.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	env := os.Environ()
	if os.Getenv(urlEnv) == "" {
		server, err := start(ctx, dir, signals)
		if err != nil {
			return 1, err
		}
		defer func() {
			if stopErr := server.Stop(ctx); stopErr != nil {
				err = errors.Join(err, stopErr)
				code = max(code, 1)
			}
		}()
		env = append(env, urlEnv+"="+server.URL("postgres"))
	}

	return runCommand(ctx, command, env, signals)
}

// start gives up when a signal comes.
func start(ctx context.Context, dir string, signals <-chan os.Signal) (*devdb.Server, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case received := <-signals:
			cancel(fmt.Errorf("received %s", received))
		case <-done:
		}
	}()

	return devdb.Start(ctx, devdb.Config{Dir: dir, Settings: devdb.Volatile(), Progress: os.Stderr})
}

func runCommand(ctx context.Context, command, env []string, signals <-chan os.Signal) (int, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = env
	if err := cmd.Start(); err != nil {
		return 1, err
	}

	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case received := <-signals:
			_ = cmd.Process.Signal(received) // it may have ended meanwhile
		case err := <-ended:
			if code, ok := lab.ExitCode(err); ok {
				return code, nil
			}

			return 1, err
		}
	}
}
