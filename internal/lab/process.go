package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// outputGrace is how long the children of a command that has ended may keep its output open.
const outputGrace = 10 * time.Second

// Process is a program that was started. Its methods may be called from any goroutine.
type Process struct {
	command *exec.Cmd
	exited  chan struct{} // closed when the process has ended
	err     error         // of exec.Cmd.Wait; may be read once exited is closed
}

// Start starts a command. When this process dies, even by SIGKILL, the kernel sends onParentDeath to the command. Only Linux
// does so. The command has a process group of its own: a Ctrl-C at the terminal is for this process, which then stops the
// command in order.
func Start(command *exec.Cmd, onParentDeath syscall.Signal) (*Process, error) {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setpgid = true
	command.WaitDelay = outputGrace
	signalOnParentDeath(command.SysProcAttr, onParentDeath)
	p := &Process{command: command, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that forked for the death of the parent. So this goroutine keeps its thread
		// while the command runs. The thread ends with the goroutine.
		runtime.LockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			p.err = command.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.command.Process.Pid }

// Exited returns a channel that is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// HasExited reports whether the process has ended.
func (p *Process) HasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Wait returns when the process has ended. The error is nil if it exited with 0.
func (p *Process) Wait() error {
	<-p.exited
	return p.err
}

// Signal sends a signal. A process that has ended is no error.
func (p *Process) Signal(signal syscall.Signal) error {
	err := p.command.Process.Signal(signal)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Kill ends the process with SIGKILL, and returns when it has ended.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.exited
}

// Stop ends the process in order, with SIGTERM. It returns an error if the process does not exit with 0, or if it has not
// ended after grace and so is killed.
func (p *Process) Stop(grace time.Duration) error {
	_ = p.Signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM, and was killed", p.command.Path, grace)
	}
	if p.err != nil {
		return fmt.Errorf("%s did not end in order: %w", p.command.Path, p.err)
	}
	return nil
}

// Signal sends a signal to any process. One that is gone is no error.
func Signal(pid int, signal syscall.Signal) error {
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", signal, pid, err)
	}
	return nil
}

// ExitCode returns the exit code that a shell gives a command: its own, or 128 plus the signal that ended it. The argument is
// the error of the command's Wait. ok is false if the error is another one, which says nothing about the command's end.
func ExitCode(err error) (code int, ok bool) {
	if err == nil {
		return 0, true
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return 0, false
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), true
	}
	return exit.ExitCode(), true
}
