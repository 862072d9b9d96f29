//go:build unix && !linux

package lab

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// signalOnParentDeath does nothing: this kernel has no such signal. A command whose parent was killed goes on.
func signalOnParentDeath(*syscall.SysProcAttr, syscall.Signal) {}

// ChildrenOf returns the processes whose parent is pid.
func ChildrenOf(pid int) ([]int, error) {
	out, err := exec.CommandContext(context.Background(), "pgrep", "-P", strconv.Itoa(pid)).Output()
	if code, ok := ExitCode(err); ok && code == 1 { // there are none
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var children []int
	for _, field := range strings.Fields(string(out)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// IsAlive reports whether a process exists.
func IsAlive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// IsFrozen gives a process that was sent SIGSTOP the time to stop.
func IsFrozen(int) bool {
	time.Sleep(time.Millisecond)
	return true
}

var errNoProc = errors.New("only Linux has this figure, in /proc")

// CPUTime is not known here.
func CPUTime(int) (time.Duration, error) { return 0, errNoProc }

// TreeCPUTime is not known here.
func TreeCPUTime(int) (time.Duration, error) { return 0, errNoProc }

// Memory is not known here.
func Memory(int, string) (int64, error) { return 0, errNoProc }
