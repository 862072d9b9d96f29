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

// server is a MyTicket that can be started, killed and started again, on the same addresses and folder.
type server struct {
	program     string
	args        []string
	http, admin string // addresses
	log         lab.Tail
	environ     []string     // in addition to that of this process
	memory      *memoryLimit // nil for none

	process *lab.Process // nil before the first start
}

// start runs the server and returns when it accepts connections, whether Postgres answers or not.
func (s *server) start(ctx context.Context) error {
	command := exec.CommandContext(ctx, s.program, s.args...)
	command.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MYTICKET_") })
	command.Env = append(command.Env, s.environ...)
	if s.memory != nil {
		command.Env = append(command.Env, s.memory.environ())
	}
	command.Stdout, command.Stderr = &s.log, &s.log
	process, err := lab.Start(command, syscall.SIGKILL)
	if err != nil {
		return err
	}
	s.process = process
	if s.memory != nil {
		go s.memory.hold(process)
	}
	return s.awaitOK(ctx, "/livez")
}

// awaitReady waits until the server says that it can store tickets.
func (s *server) awaitReady(ctx context.Context) error { return s.awaitOK(ctx, "/readyz") }

func (s *server) awaitOK(ctx context.Context, path string) error {
	if err := s.process.AwaitOK(ctx, "http://"+s.admin+path); err != nil {
		return errors.Join(err, s.why())
	}
	return nil
}

// metrics returns the values of metrics without labels.
func (s *server) metrics(ctx context.Context, names ...string) ([]float64, error) {
	found, err := lab.Metrics(ctx, s.admin, names...)
	if err != nil {
		return nil, err
	}
	values := make([]float64, len(names))
	for i, name := range names {
		value, ok := found[name]
		if !ok {
			return nil, fmt.Errorf("the server has no metric %s", name)
		}
		values[i] = value
	}
	return values, nil
}

// kill ends the server as kill -9 does, and returns when it is gone. A server that does not run is no error.
func (s *server) kill() {
	if s.process != nil {
		s.process.Kill()
	}
}

// hasExited reports whether the server has ended, by itself or otherwise.
func (s *server) hasExited() bool { return s.process.HasExited() }

// stop ends the server in order: it must exit with 0.
func (s *server) stop() error {
	if err := s.process.Stop(stopLimit); err != nil {
		return errors.Join(err, s.why())
	}
	return nil
}

// why is the end of the server's log.
func (s *server) why() error { return fmt.Errorf("the end of the server's log:\n%s", &s.log) }

// peakMemory returns the largest resident set of the server in MiB.
func (s *server) peakMemory() (int, error) {
	peak, err := lab.Memory(s.process.PID(), "VmHWM")
	return int(peak >> 20), err
}
