package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/archive"
	"myticket/internal/ticket"
)

// Why a partition was not detached.
var (
	// ErrManyUnfinished means that it holds more unfinished tickets than can be kept apart while everything waits.
	ErrManyUnfinished = fmt.Errorf("the partition holds more than %d tickets that are TO_TREAT or ERROR, or more than %d MiB of "+
		"them",
		maxUnfinished, maxUnfinishedBytes>>20)

	// ErrOnlyUnfinished means that there is nothing in it to archive.
	ErrOnlyUnfinished = errors.New("the partition holds no tickets but those that are TO_TREAT or ERROR")

	// ErrLargeDefault means that the default partition is too large to make a partition beside it for the unfinished tickets.
	ErrLargeDefault = fmt.Errorf("it holds unfinished tickets, which need a partition of their own; to make that, Postgres reads "+
		"the default partition while all tickets wait, and that has more than %d MiB: the servers empty it in the background, and the "+
		"next run tries again", maxDefaultSize>>20)
)

// maxUnfinished and maxUnfinishedBytes bound the tickets that are moved out of a partition when it is detached, because
// everything waits meanwhile.
const (
	maxUnfinished      = 5000
	maxUnfinishedBytes = 64 << 20 // of bodies
)

// ArchiveRun says how the archive is run.
type ArchiveRun struct {
	URL    string        // without credentials
	Keep   time.Duration // what is older is archived
	Holder uuid.UUID     // this process
}

// archiveHold is how long a process that archives keeps its turn after it last said that it is there. It says so more often than
// every archiveHold/4.
const archiveHold = time.Minute

const holdArchive = `
UPDATE archive_runs
SET holder = $1, held_until = clock_timestamp() + $2, url = $3, keep = $4, began_at = CASE WHEN $5 THEN now() ELSE began_at END
WHERE holder = $1 OR ` + notHeld

// HoldArchive takes or keeps the turn to archive. It returns archive.ErrHeld if another process has it. Begin notes that a run
// begins.
func (s *Store) HoldArchive(ctx context.Context, run ArchiveRun, begin bool) error {
	done, err := s.pool.Exec(ctx, holdArchive, run.Holder, archiveHold, run.URL, run.Keep, begin)
	if err == nil && done.RowsAffected() == 0 {
		return archive.ErrHeld
	}
	return explain("take the turn to archive", err)
}

// KeepArchive has the turn to archive last for archiveHold, a minute, from now. It returns archive.ErrHeld if another process
// has it, or has had it meanwhile.
func (s *Store) KeepArchive(ctx context.Context, holder uuid.UUID) error {
	done, err := s.pool.Exec(ctx, `UPDATE archive_runs SET held_until = clock_timestamp() + $2 WHERE holder = $1`,
		holder, archiveHold)
	if err == nil && done.RowsAffected() == 0 {
		return archive.ErrHeld
	}
	return explain("keep the turn to archive", err)
}

// LeaveArchive ends the turn. Failure says what went wrong; empty if nothing did.
func (s *Store) LeaveArchive(ctx context.Context, holder uuid.UUID, failure string) error {
	_, err := s.pool.Exec(ctx, `UPDATE archive_runs SET holder = NULL, held_until = '-infinity', failure = $2,
		failures = failures + CASE WHEN $2 = '' THEN 0 ELSE 1 END,
		succeeded_at = CASE WHEN $2 = '' THEN now() ELSE succeeded_at END
		WHERE holder = $1`, holder, ticket.CleanText(failure, MaxReason))
	return explain("end the turn to archive", err)
}

// LeaveArchiveQuietly ends a turn that was no run.
func (s *Store) LeaveArchiveQuietly(ctx context.Context, holder uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `UPDATE archive_runs SET holder = NULL, held_until = '-infinity' WHERE holder = $1`, holder)
	return explain("end the turn to archive", err)
}

// LastArchiveRun returns how the archive was run last; the zero value if it never was.
func (s *Store) LastArchiveRun(ctx context.Context) (run ArchiveRun, err error) {
	err = s.pool.QueryRow(ctx, `SELECT url, keep FROM archive_runs`).Scan(&run.URL, &run.Keep)
	return run, explain("look how the archive was run", err)
}

