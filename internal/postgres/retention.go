package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// OldPartition is a partition of tickets that is past its retention.
type OldPartition struct {
	Name    string                  `json:"name"`
	From    *time.Time              `json:"from"` // null if it has no lower bound
	To      time.Time               `json:"to"`   // its tickets are older than this
	Tickets map[ticket.Status]int64 `json:"tickets"`
	Bytes   int64                   `json:"bytes"` // on disk, with indexes

	// Undelivered are the subscriptions whose events about its time were not all delivered yet.
	Undelivered []string `json:"undelivered"`

	table string // its name in a statement
}

// Unfinished returns how many of its tickets are TO_TREAT or ERROR.
func (p OldPartition) Unfinished() int64 { return p.Tickets[ticket.ToTreat] + p.Tickets[ticket.Error] }

// oldPartitions reads the ranges from the catalog, not from the names of the partitions. The default partition has no range,
// and a partition without an upper bound (MAXVALUE) is never old.
const oldPartitions = `
SELECT name, oid::regclass::text, from_, to_, pg_total_relation_size(oid)
FROM (SELECT c.oid, c.relname AS name,
             (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([^']+)'\)$$))[1]::timestamptz AS from_,
             (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz AS to_
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      WHERE i.inhparent = 'tickets'::regclass) p
WHERE to_ <= $1 ORDER BY to_`

// readOnly are settings for slow reads: a format of bounds that does not depend on the settings of the role, and sequential
// scans for whole tables, which prepareSession forbids otherwise.
const readOnly = `SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL enable_seqscan = on`

// OldPartitions returns the partitions that hold only tickets received before a time, the oldest first, without the default
// partition. It reads each as a whole, to count its tickets.
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
			p.To, p.Undelivered = p.To.UTC(), []string{}
			return p, err
		})
		for i := range partitions {
			if err == nil {
				partitions[i].Undelivered, err = undelivered(ctx, tx, &partitions[i].To)
			}
		}
		return err
	})
	if err != nil {
		return nil, explain("look for old partitions", err)
	}
	there := partitions[:0]
	for _, p := range partitions {
		// One transaction each: a long one for all would hold back vacuum in the whole database.
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
	// ErrUnfinished means that the partition holds tickets that are TO_TREAT or ERROR, so it was kept.
	ErrUnfinished = errors.New("the partition holds tickets that are TO_TREAT or ERROR")

	// ErrUndelivered means that a subscription has not got all events about the time of the partition, so it was kept: they are made
	// of the tickets.
	ErrUndelivered = errors.New("a subscription has not got all events about tickets of that time yet")

	// ErrNoPartition means that there is no such partition (any more), or that it is the default partition.
	ErrNoPartition = errors.New("no partition of tickets that could be dropped")
)

// How often a drop is tried, how long live traffic may have to wait behind one attempt, and the pause after the first
// attempt. The pause grows by that much with each attempt, so a drop outlasts a transaction that blocks it for half a
// minute.
const (
	dropAttempts    = 5
	dropLockTimeout = 2 * time.Second
	dropPause       = 2 * time.Second
)

// DropEven says which partitions are dropped all the same.
type DropEven struct {
	Unfinished  bool // those that hold TO_TREAT or ERROR tickets
	Undelivered bool // those of a time that a subscription has not got all events about: it never gets them then
}

// DropPartition drops a partition with all its tickets. DropOldLines then drops their order lines. Unless even says otherwise, it
// keeps a partition that holds a TO_TREAT or ERROR ticket at that moment (ErrUnfinished), and one of a time that a subscription
// has not got all events about (ErrUndelivered). It returns ErrNoPartition for the default partition, and for everything that is
// not a range of tickets. The audit has as many tickets as OldPartitions counted.
//
// All traffic stops while it waits for the lock that it needs. So it waits at most 2 s, and tries again a few times; then it
// returns ticket.ErrUnavailable. To detach the partition first (DETACH PARTITION CONCURRENTLY) would need a weaker lock, but
// is not possible beside a default partition (https://www.postgresql.org/docs/current/sql-altertable.html).
func (s *Store) DropPartition(ctx context.Context, by Person, p OldPartition, even DropEven) error {
	tickets := int64(0)
	for _, n := range p.Tickets {
		tickets += n
	}
	entry := AuditEntry{
		Who: by.Who, Why: by.Why, Action: ActionRetention, Tickets: int(tickets),
		Details: map[string]any{"partition": p.Name, "to": p.To, "counted": p.Tickets},
	}
	err := patiently(ctx, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if err := audit(ctx, tx, entry); err != nil { // first, because everything waits for the locks of the rest
				return err
			}
			return dropPartition(ctx, tx, p.Name, even)
		})
	})
	if errors.Is(err, ErrUnfinished) || errors.Is(err, ErrUndelivered) || errors.Is(err, ErrNoPartition) {
		return fmt.Errorf("partition %s: %w", p.Name, err)
	}
	return explain("drop partition "+p.Name, err)
}

// patiently tries a drop again while other transactions hold its locks.
func patiently(ctx context.Context, drop func() error) error {
	for attempt := 1; ; attempt++ {
		err := drop()
		if !isCode(err, lockNotAvailable, deadlockDetected) || attempt == dropAttempts || ctx.Err() != nil {
			return err
		}
		pause(ctx, time.Duration(attempt)*dropPause)
	}
}

