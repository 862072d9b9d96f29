package devdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"myticket/internal/lab"
)

const (
	pollInterval = 20 * time.Millisecond
	// orphanGrace is how long the server of a process that died may take to end.
	orphanGrace = 30 * time.Second
)

// folderLock says that a folder is in use. The server's processes inherit it, so it is held until the last of them is
// gone, whatever happens to this process.
type folderLock struct{ file *os.File }

// acquire takes the lock. It fails at once when a live process uses the folder, and waits for the server of a dead one
// to end.
func (f folder) acquire(ctx context.Context) (*folderLock, error) {
	file, err := os.OpenFile(filepath.Join(f.path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the folder of Postgres: %w", err)
	}
	lock := &folderLock{file: file}

	if err := f.waitFor(ctx, lock); err != nil {
		_ = file.Close()

		return nil, err
	}
	if err := lock.setOwner(strconv.Itoa(os.Getpid())); err != nil {
		_ = file.Close()

		return nil, fmt.Errorf("lock the folder of Postgres: %w", err)
	}

	return lock, nil
}

// InUseError says that a live process uses the folder.
type InUseError struct {
	Dir   string
	Owner int // process id
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("folder %s is in use by the Postgres of process %d: stop that process, or choose another folder",
		e.Dir, e.Owner)
}

func (f folder) waitFor(ctx context.Context, lock *folderLock) error {
	deadline := time.Now().Add(orphanGrace)
	for {
		err := tryFlock(lock.file)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock the folder of Postgres: %w", err)
		}

		owner := lock.owner()
		if owner != 0 && lab.IsAlive(owner) {
			return &InUseError{f.path, owner}
		}
		postmaster := f.postmasterPID()
		// If the kernel does not signal a server when its parent dies, the server would stay for ever.
		if owner != 0 && postmaster != 0 && isPostmasterOf(postmaster, f.data()) {
			_ = syscall.Kill(postmaster, syscall.SIGINT)
		}

		if time.Now().After(deadline) {
			return fmt.Errorf("folder %s is still in use by the Postgres (process %d) of a process that died: end it with "+
				"`kill -QUIT %d`, or choose another folder", f.path, postmaster, postmaster)
		}
		if lab.Pause(ctx, pollInterval); ctx.Err() != nil {
			return fmt.Errorf("wait for the former Postgres in folder %s to end: %w", f.path, ctx.Err())
		}
	}
}

// owner returns the process that holds the lock, or 0 when it is not known.
func (l *folderLock) owner() int {
	text, err := io.ReadAll(io.NewSectionReader(l.file, 0, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}

	return pid
}

func (l *folderLock) setOwner(text string) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(text), 0)

	return err
}

// release gives the lock back. It removes the owner first: a child of the server may still be about to end, and then the next
// process waits for it, instead of failing because this one still uses the folder.
func (l *folderLock) release() {
	_ = l.setOwner("")
	_ = l.file.Close()
}

func tryFlock(file *os.File) error {
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func flockWait(ctx context.Context, file *os.File) error {
	for {
		err := tryFlock(file)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if lab.Pause(ctx, pollInterval); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
