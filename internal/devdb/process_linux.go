package devdb

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

// childAttributes makes the kernel send a signal to the child when this process dies, even by SIGKILL. The child has
// its own process group: a Ctrl-C at the terminal is for this process, which stops the server when its work is done.
func childAttributes(onParentDeath syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: onParentDeath}
}

// processStat is what /proc/PID/stat says (proc_pid_stat(5)).
type processStat struct {
	state  byte
	parent int
}

func readStat(pid int) (processStat, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, false
	}
	// The second field is the program's name in parentheses, and may contain anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return processStat{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return processStat{}, false
	}

	return processStat{state: fields[0][0], parent: parent}, true
}

func childrenOf(pid int) ([]int, error) {
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("list the processes of Postgres: /proc is not mounted")
	}

	var children []int
	for _, path := range paths {
		candidate, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		if stat, ok := readStat(candidate); ok && stat.parent == pid {
			children = append(children, candidate)
		}
	}

	return children, nil
}

// waitFrozen waits until a process that was sent SIGSTOP has taken it.
func waitFrozen(pid int) {
	for deadline := time.Now().Add(goneGrace); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stat, ok := readStat(pid)
		if !ok || strings.IndexByte("TtZX", stat.state) >= 0 {
			return
		}
	}
}

// isAlive counts a zombie as dead: it holds nothing, and its parent may never look.
func isAlive(pid int) bool {
	stat, ok := readStat(pid)

	return ok && stat.state != 'Z' && stat.state != 'X'
}

// isPostmasterOf reports whether a process is the postmaster of a data folder, which is where it works.
func isPostmasterOf(pid int, data string) bool {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))

	return err == nil && dir == data
}

// memoryRoot returns /dev/shm where it has room for the tests of a whole repository; containers often give it 64 MB.
func memoryRoot() string {
	const (
		root = "/dev/shm"
		room = 4 << 30
	)
	var stat syscall.Statfs_t
	if err := syscall.Statfs(root, &stat); err != nil || stat.Bavail*uint64(stat.Bsize) < room {
		return ""
	}

	return root
}
