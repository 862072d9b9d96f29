package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/golang-migrate/migrate/v4"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"myticket/migrations"
)

// SchemaStatus is where the schema of a database stands.
type SchemaStatus struct {
	Version uint // of the newest migration that ran; 0 for none
	Latest  uint // that this program has
	Dirty   bool // the migration to Version failed half-way; a person must look
}

// Ready tells whether this program can work on the schema. A newer schema is fine: migrations keep the version of the
// program before them working. So is one that is dirty at a newer version, which is every schema while it is being
// migrated: all that this program needs was there before.
func (s SchemaStatus) Ready() bool { return s.Version > s.Latest || s.Version == s.Latest && !s.Dirty }

// String says in words what Ready says, and what to do.
func (s SchemaStatus) String() string {
	switch {
	case s.Dirty && s.Ready():
		return fmt.Sprintf("this program needs version %d and can work; the migration to version %d is under way, or has failed "+
			"half-way (dirty): then find out why, mend the schema by hand, and run \"myticket migrate force VERSION\"",
			s.Latest, s.Version)
	case s.Dirty:
		return fmt.Sprintf("the migration to version %d failed half-way (dirty): find out why, mend the schema by hand, "+
			"then run \"myticket migrate force VERSION\"", s.Version)
	case s.Version < s.Latest:
		return fmt.Sprintf("the schema is at version %d and this program needs %d: run \"myticket migrate up\"", s.Version, s.Latest)
	}
	return fmt.Sprintf("the schema is at version %d, which this program can work on", s.Version)
}

// LatestSchema returns the version of the newest migration in this program.
func LatestSchema() (uint, error) {
	files, err := iofs.New(migrations.FS, ".")
	if err != nil {
		return 0, fmt.Errorf("read the embedded migrations: %w", err)
	}
	defer files.Close()
	version, err := files.First()
	for err == nil {
		var next uint
		if next, err = files.Next(version); err == nil {
			version = next
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read the embedded migrations: %w", err)
	}
	return version, nil
}

// Schema asks the database where its schema stands. A database that was never migrated is at version 0.
func (s *Store) Schema(ctx context.Context) (SchemaStatus, error) {
	latest, err := LatestSchema()
	if err != nil {
		return SchemaStatus{}, err
	}
	status := SchemaStatus{Latest: latest}
	var version int64
	err = s.pool.QueryRow(ctx, `SELECT version, dirty FROM schema_migrations`).Scan(&version, &status.Dirty)
	switch {
	case err == nil:
		status.Version = uint(max(version, 0))
	case errors.Is(err, pgx.ErrNoRows), isCode(err, undefinedTable):
	default:
		if broken(err) {
			s.pool.Reset()
		}
		return status, explain("read the schema's version", err)
	}
	return status, nil
}

// MigrateConfig says how to migrate.
type MigrateConfig struct {
	URL     string                 // of the database; never through a pooler, for the lock is one of the session
	URLFrom func() (string, error) // instead of URL; see Config
	// LockTimeout is how long to wait for another migration to end. Defaults to 5 min.
	LockTimeout time.Duration
	// Wait is how long Migrate waits for the database to let it in. Defaults to not at all.
	Wait time.Duration
	// BusyFor is for how long a migration is tried again that does not get its locks, because somebody else holds them.
	// Defaults to 2 min.
	BusyFor time.Duration
	Logger  *slog.Logger // Defaults to slog.Default.
}

func (c MigrateConfig) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.Default()
	}
	return c.Logger
}

func (c MigrateConfig) login() (*login, error) {
	if c.URLFrom == nil {
		c.URLFrom = func() (string, error) { return c.URL, nil }
	}
	in := &login{url: c.URLFrom, timeout: 5 * time.Second, application: "myticket migrate", logger: c.logger()}
	_, err := in.open()
	return in, err
}

// MigrateUp runs every migration that the database does not have yet, each in a transaction of its own. Processes that
// call it at once wait for each other.
func MigrateUp(ctx context.Context, databaseURL string) error {
	return Migrate(ctx, MigrateConfig{URL: databaseURL, Logger: slog.New(slog.DiscardHandler)})
}

// Migrate is MigrateUp with settings.
func Migrate(ctx context.Context, config MigrateConfig) error {
	if config.Wait > 0 {
		in, err := config.login()
		if err != nil {
			return err
		}
		if err := in.await(ctx, config.Wait); err != nil {
			return err
		}
	}
	return withMigrator(ctx, config, func(m *migrate.Migrate) error {
		stop := context.AfterFunc(ctx, func() { m.GracefulStop <- true })
		defer stop()
		err := m.Up()
		if errors.Is(err, migrate.ErrNoChange) {
			return nil
		}
		if dirty, ok := errors.AsType[migrate.ErrDirty](err); ok {
			latest, latestErr := LatestSchema()
			return errors.Join(errors.New(SchemaStatus{Version: uint(dirty.Version), Latest: latest, Dirty: true}.String()), latestErr)
		}
		return err
	})
}

// ForceSchema declares that the schema is at a version, after a person has mended what a failed migration left.
func ForceSchema(ctx context.Context, config MigrateConfig, version uint) error {
	return withMigrator(ctx, config, func(m *migrate.Migrate) error { return m.Force(int(version)) })
}

func withMigrator(ctx context.Context, config MigrateConfig, use func(*migrate.Migrate) error) (err error) {
	if config.LockTimeout == 0 {
		config.LockTimeout = 5 * time.Minute
	}
	if config.BusyFor == 0 {
		config.BusyFor = 2 * time.Minute
	}
	in, err := config.login()
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*in.last, stdlib.OptionBeforeConnect(in.refresh))
	defer db.Close()
	driver, err := migratepgx.WithInstance(db, &migratepgx.Config{})
	if err != nil {
		return fmt.Errorf("connect to the database to migrate it: %w", err)
	}
	var files source.Driver
	if files, err = iofs.New(migrations.FS, "."); err != nil {
		return fmt.Errorf("read the embedded migrations: %w", err)
	}
	m, err := migrate.NewWithInstance("embedded", files, "pgx5",
		&patientDriver{Driver: driver, ctx: ctx, busyFor: config.BusyFor, logger: config.logger()})
	if err != nil {
		return fmt.Errorf("prepare the migration: %w", err)
	}
	defer func() {
		sourceErr, databaseErr := m.Close()
		err = errors.Join(err, sourceErr, databaseErr)
	}()
	m.LockTimeout = config.LockTimeout
	m.Log = migrateLogger{config.logger()}
	return use(m)
}

// migrateLogger gives golang-migrate's lines to slog.
type migrateLogger struct{ logger *slog.Logger }

func (l migrateLogger) Printf(format string, args ...any) {
	l.logger.Info("migrate: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l migrateLogger) Verbose() bool { return false }
