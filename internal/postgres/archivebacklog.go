package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/archive"
)

// ArchiveBacklog is what the archive has, and what it should have.
type ArchiveBacklog struct {
	Configured bool          // `myticket archive run --apply` was run
	Lag        time.Duration // since the oldest partition that is not archived was old enough to be; 0 for none
	Parts      map[archive.State]int
	Success    time.Time // the last run that succeeded; zero for none
	Failures   int64     // runs that failed
}

// archiveLag leaves out the partitions that were restored, and those whose time was archived before: they have tickets that were
// unfinished then, or late ones.
const archiveLag = `
SELECT began_at IS NOT NULL, succeeded_at, failures,
       greatest(coalesce(extract(epoch FROM now() - keep - (
           SELECT min(to_) FROM (
               SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz AS to_, c.relname
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'tickets'::regclass) p
           WHERE NOT EXISTS (SELECT FROM archives a WHERE a.to_at = p.to_ OR a.state = 'restored' AND a.table_name = p.relname)
       )), 0), 0)::float8,
       greatest(coalesce(extract(epoch FROM now() - keep - (
           SELECT min(to_at) FROM archives WHERE state IN ('detached', 'verified'))), 0), 0)::float8
FROM archive_runs`

// ArchiveBacklog looks what the archive has, and what it should have.
func (s *Store) ArchiveBacklog(ctx context.Context) (b ArchiveBacklog, err error) {
	var success *time.Time
	var attached, detached float64
	b.Parts = map[archive.State]int{archive.Detached: 0, archive.Verified: 0, archive.Archived: 0, archive.Restored: 0}
	err = s.atLeisure(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, archiveLag).Scan(&b.Configured, &success, &b.Failures, &attached, &detached)
		if err != nil || !b.Configured {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT state, count(*) FROM archives GROUP BY state`)
		if err != nil {
			return err
		}
		var state archive.State
		var n int
		_, err = pgx.ForEachRow(rows, []any{&state, &n}, func() error { b.Parts[state] = n; return nil })
		return err
	})
	if err != nil {
		return ArchiveBacklog{}, fmt.Errorf("look what the archive has: %w", err)
	}
	b.Lag = seconds(max(attached, detached))
	if success != nil {
		b.Success = *success
	}
	return b, nil
}
