//go:build unix && !linux

package devdb

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
)

// isPostmasterOf reports whether a process is the postmaster of a data folder, which its command line names.
func isPostmasterOf(pid int, data string) bool {
	out, err := exec.CommandContext(context.Background(), "ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()

	return err == nil && strings.Contains(string(out), "postgres") && strings.Contains(string(out), data)
}

// memoryRoot finds no folder in memory here.
func memoryRoot() string { return "" }
