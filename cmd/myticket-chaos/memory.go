package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// memoryLimit kills a process that takes more memory than it may, as the kernel does in a container with a limit.
type memoryLimit struct {
	bytes int64
	told  int64 // what the process is told that it may take

	peak   atomic.Int64 // the largest resident set of any process that was held
	killed atomic.Int32 // processes that took more
}

// memoryPoll is how often a process is looked at. VmHWM is the peak since its start, so nothing is missed in between.
const memoryPoll = 20 * time.Millisecond

// environ gives Go the limit that the chart gives it: 90 % of the container's.
func (m *memoryLimit) environ() string { return fmt.Sprintf("GOMEMLIMIT=%d", m.told/10*9) }

// hold watches a process until it has exited.
func (m *memoryLimit) hold(process *os.Process, exited <-chan struct{}) {
	tick := time.NewTicker(memoryPoll)
	defer tick.Stop()
	for {
		select {
		case <-exited:
			return
		case <-tick.C:
		}
		peak, err := memoryOf(process.Pid, "VmHWM")
		if err != nil {
			continue // it is ending, or this is no Linux
		}
		m.peak.Store(max(m.peak.Load(), peak))
		if peak > m.bytes {
			m.killed.Add(1)
			_ = process.Kill()
			return
		}
	}
}

// memoryOf returns a value of proc_pid_status(5), in bytes.
func memoryOf(pid int, name string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc does not tell %s of process %d", name, pid)
}

// childrenOf returns the processes that a process started and that still run.
func childrenOf(pid int) []int {
	var children []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

// crashes is a log of Postgres, of which it keeps what tells that one of its processes was killed.
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

// take returns what was found since the last time.
func (c *crashes) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.lines
	c.lines = nil
	return lines
}
