package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// OldPartition is a partition of tickets that is older than what is to be kept.
type OldPartition struct {
	Name    string                  `json:"name"`
	From    *time.Time              `json:"from"` // null when it has no lower bound
	To      time.Time               `json:"to"`   // its tickets are older than this
	Tickets map[ticket.Status]int64 `json:"tickets"`
	Bytes   int64                   `json:"bytes"` // on disk, with indexes

	table string // its name in a statement
}

// Unfinished tells how many of its tickets somebody still has to do with.
func (p OldPartition) Unfinished() int64 { return p.Tickets[ticket.ToTreat] + p.Tickets[ticket.Error] }

// oldPartitions reads the ranges from the catalog, whatever the partitions are called. The default partition has none,
// and one without an upper bound (MAXVALUE) is never old.
const oldPartitions = `
SELECT name, oid::regclass::text, from_, to_, pg_total_relation_size(oid)
FROM (SELECT c.oid, c.relname AS name,
             (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([^']+)'\)$$))[1]::timestamptz AS from_,
             (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz AS to_
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      WHERE i.inhparent = 'tickets'::regclass) p
WHERE to_ <= $1 ORDER BY to_`

// readOnly is for what is read at leisure: bounds in a format that is read back as it was meant, whatever the role's
// settings are, and whole tables by the shortest way, which preferIndexes forbids to the statements of the server.
const readOnly = `SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL enable_seqscan = on`

// OldPartitions returns the partitions that hold only tickets received before a time, the oldest first. The default
// partition is never among them. Each is read once, as a whole, to count its tickets.
func (s *Store) OldPartitions(ctx context.Context, before time.Time) ([]OldPartition, error) {
	var partitions []OldPartition
	err := s.atLeisure(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, oldPartitions, before)
		if err != nil {
			return err
		}
		partitions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (OldPartition, error) {
			var p OldPartition
			err := row.Scan(&p.Name, &p.table, &p.From, &p.To, &p.Bytes)
			if p.From != nil {
				from := p.From.UTC()
				p.From = &from
			}
			p.To = p.To.UTC()
			return p, err
		})
		return err
	})
	if err != nil {
		return nil, explain("look for old partitions", err)
	}
	there := partitions[:0]
	for _, p := range partitions {
		// A transaction each: one for all would hold back vacuum in the whole database for as long as they take.
		p.Tickets, err = s.countByStatus(ctx, p.table)
		switch {
		case isCode(err, undefinedTable): // another process has dropped it meanwhile
		case err != nil:
			return nil, explain("count the tickets of "+p.Name, err)
		default:
			there = append(there, p)
		}
	}
	return there, nil
}

