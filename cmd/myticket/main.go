// Command myticket takes tickets (till receipts) on a webhook, stores each one byte for byte before it answers, reads
// it, and keeps a product base from what it read.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // the image has no files but this program: used only where the system has no time zones

	"github.com/alecthomas/kong"
	_ "golang.org/x/crypto/x509roots/fallback" // likewise, where the system has no CA certificates
)

// version is set by the linker (make build).
var version = "dev"

// cli is the command line. Every setting is a flag and an environment variable; an unknown one is an error.
type cli struct {
	Serve     serveCmd     `cmd:"" help:"Serve the webhook, for a Postgres that is there."`
	Migrate   migrateCmd   `cmd:"" help:"Bring the database's schema up to date, or look at it."`
	Tickets   ticketsCmd   `cmd:"" help:"Find, show, retry and dismiss tickets."`
	Products  productsCmd  `cmd:"" help:"Look at the product base."`
	Spool     spoolCmd     `cmd:"" help:"Look into, drain or export the spool folder of a server that is gone."`
	Retention retentionCmd `cmd:"" help:"Drop old partitions and expired idempotency keys. Shows what it would do unless told to do it."`
	Send      sendCmd      `cmd:"" help:"Post tickets to a MyTicket, as a till would: to try an installation, or to send files again."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// streams is where a command reads and writes: the process's own, or a test's.
type streams struct {
	stdin  io.Reader // for commands that read it
	stdout io.Writer // what was asked for
	stderr io.Writer // the log, and what a person should know besides
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run is the whole program, so that a test can call it. It returns the exit code: 0 for success, 1 when the command
// failed, 2 when it was not understood.
func run(ctx context.Context, args, environ []string, std streams) int {
	var c cli
	exited, code := false, 0
	parser, err := kong.New(&c,
		kong.Name("myticket"),
		kong.Description("Takes tickets (till receipts) on a webhook, stores each before it answers, and reads it."),
		kong.Writers(std.stdout, std.stderr),
		kong.Exit(func(c int) { exited, code = true, c }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: false}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(std),
	)
	if err != nil {
		fmt.Fprintln(std.stderr, "myticket:", err)
		return 2
	}
	command, err := parser.Parse(args)
	if exited { // --help
		return code
	}
	if err == nil {
		err = checkEnvironment(parser.Model, environ)
	}
	if err != nil {
		fmt.Fprintf(std.stderr, "myticket: %v\nRun \"myticket --help\", or \"myticket COMMAND --help\".\n", err)
		return 2
	}
	if err := command.Run(); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(std.stderr, "myticket:", err)
		return 1
	}
	return 0
}

type versionCmd struct{}

func (versionCmd) Run(std streams) error {
	_, err := fmt.Fprintln(std.stdout, version)
	return err
}