// stillHolds locks the row of the process that archives until the transaction ends, or returns archive.ErrHeld.
func stillHolds(ctx context.Context, tx pgx.Tx, holder uuid.UUID) error {
	var holds bool
	err := tx.QueryRow(ctx, `SELECT coalesce(holder = $1, false) FROM archive_runs FOR SHARE`, holder).Scan(&holds)
	if err == nil && !holds {
		return archive.ErrHeld
	}
	return err
}

// ArchiveConfigured reports whether anything was ever archived from this database.
func (s *Store) ArchiveConfigured(ctx context.Context) (configured bool, err error) {
	err = s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM archives)
		OR EXISTS (SELECT FROM archive_runs WHERE began_at IS NOT NULL)`).Scan(&configured)
	return configured, explain("look whether there is an archive", err)
}

// partColumns are those of archives, for scanPart.
const partColumns = `part, state, table_name, from_at, to_at, tickets, corrections, first_at, last_at, table_bytes, files,
	file_bytes, manifest, manifest_sha256, url, runs, detached_at, verified_at, archived_at, restored_at, failed_at, failure`

func scanPart(row pgx.CollectableRow) (p archive.Part, err error) {
	err = row.Scan(&p.Name, &p.State, &p.Table, &p.From, &p.To, &p.Tickets, &p.Corrections, &p.First, &p.Last, &p.TableBytes,
		&p.Files, &p.FileBytes, &p.Manifest, &p.ManifestSum, &p.URL, &p.Runs, &p.DetachedAt, &p.VerifiedAt, &p.ArchivedAt,
		&p.RestoredAt, &p.FailedAt, &p.Failure)
	for _, at := range []*time.Time{
		p.From, &p.To, p.First, p.Last, &p.DetachedAt, p.VerifiedAt, p.ArchivedAt, p.RestoredAt, p.FailedAt,
	} {
		if at != nil {
			*at = at.UTC()
		}
	}
	return p, err
}

// ArchiveParts returns all parts, the oldest first.
func (s *Store) ArchiveParts(ctx context.Context) ([]archive.Part, error) {
	return s.archiveParts(ctx, `ORDER BY to_at, part`)
}

// ArchivePart returns a part, or archive.ErrNoPart.
func (s *Store) ArchivePart(ctx context.Context, name string) (archive.Part, error) {
	parts, err := s.archiveParts(ctx, `WHERE part = $1`, name)
	if err == nil && len(parts) == 0 {
		return archive.Part{}, fmt.Errorf("part %s: %w", name, archive.ErrNoPart)
	}
	if err != nil {
		return archive.Part{}, err
	}
	return parts[0], nil
}

// ArchivePartsAt returns the parts that may have a ticket of a time.
func (s *Store) ArchivePartsAt(ctx context.Context, at time.Time) ([]archive.Part, error) {
	return s.archiveParts(ctx, `WHERE (from_at IS NULL OR from_at <= $1) AND to_at > $1 ORDER BY detached_at DESC`, at)
}

func (s *Store) archiveParts(ctx context.Context, which string, args ...any) ([]archive.Part, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+partColumns+` FROM archives `+which, args...)
	if err != nil {
		return nil, explain("list the parts of the archive", err)
	}
	parts, err := pgx.CollectRows(rows, scanPart)
	return parts, explain("list the parts of the archive", err)
}

// Detached is what DetachPartition did.
type Detached struct {
	Part archive.Part
	Kept int64 // unfinished tickets that stay in tickets
}

// DetachPartition makes a partition a part of the archive: an ordinary table, whose tickets are in no query any more but that of
// one ticket by its id. Its row in archives is written in the same transaction. Unless even says otherwise, the TO_TREAT and
// ERROR tickets in it stay in tickets, in a new partition; if they are too many or all that there is, or the default partition is
// large, the partition stays as it is (ErrManyUnfinished, ErrOnlyUnfinished, ErrLargeDefault), as one does that could never be
// archived (ErrTooMuch). It returns ErrUndelivered and
// ErrNoPartition as DropPartition does, and waits for locks as that does.
func (s *Store) DetachPartition(
	ctx context.Context, by Person, holder uuid.UUID, p OldPartition, even DropEven,
) (done Detached, err error) {
	err = patiently(ctx, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if err := stillHolds(ctx, tx, holder); err != nil {
				return err
			}
			if err := archivable(ctx, tx, p); err != nil {
				return err
			}
			name, err := newPart(ctx, tx, p)
			if err != nil {
				return err
			}
			rows, err := tx.Query(ctx, `INSERT INTO archives (part, state, table_name, from_at, to_at, table_bytes)
				VALUES ($1, 'detached', $2, $3, $4, $5) RETURNING `+partColumns, name, p.Name, p.From, p.To, p.Bytes)
			if err != nil {
				return err
			}
			if done.Part, err = pgx.CollectExactlyOneRow(rows, scanPart); err != nil {
				return err
			}
			err = audit(ctx, tx, AuditEntry{ // before the locks, because everything waits for those
				Who: by.Who, Why: by.Why, Action: ActionArchive,
				Details: map[string]any{"part": name, "partition": p.Name, "to": p.To, "counted": p.Tickets, "unfinished": even.Unfinished},
			})
			if err != nil {
				return err
			}
			done.Kept, err = detachPartition(ctx, tx, p, even)
			return err
		})
	})
	for _, why := range []error{
		ErrNoPartition, ErrUndelivered, ErrManyUnfinished, ErrOnlyUnfinished, ErrLargeDefault, ErrTooMuch, archive.ErrHeld,
	} {
		if errors.Is(err, why) {
			return Detached{}, fmt.Errorf("partition %s: %w", p.Name, err)
		}
	}
	return done, explain("detach partition "+p.Name, err)
}

// ErrTooMuch means that a partition has more corrections or audit than is archived at once.
var ErrTooMuch = fmt.Errorf("its time has more than %d corrections or rows of the audit, which is more than is archived at once",
	maxPartCorrections)

// archivable returns ErrTooMuch for a partition that could be detached, but never archived.
func archivable(ctx context.Context, tx pgx.Tx, p OldPartition) error {
	var most int
	err := tx.QueryRow(ctx, `SELECT greatest(
		(SELECT count(*) FROM (SELECT FROM corrections
			WHERE ($1::timestamptz IS NULL OR ticket_received_at >= $1) AND ticket_received_at < $2 LIMIT $3) c),
		(SELECT count(*) FROM (SELECT FROM audit WHERE ($1::timestamptz IS NULL OR at >= $1) AND at < $2
			AND NOT EXISTS (SELECT FROM archives o WHERE o.to_at = $2 AND o.from_at IS NOT DISTINCT FROM $1) LIMIT $3) a))`,
		p.From, p.To, maxPartCorrections+1).Scan(&most)
	if err == nil && most > maxPartCorrections {
		return ErrTooMuch
	}
	return err
}

// newPart returns a name that no part has. Several parts of the same day have numbers from 2 on.
func newPart(ctx context.Context, tx pgx.Tx, p OldPartition) (string, error) {
	const layout = "20060102"
	stamp := func(t time.Time) string {
		if t.Equal(t.Truncate(24 * time.Hour)) {
			return t.Format(layout)
		}
		return t.Format(layout + "T150405")
	}
	base := "first-" + stamp(p.To)
	if p.From != nil {
		base = stamp(*p.From) + "-" + stamp(p.To)
	}
	for n := 1; ; n++ {
		name := base
		if n > 1 {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		var taken bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM archives WHERE part = $1)`, name).Scan(&taken)
		if err != nil || !taken {
			return name, err
		}
	}
}

