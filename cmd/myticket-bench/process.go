package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
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

// launch starts a program that is MyTicket on a database, with further variables of its environment and arguments. It returns
// when the server is ready.
func (b *bench) launch(
	ctx context.Context, program, url string, environment []string, args ...string,
) (*process, error) {
	addr, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	admin, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	command := exec.Command(program, slices.Concat([]string{
		"serve", "--http-addr", addr, "--admin-addr", admin, "--database-url", url, "--log-level", "warn",
	}, args, strings.Fields(b.settings.args))...)
	command.Env = append(os.Environ(), environment...)
	return start(ctx, command, addr, admin, "http://"+admin+"/readyz")
}

// fresh starts the server that is measured on a new database, with further arguments.
func (b *bench) fresh(ctx context.Context, products int, args ...string) (*database, *process, error) {
	db, err := b.newDatabase(ctx, products)
	if err != nil {
		return nil, nil, err
	}
	server, err := b.launch(ctx, b.settings.server, db.url, nil, args...)
	return db, server, err
}

// startFloor starts the server that stores nothing, which is this program.
func startFloor(ctx context.Context) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	return start(ctx, exec.Command(program, "floor", addr), addr, "", "http://"+addr+"/ping")
}

// start starts a server and returns when it answers the URL. If this program dies, the server is asked to end, because a peer
// must end its workers, too.
func start(ctx context.Context, command *exec.Cmd, addr, admin, url string) (*process, error) {
	p := &process{addr: addr, admin: admin, log: &lab.Tail{}}
	command.Stderr, command.Stdout = p.log, p.log
	var err error
	if p.Process, err = lab.Start(command, syscall.SIGTERM); err != nil {
		return nil, err
	}
	if err := p.AwaitOK(ctx, url); err != nil {
		return nil, errors.Join(fmt.Errorf("%w; its log ends with:\n%s", err, p.log), p.stop())
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

// peakMemory returns the largest resident set of the server in bytes, or 0 if the machine does not say.
func (p *process) peakMemory() int64 {
	peak, err := lab.Memory(p.PID(), "VmHWM")
	if err != nil {
		return 0
	}
	return peak
}
