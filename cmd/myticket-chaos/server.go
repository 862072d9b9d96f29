package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// server is a MyTicket that can be started, killed and started again, on the same addresses and folder.
type server struct {
	program     string
	args        []string
	http, admin string // addresses
	log         *tail
	environ     []string     // besides that of this process
	memory      *memoryLimit // nil for none

	command *exec.Cmd     // nil before the first start
	exited  chan struct{} // closed when it has ended
	ending  error         // how, once exited is closed
}

// start runs the server and returns when it accepts connections. Whether Postgres answers is another question.
func (s *server) start(ctx context.Context) error {
	s.command = exec.CommandContext(ctx, s.program, s.args...)
	s.command.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MYTICKET_") })
	s.command.Env = append(s.command.Env, s.environ...)
	if s.memory != nil {
		s.command.Env = append(s.command.Env, s.memory.environ())
	}
	s.command.Stdout, s.command.Stderr = s.log, s.log
	s.command.SysProcAttr = childAttributes()
	s.exited = make(chan struct{})
	started := make(chan error, 1)
	go func() {
		// The kernel takes the end of the thread that forked for the parent's death, so this one lives as long.
		runtime.LockOSThread()
		err := s.command.Start()
		started <- err
		if err == nil {
			s.ending = s.command.Wait()
		}
		close(s.exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", s.program, err)
	}
	if s.memory != nil {
		go s.memory.hold(s.command.Process, s.exited)
	}
	return s.awaitOK(ctx, "/livez")
}

// awaitReady waits until the server says that it can store tickets.
func (s *server) awaitReady(ctx context.Context) error { return s.awaitOK(ctx, "/readyz") }

func (s *server) awaitOK(ctx context.Context, path string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	exited := s.exited
	go func() { // a server that has ended need not be asked any more
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := await(ctx, 30*time.Second, "the server's "+path, func(ctx context.Context) error {
		response, err := s.get(ctx, path)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, s.why())
	}
	return nil
}

// adminClient opens a connection for each question, so that it holds none of a server's that is measured.
var adminClient = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (s *server) get(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+path, nil)
	if err != nil {
		return nil, err
	}
	return adminClient.Do(request)
}

// metrics returns the values of metrics without labels.
func (s *server) metrics(ctx context.Context, names ...string) ([]float64, error) {
	response, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	found := make(map[string]float64, len(names))
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if slices.Contains(names, name) {
			if found[name], err = strconv.ParseFloat(value, 64); err != nil {
				return nil, fmt.Errorf("read the metric %s: %w", name, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the server's metrics: %w", err)
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
	if s.command == nil || s.command.Process == nil {
		return
	}
	_ = s.command.Process.Kill()
	<-s.exited
}

// hasExited reports whether the server has ended, by itself or otherwise.
func (s *server) hasExited() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// stop ends the server in order: it must exit with 0.
func (s *server) stop() error {
	_ = s.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(40 * time.Second):
		s.kill()
		return errors.Join(errors.New("the server did not end within 40s of SIGTERM"), s.why())
	}
	if s.ending != nil {
		return errors.Join(fmt.Errorf("the server did not end in order: %w", s.ending), s.why())
	}
	return nil
}

// why is the end of the server's log.
func (s *server) why() error { return fmt.Errorf("the end of the server's log:\n%s", s.log.text()) }

// peakMemory returns the largest resident set of the server in MiB.
func (s *server) peakMemory() (int, error) {
	peak, err := memoryOf(s.command.Process.Pid, "VmHWM")
	return int(peak >> 20), err
}

// tail keeps the end of a log.
type tail struct {
	mu  sync.Mutex
	end []byte
}

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if over := len(t.end) - tailBytes; over > tailBytes { // seldom, so that little is copied
		t.end = append(t.end[:0], t.end[over:]...)
	}
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.end[max(0, len(t.end)-tailBytes):])
}

// freePort returns a port of 127.0.0.1 that nobody listens on. It is below those that the system gives to outgoing
// connections: while a server is away, one of its clients' could take its port, and even connect to itself.
func freePort(ctx context.Context) (int, error) {
	const from, to = 15_000, 32_000
	var err error
	for range 100 {
		port := from + rand.N(to-from)
		var listener net.Listener
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			return port, listener.Close()
		}
	}
	return 0, fmt.Errorf("find a free port on 127.0.0.1: %w", err)
}