func detachPartition(ctx context.Context, tx pgx.Tx, p OldPartition, even DropEven) (kept int64, err error) {
	locked, err := lockPartition(ctx, tx, p.Name, !even.Unfinished)
	if err != nil {
		return 0, err
	}
	if err := locked.undelivered(ctx, tx, even); err != nil {
		return 0, err
	}
	partition := locked.table
	const unfinished = `status IN ('TO_TREAT', 'ERROR')`
	if !even.Unfinished {
		// By the two partial indexes, so it is fast. The length of a large body is known without reading it.
		var size int64
		err := tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*), coalesce(sum(octet_length(body)), 0) FROM (
			(SELECT body FROM %[1]s WHERE %[2]s LIMIT %[4]d) UNION ALL (SELECT body FROM %[1]s WHERE %[3]s LIMIT %[4]d)) u`,
			partition, statusIs[ticket.ToTreat], statusIs[ticket.Error], maxUnfinished+1)).Scan(&kept, &size)
		if err != nil {
			return 0, err
		}
		if kept > maxUnfinished || size > maxUnfinishedBytes {
			return 0, ErrManyUnfinished
		}
	}
	if kept > 0 {
		var others bool
		// By the table's order: an index scan of the few that are unfinished would find the others no sooner.
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+partition+` WHERE NOT `+unfinished+`)`).Scan(&others)
		if err != nil {
			return 0, err
		}
		if !others {
			return 0, ErrOnlyUnfinished
		}
	}
	up := upkeep{Tx: tx}
	if err := up.QueryRow(ctx, defaultPartition).Scan(&up.schema, &up.partition, &up.defaultName); err != nil {
		return 0, err
	}
	if kept > 0 && up.partition != "" {
		var size int64
		if err := up.QueryRow(ctx, `SELECT pg_relation_size($1::text::regclass)`, up.partition).Scan(&size); err != nil {
			return 0, err
		}
		if size > maxDefaultSize {
			return 0, ErrLargeDefault
		}
	}
	if err := up.run(ctx, `ALTER TABLE tickets DETACH PARTITION `+partition); err != nil {
		return 0, err
	}
	err = up.run(ctx, `COMMENT ON TABLE `+partition+
		` IS 'Tickets that myticket archive has detached (see the table archives). It drops this table when the archive has them'`)
	if err != nil {
		return 0, err
	}
	if kept == 0 {
		return 0, nil
	}
	columns, err := up.columns(ctx, partition)
	if err != nil {
		return 0, err
	}
	name, err := up.freeName(ctx, keptName(p), 0)
	if err != nil {
		return 0, err
	}
	from := "MINVALUE"
	if p.From != nil {
		from = "'" + p.From.UTC().Format(time.RFC3339Nano) + "'"
	}
	return kept, up.run(ctx,
		fmt.Sprintf(`CREATE TABLE %s (LIKE tickets INCLUDING ALL)`, up.table(name)),
		fmt.Sprintf(`WITH moved AS (DELETE FROM %s WHERE %s RETURNING *) INSERT INTO %s (%s) SELECT %s FROM moved`,
			partition, unfinished, up.table(name), columns, columns),
		fmt.Sprintf(`ALTER TABLE tickets ATTACH PARTITION %s FOR VALUES FROM (%s) TO ('%s')`,
			up.table(name), from, p.To.UTC().Format(time.RFC3339Nano)))
}

// keptName is the wanted name of the partition for the unfinished tickets of another one.
func keptName(p OldPartition) string {
	if p.From == nil {
		return "tickets_first_" + p.To.Format("20060102")
	}
	return span{*p.From, p.To}.name("tickets")
}

// partTable returns the detached table of a part, quoted.
func (s *Store) partTable(ctx context.Context, tx pgx.Tx, p archive.Part) (table string, err error) {
	err = tx.QueryRow(ctx, `SELECT c.oid::regclass::text FROM pg_class c JOIN pg_class t ON t.relnamespace = c.relnamespace
		WHERE t.oid = 'tickets'::regclass AND c.relname = $1 AND c.relkind = 'r' AND NOT c.relispartition`, p.Table).Scan(&table)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("part %s: its table %s is not there; if nobody dropped it, tickets are lost: look for a backup",
			p.Name, p.Table)
	}
	return table, err
}

// maxAttempts bounds the attempts that are noted. All but a few of them wrote no manifest.
const maxAttempts = 100

// BeginPart notes an attempt to write a part. Its commit is on the standbys that commits wait for, so nothing is written to the
// archive of a part that a failover could undo.
func (s *Store) BeginPart(ctx context.Context, holder uuid.UUID, p archive.Part, run uuid.UUID) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := stillHolds(ctx, tx, holder); err != nil {
			return err
		}
		done, err := tx.Exec(ctx, `UPDATE archives SET runs = ($2::uuid || runs)[1:$3], url = (SELECT url FROM archive_runs)
			WHERE part = $1 AND state = 'detached'`, p.Name, run, maxAttempts)
		if err == nil && done.RowsAffected() == 0 {
			return archive.ErrHeld
		}
		return err
	})
	return explainArchive("begin part "+p.Name, err)
}

// CountPart counts the tickets of a detached table, and returns its size.
func (s *Store) CountPart(ctx context.Context, p archive.Part) (tickets, bytes int64, err error) {
	err = s.atLeisure(ctx, func(tx pgx.Tx) error {
		table, err := s.partTable(ctx, tx, p)
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT count(*), pg_total_relation_size($1::text::regclass) FROM `+table, table).Scan(&tickets, &bytes)
	})
	return tickets, bytes, explain("count the tickets of "+p.Table, err)
}