func (s *Store) countByStatus(ctx context.Context, table string) (map[ticket.Status]int64, error) {
	counts := map[ticket.Status]int64{}
	for _, status := range ticket.Statuses() {
		counts[status] = 0
	}
	err := s.atLeisure(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT status, count(*) FROM `+table+` GROUP BY status`)
		if err != nil {
			return err
		}
		var status ticket.Status
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&status, &n}, func() error { counts[status] = n; return nil })
		return err
	})
	return counts, err
}

func (s *Store) atLeisure(ctx context.Context, read func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, readOnly); err != nil {
			return err
		}
		return read(tx)
	})
}

// Why a partition was not dropped.
var (
	// ErrUnfinished means that it holds tickets that are TO_TREAT or ERROR, and was kept because of them.
	ErrUnfinished = errors.New("the partition holds tickets that are TO_TREAT or ERROR")

	// ErrNoPartition means that there is no such partition, or not any more; or that it is the default one.
	ErrNoPartition = errors.New("no partition of tickets that could be dropped")
)

// How often a drop is tried, how long live traffic may have to wait behind one attempt, and the pause before the second
// one, which grows by as much with each: a transaction that is in the way for half a minute is waited out.
const (
	dropAttempts    = 5
	dropLockTimeout = 2 * time.Second
	dropPause       = 2 * time.Second
)

// DropPartition drops a partition with all its tickets. Unless evenUnfinished, one that holds a ticket that is TO_TREAT
// or ERROR at that moment is kept (ErrUnfinished). ErrNoPartition is returned for the default partition and whatever
// else is no range of tickets.
//
// The lock that it needs stops all traffic for as long as it waits for it, so it waits two seconds at most, and tries
// again a few times; then it is ticket.ErrUnavailable. Detaching first (DETACH PARTITION CONCURRENTLY) would need less,
// and is not possible beside a default partition (https://www.postgresql.org/docs/current/sql-altertable.html).
func (s *Store) DropPartition(ctx context.Context, name string, evenUnfinished bool) error {
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return dropPartition(ctx, tx, name, evenUnfinished) })
		busy := isCode(err, lockNotAvailable, deadlockDetected)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrUnfinished), errors.Is(err, ErrNoPartition):
			return fmt.Errorf("partition %s: %w", name, err)
		case !busy || attempt == dropAttempts || ctx.Err() != nil:
			return explain("drop partition "+name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(attempt) * dropPause):
		}
	}
}

// partitionToDrop returns a partition of tickets that has a range, and the default partition beside it.
const partitionToDrop = `
SELECT c.oid::regclass::text, coalesce(nullif(p.partdefid, 0)::regclass::text, '')
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_partitioned_table p ON p.partrelid = i.inhparent
WHERE i.inhparent = 'tickets'::regclass AND c.relname = $1 AND c.oid <> p.partdefid`

func dropPartition(ctx context.Context, tx pgx.Tx, name string, evenUnfinished bool) error {
	// While it holds its locks everything waits. Should the client vanish, the server does not wait for it, and its commit
	// does not wait for a standby that is missing: after a failover the partition may be there again, and is dropped again.
	settings := fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'; SET LOCAL idle_in_transaction_session_timeout = '5s';
		SET LOCAL synchronous_commit = 'local'`,
		dropLockTimeout.Milliseconds())
	if _, err := tx.Exec(ctx, settings); err != nil {
		return err
	}
	// Nobody makes partitions meanwhile: that takes the default partition before the parent, so the two could deadlock.
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(partitionLock)); err != nil {
		return err
	}
	var partition, defaultPartition string // quoted
	err := tx.QueryRow(ctx, partitionToDrop, name).Scan(&partition, &defaultPartition)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNoPartition
	}
	if err != nil {
		return err
	}
	// These locks hold up nobody but autovacuum, which gives way after deadlock_timeout, a second. Without them that
	// second would be spent below, while everything waits.
	quiet := `LOCK TABLE ONLY ` + partition
	if defaultPartition != "" {
		quiet += `, ONLY ` + defaultPartition
	}
	if _, err := tx.Exec(ctx, quiet+` IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
		return err
	}
	// The parent first, as everybody does: from here on nothing comes in, and nothing is treated.
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY tickets IN ACCESS EXCLUSIVE MODE`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+partition+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		return err
	}
	if !evenUnfinished {
		// Whatever was counted before, this is what counts. It is read off the ends of two partial indexes, in no time.
		var unfinished bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+partition+` WHERE `+statusIs[ticket.ToTreat]+`)
			OR EXISTS (SELECT FROM `+partition+` WHERE `+statusIs[ticket.Error]+`)`).Scan(&unfinished)
		if err != nil {
			return err
		}
		if unfinished {
			return ErrUnfinished
		}
	}
	_, err = tx.Exec(ctx, `DROP TABLE `+partition)
	return err
}

// ExpiredKeys counts the idempotency keys that have expired.
func (s *Store) ExpiredKeys(ctx context.Context) (int64, error) {
	var n int64
	err := s.pool.QueryRow(ctx, `SELECT count(*) FROM deliveries WHERE expires_at <= now()`).Scan(&n)
	return n, explain("count expired idempotency keys", err)
}

// keyBatch is how many keys one transaction deletes.
const keyBatch = 10_000

// deleteExpiredKeys never waits for a lock, so it cannot deadlock with a batch of tickets that takes expired keys over;
// what it passes by is not expired any more.
const deleteExpiredKeys = `
DELETE FROM deliveries d USING (
    SELECT source, key FROM deliveries WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
) e
WHERE d.source = e.source AND d.key = e.key AND d.expires_at <= now()`

// DeleteExpiredKeys deletes the idempotency keys that have expired, in transactions of bounded size, and returns how
// many.
func (s *Store) DeleteExpiredKeys(ctx context.Context) (int64, error) {
	var total int64
	for {
		tag, err := s.pool.Exec(ctx, deleteExpiredKeys, keyBatch)
		if err != nil {
			return total, explain("delete expired idempotency keys", err)
		}
		total += tag.RowsAffected()
		if tag.RowsAffected() < keyBatch {
			return total, nil
		}
	}
}
