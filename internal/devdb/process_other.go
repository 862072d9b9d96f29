//go:build unix && !linux

package devdb

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// childAttributes cannot ask this kernel for a signal at the parent's death: a server whose parent was killed stays
// until the next Start on its folder. The child has its own process group: a Ctrl-C at the terminal is for this
// process, which stops the server when its work is done.
func childAttributes(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

func childrenOf(pid int) ([]int, error) {
	out, err := exec.CommandContext(context.Background(), "pgrep", "-P", strconv.Itoa(pid)).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 { // nobody
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

// waitFrozen gives a process that was sent SIGSTOP the time to take it.
func waitFrozen(int) { time.Sleep(time.Millisecond) }

func isAlive(pid int) bool {
	err := syscall.Kill(pid, 0)

	return err == nil || errors.Is(err, syscall.EPERM)
}

// isPostmasterOf reports whether a process is the postmaster of a data folder, which its command line names.
func isPostmasterOf(pid int, data string) bool {
	out, err := exec.CommandContext(context.Background(), "ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()

	return err == nil && strings.Contains(string(out), "postgres") && strings.Contains(string(out), data)
}

// memoryRoot finds no folder in memory here.
func memoryRoot() string { return "" }
