package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"myticket/internal/devdb"
	"myticket/internal/postgres"
	"myticket/internal/telemetry"
)

// devCmd is `myticket dev`, which `make run` runs.
type devCmd struct {
	DataDir      string `env:"MYTICKET_DEV_DATA_DIR" type:"path" placeholder:"DIR" help:"Folder of the throwaway Postgres' data; it survives a restart. Default: /var/lib/myticket-dev for root, otherwise ~/.local/state/myticket-dev."`
	PostgresPort int    `env:"MYTICKET_DEV_POSTGRES_PORT" default:"0" help:"Port of the throwaway Postgres on 127.0.0.1; 0 for a free one. Default: ${default}."`
	serverFlags  `kong:"set='log_format=text',set='http_addr=127.0.0.1:9098',set='admin_addr=127.0.0.1:9099'"`
}

const devDatabase = "myticket"

// Run starts Postgres, migrates it and serves, until ctx ends; then it stops both.
func (c *devCmd) Run(ctx context.Context, std streams, command *kong.Context) (err error) {
	logger, err := telemetry.NewLogger(std.stderr, c.LogFormat, c.LogLevel)
	if err != nil {
		return err
	}
	if c.DataDir == "" {
		if c.DataDir, err = devdb.DefaultDir(); err != nil {
			return err
		}
	}
	if c.SpoolDir == "" {
		c.SpoolDir = filepath.Join(c.DataDir, "spool")
	}
	// The throwaway Postgres is on this machine and has no certificate, whatever is demanded of others.
	if err := os.Unsetenv("PGSSLMODE"); err != nil {
		return fmt.Errorf("leave PGSSLMODE out: %w", err)
	}
	database, err := devdb.Start(ctx, devdb.Config{Dir: c.DataDir, Port: c.PostgresPort, Progress: std.stderr})
	if err != nil {
		return fmt.Errorf("start a throwaway Postgres: %w", err)
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, database.Stop(ending))
	}()
	if err := database.CreateDatabase(ctx, devDatabase); err != nil {
		return fmt.Errorf("create the database: %w", err)
	}
	url := database.URL(devDatabase)
	if err := postgres.Migrate(ctx, postgres.MigrateConfig{URL: url, Logger: logger}); err != nil {
		return fmt.Errorf("migrate the throwaway Postgres: %w", err)
	}
	logSettings(logger, command, url)
	return c.serve(ctx, databaseFlags{DatabaseURL: url}.url, logger, func(webhook net.Addr) {
		fmt.Fprint(std.stdout, c.whatToTry(webhook, url))
	})
}

// whatToTry is what a newcomer reads.
func (c *devCmd) whatToTry(webhook net.Addr, url string) string {
	local := ""
	if tcp, ok := webhook.(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		local = "\nOnly this machine reaches it; with --http-addr=:9098 others do as well."
	}
	_, port, err := net.SplitHostPort(webhook.String())
	if err != nil {
		port = strings.TrimPrefix(c.HTTPAddr, ":")
	}
	return fmt.Sprintf(`
MyTicket serves on http://localhost:%[1]s. Its Postgres keeps its data in %[2]s.%[4]s

Send a ticket:        curl --data-binary @testdata/ticket.txt http://localhost:%[1]s/ticket
See what was stored:  export DATABASE_URL='%[3]s'
                      bin/myticket tickets list
                      bin/myticket products list
                      psql "$DATABASE_URL" -c 'SELECT * FROM order_lines'
Stop both:            Ctrl-C

`, port, c.DataDir, url, local)
}
