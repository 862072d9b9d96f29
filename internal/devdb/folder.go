package devdb

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"myticket/internal/lab"
)

const (
	tempPrefix = "myticket-devdb-"
	// tempAge is how old a temporary folder without a lock must be before it counts as left behind by a process
	// that was killed. A younger one may be about to be locked.
	tempAge = time.Minute
)

// folder is what a server keeps on disk:
//
//	data      the cluster; belongs to the account that runs the server
//	password  the superuser's
//	lock      held by the server's processes, and names the process that started them
type folder struct{ path string }

func (f folder) data() string         { return filepath.Join(f.path, "data") }
func (f folder) passwordFile() string { return filepath.Join(f.path, "password") }

// DefaultDir returns the folder for the database that is kept from one `make run` to the next: /var/lib/myticket-dev
// for root, otherwise myticket-dev in $XDG_STATE_HOME, which defaults to ~/.local/state
// (https://specifications.freedesktop.org/basedir-spec).
func DefaultDir() (string, error) {
	const name = "myticket-dev"
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib", name), nil
	}
	// The specification says that a relative path is to be ignored.
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a folder for the development database: %w", err)
	}

	return filepath.Join(home, ".local", "state", name), nil
}

// makeFolder makes a folder through which the server's account can pass.
func makeFolder(dir string) (folder, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return folder{}, fmt.Errorf("folder for Postgres: %w", err)
	}
	// Symbolic links are resolved because the kernel names a process's folder without them.
	existing, err := nearestExisting(dir)
	if err != nil {
		return folder{}, fmt.Errorf("folder for Postgres: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(existing)
	if err != nil {
		return folder{}, fmt.Errorf("folder for Postgres: %w", err)
	}

	missing := strings.Split(strings.TrimPrefix(strings.TrimPrefix(dir, existing), "/"), "/")
	path := resolved
	for _, name := range missing {
		if name == "" {
			continue
		}
		path = filepath.Join(path, name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return folder{}, fmt.Errorf("folder for Postgres: %w", err)
		}
		// With a narrow umask the server's account could not pass.
		if err := os.Chmod(path, 0o755); err != nil {
			return folder{}, fmt.Errorf("folder for Postgres: %w", err)
		}
	}

	return folder{path: path}, nil
}

// tempRoot returns the folder for temporary folders: one in memory if the data need not be durable and there is room.
func tempRoot(isVolatile bool) string {
	// TMPDIR wins.
	if isVolatile && os.Getenv("TMPDIR") == "" {
		if root := memoryRoot(); root != "" {
			return root
		}
	}

	return os.TempDir()
}

func makeTempFolder(root string) (folder, error) {
	removeLeftovers(root)

	path, err := os.MkdirTemp(root, tempPrefix)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return folder{}, fmt.Errorf("temporary folder for Postgres: %w", err)
	}
	// The server's account must be able to pass through. Others need not list it.
	if err := os.Chmod(path, 0o711); err != nil {
		return folder{}, fmt.Errorf("temporary folder for Postgres: %w", err)
	}

	return folder{path: path}, nil
}

// removeLeftovers removes the temporary folders of processes that were killed. Folders of other users stay, and errors are
// ignored.
func removeLeftovers(root string) {
	paths, _ := filepath.Glob(filepath.Join(root, tempPrefix+"*"))
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < tempAge {
			continue
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			continue
		}
		if tryFlock(lock) == nil {
			_ = os.RemoveAll(path)
		}
		_ = lock.Close()
	}
}

