package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ensureLines makes the partitions of ticket_lines for some times, and returns the ranges of all that there are. A partition has
// the range of the partition of tickets at that time, or a part of it. So it can be dropped with that.
func (s *Store) ensureLines(ctx context.Context, period Period, times []time.Time) (covered []span, err error) {
	mine, err := s.keepUp(ctx, "make partitions for order lines", func(up upkeep) error {
		tickets, err := up.partitions(ctx, "tickets")
		if err != nil {
			return err
		}
		lines, err := up.partitions(ctx, "ticket_lines")
		if err != nil {
			return err
		}
		covered = spansOf(lines)
		for _, at := range times {
			if within(covered, at) >= 0 {
				continue
			}
			gap := period.gapAt(at, spansOf(tickets), covered)
			if _, err := up.add(ctx, "ticket_lines", gap); err != nil {
				return err
			}
			covered = append(covered, gap)
		}
		return nil
	})
	if err == nil && !mine {
		err = errBusy
	}
	return covered, err
}

// within returns the index of the span that contains a time; -1 for none.
func within(spans []span, at time.Time) int {
	return slices.IndexFunc(spans, func(s span) bool { return s.contains(at) })
}

// gapAt returns a span around a time that none of the spans covered overlaps: the span of outer that contains the time, or else
// what outer leaves of the period.
func (p Period) gapAt(at time.Time, outer, covered []span) span {
	whole := span{from: p.start(at)}
	whole.to = p.next(whole.from)
	if i := within(outer, at); i >= 0 {
		whole = outer[i]
	} else if gaps := whole.gaps(outer); within(gaps, at) >= 0 {
		whole = gaps[within(gaps, at)]
	}
	gaps := whole.gaps(covered)
	return gaps[within(gaps, at)]
}

// DropOldLines drops the partitions of ticket_lines for whose time there is no partition of tickets and no ticket (any more), and
// returns their names. Tickets that were set aside do not count: their lines are filled again once they are moved. While queries
// read order lines, it tries again as DropPartition does; no other session waits for longer than lockTimeout.
func (s *Store) DropOldLines(ctx context.Context) (dropped []string, err error) {
	err = patiently(ctx, func() error {
		names, err := s.dropOldLines(ctx)
		dropped = append(dropped, names...)
		return err
	})
	return dropped, err
}

// dropOldLines is one attempt of DropOldLines.
func (s *Store) dropOldLines(ctx context.Context) (dropped []string, err error) {
	var old []partition
	_, err = s.keepUp(ctx, "look for old order lines", func(up upkeep) error {
		tickets, err := up.partitions(ctx, "tickets")
		if err != nil {
			return err
		}
		old, err = up.partitions(ctx, "ticket_lines")
		old = slices.DeleteFunc(old, func(p partition) bool {
			return slices.ContainsFunc(tickets, func(t partition) bool { return t.from.Before(p.to) && p.from.Before(t.to) })
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	var failures []error
	for _, p := range old {
		gone := false
		_, err := s.keepUp(ctx, fmt.Sprintf("drop order lines from %s", p.from.Format(time.DateOnly)), func(up upkeep) (err error) {
			gone, err = up.drop(ctx, "ticket_lines", "", p,
				`SELECT EXISTS (SELECT FROM tickets WHERE received_at >= $1 AND received_at < $2)`, p.from, p.to)
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
