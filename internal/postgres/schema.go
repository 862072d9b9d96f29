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

// SchemaStatus is the version of a database's schema.
type SchemaStatus struct {
	Version uint // of the newest migration that ran; 0 for none
	Latest  uint // the newest version that this program knows
	Dirty   bool // the migration to Version failed half-way; a person must repair it
}

// Ready reports whether this program can use the schema. A newer schema is fine, because migrations keep the previous version of
// the program working. A schema that is dirty at a newer version is fine, too: everything that this program needs was there
// before. Every schema is dirty while it is migrated.
func (s SchemaStatus) Ready() bool { return s.Version > s.Latest || s.Version == s.Latest && !s.Dirty }

// String says in words whether the schema is ready, and what to do.
func (s SchemaStatus) String() string {
	switch {
	case s.Dirty && s.Ready():
		return fmt.Sprintf("this program needs version %d and can work; the migration to version %d is under way, or failed "+
			"half-way (dirty): then find out why, repair the schema by hand, and run \"myticket migrate force VERSION\"",
			s.Latest, s.Version)
	case s.Dirty:
		return fmt.Sprintf("the migration to version %d failed half-way (dirty): find out why, repair the schema by hand, "+
			"then run \"myticket migrate force VERSION\"", s.Version)
	case s.Version < s.Latest:
		return fmt.Sprintf("the schema is at version %d and this program needs %d: run \"myticket migrate up\"", s.Version, s.Latest)
	}
	return fmt.Sprintf("the schema is at version %d, which this program can use", s.Version)
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

// Schema reads the version of the schema from the database. A database that was never migrated is at version 0.
func (s *Store) Schema(ctx context.Context) (SchemaStatus, error) {
	latest, err := LatestSchema()
	if err != nil {
		return SchemaStatus{}, err
	}
	version, dirty, err := recordedSchema(ctx, s.pool)
	if err != nil {
		if broken(err) {
			s.pool.Reset()
		}
		return SchemaStatus{Latest: latest}, explain("read the schema's version", err)
	}
	return SchemaStatus{Version: version, Latest: latest, Dirty: dirty}, nil
}

// recordedSchema returns the version that golang-migrate has recorded; 0 for none.
func recordedSchema(ctx context.Context, database interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (version uint, dirty bool, err error) {
	var recorded int64
	err = database.QueryRow(ctx, `SELECT version, dirty FROM schema_migrations`).Scan(&recorded, &dirty)
	if errors.Is(err, pgx.ErrNoRows) || isCode(err, undefinedTable) {
		return 0, false, nil
	}
	return uint(max(recorded, 0)), dirty, err
}

// MigrateConfig configures a migration.
type MigrateConfig struct {
	URL     string                 // of the database; not of a pooler, because the lock belongs to the session
	URLFrom func() (string, error) // instead of URL; see Config
	// LockTimeout bounds the wait for another migration to end. Defaults to 5 min.
	LockTimeout time.Duration
	// Wait bounds the wait until a login to the database succeeds. Defaults to no wait.
	Wait time.Duration
	// StandbyWait bounds the wait until the synchronous standbys confirm a commit, before anything is migrated. Defaults to what
	// is left of Wait, but at least 30 s.
	StandbyWait time.Duration
	// BusyFor bounds how long a migration is tried again if it does not get its locks, because another session holds them.
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

// MigrateUp runs every migration that the database does not have yet, each in its own transaction. Processes that call it at the
// same time wait for each other.
func MigrateUp(ctx context.Context, databaseURL string) error {
	return Migrate(ctx, MigrateConfig{URL: databaseURL, Logger: slog.New(slog.DiscardHandler)})
}

// Migrate is MigrateUp with settings. It begins only when the synchronous standbys confirm a commit, because a migration whose
// commits wait without end has to be killed, and then leaves the schema dirty.
func Migrate(ctx context.Context, config MigrateConfig) error {
	in, err := config.login()
	if err != nil {
		return err
	}
	began := time.Now()
	if config.Wait > 0 {
		if err := in.await(ctx, config.Wait); err != nil {
			return err
		}
	}
	if config.StandbyWait == 0 {
		config.StandbyWait = max(config.Wait-time.Since(began), standbyPatience)
	}
	if err := in.awaitStandbys(ctx, config.StandbyWait, config.Wait > 0); err != nil {
		return err
	}
	return withMigrator(ctx, config, func(m *migrate.Migrate) error {
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

// ForceSchema declares that the schema is at a version, after a person has repaired what a failed migration left.
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

// migrateLogger passes the log lines of golang-migrate to slog.
type migrateLogger struct{ logger *slog.Logger }

func (l migrateLogger) Printf(format string, args ...any) {
	l.logger.Info("migrate: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l migrateLogger) Verbose() bool { return false }