// chooseBinaries returns the installation that can read the folder's cluster, or the first one when there is none yet.
func (f folder) chooseBinaries(installed []binaries) (binaries, error) {
	text, err := os.ReadFile(filepath.Join(f.data(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return installed[0], nil
	}
	if err != nil {
		return binaries{}, fmt.Errorf("read the version of the cluster: %w", err)
	}

	version := strings.TrimSpace(string(text))
	for _, b := range installed {
		if strconv.Itoa(b.major) == version {
			return b, nil
		}
	}

	return binaries{}, fmt.Errorf("the cluster in %s is of Postgres %s, but Postgres %d is installed here (%s): "+
		"install Postgres %s, or choose another folder, or remove this one to begin with an empty database",
		f.path, version, installed[0].major, installed[0].dir, version)
}

// ensureCluster makes the cluster if there is none, and returns the superuser's password.
func (f folder) ensureCluster(
	ctx context.Context, config Config, b binaries, as *account, lock *folderLock,
) (string, error) {
	if _, err := os.Stat(f.data()); err == nil {
		password, err := os.ReadFile(f.passwordFile())
		if err != nil {
			return "", fmt.Errorf("read the password of the cluster in %s (if it is lost, remove the folder to begin "+
				"with an empty database): %w", f.path, err)
		}

		return strings.TrimSpace(string(password)), nil
	}

	if config.Dir != "" { // a temporary one is not worth a message
		fmt.Fprintf(config.Progress, "Making a Postgres %d cluster in %s …\n", b.major, f.path)
	}
	password := rand.Text()
	if err := os.WriteFile(f.passwordFile(), []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the password of the cluster: %w", err)
	}
	// initdb reads it as the account.
	if err := as.own(f.passwordFile()); err != nil {
		return "", fmt.Errorf("keep the password of the cluster: %w", err)
	}
	if err := f.initdb(ctx, config, b, as, lock); err != nil {
		return "", fmt.Errorf("make a Postgres cluster in %s: %w", f.path, err)
	}

	return password, nil
}

// initdb makes the cluster under another name first, so that an incomplete one is never taken for a complete one.
func (f folder) initdb(ctx context.Context, config Config, b binaries, as *account, lock *folderLock) error {
	unfinished := f.data() + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return err
	}
	if err := as.own(unfinished); err != nil {
		return err
	}

	args := []string{
		"--pgdata=" + unfinished, "--username=" + superuser, "--pwfile=" + f.passwordFile(), "--auth=scram-sha-256",
		// The same on every machine, sorted by bytes, and what CloudNativePG makes by default.
		"--encoding=UTF8", "--locale=C",
	}
	if config.isVolatile() {
		args = append(args, "--no-sync")
		const checksumsByDefault = 18
		if b.major >= checksumsByDefault {
			args = append(args, "--no-data-checksums")
		}
	}

	cmd := exec.CommandContext(ctx, b.initdb(), args...)
	cmd.Dir, cmd.Env = f.path, serverEnvironment(os.Environ())
	if err := as.run(cmd, lock); err != nil {
		return err
	}

	return os.Rename(unfinished, f.data())
}

// writeSettings replaces postgresql.conf. ALTER SYSTEM writes to another file, which Postgres reads after this one.
func (f folder) writeSettings(settings map[string]string, as *account) error {
	var text strings.Builder
	text.WriteString("# Written at every start. Use ALTER SYSTEM for settings that must stay.\n" +
		"lc_messages = 'C'\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n")
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(settings[name])
		if strings.ContainsAny(name+value, "\n\r") {
			return fmt.Errorf("setting %q of Postgres contains a line break", name)
		}
		fmt.Fprintf(&text, "%s = '%s'\n", name, value)
	}

	path := filepath.Join(f.data(), "postgresql.conf")
	unfinished := path + ".new"
	_ = os.Remove(unfinished) // of an earlier start that was killed here
	file, err := os.OpenFile(unfinished, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the settings of Postgres: %w", err)
	}
	_, err = file.WriteString(text.String())
	if err := errors.Join(err, file.Close(), as.own(unfinished), os.Rename(unfinished, path)); err != nil {
		return fmt.Errorf("write the settings of Postgres: %w", err)
	}

	return nil
}

// postmasterPID returns the process id in postmaster.pid, or 0.
func (f folder) postmasterPID() int {
	text, err := os.ReadFile(filepath.Join(f.data(), "postmaster.pid"))
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid < 0 {
		return 0
	}

	return pid
}

// clearStalePID removes the postmaster.pid that a crash left when its process id belongs to another program by now
// (usual after a reboot, and in containers). Postgres cannot tell, and would refuse to start.
// The caller must hold the folder's lock.
func (f folder) clearStalePID() error {
	pid := f.postmasterPID()
	if pid == 0 || !lab.IsAlive(pid) {
		return nil
	}
	if isPostmasterOf(pid, f.data()) {
		return fmt.Errorf("folder %s is in use by a Postgres that another program started (process %d): "+
			"stop it with `kill -INT %d`, or choose another folder", f.path, pid, pid)
	}
	if err := os.Remove(filepath.Join(f.data(), "postmaster.pid")); err != nil {
		return fmt.Errorf("remove what a crashed Postgres left: %w", err)
	}

	return nil
}
