package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"myticket/internal/lab"
)

// memoryLimit kills a process that takes more memory than it may, as the kernel does in a container with a limit.
type memoryLimit struct {
	bytes int64
	told  int64 // what the process is told that it may take

	peak   atomic.Int64 // the largest resident set of any process that was watched
	killed atomic.Int32 // processes that took more
}

// memoryPoll is the time between two looks at a process. VmHWM is the peak since its start, so no peak is missed in between.
const memoryPoll = 20 * time.Millisecond

// environ gives Go the limit that the chart gives it: 90 % of the container's.
func (m *memoryLimit) environ() string { return fmt.Sprintf("GOMEMLIMIT=%d", m.told/10*9) }

// hold watches a process until it has exited.
func (m *memoryLimit) hold(process *lab.Process) {
	tick := time.NewTicker(memoryPoll)
	defer tick.Stop()
	for {
		select {
		case <-process.Exited():
			return
		case <-tick.C:
		}
		peak, err := lab.Memory(process.PID(), "VmHWM")
		if err != nil {
			continue // it is ending, or this is not Linux
		}
		m.peak.Store(max(m.peak.Load(), peak))
		if peak > m.bytes {
			m.killed.Add(1)
			process.Kill()
			return
		}
	}
}

// backends returns the processes of Postgres beside its first one.
func (g *siege) backends() []int {
	postmaster := g.database.PID()
	if postmaster == 0 { // it does not run
		return nil
	}
	backends, err := lab.ChildrenOf(postmaster)
	if err != nil {
		return nil
	}
	return backends
}

// watchBackends demands that no process of Postgres takes too much memory, until the trial ends.
func (g *siege) watchBackends(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var most int64
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for _, backend := range g.backends() {
				if memory, err := lab.Memory(backend, "RssAnon"); err == nil {
					most = max(most, memory)
				}
			}
			lab.Pause(ctx, 5*memoryPoll)
		}
	}()
	g.onEnd(func() error {
		cancel()
		<-done
		g.notef("a process of Postgres took up to %d MiB for itself", most>>20)
		if most > backendMemory {
			g.failf("a process of Postgres took %d MiB for itself, and %d are allowed", most>>20, backendMemory>>20)
		}
		return nil
	})
}

// crashes is a log of Postgres. It keeps the lines that say that one of its processes was killed.
type crashes struct {
	mu    sync.Mutex
	lines []string
}

func (c *crashes) Write(text []byte) (int, error) {
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte("was terminated by signal")) {
			c.mu.Lock()
			c.lines = append(c.lines, strings.TrimSpace(string(line)))
			c.mu.Unlock()
		}
	}
	return len(text), nil
}

// take returns what was found since the last call.
func (c *crashes) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.lines
	c.lines = nil
	return lines
}
