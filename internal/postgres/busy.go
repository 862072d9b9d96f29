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
)

// busyPause is between two attempts of a migration. All tickets queue behind the lock that it waits for, so they must have
// time to proceed.
const busyPause = 3 * time.Second

// patientDriver tries a migration again if it does not get its locks, because a report or a backup holds them for longer
// than its lock_timeout. A migration is one transaction, so a failed attempt leaves nothing behind. If it never gets its
// locks, the previous version is declared again, and no repair is needed.
type patientDriver struct {
	database.Driver
	ctx     context.Context //nolint:containedctx // golang-migrate hands none on
	busyFor time.Duration
	logger  *slog.Logger

	before, version int // the version that is there, and the version to migrate to
}

// SetVersion remembers which version was there before a migration. Between two migrations it is the place to stop: the
// GracefulStop of golang-migrate is a data race, and ends without an error.
func (d *patientDriver) SetVersion(version int, dirty bool) error {
	if dirty {
		if d.ctx.Err() != nil {
			return fmt.Errorf("stopped before the migration to version %d; those before it are complete: "+
				"run \"myticket migrate up\" again", version)
		}
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
		// The connection is still in the failed transaction, which accepts no further statement.
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
		d.logger.Warn("a migration did not get its lock in time, because another session holds it; nothing was changed, "+
			"servers go on, and it is tried again", "version", d.version, "error", blocked)
		select {
		case <-d.ctx.Done():
			return d.giveUp(time.Since(start), blocked)
		case <-time.After(busyPause):
		}
	}
}

func (d *patientDriver) giveUp(waited time.Duration, blocked error) error {
	if err := d.Driver.SetVersion(d.before, false); err != nil {
		return errors.Join(blocked, fmt.Errorf("declare that the schema is still at version %d: %w", d.before, err))
	}
	return fmt.Errorf("the migration to version %d did not get its lock for %s, because another session holds it (often a report "+
		"or a backup): nothing was changed, the schema is still at version %d, and servers go on; look for the oldest xact_start in "+
		"pg_stat_activity, wait until it ends or end it, then run \"myticket migrate up\" again: %w",
		d.version, waited.Round(time.Second), max(0, d.before), blocked)
}

// inTransaction matches a migration that is one transaction.
var inTransaction = regexp.MustCompile(`(?m)^BEGIN;`)

// lockMissed returns the error of Postgres if a statement failed because other sessions held locks; otherwise nil.
func lockMissed(err error) error {
	if failed, ok := errors.AsType[database.Error](err); ok && isCode(failed.OrigErr, lockNotAvailable, deadlockDetected) {
		return failed.OrigErr
	}
	return nil
}
