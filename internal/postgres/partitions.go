package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Period is the time that a partition of tickets covers.
type Period string

// The periods. Weeks begin on Monday; all are in UTC.
const (
	Day   Period = "day"
	Week  Period = "week"
	Month Period = "month"
)

// start returns the beginning of the period that contains t.
func (p Period) start(t time.Time) time.Time {
	t = t.UTC()
	day := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	switch p {
	case Week:
		return day.AddDate(0, 0, -(int(day.Weekday())+6)%7)
	case Month:
		return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	default:
		return day
	}
}

// next returns the beginning of the period after the one that begins at start.
func (p Period) next(start time.Time) time.Time {
	switch p {
	case Week:
		return start.AddDate(0, 0, 7)
	case Month:
		return start.AddDate(0, 1, 0)
	default:
		return start.AddDate(0, 0, 1)
	}
}

// span is a range of time, without its end.
type span struct{ from, to time.Time }

// name returns the name of a table's partition for a span.
func (s span) name(table string) string {
	return fmt.Sprintf("%s_%s_%s", table, s.from.Format("20060102"), s.to.Format("20060102"))
}

// contains reports whether a time is in s.
func (s span) contains(t time.Time) bool { return !t.Before(s.from) && t.Before(s.to) }

// gaps returns the parts of s that no span of taken covers, in order. So if the length of the period changes in the middle of a
// period, the rest of it gets a shorter partition, and no two partitions overlap.
func (s span) gaps(taken []span) []span {
	slices.SortFunc(taken, func(a, b span) int { return a.from.Compare(b.from) })
	var gaps []span
	from := s.from
	for _, t := range taken {
		if !t.to.After(from) || !t.from.Before(s.to) {
			continue
		}
		if t.from.After(from) {
			gaps = append(gaps, span{from, t.from})
		}
		from = t.to
	}
	if from.Before(s.to) {
		gaps = append(gaps, span{from, s.to})
	}
	return gaps
}

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

// Limits of what is moved out of the default partition while its writers wait. Attaching the new partition reads the default
// partition again, with the rows that were deleted, so its size on disk counts, too.
const (
	pieceTickets   = 5000
	pieceBytes     = 16 << 20 // of bodies, as stored
	maxDefaultSize = 32 << 20 // of the table without the bodies that are stored apart
)

// How long maintenance waits for locks. No statement waits behind it while it waits for a lock that does not stop others. Behind
// a lock that stops others they all wait, so that wait is shorter.
const (
	quietLockTimeout = 3 * time.Second
	lockTimeout      = 500 * time.Millisecond
)

// EnsurePartitions makes the partitions for now and for ahead periods after it, and empties the default partition. If there are
// few tickets in it, it moves those of each period to their own partition in one transaction. A statement that waits for that
// transaction misses these tickets, because Postgres has planned it without the new partition; the next one sees them. If there
// are more (pieceTickets, pieceBytes, maxDefaultSize), it sets the table aside at once, puts an empty one in its place, and
// MoveStrays moves the tickets.
//
// No insert waits for longer than a second. A partition that cannot be made is an error, and does not stop the rest. Only one
// process does this at a time: if another one has the lock for longer than quietLockTimeout, EnsurePartitions leaves the work to
// it. It returns the names of the partitions that it made.
func (s *Store) EnsurePartitions(ctx context.Context, period Period, ahead int, now time.Time) ([]string, error) {
	var made []string
	var failures []error
	ensure := func(wanted span) {
		names, err := s.ensureSpan(ctx, wanted)
		made = append(made, names...)
		if !errors.Is(err, errBusy) {
			failures = append(failures, err)
		}
	}
	for i, start := 0, period.start(now); i <= ahead; i++ {
		end := period.next(start)
		ensure(span{start, end})
		start = end
	}
	crowded, err := s.crowded(ctx)
	failures = append(failures, err)
	if crowded {
		failures = append(failures, s.setAside(ctx))
	} else if err == nil {
		strays, err := s.strayPeriods(ctx, period)
		failures = append(failures, err)
		for _, wanted := range strays {
			ensure(wanted)
		}
	}
	return made, errors.Join(failures...)
}

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

