package devdb

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"myticket/internal/lab"
)

//go:embed packages.txt
var packageList string

// packagesFor returns the Debian packages that have what is needed, as packages.txt names it.
func packagesFor(need string) []string {
	for line := range strings.Lines(packageList) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == need {
			return fields[1:]
		}
	}

	return nil
}

const (
	// installLock serialises the installers of several processes, for example parallel test binaries.
	installLock = "/run/myticket-devdb-install.lock"

	// Debian's package makes and starts a cluster of its own unless this file says no.
	createClusterConf     = "/etc/postgresql-common/createcluster.conf"
	createClusterTemplate = "/usr/share/postgresql-common/createcluster.conf"
	noMainCluster         = "# Written by myticket while it installed Postgres, which it runs itself.\n" +
		"create_main_cluster = false\n"
)

// canInstall reports whether this process may install Debian packages.
func canInstall() bool {
	if os.Geteuid() != 0 {
		return false
	}
	_, err := exec.LookPath("apt-get")

	return err == nil
}

// install installs Debian's Postgres, unless another process did while this one waited for its turn.
func install(ctx context.Context, progress io.Writer, isInstalled func() bool) error {
	lock, err := os.OpenFile(installLock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("install Postgres: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := flockWait(ctx, lock); err != nil {
		return fmt.Errorf("install Postgres: wait for another process that installs it: %w", err)
	}
	if isInstalled() {
		return nil
	}

	fmt.Fprintln(progress, "No Postgres server is installed here: installing Debian's package postgresql, about a minute …")
	restore, err := withoutMainCluster()
	if err != nil {
		return fmt.Errorf("install Postgres: %w", err)
	}
	err = aptInstall(ctx)
	if restoreErr := restore(); restoreErr != nil {
		err = errors.Join(err, restoreErr)
	}
	if err != nil {
		return fmt.Errorf("install Postgres (try `apt-get update && apt-get install postgresql` by hand): %w", err)
	}

	return nil
}

// aptInstall refreshes the package lists only when they do not lead to the package.
func aptInstall(ctx context.Context) error {
	args := append([]string{
		"install", "--yes", "--no-install-recommends",
		"-o", "DPkg::Lock::Timeout=300", // another apt may be at work
	}, packagesFor("postgres")...)
	if aptGet(ctx, args...) == nil {
		return nil
	}
	if err := aptGet(ctx, "update"); err != nil {
		return err
	}

	return aptGet(ctx, args...)
}

func aptGet(ctx context.Context, args ...string) error {
	var log lab.Tail
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	// ucf asks its own questions about configuration files, in addition to dpkg's.
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "UCF_FORCE_CONFFOLD=1", "LC_ALL=C")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w; it said:\n%s", args[0], err, &log)
	}

	return nil
}

// withoutMainCluster keeps Debian from making and starting a cluster of its own. A setting that the machine already has
// stays as it is. The returned function puts Debian's defaults in place for later installations by the user.
func withoutMainCluster() (restore func() error, err error) {
	nothing := func() error { return nil }

	if err := os.MkdirAll(filepath.Dir(createClusterConf), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(createClusterConf, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nothing, nil
	}
	if err != nil {
		return nil, err
	}
	_, err = file.WriteString(noMainCluster)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}

	return func() error {
		defaults, err := os.ReadFile(createClusterTemplate)
		if errors.Is(err, fs.ErrNotExist) { // nothing was installed
			return os.Remove(createClusterConf)
		}
		if err != nil {
			return err
		}
		if current, err := os.ReadFile(createClusterConf); err != nil || string(current) != noMainCluster {
			return err
		}

		return os.WriteFile(createClusterConf, defaults, 0o644)
	}, nil
}
