package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"myticket/internal/lab"
)

// stopLimit is how long a server may take to end in order.
const stopLimit = 40 * time.Second

// process is a server that was started for a measurement.
type process struct {
	*lab.Process

	addr, admin string
	log         *lab.Tail
}

// startServer starts MyTicket on empty tables.
func (b *bench) startServer(ctx context.Context) (*process, error) {
	if err := b.empty(ctx, "tickets, products, deliveries"); err != nil {
		return nil, err
	}
	return b.launch(ctx, b.settings.server, nil)
}

// launch starts a program that is MyTicket, with further variables of its environment. It returns when the server is ready.
func (b *bench) launch(ctx context.Context, program string, environment []string) (*process, error) {
	addr, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	admin, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	command := exec.Command(program, append([]string{"serve", "--http-addr", addr, "--admin-addr", admin,
		"--database-url", b.url, "--log-level", "warn"}, strings.Fields(b.settings.args)...)...)
	command.Env = append(os.Environ(), environment...)
	return start(ctx, command, addr, admin, "http://"+admin+"/readyz")
}

// startFloor starts the server that stores nothing, which is this program.
func startFloor(ctx context.Context, program string) (*process, error) {
	addr, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	return start(ctx, exec.Command(program, "floor", addr), addr, "", "http://"+addr+"/ping")
}

// start starts a server and returns when it answers the URL.
func start(ctx context.Context, command *exec.Cmd, addr, admin, url string) (*process, error) {
	p := &process{addr: addr, admin: admin, log: &lab.Tail{}}
	command.Stderr, command.Stdout = p.log, p.log
	var err error
	if p.Process, err = lab.Start(command, syscall.SIGKILL); err != nil {
		return nil, err
	}
	if err := p.AwaitOK(ctx, url); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// stop ends the server in order.
func (p *process) stop() error {
	if err := p.Stop(stopLimit); err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, p.log)
	}
	return nil
}

// peakMemory returns the largest resident set of the server, or "" if the machine does not say.
func (p *process) peakMemory() string {
	peak, err := lab.Memory(p.PID(), "VmHWM")
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d MiB", peak>>20)
}
