package devdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"myticket/internal/lab"
)

// account is the user that runs the server if this process is root, because Postgres refuses to run as root. A nil account is
// this process's own user.
type account struct {
	name     string
	uid, gid int
}

// serverAccount returns nil when this process is not root.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // a nil account is a meaningful one: our own user
	}

	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(found.Uid)
		gid, gidErr := strconv.Atoi(found.Gid)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		if uid != 0 {
			return &account{name: name, uid: uid, gid: gid}, nil
		}
	}

	return nil, errors.New("refusing to run Postgres as root, and there is neither a user postgres nor a user nobody " +
		"to run it as: make one (`useradd --system postgres`), or run this program as another user")
}

// apply makes a command run as the account.
func (a *account) apply(attr *syscall.SysProcAttr) {
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
}

// run runs a command as the account to its end. The command holds the lock of the folder, so that no other server uses the
// folder meanwhile, whatever happens to this process.
func (a *account) run(cmd *exec.Cmd, lock *folderLock) error {
	var log lab.Tail
	cmd.Stdout, cmd.Stderr = &log, &log
	process, err := a.start(cmd, lock, syscall.SIGKILL)
	if err != nil {
		return err
	}
	if err := process.Wait(); err != nil {
		return fmt.Errorf("%s: %w; it said:\n%s", cmd.Path, err, &log)
	}

	return nil
}

func (a *account) start(cmd *exec.Cmd, lock *folderLock, onParentDeath syscall.Signal) (*lab.Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	a.apply(cmd.SysProcAttr)
	cmd.ExtraFiles = []*os.File{lock.file}

	return lab.Start(cmd, onParentDeath)
}

// own gives a file to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}

	return os.Lchown(path, a.uid, a.gid)
}

// checkAccess reports whether the account can run the binaries, and can reach the folder or, before it is made, the
// nearest one above it. It starts a program there to find out, because more than permission bits decides (access control lists,
// mounts, security modules).
func (a *account) checkAccess(ctx context.Context, b binaries, dir string) error {
	if a == nil {
		return nil
	}

	if err := a.tryIn(ctx, b, "/"); err != nil {
		return fmt.Errorf("root may not run Postgres, so it runs as user %s, which cannot start %s: %w", a.name, b.initdb(), err)
	}
	existing, err := nearestExisting(dir)
	if err != nil {
		return err
	}
	if err := a.tryIn(ctx, b, existing); err != nil {
		return fmt.Errorf("root may not run Postgres, so it runs as user %s, which cannot reach the folder %s: "+
			"choose another folder for the data, or let others pass (chmod o+x) on the folders that lead there: %w",
			a.name, existing, err)
	}

	return nil
}

func (a *account) tryIn(ctx context.Context, b binaries, dir string) error {
	cmd := exec.CommandContext(ctx, b.initdb(), "--version")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	a.apply(cmd.SysProcAttr)

	return cmd.Run()
}

func nearestExisting(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(dir)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}
