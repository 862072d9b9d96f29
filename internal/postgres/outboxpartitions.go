package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
)

// How many days the outbox has partitions for after today, and how long it keeps a day that every reader has read. A server looks
// every minute, and without a partition the default one takes the rows.
const (
	outboxAhead = 1
	outboxKeep  = 48 * time.Hour
)

// outboxNow returns the time that the next rows of the outbox have, and its default partition, quoted; empty if there is none.
const outboxNow = `
SELECT now(), coalesce(
    (SELECT nullif(partdefid, 0)::regclass::text FROM pg_partitioned_table WHERE partrelid = 'outbox'::regclass), '')`

// EnsureOutbox makes the partitions of the outbox for today and the days after it, by Postgres' clock, and returns their names. A
// day of which the default partition has rows gets none: its rows stay there, are read there, and are deleted there, and the next
// day has a partition again. No other session waits for longer than lockTimeout, and none that writes to another partition.
func (s *Store) EnsureOutbox(ctx context.Context) (made []string, err error) {
	for ahead := 0; ahead <= outboxAhead && err == nil; ahead++ {
		var names []string
		_, err = s.keepUp(ctx, "make the outbox's partitions", func(up upkeep) (err error) {
			names, err = up.ensureOutbox(ctx, ahead)
			return err
		})
		made = append(made, names...)
	}
	return made, errors.Join(err, s.identifyOutbox(ctx))
}

// unidentified returns the outbox's partitions, quoted, whose rows a publication could not identify.
const unidentified = `
SELECT c.oid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'outbox'::regclass AND c.relreplident = 'd'`

// identifyOutbox lets rows of the outbox be deleted and changed while a publication is for all tables. Rows have no key. Without
// an identity Postgres refuses that, whether or not there is a row. No other session waits for longer than lockTimeout.
func (s *Store) identifyOutbox(ctx context.Context) error {
	rows, err := s.pool.Query(ctx, unidentified)
	if err != nil {
		return explain("look at the outbox's partitions", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return explain("look at the outbox's partitions", err)
	}
	for _, table := range tables {
		_, err := s.keepUp(ctx, "set the replica identity of "+table, func(up upkeep) error {
			return up.run(ctx,
				`LOCK TABLE ONLY `+table+` IN SHARE UPDATE EXCLUSIVE MODE`, // see lock
				fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, lockTimeout.Milliseconds()),
				`ALTER TABLE ONLY `+table+` REPLICA IDENTITY FULL`)
		})
		if err != nil && !isCode(err, undefinedTable) { // another process has dropped it
			return err
		}
	}
	return nil
}

// ensureOutbox makes the partition of one day: today, or a day after it. Each has a transaction of its own, because a batch may
// have to wait for it.
func (up upkeep) ensureOutbox(ctx context.Context, ahead int) (made []string, err error) {
	var now time.Time
	var rest string
	if err := up.QueryRow(ctx, outboxNow).Scan(&now, &rest); err != nil {
		return nil, err
	}
	partitions, err := up.partitions(ctx, "outbox")
	if err != nil {
		return nil, err
	}
	day := Day.start(now).AddDate(0, 0, ahead)
	for _, gap := range (span{day, Day.next(day)}).gaps(spansOf(partitions)) {
		name, err := up.addOutbox(ctx, gap, rest)
		if err != nil {
			return nil, err
		}
		if name != "" {
			made = append(made, name)
		}
	}
	return made, nil
}

