package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestCompletion_InRealShells has a person type the beginning of a command, press Tab and then Enter. It looks at what the shell
// then runs.
func TestCompletion_InRealShells(t *testing.T) {
	t.Parallel()
	for _, shell := range []struct {
		name, load string
		args       []string
	}{
		{"bash", "source <(myticket completion bash)", []string{"--norc", "--noprofile", "-i"}},
		{"zsh", "autoload -Uz compinit; compinit -u -D; source <(myticket completion zsh)", []string{"-f", "-i"}},
		{"fish", "myticket completion fish | source", []string{"--no-config", "-i"}},
	} {
		t.Run(shell.name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(shell.name); err != nil && shell.name != "bash" {
				t.Skipf("%s is not installed on this machine, so its completion is not tried", shell.name)
			}
			s := startShell(t, shell.name, shell.args...)
			s.enter(t, shell.load+"; myticket loaded")
			require.Equal(t, "loaded|", s.ran(t))
			for begun, want := range map[string]string{
				"tick\ttr":                             "tickets|tr|",
				"tickets rea":                          "tickets|rea|", // nothing begins so
				"tickets stat":                         "tickets|stats|",
				"tickets list --stat\tE":               "tickets|list|--status|ERROR|",
				"tickets list --status=E":              "tickets|list|--status=ERROR|",
				"tickets list --status=TREATED,E":      "tickets|list|--status=TREATED,ERROR|",
				"tickets list --since 08:00 --outp\tc": "tickets|list|--since|08:00|--output|csv|",
				"read rec":                             "read|receipt one.txt|",
				"read --dialect sho":                   "read|--dialect|shop-1.yaml|",
				"read --dialect=sho":                   "read|--dialect=shop-1.yaml|",
				"spool status fol":                     "spool|status|folder|",
				"spool status rec":                     "spool|status|rec|", // is no folder
			} {
				s.enter(t, "myticket "+begun+"\t")
				assert.Equal(t, want, strings.ReplaceAll(s.ran(t), "/|", "|"), begun) // zsh takes the last slash away
			}
		})
	}
}

// shell is an interactive shell on a terminal.
type shell struct {
	person *os.File
	said   string // the file with what it ran last
	screen *logText
}

// startShell starts a shell in a folder with some files. Its myticket completes as the program does. Otherwise it only says what
// it was given.
func startShell(t *testing.T, name string, args ...string) *shell {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "receipt one.txt"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "shop-1.yaml"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	bin := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	person, program := newTerminal(t)
	s := &shell{person: person, said: filepath.Join(bin, "said"), screen: &logText{}}
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in completion|complete) %s=1 exec '%s' \"$@\" ;; esac\n"+
		"printf '%%s|' \"$@\" >'%s.new' && mv '%[3]s.new' '%[3]s'\n", runMain, self, s.said)
	require.NoError(t, os.WriteFile(filepath.Join(bin, "myticket"), []byte(script), 0o700))
	p := exec.CommandContext(t.Context(), name, args...)
	p.Dir = dir
	p.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TERM=dumb", "PS1=$ ", "LC_ALL=C.UTF-8"}
	p.Stdin, p.Stdout, p.Stderr = program, program, program
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, p.Start())
	require.NoError(t, program.Close())
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(s.screen, person) }()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		<-read
		if t.Failed() {
			t.Logf("screen: %q", s.screen.String())
		}
	})
	return s
}

// enter types a line, and Enter.
func (s *shell) enter(t *testing.T, line string) {
	t.Helper()
	_, err := io.WriteString(s.person, line+"\r")
	require.NoError(t, err)
}

// ran returns the arguments that myticket got.
func (s *shell) ran(t *testing.T) (arguments string) {
	t.Helper()
	for end := time.Now().Add(patience / 2); ; time.Sleep(10 * time.Millisecond) {
		content, err := os.ReadFile(s.said)
		if err == nil {
			require.NoError(t, os.Remove(s.said))
			return strings.TrimSpace(string(content))
		}
		require.True(t, time.Now().Before(end), "the shell runs nothing: %q", s.screen.String())
	}
}
