package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// partitionLock is the advisory lock for changes of partitions. The number is arbitrary, and used for nothing else in the
// database.
const partitionLock = 0x6d795469636b6574 // "myTicket"

// listPartitions reads the partitions of a table that have bounds. One that was made by hand may have no lower or upper bound.
const listPartitions = `
SELECT name, relname, coalesce((regexp_match(bound, $$FROM \('([^']+)'\)$$))[1], '0001-01-01')::timestamptz,
       coalesce((regexp_match(bound, $$TO \('([^']+)'\)$$))[1], '9999-12-31')::timestamptz
FROM (SELECT c.oid::regclass::text AS name, c.relname, pg_get_expr(c.relpartbound, c.oid) AS bound
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      WHERE i.inhparent = $1::text::regclass) b
WHERE bound LIKE 'FOR VALUES FROM%'`

// partition is a partition that has bounds.
type partition struct {
	span

	table string // its name in a statement
	plain string // its plain name
}

// How long maintenance waits for locks. No statement waits behind it while it waits for a lock that does not stop others. Behind
// a lock that stops others they all wait, so that wait is shorter.
const (
	quietLockTimeout = 3 * time.Second
	lockTimeout      = 500 * time.Millisecond
)

// defaultPartition returns the schema of tickets, quoted, and the default partition, quoted and by its plain name. Both names
// are empty if there is none.
const defaultPartition = `
SELECT quote_ident(n.nspname), coalesce(d.oid::regclass::text, ''), coalesce(d.relname, '')
FROM pg_partitioned_table p
JOIN pg_class t ON t.oid = p.partrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_class d ON d.oid = nullif(p.partdefid, 0)
WHERE p.partrelid = 'tickets'::regclass`

// upkeep is a transaction that holds the lock of partitions.
type upkeep struct {
	pgx.Tx

	schema      string // of tickets, quoted
	partition   string // the default one, quoted; empty for none
	defaultName string // its plain name
}

// keepUp runs a transaction under the lock of partitions, or reports that another process holds it. It runs a transaction again
// that lost against another one, for retryFor.
//
// It does not wait for standbys, because it acknowledges no ticket, and every later commit waits for this one as well. So its
// locks hold up nothing while a standby is missing.
func (s *Store) keepUp(ctx context.Context, doing string, work func(upkeep) error) (mine bool, err error) {
	settings := fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'; SET LOCAL idle_in_transaction_session_timeout = '5s';
		SET LOCAL synchronous_commit = 'local'; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'`,
		quietLockTimeout.Milliseconds())
	busy := false
	err = s.retry(ctx, doing, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, settings); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(partitionLock))
			if busy = isCode(err, lockNotAvailable); err != nil {
				return err
			}
			// A migration locks the table before its partitions. Who reads a partition first and then locks the table deadlocks with it.
			if _, err := tx.Exec(ctx, `LOCK TABLE ONLY tickets IN ACCESS SHARE MODE`); err != nil {
				return err
			}
			up := upkeep{Tx: tx}
			if err := tx.QueryRow(ctx, defaultPartition).Scan(&up.schema, &up.partition, &up.defaultName); err != nil {
				return err
			}
			return work(up)
		})
	})
	if busy {
		return false, nil
	}
	return true, err
}

func (up upkeep) run(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		if _, err := up.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// lock takes locks that stop others. It first takes weaker locks that make an autovacuum give way, because that takes a second,
// for which all would wait.
func (up upkeep) lock(ctx context.Context, stop ...string) error {
	statements := []string{`LOCK TABLE ONLY tickets IN SHARE UPDATE EXCLUSIVE MODE`}
	if up.partition != "" {
		statements = append(statements, `LOCK TABLE ONLY `+up.partition+` IN SHARE UPDATE EXCLUSIVE MODE`)
	}
	statements = append(statements, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, lockTimeout.Milliseconds()))
	for _, table := range stop {
		statements = append(statements, `LOCK TABLE ONLY `+table+` IN ACCESS EXCLUSIVE MODE`)
	}
	return up.run(ctx, statements...)
}

