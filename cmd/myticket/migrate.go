package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"myticket/internal/postgres"
	"myticket/internal/telemetry"
)

// migrateCmd is `myticket migrate`. Nothing else changes the schema.
type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Run the migrations that the database does not have yet."`
	Status migrateStatusCmd `cmd:"" help:"Show the version of the schema. The exit code is 1 if a server cannot work on it."`
	Force  migrateForceCmd  `cmd:"" help:"Set the recorded version of the schema, after you repaired what a failed migration left."`
}

type migrateFlags struct {
	databaseFlags
	LockTimeout time.Duration `env:"MYTICKET_MIGRATE_LOCK_TIMEOUT" default:"5m" help:"Longest wait for another migration to end. Default: ${default}."`
}

func (f migrateFlags) config(std streams) (postgres.MigrateConfig, error) {
	logger, err := telemetry.NewLogger(std.stderr, "text", "info")
	return postgres.MigrateConfig{URLFrom: f.url, LockTimeout: f.LockTimeout, Logger: logger}, err
}

type migrateUpCmd struct {
	migrateFlags
	Wait    time.Duration `env:"MYTICKET_MIGRATE_WAIT" default:"0s" help:"Longest wait until the database accepts the login, for a job that may start before Postgres, and then until its synchronous standbys confirm a commit (for these at least 30s). Default: ${default}."`
	Timeout time.Duration `env:"MYTICKET_MIGRATE_TIMEOUT" default:"0s" help:"Longest time of everything, after which the command fails and says what it was doing. Set it below the deadline of a job, which would remove its log. Default: ${default}, which is no limit."`
}

// Validate is called by kong.
func (c migrateUpCmd) Validate() error {
	switch {
	case c.Wait < 0:
		return errors.New("--wait must not be negative")
	case c.Timeout < 0:
		return errors.New("--timeout must not be negative")
	}
	return nil
}

func (c migrateUpCmd) Run(ctx context.Context, std streams) error {
	config, err := c.config(std)
	if err != nil {
		return err
	}
	config.Wait = c.Wait
	if err := c.within(ctx, func(ctx context.Context) error { return postgres.Migrate(ctx, config) }); err != nil {
		return fmt.Errorf("migrate up: %w", err)
	}
	status, err := schemaStatus(ctx, std, c.databaseFlags)
	if err != nil {
		return interrupted(ctx, err)
	}
	_, err = fmt.Fprintln(std.stdout, status)
	if err == nil && !status.Ready() {
		err = errors.New("migrate up: a server cannot work on this schema")
	}
	return err
}

// endOfMigration is how long a migration that was told to stop may take to do so, before its process ends without it.
// An attempt to get a lock ends within its lock_timeout, at most 5 s, and then the version before is declared again.
const endOfMigration = 20 * time.Second

// within runs a migration for no longer than c.Timeout. A commit that waits for a standby cannot be stopped, and is left behind.
func (c migrateUpCmd) within(ctx context.Context, migrate func(context.Context) error) error {
	if c.Timeout == 0 {
		return migrate(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- migrate(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(c.Timeout):
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			err = fmt.Errorf("stopped after --timeout %s: %w", c.Timeout, err)
		}
		return err
	case <-time.After(endOfMigration):
	}
	return fmt.Errorf("not done after --timeout %s: see above what it was doing. Servers go on. If a migration was under way, its "+
		"schema may be half-way (dirty): \"myticket migrate status\" says so, and what to do", c.Timeout)
}

type migrateStatusCmd struct {
	databaseFlags
	Output string `default:"text" enum:"text,json" help:"text or json. Default: ${default}."`
}

func (c migrateStatusCmd) Run(ctx context.Context, std streams) error {
	status, err := schemaStatus(ctx, std, c.databaseFlags)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		err = json.NewEncoder(std.stdout).Encode(map[string]any{
			"version": status.Version, "latest": status.Latest, "dirty": status.Dirty, "ready": status.Ready(),
		})
	} else {
		_, err = fmt.Fprintln(std.stdout, status)
	}
	if err == nil && !status.Ready() {
		return errors.New("a server cannot work on this schema")
	}
	return err
}

type migrateForceCmd struct {
	migrateFlags
	Version int `arg:"" help:"The version that the schema really has."`
}

func (c migrateForceCmd) Validate() error {
	latest, err := postgres.LatestSchema()
	if err == nil && (c.Version < 1 || uint(c.Version) > latest) {
		err = fmt.Errorf("VERSION must be 1 to %d, the migrations that this program has", latest)
	}
	return err
}

func (c migrateForceCmd) Run(ctx context.Context, std streams) error {
	config, err := c.config(std)
	if err != nil {
		return err
	}
	if err := postgres.ForceSchema(ctx, config, uint(c.Version)); err != nil {
		return fmt.Errorf("migrate force: %w", err)
	}
	status, err := schemaStatus(ctx, std, c.databaseFlags)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(std.stdout, status)
	return err
}

func schemaStatus(ctx context.Context, std streams, database databaseFlags) (postgres.SchemaStatus, error) {
	store, err := database.open(ctx, std, "migrate")
	if err != nil {
		return postgres.SchemaStatus{}, err
	}
	defer store.Close()
	return store.Schema(ctx)
}
