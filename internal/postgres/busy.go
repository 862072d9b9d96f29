package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/jackc/pgx/v5/pgconn"
)

// busyPause is between two attempts of a migration: what queues behind its lock meanwhile, all tickets, must go on.
const busyPause = 3 * time.Second

// patientDriver tries a migration again that does not get its locks, because a report or a backup holds them for longer than
// its lock_timeout. It is one transaction, so nothing of it is there: if it never gets them, the version before is declared
// again, and nobody has to mend anything.
type patientDriver struct {
	database.Driver
	ctx     context.Context //nolint:containedctx // golang-migrate hands none on
	busyFor time.Duration
	logger  *slog.Logger

	before, version int // the version that is there, and the one that is being migrated to
}

// SetVersion remembers which version was there before a migration.
func (d *patientDriver) SetVersion(version int, dirty bool) error {
	if dirty {
		before, _, err := d.Version()
		if err != nil {
			return err
		}
		d.before, d.version = before, version
	}
	return d.Driver.SetVersion(version, dirty)
}

// Run runs a migration.
func (d *patientDriver) Run(migration io.Reader) error {
	sql, err := io.ReadAll(migration)
	if err != nil {
		return err
	}
	for start := time.Now(); ; {
		err := d.Driver.Run(bytes.NewReader(sql))
		if err == nil {
			return nil
		}
		// The connection is left in the transaction that failed, in which nothing more can be done.
		if rollbackErr := d.Driver.Run(strings.NewReader("ROLLBACK")); rollbackErr != nil || !inTransaction.Match(sql) {
			return errors.Join(err, rollbackErr)
		}
		blocked := lockMissed(err)
		if blocked == nil {
			return err
		}
		if waited := time.Since(start); waited >= d.busyFor || d.ctx.Err() != nil {
			return d.giveUp(waited, blocked)
		}
		d.logger.Warn("a migration did not get its lock in time, because somebody holds it; nothing of it is there, servers go on, "+
			"and it is tried again", "version", d.version, "error", blocked)
		select {
		case <-d.ctx.Done():
		case <-time.After(busyPause):
		}
	}
}

func (d *patientDriver) giveUp(waited time.Duration, blocked error) error {
	if err := d.Driver.SetVersion(d.before, false); err != nil {
		return errors.Join(blocked, fmt.Errorf("declare that the schema is still at version %d: %w", d.before, err))
	}
	return fmt.Errorf("the migration to version %d did not get its lock for %s, because somebody holds it (a report or a backup, "+
		"mostly): nothing of it is there, the schema is still at version %d, and servers go on; look for the oldest xact_start in "+
		"pg_stat_activity, let it end or end it, then run \"myticket migrate up\" again: %w",
		d.version, waited.Round(time.Second), max(0, d.before), blocked)
}

// inTransaction is what a migration begins with that is one transaction.
var inTransaction = regexp.MustCompile(`(?m)^BEGIN;`)

// lockMissed returns the error of Postgres if a statement ended because others held locks; otherwise nil.
func lockMissed(err error) error {
	var failed database.Error
	var pgErr *pgconn.PgError
	if errors.As(err, &failed) && errors.As(failed.OrigErr, &pgErr) && (pgErr.Code == "55P03" || pgErr.Code == "40P01") {
		return pgErr
	}
	return nil
}
