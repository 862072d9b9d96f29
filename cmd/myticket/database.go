package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"myticket/internal/postgres"
)

// databaseFlags are the settings of every command that needs the database.
type databaseFlags struct {
	DatabaseURL     string `name:"database-url" env:"DATABASE_URL" group:"Database" placeholder:"URL" help:"Connection URI of the Postgres database (postgresql://user:password@host:5432/name)."`
	DatabaseURLFile string `name:"database-url-file" env:"DATABASE_URL_FILE" group:"Database" type:"path" placeholder:"FILE" help:"File with the connection URI, such as a mounted secret, instead of --database-url. It is read again before each new connection."`
}

// url returns the connection URI from the flag, the environment or the present content of the file.
func (f databaseFlags) url() (string, error) {
	switch {
	case f.DatabaseURL != "" && f.DatabaseURLFile != "":
		return "", errors.New("both --database-url and --database-url-file are set, and may mean different databases: unset one")
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
		return "", errors.New("no database: set DATABASE_URL, --database-url or --database-url-file")
	}
	return f.DatabaseURL, nil
}

// open opens the store for an operator's command, with few connections that are named after the command. Such a command knows
// no sources file, so the tickets that it stores never overrule a product of an authenticated source.
func (f databaseFlags) open(ctx context.Context, command string) (*postgres.Store, error) {
	return postgres.Open(ctx, postgres.Config{
		URLFrom: f.url, MaxConns: 2, ApplicationName: "myticket " + command, Logger: slog.Default(),
		AuthenticatedProducts: true,
	})
}
