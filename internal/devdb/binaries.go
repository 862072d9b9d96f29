package devdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// binaries is one installation of Postgres.
type binaries struct {
	dir   string
	major int
}

func (b binaries) initdb() string   { return filepath.Join(b.dir, "initdb") }
func (b binaries) postgres() string { return filepath.Join(b.dir, "postgres") }

// errNoBinaries says what to install.
var errNoBinaries = errors.New("no Postgres server is installed here (initdb and postgres are neither in PATH nor " +
	"where packages put them): install it, on Debian or Ubuntu with `apt-get install postgresql`, " +
	"on macOS with `brew install postgresql@17`")

// packageGlobs are the folders where packages put the server's binaries without adding them to PATH.
func packageGlobs() []string {
	return []string{
		"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                                   // Red Hat family, packages of postgresql.org
		"/opt/homebrew/opt/postgresql@*/bin",                 // Homebrew on Apple silicon
		"/usr/local/opt/postgresql@*/bin",                    // Homebrew on Intel
		"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
		"/usr/local/pgsql/bin",                               // built from source
	}
}

// findOrInstall returns the installations of Postgres, best first, and at least one.
func findOrInstall(ctx context.Context, config Config) ([]binaries, error) {
	if config.BinDir != "" {
		found, err := inspect(ctx, config.BinDir)
		if err != nil {
			return nil, fmt.Errorf("use Postgres from %s: %w", config.BinDir, err)
		}

		return []binaries{found}, nil
	}

	search := func() []binaries { return findBinaries(ctx, filepath.SplitList(os.Getenv("PATH")), packageGlobs()) }
	if found := search(); len(found) > 0 {
		return found, nil
	}
	if !canInstall() {
		return nil, errNoBinaries
	}
	if err := install(ctx, config.Progress, func() bool { return len(search()) > 0 }); err != nil {
		return nil, err
	}
	if found := search(); len(found) > 0 {
		return found, nil
	}

	return nil, errNoBinaries
}

// findBinaries returns the installations in the folders of a path, in its order, then those that the patterns name,
// newest first.
func findBinaries(ctx context.Context, path, patterns []string) []binaries {
	var found []binaries
	for _, dir := range path {
		// A relative folder in PATH would mean another program in another working directory.
		if !filepath.IsAbs(dir) {
			continue
		}
		if b, err := inspect(ctx, dir); err == nil {
			found = append(found, b)
		}
	}

	var packaged []binaries
	for _, pattern := range patterns {
		dirs, _ := filepath.Glob(pattern) // its only error is a malformed pattern, and ours are constant
		for _, dir := range dirs {
			if b, err := inspect(ctx, dir); err == nil {
				packaged = append(packaged, b)
			}
		}
	}
	slices.SortStableFunc(packaged, func(a, b binaries) int { return b.major - a.major })

	return append(found, packaged...)
}

// inspect returns the installation in a folder, which must have initdb and postgres of one version.
func inspect(ctx context.Context, dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, err
	}
	b := binaries{dir: dir}

	initdb, err := majorVersion(ctx, b.initdb())
	if err != nil {
		return binaries{}, err
	}
	if b.major, err = majorVersion(ctx, b.postgres()); err != nil {
		return binaries{}, err
	}
	if initdb != b.major {
		return binaries{}, fmt.Errorf("%s is of version %d, but %s is of version %d: install them from one package",
			b.initdb(), initdb, b.postgres(), b.major)
	}

	return b, nil
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

func majorVersion(ctx context.Context, program string) (int, error) {
	// Most folders of PATH have no such program; this saves starting a process for each.
	if _, err := os.Stat(program); err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	match := versionPattern.FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("ask %s for its version: it said %q, which is not PostgreSQL", program, out)
	}

	return strconv.Atoi(string(match[1]))
}
