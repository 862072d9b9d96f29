// Command myticket-chaos shows that MyTicket keeps what it acknowledged while things break: it builds the server, runs it
// against a Postgres of its own, kills, pauses, slows and fills what it can while tills send tickets, and then compares
// every answer with what is stored. It exits with 1 when a ticket is lost or there twice. Everything it starts is on
// 127.0.0.1 and ends with it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// config is the command line's.
type config struct {
	short     bool
	only      string
	steady    time.Duration
	markdown  bool
	selfCheck bool
	before    string
	away      time.Duration
	replayed  int
	rate      int
}

func main() {
	if isBroker() {
		exit(serveBroker(os.Args[2], os.Args[3]))
	}
	var c config
	flag.BoolVar(&c.short, "short", false, "seconds instead of minutes for each scenario")
	flag.StringVar(&c.only, "only", "", "only these scenarios, by name, separated by commas: "+strings.Join(names(), ", "))
	flag.DurationVar(&c.steady, "steady", time.Minute, "length of the scenario steady, without -short")
	flag.BoolVar(&c.markdown, "markdown", false, "print the table as Markdown")
	flag.BoolVar(&c.selfCheck, "self-check", false,
		"play faults that must be found, such as a server that answers before the commit, and fail unless they are")
	flag.StringVar(&c.before, "before", "",
		"`binary` of the version before, from which the scenario upgrade starts; without it, that is skipped")
	flag.DurationVar(&c.away, "away", 10*time.Minute, "how long the broker is away in the scenario target-away, without -short")
	flag.IntVar(&c.replayed, "replayed", 500_000, "tickets of a day that the scenario replay replays, without -short")
	flag.IntVar(&c.rate, "rate", 300, "tickets per second in the scenarios target-away and replay, without -short")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, c, os.Stdout))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "myticket-chaos:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