// freeName returns a name that no table, index or view of the schema has: the wanted name, or that with a number appended, from
// first on. A table with the wanted name may be a partition that was detached by hand.
func (up upkeep) freeName(ctx context.Context, wanted string, first int) (string, error) {
	for n := first; ; n++ {
		name := wanted
		if n > 0 {
			name = fmt.Sprintf("%s_%d", wanted, n)
		}
		var taken bool
		err := up.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_class t ON t.relnamespace = c.relnamespace
			WHERE t.oid = 'tickets'::regclass AND c.relname = $1)`, name).Scan(&taken)
		if err != nil || !taken {
			return name, err
		}
	}
}

func (up upkeep) table(name string) string { return up.schema + "." + pgx.Identifier{name}.Sanitize() }

// columns returns a list of the columns that a table and tickets have in common. Their order may differ.
func (up upkeep) columns(ctx context.Context, table string) (list string, err error) {
	err = up.QueryRow(ctx, `SELECT string_agg(quote_ident(t.attname), ', ' ORDER BY t.attnum)
		FROM pg_attribute t JOIN pg_attribute o ON o.attname = t.attname AND o.attnum > 0 AND NOT o.attisdropped
		WHERE t.attrelid = 'tickets'::regclass AND t.attnum > 0 AND NOT t.attisdropped AND o.attrelid = $1::text::regclass`,
		table).Scan(&list)
	return list, err
}

// errBusy means that another process holds the lock of partitions at this moment.
var errBusy = errors.New("another process maintains the partitions")

// partitions returns the partitions of a table that have bounds.
func (up upkeep) partitions(ctx context.Context, table string) ([]partition, error) {
	rows, err := up.Query(ctx, listPartitions, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (p partition, err error) {
		err = row.Scan(&p.table, &p.plain, &p.from, &p.to)
		p.from, p.to = p.from.UTC(), p.to.UTC()
		return p, err
	})
}

func spansOf(partitions []partition) []span {
	spans := make([]span, len(partitions))
	for i := range partitions {
		spans[i] = partitions[i].span
	}
	return spans
}

// add makes a partition of a table that is not tickets, and returns its plain name.
func (up upkeep) add(ctx context.Context, table string, s span) (name string, err error) {
	if name, err = up.freeName(ctx, s.name(table), 0); err != nil {
		return "", err
	}
	err = up.run(ctx,
		fmt.Sprintf(`CREATE TABLE %s (LIKE %s INCLUDING ALL)`, up.table(name), table),
		fmt.Sprintf(`ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`,
			table, up.table(name), s.from.UTC().Format(time.RFC3339), s.to.UTC().Format(time.RFC3339)))
	if err != nil {
		return "", fmt.Errorf("partition %s: %w", name, err)
	}
	return name, nil
}

// drop drops a partition of a table that is not tickets, unless the query says that it must be kept. The default partition may be
// empty. No other session waits for longer than lockTimeout.
func (up upkeep) drop(ctx context.Context, table, defaultPartition string, p partition, keep string, args ...any) (bool, error) {
	quiet := `LOCK TABLE ONLY ` + p.table // see lock
	if defaultPartition != "" {
		quiet += `, ONLY ` + defaultPartition
	}
	err := up.run(ctx,
		quiet+` IN SHARE UPDATE EXCLUSIVE MODE`,
		fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, lockTimeout.Milliseconds()),
		`LOCK TABLE ONLY `+table+` IN ACCESS EXCLUSIVE MODE`,
		`LOCK TABLE ONLY `+p.table+` IN ACCESS EXCLUSIVE MODE`)
	if err != nil {
		return false, err
	}
	var kept bool
	if err := up.QueryRow(ctx, keep, args...).Scan(&kept); err != nil || kept {
		return false, err
	}
	return true, up.run(ctx, `DROP TABLE `+p.table)
}
