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

// Limits of what is moved out of the default partition while its writers wait. Attaching the new partition reads the default
// partition again, with the rows that were deleted, so its size on disk counts, too.
const (
	pieceTickets   = 5000
	pieceBytes     = 16 << 20 // of bodies, as stored
	maxDefaultSize = 32 << 20 // of the table without the bodies that are stored apart
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