// partitionToDrop returns a partition of tickets that has a range, the default partition, and the end of the range; NULL if it has
// none.
const partitionToDrop = `
SELECT c.oid::regclass::text, coalesce(nullif(p.partdefid, 0)::regclass::text, ''),
       (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_partitioned_table p ON p.partrelid = i.inhparent
WHERE i.inhparent = 'tickets'::regclass AND c.relname = $1 AND c.oid <> p.partdefid`

func dropPartition(ctx context.Context, tx pgx.Tx, name string, even DropEven) error {
	// Everything waits while this holds its locks. So the server does not wait long for a client that vanished, and the commit
	// does not wait for a missing standby. After a failover the partition may be there again, and is dropped again.
	settings := fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'; SET LOCAL idle_in_transaction_session_timeout = '5s';
		SET LOCAL synchronous_commit = 'local'; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'`,
		dropLockTimeout.Milliseconds())
	if _, err := tx.Exec(ctx, settings); err != nil {
		return err
	}
	// No process may make partitions meanwhile: that locks the default partition before the parent, so the two could deadlock.
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(partitionLock)); err != nil {
		return err
	}
	var partition, defaultPartition string // quoted
	var to *time.Time
	err := tx.QueryRow(ctx, partitionToDrop, name).Scan(&partition, &defaultPartition, &to)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNoPartition
	}
	if err != nil {
		return err
	}
	// These locks hold up only autovacuum, which gives way after deadlock_timeout (1 s). Without them that second would pass
	// below, while everything waits.
	quiet := `LOCK TABLE ONLY ` + partition
	if defaultPartition != "" {
		quiet += `, ONLY ` + defaultPartition
	}
	if _, err := tx.Exec(ctx, quiet+` IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
		return err
	}
	// The parent first, as in all transactions. From here on no ticket comes in, and none is treated.
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY tickets IN ACCESS EXCLUSIVE MODE`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+partition+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		return err
	}
	if !even.Unfinished {
		// This check decides, not the earlier count. It reads only the ends of two partial indexes, so it is fast.
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
	if !even.Undelivered {
		if late, err := undelivered(ctx, tx, to); err != nil || len(late) > 0 {
			return errors.Join(err, late.err())
		}
	}
	_, err = tx.Exec(ctx, `DROP TABLE `+partition)
	return err
}

// lateSubscriptions are the names of subscriptions that have not got all events.
type lateSubscriptions []string

// err returns ErrUndelivered, with the names; nil for none.
func (l lateSubscriptions) err() error {
	if len(l) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrUndelivered, strings.Join(l, ", "))
}

// undeliveredBefore finds subscriptions that have not read all rows of the outbox from before a time. It is fast enough for a
// transaction that everything waits for: of the partitions of the outbox from before that time, it reads the end of the index. A
// place of another cluster says nothing (a dump and a restore), so such a subscription counts.
const undeliveredBefore = `
SELECT substr(r.name, length('` + subscriptionPrefix + `') + 1)
FROM outbox_readers r, pg_control_system() c
WHERE starts_with(r.name, '` + subscriptionPrefix + `')
  AND (r.system_identifier <> c.system_identifier
       OR EXISTS (SELECT FROM outbox o WHERE o.at < coalesce($1::timestamptz, 'infinity') AND o.xid > ` + ownPlace + `))
ORDER BY 1`

// undelivered returns the subscriptions that have not got all events about tickets that were stored before a time; nil for now.
func undelivered(ctx context.Context, tx pgx.Tx, before *time.Time) (lateSubscriptions, error) {
	rows, err := tx.Query(ctx, undeliveredBefore, before)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// ExpiredKeys counts the idempotency keys that have expired.
func (s *Store) ExpiredKeys(ctx context.Context) (int64, error) {
	var n int64
	err := s.pool.QueryRow(ctx, `SELECT count(*) FROM deliveries WHERE expires_at <= now()`).Scan(&n)
	return n, explain("count expired idempotency keys", err)
}

// keyBatch is how many keys one transaction deletes.
const keyBatch = 10_000

// deleteExpiredKeys never waits for a lock, so it cannot deadlock with a batch of tickets that takes over expired keys. Such
// a key is not expired any more, so it is right to skip it.
const deleteExpiredKeys = `
DELETE FROM deliveries d USING (
    SELECT source, key FROM deliveries WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
) e
WHERE d.source = e.source AND d.key = e.key AND d.expires_at <= now()`

// DeleteExpiredKeys deletes the expired idempotency keys in transactions of bounded size, and returns how many.
func (s *Store) DeleteExpiredKeys(ctx context.Context, by Person) (int64, error) {
	var total, head int64
	for {
		var deleted int64
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, deleteExpiredKeys, keyBatch)
			deleted = tag.RowsAffected()
			if err != nil || deleted == 0 {
				return err
			}
			details := map[string]any{"expired_keys": total + deleted}
			if head != 0 {
				details["run"] = head
			}
			id, err := auditRow(ctx, tx, AuditEntry{Who: by.Who, Why: by.Why, Action: ActionRetention, Details: details})
			if head == 0 {
				head = id
			}
			return err
		})
		if err != nil {
			return total, explain("delete expired idempotency keys", err)
		}
		total += deleted
		if deleted < keyBatch {
			return total, nil
		}
	}
}