// maxPartCorrections bounds what PartCorrections and PartChanges return, so that it fits into memory.
const maxPartCorrections = 100_000

// PartCorrections returns the corrections of the tickets of a detached table.
func (s *Store) PartCorrections(ctx context.Context, p archive.Part) (all []archive.Correction, err error) {
	err = s.atLeisure(ctx, func(tx pgx.Tx) error {
		table, err := s.partTable(ctx, tx, p)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT c.ticket_id, c.ticket_received_at, c.number, c.text, c.created_at, c.who, c.why
			FROM corrections c WHERE ($1::timestamptz IS NULL OR c.ticket_received_at >= $1) AND c.ticket_received_at < $2
			  AND EXISTS (SELECT FROM `+table+` t WHERE t.received_at = c.ticket_received_at AND t.id = c.ticket_id)
			ORDER BY 2, 1, 3 LIMIT $3`, p.From, p.To, maxPartCorrections+1)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c archive.Correction, err error) {
			err = row.Scan(&c.TicketID, &c.ReceivedAt, &c.Number, &c.Text, &c.At, &c.Who, &c.Why)
			return c, err
		})
		return err
	})
	if err == nil && len(all) > maxPartCorrections {
		return nil, fmt.Errorf("part %s has more than %d corrections, which is more than is archived at once",
			p.Name, maxPartCorrections)
	}
	return all, explain("read the corrections of "+p.Table, err)
}

// PartChanges returns the rows of the audit that were made in the time of a part, if it is the first part of that time. They stay
// in Postgres, too.
func (s *Store) PartChanges(ctx context.Context, p archive.Part) (all []archive.Change, err error) {
	err = s.atLeisure(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT id, at, who, action, filter::text, tickets, why, details::text FROM audit
			WHERE ($1::timestamptz IS NULL OR at >= $1) AND at < $2
			  AND NOT EXISTS (SELECT FROM archives o WHERE o.part <> $3 AND o.to_at = $2 AND o.from_at IS NOT DISTINCT FROM $1
			                  AND (o.detached_at, o.part) < (SELECT detached_at, part FROM archives WHERE part = $3))
			ORDER BY at, id LIMIT $4`, p.From, p.To, p.Name, maxPartCorrections+1)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c archive.Change, err error) {
			err = row.Scan(&c.ID, &c.At, &c.Who, &c.Action, &c.Filter, &c.Tickets, &c.Why, &c.Details)
			return c, err
		})
		return err
	})
	if err == nil && len(all) > maxPartCorrections {
		return nil, fmt.Errorf("the time of part %s has more than %d rows of the audit, which is more than is archived at once",
			p.Name, maxPartCorrections)
	}
	return all, explain("read the audit of "+p.Table, err)
}

