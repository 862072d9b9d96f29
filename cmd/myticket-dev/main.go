// Command myticket-dev is what `make run` runs: a throwaway Postgres, and the myticket program on it, on this machine only.
// Ctrl-C stops both.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// cli is the command line. What it does not know goes to `myticket serve`.
type cli struct {
	DataDir      string `env:"MYTICKET_DEV_DATA_DIR" type:"path" placeholder:"DIR" help:"Folder of the throwaway Postgres' data; it survives a restart. Default: /var/lib/myticket-dev for root, otherwise ~/.local/state/myticket-dev."`
	PostgresPort int    `env:"MYTICKET_DEV_POSTGRES_PORT" default:"0" help:"Port of the throwaway Postgres on 127.0.0.1; 0 for a free one. Default: ${default}."`
	Myticket     string `type:"path" placeholder:"FILE" help:"The myticket program. Default: the one beside this program."`
	HTTPAddr     string `name:"http-addr" env:"MYTICKET_HTTP_ADDR" default:"127.0.0.1:9098" help:"Address of the webhook; port 0 for a free one. Default: ${default}."`
	AdminAddr    string `name:"admin-addr" env:"MYTICKET_ADMIN_ADDR" default:"127.0.0.1:9099" help:"Address of the internal listener; port 0 for a free one. Default: ${default}."`
}

// streams is where the program writes.
type streams struct {
	stdout io.Writer // what a newcomer reads
	stderr io.Writer // the log
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { signal.Reset(syscall.SIGINT) }) // a second Ctrl-C ends the process at once
	code := run(ctx, os.Args[1:], os.Environ(), streams{os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run is the whole program. It returns the exit code: 0 after Ctrl-C, 1 for a failure, 2 for a command line that was not
// understood. If myticket ends by itself, its exit code is returned.
func run(ctx context.Context, args, environ []string, std streams) int {
	var c cli
	exited, code := false, 0
	parser, err := kong.New(&c,
		kong.Name("myticket-dev"),
		kong.Description("Starts a throwaway Postgres from this machine's binaries, migrates it, and serves on this machine only. "+
			"Further flags, and everything after --, are passed on to \"myticket serve\". "+
			"Its log format is text, and its spool is in the data folder, unless you say otherwise."),
		kong.Writers(std.stdout, std.stderr),
		kong.Exit(func(c int) { exited, code = true, c }),
	)
	if err != nil {
		fmt.Fprintln(std.stderr, "myticket-dev:", err)
		return 2
	}
	own, forServe := split(parser.Model, args)
	_, err = parser.Parse(own)
	if exited { // --help
		return code
	}
	if err := errors.Join(err, check(parser.Model, environ, forServe)); err != nil {
		fmt.Fprintf(std.stderr, "myticket-dev: %v\nRun \"myticket-dev --help\".\n", err)
		return 2
	}
	err = c.run(ctx, forServe, environ, std)
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	fmt.Fprintln(std.stderr, "myticket-dev:", err)
	if end, ok := errors.AsType[*endError](err); ok {
		return end.code
	}
	return 1
}

// split separates the flags of this program from the arguments of `myticket serve`.
func split(model *kong.Application, args []string) (own, forServe []string) {
	takesValue := map[string]bool{"-h": false}
	for _, flag := range model.Flags {
		takesValue["--"+flag.Name] = !flag.IsBool()
	}
	for i := 0; i < len(args); i++ {
		name, _, hasValue := strings.Cut(args[i], "=")
		takes, known := takesValue[name]
		switch {
		case args[i] == "--":
			return own, append(forServe, args[i+1:]...)
		case !known:
			forServe = append(forServe, args[i])
		case takes && !hasValue && i+1 < len(args):
			own = append(own, args[i], args[i+1])
			i++
		default:
			own = append(own, args[i])
		}
	}
	return own, forServe
}

// check finds what would be ignored otherwise, or would use another database.
func check(model *kong.Application, environ, forServe []string) error {
	var known []string
	for _, flag := range model.Flags {
		known = append(known, flag.Envs...)
	}
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "MYTICKET_DEV_") && !slices.Contains(known, name) {
			return fmt.Errorf("the environment variable %s is no setting of myticket-dev", name)
		}
	}
	for _, argument := range forServe {
		if strings.HasPrefix(argument, "--database-url") {
			return errors.New("--database-url: this program uses its own throwaway Postgres. " +
				"Run \"myticket serve\" for another database")
		}
	}
	return nil
}
