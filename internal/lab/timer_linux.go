package lab

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timer waits to within some 50 µs. time.Sleep is no use for waits of less than a millisecond: in an idle program Go's scheduler
// waits in whole milliseconds (netpoll of runtime/netpoll_epoll.go). A timer of the kernel, read like a socket, is not rounded
// (timerfd_create(2)).
type timer struct {
	fd   int
	file *os.File
}

func newTimer() (*timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &timer{fd: fd, file: os.NewFile(uintptr(fd), "timer")}, nil
}

// until waits until a time. Only one goroutine at a time may call it.
func (t *timer) until(due time.Time) error {
	left := time.Until(due)
	if left <= 0 {
		return nil
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(left.Nanoseconds())}
	if err := unix.TimerfdSettime(t.fd, 0, &spec, nil); err != nil {
		return os.NewSyscallError("timerfd_settime", err)
	}
	var expirations [8]byte
	_, err := t.file.Read(expirations[:])
	return err
}

func (t *timer) close() { _ = t.file.Close() }
