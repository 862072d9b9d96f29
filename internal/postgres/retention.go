package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// OldPartition is a partition of tickets that is older than what is to be kept.
type OldPartition struct {
	Name       string    `json:"name"`
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	Tickets    int64     `json:"tickets"`    // about, as of the last ANALYZE; -1 when there was none
	Unfinished int64     `json:"unfinished"` // TO_TREAT and ERROR, exactly
	Bytes      int64     `json:"bytes"`      // on disk, with indexes
}

const oldPartitions = `
SELECT name, from_, to_, tickets, bytes FROM (
    SELECT c.relname AS name, c.reltuples::bigint AS tickets, pg_total_relation_size(c.oid) AS bytes,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([^']+)'\)$$))[1]::timestamptz AS from_,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('([^']+)'\)$$))[1]::timestamptz AS to_
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'tickets'::regclass) p
WHERE to_ <= $1 ORDER BY from_`

// OldPartitions returns the partitions that hold only tickets received before a time, the oldest first. The default
// partition is never among them.
func (s *Store) OldPartitions(ctx context.Context, before time.Time) ([]OldPartition, error) {
	rows, err := s.pool.Query(ctx, oldPartitions, before)
	if err != nil {
		return nil, explain("look for old partitions", err)
	}
	partitions, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (OldPartition, error) {
		var p OldPartition
		err := row.Scan(&p.Name, &p.From, &p.To, &p.Tickets, &p.Bytes)
		p.From, p.To = p.From.UTC(), p.To.UTC()
		return p, err
	})
	if err != nil {
		return nil, explain("look for old partitions", err)
	}
	for i := range partitions {
		if partitions[i].Unfinished, err = unfinished(ctx, s.pool, partitions[i].Name); err != nil {
			return nil, explain("count the tickets of "+partitions[i].Name, err)
		}
	}
	return partitions, nil
}

// querier is a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// unfinished counts what somebody still has to do with. Both counts are read off a partial index.
func unfinished(ctx context.Context, q querier, partition string) (int64, error) {
	table := pgx.Identifier{partition}.Sanitize()
	var n int64
	err := q.QueryRow(ctx, `SELECT (SELECT count(*) FROM `+table+` WHERE status = 'TO_TREAT')
		+ (SELECT count(*) FROM `+table+` WHERE status = 'ERROR')`).Scan(&n)
	return n, err
}

// ErrUnfinished means that a partition holds tickets that are TO_TREAT or ERROR, and was kept because of them.
var ErrUnfinished = errors.New("the partition holds tickets that are TO_TREAT or ERROR")

// How often a drop is tried, and how long live traffic may have to wait behind one attempt.
const (
	dropAttempts    = 5
	dropLockTimeout = 2 * time.Second
)

// DropPartition drops a partition with all its tickets. Unless evenUnfinished, one that holds a ticket that is TO_TREAT
// or ERROR at that moment is kept (ErrUnfinished). The lock that it needs stops all traffic for as long as it waits, so
// it waits for seconds only, and tries again a few times.
func (s *Store) DropPartition(ctx context.Context, name string, evenUnfinished bool) error {
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return dropPartition(ctx, tx, name, evenUnfinished) })
		var pgErr *pgconn.PgError
		busy := errors.As(err, &pgErr) && (pgErr.Code == "55P03" || pgErr.Code == "40P01")
		switch {
		case err == nil || errors.Is(err, ErrUnfinished):
			return err
		case !busy || attempt == dropAttempts || ctx.Err() != nil:
			return explain("drop partition "+name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(attempt) * dropLockTimeout / 2):
		}
	}
}

func dropPartition(ctx context.Context, tx pgx.Tx, name string, evenUnfinished bool) error {
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, dropLockTimeout.Milliseconds())); err != nil {
		return err
	}
	// The parent first, as writers do: from here on nothing comes in, and nothing is treated.
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY tickets IN ACCESS EXCLUSIVE MODE`); err != nil {
		return err
	}
	if !evenUnfinished {
		n, err := unfinished(ctx, tx, name)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("partition %s: %w: %d of them", name, ErrUnfinished, n)
		}
	}
	_, err := tx.Exec(ctx, `DROP TABLE `+pgx.Identifier{name}.Sanitize())
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

// DeleteExpiredKeys deletes the idempotency keys that have expired, and returns how many.
func (s *Store) DeleteExpiredKeys(ctx context.Context) (int64, error) {
	var total int64
	for {
		tag, err := s.pool.Exec(ctx, `
			DELETE FROM deliveries d USING (
				SELECT source, key FROM deliveries WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
			) e WHERE d.source = e.source AND d.key = e.key`, keyBatch)
		if err != nil {
			return total, explain("delete expired idempotency keys", err)
		}
		total += tag.RowsAffected()
		if tag.RowsAffected() < keyBatch {
			return total, nil
		}
	}
}
