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
	_ "time/tzdata" // for systems without time zone files, such as the image

	"github.com/alecthomas/kong"
	_ "golang.org/x/crypto/x509roots/fallback" // for systems without CA certificates
)

// version is set by the linker (make build).
var version = "dev"

// cli is the command line. Every setting is a flag and an environment variable. An unknown one is an error.
type cli struct {
	Serve         serveCmd         `cmd:"" help:"Serve the webhook. Needs a Postgres database."`
	Migrate       migrateCmd       `cmd:"" help:"Update the database's schema, or show its version."`
	Tickets       ticketsCmd       `cmd:"" help:"Find, show, follow, retry, dismiss and reopen tickets."`
	Dialects      dialectsCmd      `cmd:"" help:"Say how sources write their tickets: list, try, apply and revert dialects."`
	Problems      problemsCmd      `cmd:"" help:"List what goes wrong: ERROR tickets, grouped by their source and the kinds of their problems."`
	Products      productsCmd      `cmd:"" help:"List or prune the product base."`
	Read          readCmd          `cmd:"" help:"Show what a text would become, with its problems, without storing it."`
	Audit         auditCmd         `cmd:"" help:"Show who changed what, when and why, newest first."`
	Events        eventsCmd        `cmd:"" help:"Send events about tickets and products to the targets of subscriptions. Needs the database of the servers."`
	Subscriptions subscriptionsCmd `cmd:"" help:"Say who gets events: create, list, show, pause, resume, replay and delete subscriptions, and see to their dead letters."`
	Spool         spoolCmd         `cmd:"" help:"Show, drain or export the spool folder of a server that no longer runs."`
	Keys          keysCmd          `cmd:"" help:"Export or import the idempotency keys of a source that moves to another database."`
	Retention     retentionCmd     `cmd:"" help:"Drop old partitions and delete expired idempotency keys. Without --apply it only shows what it would do."`
	Doctor        doctorCmd        `cmd:"" help:"Examine the settings, the database, the spool and the server of this machine, and say what to do. It changes nothing."`
	Send          sendCmd          `cmd:"" help:"Post tickets to MyTicket as a till does, to test an installation or to send files again."`
	Version       versionCmd       `cmd:"" help:"Print the version, as myticket --version does."`

	Completion completionCmd `cmd:"" help:"Print a script that makes a shell complete commands, flags and values."`
	Complete   completeCmd   `cmd:"" hidden:""`
	Man        manCmd        `cmd:"" hidden:"" help:"Write the manual pages."`
}

// streams is where a command reads and writes: the streams of the process, or those of a test.
type streams struct {
	stdin  io.Reader
	stdout io.Writer // the result
	stderr io.Writer // the log, and messages for a person
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { signal.Reset(syscall.SIGINT) }) // a second Ctrl-C ends the process at once
	code := run(ctx, os.Args[1:], os.Environ(), streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run is the whole program. A test can call it. It returns the exit code: 0 for success, 1 if the command failed, 2 if the
// arguments or the environment are wrong, or that of an exitError.
func run(ctx context.Context, args, environ []string, std streams) int {
	if len(args) == 1 && args[0] == "--version" { // no flag of all commands: dialects show has one of that name
		args = []string{"version"}
	}
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
		err = checkGiven(command)
		switch command.Selected().Name {
		case "completion", "complete": // a shell would complete nothing, and not say why
		default:
			err = errors.Join(err, checkEnvironment(parser.Model, environ))
		}
	}
	if err != nil {
		fmt.Fprintf(std.stderr, "myticket: %v\nRun \"myticket --help\", or \"myticket COMMAND --help\".\n", err)
		return 2
	}
	err = command.Run()
	if errors.Is(err, context.Canceled) {
		if endless(command.Command()) {
			return 0
		}
		err = errInterrupted // a script must not take it for the whole
	}
	if err != nil {
		fmt.Fprintln(std.stderr, "myticket:", err)
		if with, ok := errors.AsType[*exitError](err); ok {
			return with.code
		}
		return 1
	}
	return 0
}

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

type versionCmd struct{}

func (versionCmd) Run(std streams) error {
	_, err := fmt.Fprintln(std.stdout, version)
	return err
}
