package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Period is how much time a partition of tickets holds.
type Period string

// The periods. Weeks begin on Monday; all are in UTC.
const (
	Day   Period = "day"
	Week  Period = "week"
	Month Period = "month"
)

// start returns when the period that t is in begins.
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

// next returns when the period after the one that begins at start begins.
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

// name is the table that holds a span.
func (s span) name() string {
	return fmt.Sprintf("tickets_%s_%s", s.from.Format("20060102"), s.to.Format("20060102"))
}

// gaps returns the parts of s that no span of taken covers, in order. So a change of the period's length in the middle
// of a period makes a shorter partition for what is left of it, and no two overlap.
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

// partitionLock is the advisory lock of whoever maintains partitions: any number, used for nothing else in the database.
const partitionLock = 0x6d795469636b6574 // "myTicket"

// listPartitions reads the bounds of the partitions. One that somebody made by hand may have no lower or upper bound.
const listPartitions = `
SELECT coalesce((regexp_match(bound, $$FROM \('([^']+)'\)$$))[1], '0001-01-01')::timestamptz,
       coalesce((regexp_match(bound, $$TO \('([^']+)'\)$$))[1], '9999-12-31')::timestamptz
FROM (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      WHERE i.inhparent = 'tickets'::regclass) b
WHERE bound LIKE 'FOR VALUES FROM%'`

// EnsurePartitions makes the partitions for now and for ahead periods after it, and moves what fell into the default
// partition to partitions of its own. Only one process does so at a time: where another one is at it, EnsurePartitions
// returns at once. It returns the names of the partitions it made.
func (s *Store) EnsurePartitions(ctx context.Context, period Period, ahead int, now time.Time) ([]string, error) {
	var made []string
	err := s.retry(ctx, "make partitions", func() error {
		made = nil
		strays, err := s.strays(ctx, period)
		if err != nil {
			return err
		}
		for i, start := 0, period.start(now); i <= ahead; i++ {
			end := period.next(start)
			strays = append(strays, span{start, end})
			start = end
		}
		for _, wanted := range strays {
			names, err := s.ensureSpan(ctx, wanted)
			if err != nil {
				return err
			}
			made = append(made, names...)
		}
		return nil
	})
	return made, err
}

// strays returns the periods of the tickets in the default partition, at most 400 at once.
func (s *Store) strays(ctx context.Context, period Period) ([]span, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT DISTINCT date_trunc($1, received_at, 'UTC') FROM tickets_default ORDER BY 1 LIMIT 400`, string(period))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (span, error) {
		var start time.Time
		err := row.Scan(&start)
		start = start.UTC()
		return span{start, period.next(start)}, err
	})
}

// ensureSpan makes the partitions that are missing in a span, each with the tickets of the default partition that
// belong into it, in one transaction: a reader never misses or doubles a ticket. Tickets that arrive meanwhile for the
// same span wait; those for partitions that exist do not.
func (s *Store) ensureSpan(ctx context.Context, wanted span) ([]string, error) {
	var made []string
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(partitionLock)).Scan(&mine); err != nil || !mine {
			return err
		}
		const settings = `SET LOCAL lock_timeout = '2s'; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'`
		if _, err := tx.Exec(ctx, settings); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, listPartitions)
		if err != nil {
			return err
		}
		taken, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (span, error) {
			var t span
			err := row.Scan(&t.from, &t.to)
			return t, err
		})
		if err != nil {
			return err
		}
		for _, gap := range wanted.gaps(taken) {
			if err := makePartition(ctx, tx, gap); err != nil {
				return fmt.Errorf("make partition %s: %w", gap.name(), err)
			}
			made = append(made, gap.name())
		}
		return nil
	})
	return made, err
}

func makePartition(ctx context.Context, tx pgx.Tx, s span) error {
	name := pgx.Identifier{s.name()}.Sanitize()
	from, to := s.from.UTC().Format(time.RFC3339), s.to.UTC().Format(time.RFC3339)
	statements := []string{
		// Attaching scans the default partition for rows that belong to the new one, so nobody may add any meanwhile.
		`LOCK TABLE tickets_default IN ACCESS EXCLUSIVE MODE`,
		fmt.Sprintf(`CREATE TABLE %s (LIKE tickets INCLUDING ALL)`, name),
		fmt.Sprintf(`WITH moved AS (DELETE FROM tickets_default WHERE received_at >= '%s' AND received_at < '%s' RETURNING *)
			INSERT INTO %s SELECT * FROM moved`, from, to, name),
		fmt.Sprintf(`ALTER TABLE tickets ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`, name, from, to),
	}
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}
