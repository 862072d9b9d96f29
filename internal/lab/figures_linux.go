package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func signalOnParentDeath(attributes *syscall.SysProcAttr, signal syscall.Signal) {
	attributes.Pdeathsig = signal
}

// stat returns the fields of /proc/PID/stat after the program's name (proc_pid_stat(5)): the state, the parent and so on.
func stat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The name is in parentheses, and may contain anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const known = 15 // up to cstime
	if len(fields) < known {
		return nil, fmt.Errorf("/proc/%d/stat is too short: %q", pid, text)
	}
	return fields, nil
}

// processes returns the children of each process.
func processes() (children map[int][]int, err error) {
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("list processes: /proc is not mounted")
	}
	children = make(map[int][]int, len(paths))
	for _, path := range paths {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		fields, err := stat(pid)
		if err != nil {
			continue // it has just ended
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	return children, nil
}

// ChildrenOf returns the processes whose parent is pid.
func ChildrenOf(pid int) ([]int, error) {
	children, err := processes()
	return children[pid], err
}

// IsAlive reports whether a process runs or can run again. A zombie is dead: it holds nothing, and its parent may never wait
// for it.
func IsAlive(pid int) bool { return !inState(pid, "ZX") }

// IsFrozen reports whether a process that was sent SIGSTOP has stopped, or is dead.
func IsFrozen(pid int) bool { return inState(pid, "TtZX") }

// inState reports whether a process is in one of the states, or is gone.
func inState(pid int, states string) bool {
	fields, err := stat(pid)
	return err != nil || strings.Contains(states, fields[0])
}

// CPUTime returns the processor time that a process has used.
func CPUTime(pid int) (time.Duration, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return ticks(pid, fields[11:13]) // utime and stime
}

// TreeCPUTime returns the processor time that a process has used, with all that it has started: children that run, and those that
// have ended, with theirs. A child that ends while this looks may be missed.
func TreeCPUTime(pid int) (time.Duration, error) {
	children, err := processes()
	if err != nil {
		return 0, err
	}
	return treeCPUTime(pid, children)
}

func treeCPUTime(pid int, children map[int][]int) (time.Duration, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	used, err := ticks(pid, fields[11:15]) // also cutime and cstime
	for _, child := range children[pid] {
		if more, err := treeCPUTime(child, children); err == nil { // an error: it has just ended
			used += more
		}
	}
	return used, err
}

// ticks adds up times of stat.
func ticks(pid int, fields []string) (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on all common architectures of Linux
	var used time.Duration
	for _, field := range fields {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		used += time.Duration(n) * tick
	}
	return used, nil
}

// Memory returns a figure of proc_pid_status(5), in bytes: VmHWM is the peak of the resident set, RssAnon what a process has
// for itself.
func Memory(pid int, figure string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, figure+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", pid, figure)
}