// PartVerified notes that the archive has all of a part, with its manifest, as it was read back.
func (s *Store) PartVerified(
	ctx context.Context, holder uuid.UUID, p archive.Part, m archive.Manifest, sum []byte, tableBytes int64,
) error {
	var size int64
	for _, f := range m.Files {
		size += f.Bytes
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := stillHolds(ctx, tx, holder); err != nil {
			return err
		}
		done, err := tx.Exec(ctx, `UPDATE archives SET state = 'verified', verified_at = now(), tickets = $2, corrections = $3,
			first_at = $4, last_at = $5, files = $6, file_bytes = $7, sha256 = decode($8, 'hex'), manifest = $9, manifest_sha256 = $10,
			table_bytes = $11, failure = '', failed_at = NULL, url = (SELECT url FROM archive_runs)
			WHERE part = $1 AND state = 'detached'`,
			p.Name, m.Tickets, m.Corrections, m.First, m.Last, len(m.Files), size, m.SHA256, archive.ManifestKey(p.Name, m.Run), sum,
			tableBytes)
		if err == nil && done.RowsAffected() == 0 {
			return archive.ErrHeld
		}
		return err
	})
	return explainArchive("note that part "+p.Name+" is archived", err)
}

// PartUnverified goes back to where the archive does not count, because it does not have the part any more.
func (s *Store) PartUnverified(ctx context.Context, holder uuid.UUID, p archive.Part) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := stillHolds(ctx, tx, holder); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE archives SET state = 'detached', verified_at = NULL
			WHERE part = $1 AND state = 'verified'`, p.Name)
		return err
	})
	return explainArchive("note that part "+p.Name+" is not archived", err)
}

// PartFailed notes what went wrong with a part, if this process still has the turn.
func (s *Store) PartFailed(ctx context.Context, holder uuid.UUID, p archive.Part, failure string) error {
	_, err := s.pool.Exec(ctx, `UPDATE archives SET failed_at = now(), failure = $2
		WHERE part = $1 AND EXISTS (SELECT FROM archive_runs WHERE holder = $3)`, p.Name, ticket.CleanText(failure, MaxReason), holder)
	return explain("note what went wrong with part "+p.Name, err)
}

// DropPart drops the detached table of a verified part. No ticket waits for its lock.
func (s *Store) DropPart(ctx context.Context, by Person, holder uuid.UUID, p archive.Part) error {
	err := patiently(ctx, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if err := stillHolds(ctx, tx, holder); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, dropLockTimeout.Milliseconds())); err != nil {
				return err
			}
			done, err := tx.Exec(ctx, `UPDATE archives SET state = 'archived', archived_at = now()
				WHERE part = $1 AND state = 'verified'`, p.Name)
			if err == nil && done.RowsAffected() == 0 {
				return archive.ErrHeld
			}
			if err != nil {
				return err
			}
			table, err := s.partTable(ctx, tx, p)
			if err != nil {
				return err
			}
			err = audit(ctx, tx, AuditEntry{
				Who: by.Who, Why: by.Why, Action: ActionArchive, Tickets: int(p.Tickets),
				Details: map[string]any{"part": p.Name, "dropped": p.Table},
			})
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `DROP TABLE `+table)
			return err
		})
	})
	return explainArchive("drop "+p.Table, err)
}

func explainArchive(doing string, err error) error {
	if errors.Is(err, archive.ErrHeld) {
		return err
	}
	return explain(doing, err)
}

// DetachedTicket returns a ticket whose partition was detached and is not dropped yet, or ticket.ErrNotFound.
func (s *Store) DetachedTicket(ctx context.Context, id uuid.UUID) (StoredTicket, error) {
	at := ticket.IDTime(id)
	parts, err := s.archiveParts(ctx, `WHERE (from_at IS NULL OR from_at <= $1) AND to_at > $1
		AND state IN ('detached', 'verified')`, at)
	if err != nil {
		return StoredTicket{}, err
	}
	for _, p := range parts {
		var t StoredTicket
		err := s.atLeisure(ctx, func(tx pgx.Tx) error {
			table, err := s.partTable(ctx, tx, p)
			if err != nil {
				return err
			}
			rows, err := tx.Query(ctx, `SELECT `+ticketColumnsSQL+` FROM `+table+` t WHERE received_at = $1 AND id = $2`, at, id)
			if err != nil {
				return err
			}
			t, err = pgx.CollectExactlyOneRow(rows, s.scanTicket)
			return err
		})
		if err == nil || !errors.Is(err, pgx.ErrNoRows) && !strings.Contains(err.Error(), "is not there") {
			return t, explain("show a ticket", err)
		}
	}
	return StoredTicket{}, fmt.Errorf("ticket %s: %w", id, ticket.ErrNotFound)
}
