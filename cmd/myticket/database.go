package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"myticket/internal/postgres"
)

// databaseFlags are the settings of every command that needs the database.
type databaseFlags struct {
	DatabaseURL     string `name:"database-url" env:"DATABASE_URL" group:"Database" placeholder:"URL" help:"Connection URI of the Postgres database (postgresql://user:password@host:5432/name)."`
	DatabaseURLFile string `name:"database-url-file" env:"DATABASE_URL_FILE" group:"Database" placeholder:"FILE" help:"File with the connection URI, such as a mounted secret, instead of --database-url. It is read again before each new connection."`
	DatabaseDir     string `name:"database-dir" env:"DATABASE_DIR" group:"Database" placeholder:"DIR" help:"Folder with the parts of the URI in a file each, instead of --database-url: host, dbname, username, password and, if it is not 5432, port. These are the keys of CloudNativePG's Secret. They are read again before each new connection."`
}

// with returns the flags with a value for that of a name, if it is one of these.
func (f databaseFlags) with(name, value string) databaseFlags {
	switch name {
	case "database-url":
		f.DatabaseURL = value
	case "database-url-file":
		f.DatabaseURLFile = value
	case "database-dir":
		f.DatabaseDir = value
	}
	return f
}

// orFromEnvironment returns the flags, or those of the environment if none is set.
func (f databaseFlags) orFromEnvironment() databaseFlags {
	if f != (databaseFlags{}) {
		return f
	}
	return databaseFlags{
		DatabaseURL: os.Getenv("DATABASE_URL"), DatabaseURLFile: os.Getenv("DATABASE_URL_FILE"), DatabaseDir: os.Getenv("DATABASE_DIR"),
	}
}

// url returns the connection URI from the flag, the environment or the present content of the files.
func (f databaseFlags) url() (string, error) {
	set := slices.DeleteFunc([]string{f.DatabaseURL, f.DatabaseURLFile, f.DatabaseDir}, func(s string) bool { return s == "" })
	switch {
	case len(set) > 1:
		return "", errors.New("more than one of --database-url, --database-url-file and --database-dir is set, and they may mean " +
			"different databases: unset the others")
	case f.DatabaseDir != "":
		return urlFromParts(f.DatabaseDir)
	case f.DatabaseURLFile != "":
		content, err := os.ReadFile(f.DatabaseURLFile)
		if err != nil {
			return "", fmt.Errorf("read --database-url-file: %w", err)
		}
		if url := strings.TrimSpace(string(content)); url != "" {
			return url, nil
		}
		return "", fmt.Errorf("--database-url-file: %s is empty: write the connection URI into it", f.DatabaseURLFile)
	case f.DatabaseURL == "":
		return "", errors.New("no database: set DATABASE_URL, --database-url, --database-url-file or --database-dir")
	}
	return f.DatabaseURL, nil
}

// urlFromParts returns the URI whose parts are in the files of a folder.
func urlFromParts(dir string) (string, error) {
	parts, err := readParts(dir)
	// Kubernetes replaces the files of a Secret together, perhaps while they are read one after the other.
	for range 3 {
		var again map[string]string
		if again, err = readParts(dir); err == nil && maps.Equal(parts, again) {
			break
		}
		parts = again
	}
	if err != nil {
		return "", err
	}
	uri := neturl.URL{
		Scheme: "postgresql", User: neturl.UserPassword(parts["username"], parts["password"]),
		Host: net.JoinHostPort(parts["host"], parts["port"]), Path: "/" + parts["dbname"],
	}
	return uri.String(), nil
}

// readParts reads each file. A line end after a part does not belong to it.
func readParts(dir string) (map[string]string, error) {
	parts := map[string]string{"port": "5432"}
	for _, name := range []string{"host", "port", "dbname", "username", "password"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		switch part := strings.TrimRight(string(content), "\r\n"); {
		case err != nil && !(name == "port" && errors.Is(err, fs.ErrNotExist)):
			return nil, fmt.Errorf("read --database-dir: %w", err)
		case part != "":
			parts[name] = part
		case name != "port":
			return nil, fmt.Errorf("--database-dir: %s is empty: write that part of the login into it", filepath.Join(dir, name))
		}
	}
	return parts, nil
}

// databasePatience is how long a command waits for a database that it cannot reach: a new pod is let through to it only when its
// node knows that, which takes some seconds on a busy one.
const databasePatience = 10 * time.Second

// open opens the store for an operator's command, as soon as the database answers.
func (f databaseFlags) open(ctx context.Context, std streams, command string) (*postgres.Store, error) {
	return f.openWith(ctx, std, command, nil)
}

// openWith opens the store for an operator's command, with few connections that are named after the command. Such a command knows
// no sources file, so the tickets that it stores never overrule a product of an authenticated source. Those of testSources say
// nothing about products.
func (f databaseFlags) openWith(
	ctx context.Context, std streams, command string, testSources map[string]bool,
) (*postgres.Store, error) {
	store, err := postgres.Open(ctx, postgres.Config{
		URLFrom: f.url, MaxConns: 2, ApplicationName: "myticket " + command,
		Logger:  slog.New(slog.NewTextHandler(std.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Sources: postgres.Sources{Tests: testSources}, AuthenticatedProducts: true,
	})
	if err != nil {
		return nil, err
	}
	err = store.Await(ctx, databasePatience, func(why error) {
		fmt.Fprintf(std.stderr, "The database cannot be reached; trying for up to %s: %s\n", databasePatience, why)
	})
	if err != nil {
		store.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	return store, nil
}