// load returns how many tickets of a span the default partition holds, counted up to the limit, and whether they are too much to
// move at once.
func (up upkeep) load(ctx context.Context, wanted span) (tickets int, tooMuch bool, err error) {
	if up.partition == "" {
		return 0, false, nil
	}
	var bytes, size int64
	err = up.QueryRow(ctx, fmt.Sprintf(`SELECT count(*), coalesce(sum(pg_column_size(body)), 0), pg_relation_size($3::text::regclass)
		FROM (SELECT body FROM %s WHERE received_at >= $1 AND received_at < $2 LIMIT %d) t`, up.partition, pieceTickets+1),
		wanted.from, wanted.to, up.partition).Scan(&tickets, &bytes, &size)
	return tickets, tickets > pieceTickets || bytes > pieceBytes || size > maxDefaultSize, err
}

// always is a span that contains every ticket.
var always = span{time.Date(-4000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(200_000, 1, 1, 0, 0, 0, 0, time.UTC)}

// crowded reports whether the default partition holds more than may be moved at once.
func (s *Store) crowded(ctx context.Context) (crowded bool, err error) {
	_, err = s.keepUp(ctx, "look into the default partition", func(up upkeep) error {
		tickets, tooMuch, err := up.load(ctx, always)
		crowded = tooMuch && tickets > 0
		return err
	})
	return crowded, err
}

// strayPeriods returns the periods of the tickets in the default partition, at most 400.
func (s *Store) strayPeriods(ctx context.Context, period Period) (spans []span, err error) {
	_, err = s.keepUp(ctx, "look into the default partition", func(up upkeep) error {
		if up.partition == "" {
			return nil
		}
		rows, err := up.Query(ctx, `SELECT DISTINCT date_trunc($1, received_at, 'UTC') FROM `+up.partition+` ORDER BY 1 LIMIT 400`,
			string(period))
		if err != nil {
			return err
		}
		spans, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (span, error) {
			var start time.Time
			err := row.Scan(&start)
			start = start.UTC()
			return span{start, period.next(start)}, err
		})
		return err
	})
	return spans, err
}

// ensureSpan makes the missing partitions of a span, and moves their tickets from the default partition. If those are too many,
// it sets the default partition aside first.
func (s *Store) ensureSpan(ctx context.Context, wanted span) ([]string, error) {
	for attempt := 1; ; attempt++ {
		var made []string
		tooMuch := false
		doing := fmt.Sprintf("make the partitions from %s to %s", wanted.from.Format(time.DateOnly), wanted.to.Format(time.DateOnly))
		mine, err := s.keepUp(ctx, doing, func(up upkeep) (err error) {
			made, tooMuch = nil, false
			taken, err := up.partitions(ctx, "tickets")
			gaps := wanted.gaps(spansOf(taken))
			if err != nil || len(gaps) == 0 {
				return err
			}
			if _, tooMuch, err = up.load(ctx, wanted); err != nil || tooMuch {
				return err
			}
			made, err = up.makePartitions(ctx, gaps)
			return err
		})
		switch {
		case err != nil:
			return nil, err
		case !mine:
			return nil, errBusy
		case !tooMuch:
			return made, nil
		case attempt == 2:
			return nil, fmt.Errorf("%s: the default partition fills faster than it can be set aside; it is tried again", doing)
		}
		if err := s.setAside(ctx); err != nil {
			return nil, err
		}
	}
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

func (up upkeep) makePartitions(ctx context.Context, gaps []span) (made []string, err error) {
	var stop []string
	if up.partition != "" {
		// Attaching scans the default partition for rows of the new one, so no session may add any meanwhile.
		stop = append(stop, up.partition)
	}
	if err := up.lock(ctx, stop...); err != nil {
		return nil, err
	}
	columns, err := up.columns(ctx, "tickets")
	if err != nil {
		return nil, err
	}
	for _, gap := range gaps {
		name, err := up.freeName(ctx, gap.name("tickets"), 0)
		if err != nil {
			return nil, err
		}
		from, to := gap.from.UTC().Format(time.RFC3339), gap.to.UTC().Format(time.RFC3339)
		statements := []string{fmt.Sprintf(`CREATE TABLE %s (LIKE tickets INCLUDING ALL)`, up.table(name))}
		if up.partition != "" {
			statements = append(statements, fmt.Sprintf(`
				WITH moved AS (DELETE FROM %s WHERE received_at >= '%s' AND received_at < '%s' RETURNING *)
				INSERT INTO %s (%s) SELECT %s FROM moved`, up.partition, from, to, up.table(name), columns, columns))
		}
		statements = append(statements,
			fmt.Sprintf(`ALTER TABLE tickets ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`, up.table(name), from, to))
		if err := up.run(ctx, statements...); err != nil {
			return nil, fmt.Errorf("partition %s: %w", name, err)
		}
		made = append(made, name)
	}
	return made, nil
}
