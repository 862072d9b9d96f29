package main

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newTerminal returns both ends of a terminal: that of the person, and that of the program.
func newTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this machine has no terminals: %s", err)
	}
	t.Cleanup(func() { _ = person.Close() })
	fd := int(person.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	program, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = program.Close() })
	return person, program
}

// onTerminal runs a command on a terminal, where a person gives an answer to each question. It returns what the screen shows.
func (b *operatorBundle) onTerminal(t *testing.T, answer string, args ...string) (code int, screen string) {
	t.Helper()
	person, program := newTerminal(t)
	exited := make(chan int, 1)
	go func() {
		exited <- run(t.Context(), append(args, "--database-url", b.url), nil, streams{program, program, program})
		_ = program.Close()
	}()
	var seen bytes.Buffer
	buffer := make([]byte, 4096)
	for {
		n, err := person.Read(buffer)
		seen.Write(buffer[:n])
		if strings.Contains(string(buffer[:n]), "[y/N]") {
			_, _ = io.WriteString(person, answer)
		}
		if err != nil { // the program's end is closed
			return <-exited, strings.ReplaceAll(seen.String(), "\r\n", "\n")
		}
	}
}