// addOutbox makes a partition of the outbox, unless the default partition has rows for it, or is so large that to look through it
// takes too long. It returns no name then. A large default partition is small again once what was read in it is deleted.
func (up upkeep) addOutbox(ctx context.Context, s span, rest string) (name string, err error) {
	if rest == "" {
		return up.add(ctx, "outbox", s)
	}
	inTheWay := func() (is bool, err error) {
		err = up.QueryRow(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT FROM %[1]s WHERE at >= $2 AND at < $3)
			OR pg_relation_size($1::text::regclass) > %[2]d AND EXISTS (SELECT FROM %[1]s)`, rest, maxDefaultSize),
			rest, s.from, s.to).Scan(&is)
		return is, err
	}
	if is, err := inTheWay(); err != nil || is {
		return "", err
	}
	// To attach a partition reads the default partition, so no session may write to it meanwhile.
	err = up.run(ctx,
		`LOCK TABLE ONLY `+rest+` IN SHARE UPDATE EXCLUSIVE MODE`, // see lock
		fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, lockTimeout.Milliseconds()),
		`LOCK TABLE ONLY `+rest+` IN ACCESS EXCLUSIVE MODE`)
	if err != nil {
		return "", err
	}
	if is, err := inTheWay(); err != nil || is {
		return "", err
	}
	var rows bool
	if err := up.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+rest+`)`).Scan(&rows); err != nil {
		return "", err
	}
	if !rows { // what was deleted may still take much space
		if err := up.run(ctx, `TRUNCATE ONLY `+rest); err != nil {
			return "", err
		}
	}
	return up.add(ctx, "outbox", s)
}

// outboxRead is how far the outbox may be deleted.
type outboxRead struct {
	xid     uint64        // up to this transaction
	keepFor time.Duration // and only rows of the default partition that are older than this
}

// readByAll returns how far all readers have read. The reader of order lines counts only with lines. It returns false if one has
// not begun, or is where it was in another cluster.
func (up upkeep) readByAll(ctx context.Context, lines bool) (read outboxRead, known bool, err error) {
	rows, err := up.Query(ctx, `SELECT r.name, `+ownPlace+`, r.system_identifier = c.system_identifier
		FROM outbox_readers r, pg_control_system() c`)
	if err != nil {
		return outboxRead{}, false, err
	}
	read, known = outboxRead{xid: math.MaxUint64, keepFor: outboxKeep}, true
	begun := !lines
	var name string
	var xid uint64
	var here bool
	for rows.Next() {
		if err := rows.Scan(&name, &xid, &here); err != nil {
			rows.Close()
			return outboxRead{}, false, err
		}
		if name == linesReader && !lines {
			continue
		}
		begun = begun || name == linesReader
		known = known && here
		read = outboxRead{xid: min(read.xid, xid)}
	}
	return read, known && begun, rows.Err()
}

// CleanOutbox drops the partitions of the outbox that are older than outboxKeep and that every reader has read, and returns their
// names. It deletes what was read in the default partition. Lines says whether order lines are filled; without them, their reader
// does not count. No other session waits for longer than lockTimeout.
func (s *Store) CleanOutbox(ctx context.Context, lines bool) (dropped []string, err error) {
	var read outboxRead
	var old []partition
	_, err = s.keepUp(ctx, "look for old partitions of the outbox", func(up upkeep) error {
		old = nil
		var known bool
		var err error
		if read, known, err = up.readByAll(ctx, lines); err != nil || !known {
			return err
		}
		var now time.Time
		var rest string
		if err := up.QueryRow(ctx, outboxNow).Scan(&now, &rest); err != nil {
			return err
		}
		if rest != "" {
			if err := up.deleteRead(ctx, rest, read); err != nil {
				return err
			}
		}
		partitions, err := up.partitions(ctx, "outbox")
		if err != nil {
			return err
		}
		for _, p := range partitions {
			if p.to.After(now.Add(-outboxKeep)) {
				continue
			}
			unread, err := up.unread(ctx, p, read)
			if err != nil {
				return err
			}
			if !unread {
				old = append(old, p)
			}
		}
		return nil
	})
	failures := []error{err}
	for _, p := range old {
		gone := false
		_, err := s.keepUp(ctx, "drop "+p.plain, func(up upkeep) (err error) {
			var now time.Time
			var rest string
			if err := up.QueryRow(ctx, outboxNow).Scan(&now, &rest); err != nil {
				return err
			}
			gone, err = up.drop(ctx, "outbox", rest, p, p.unread(), read.xid)
			return err
		})
		if gone && err == nil {
			dropped = append(dropped, p.plain)
		}
		if !isCode(err, undefinedTable) { // another process was faster
			failures = append(failures, err)
		}
	}
	return dropped, errors.Join(failures...)
}

// unread returns a query that says whether a partition of the outbox has rows after the transaction $1.
func (p partition) unread() string {
	return `SELECT EXISTS (SELECT FROM ` + p.table + ` WHERE xid > $1)`
}

func (up upkeep) unread(ctx context.Context, p partition, read outboxRead) (unread bool, err error) {
	err = up.QueryRow(ctx, p.unread(), read.xid).Scan(&unread)
	return unread, err
}

// deleteRead deletes what was read in the default partition, at most 100,000 rows.
func (up upkeep) deleteRead(ctx context.Context, rest string, read outboxRead) error {
	_, err := up.Exec(ctx, fmt.Sprintf(`DELETE FROM %[1]s WHERE ctid = ANY (ARRAY(
		SELECT ctid FROM %[1]s WHERE xid <= $1 AND at < now() - $2::interval LIMIT 100000))`, rest), read.xid, read.keepFor)
	return err
}
