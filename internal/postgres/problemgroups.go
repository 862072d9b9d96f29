package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// groupsLock is the advisory lock of the one process that groups what the version before stored. The number is arbitrary.
const groupsLock = 0x6d79746772707321

// fillLimit bounds a transaction of fillGroups.
const fillLimit = 500

// inOrderOfIndex makes Postgres read the index tickets_problem_group in its order. It knows nothing about a new column before an
// ANALYZE, and may read all ERROR tickets by another index and sort them.
const inOrderOfIndex = `SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off`

// ungroupedTickets has the order of the index.
const ungroupedTickets = `
SELECT received_at, id, problems FROM tickets
WHERE status = 'ERROR' AND ` + byGroup + ` AND problem_group IS NULL
ORDER BY problem_group, source, received_at LIMIT $1 FOR UPDATE SKIP LOCKED`

// anyUngrouped is whether there is one.
const anyUngrouped = `
SELECT EXISTS (SELECT FROM (
    SELECT FROM tickets WHERE status = 'ERROR' AND ` + byGroup + ` AND problem_group IS NULL
    ORDER BY problem_group, source, received_at LIMIT 1) t)`

// groupProblems makes the index tickets_problem_group where a migration did not, and groups the tickets that the version before
// stored. If another process does this, it leaves it to that one.
func (m *Maintainer) groupProblems(ctx context.Context) (more bool, err error) {
	s := m.store
	if ungrouped, err := s.ungrouped(ctx); err != nil || !ungrouped {
		return false, err
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return false, fmt.Errorf("group problems: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // this ends its lock, too
	var mine bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(groupsLock)).Scan(&mine); err != nil || !mine {
		return false, err
	}
	for ctx.Err() == nil {
		index, err := missingIndex(ctx, conn)
		if err != nil {
			return false, err
		}
		if index == nil {
			break
		}
		start := time.Now()
		if err := makeIndex(ctx, conn, *index); err != nil {
			return false, err
		}
		s.logger.Info("made an index for grouping problems", "partition", index.partition, "seconds", time.Since(start).Seconds())
	}
	changed := map[string]bool{}
	for filled := fillLimit; filled == fillLimit && ctx.Err() == nil; {
		start := time.Now()
		partitions, err := fillGroups(ctx, conn)
		if err != nil {
			return false, err
		}
		filled = len(partitions)
		for _, partition := range partitions {
			changed[partition] = true
		}
		pause(ctx, 3*time.Since(start)) // live tickets come first
	}
	return false, vacuum(ctx, conn, slices.Sorted(maps.Keys(changed)))
}

// vacuum lets Problems count from the index alone what fillGroups has changed. Autovacuum never comes to an old partition of
// which less than a fifth changed. It is as slow as autovacuum is by default. A partition that this role does not own is passed
// over.
func vacuum(ctx context.Context, conn *pgx.Conn, partitions []string) error {
	if _, err := conn.Exec(ctx, `SET vacuum_cost_delay = '2ms'`); err != nil {
		return err
	}
	for _, partition := range partitions {
		if _, err := conn.Exec(ctx, `VACUUM (SKIP_LOCKED) `+partition); err != nil {
			return fmt.Errorf("vacuum %s: %w", partition, err)
		}
	}
	return nil
}

// ungrouped reports whether there is something to do for groupProblems.
func (s *Store) ungrouped(ctx context.Context) (ungrouped bool, err error) {
	if index, err := missingIndex(ctx, s.pool); err != nil || index != nil {
		return true, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, inOrderOfIndex); err != nil {
			return err
		}
		return tx.QueryRow(ctx, anyUngrouped).Scan(&ungrouped)
	})
	if err != nil {
		return false, fmt.Errorf("look for tickets that the version before stored: %w", err)
	}
	return ungrouped, nil
}

// connect makes a connection beside the pool, because those of the pool may not be taken from tickets for long.
func (s *Store) connect(ctx context.Context) (*pgx.Conn, error) {
	config := s.pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, err
	}
	if err := prepareSession(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// partitionIndex is an index that a partition lacks.
type partitionIndex struct {
	partition, schema string // as in a statement
	name              string
	there             bool // it is there, but not attached, and maybe not complete
	valid             bool
}

// missingIndex returns the index that the newest partition without one lacks; nil if none does.
func missingIndex(ctx context.Context, conn querier) (*partitionIndex, error) {
	var index partitionIndex
	err := conn.QueryRow(ctx, `
		SELECT p.partition, p.schema, p.name, i.indexrelid IS NOT NULL, coalesce(i.indisvalid, false)
		FROM (SELECT c.oid, c.oid::regclass::text AS partition, quote_ident(n.nspname) AS schema, c.relname, c.relnamespace,
		             convert_from(substr(convert_to(c.relname, 'UTF8'), 1, 45), 'UTF8') || '_problem_group' AS name
		      FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		      WHERE h.inhparent = 'tickets'::regclass AND c.relkind = 'r') p
		LEFT JOIN pg_class ic ON ic.relname = p.name AND ic.relnamespace = p.relnamespace
		LEFT JOIN pg_index i ON i.indexrelid = ic.oid AND i.indrelid = p.oid
		WHERE NOT EXISTS (SELECT FROM pg_inherits ih JOIN pg_index a ON a.indexrelid = ih.inhrelid
		                  WHERE ih.inhparent = 'tickets_problem_group'::regclass AND a.indrelid = p.oid)
		ORDER BY p.relname DESC LIMIT 1`).Scan(&index.partition, &index.schema, &index.name, &index.there, &index.valid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, fmt.Errorf("look for partitions without the index of problems: %w", err)
	}
	return &index, nil
}

// makeIndex makes the index of a partition while tickets are stored in it. What an earlier attempt left that was cut short is
// dropped first.
func makeIndex(ctx context.Context, conn *pgx.Conn, index partitionIndex) error {
	name := pgx.Identifier{index.name}.Sanitize()
	var statements []string
	if index.there && !index.valid {
		statements = append(statements, fmt.Sprintf(`DROP INDEX CONCURRENTLY %s.%s`, index.schema, name))
	}
	if !index.valid {
		statements = append(statements, fmt.Sprintf(`CREATE INDEX CONCURRENTLY %s ON %s (problem_group, source, received_at)
			WHERE status = 'ERROR' AND `+byGroup, name, index.partition))
	}
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("make the index of problems of %s: %w", index.partition, err)
		}
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		return upkeep{Tx: tx}.run(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, lockTimeout.Milliseconds()),
			fmt.Sprintf(`ALTER INDEX tickets_problem_group ATTACH PARTITION %s.%s`, index.schema, name))
	})
	if err != nil {
		return fmt.Errorf("attach the index of problems of %s: %w", index.partition, err)
	}
	return nil
}

// fillGroups groups some tickets that the version before stored, and returns the partition of each. It passes over those that
// another session changes.
func fillGroups(ctx context.Context, conn *pgx.Conn) (partitions []string, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// It acknowledges no ticket, so it need not wait for standbys.
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = 'local'; `+inOrderOfIndex); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, ungroupedTickets, fillLimit)
		if err != nil {
			return err
		}
		var times []time.Time
		var ids []uuid.UUID
		var groups []int64
		var at time.Time
		var id uuid.UUID
		var problems []ticket.Problem
		_, err = pgx.ForEachRow(rows, []any{&at, &id, &problems}, func() error {
			times, ids, groups = append(times, at), append(ids, id), append(groups, int64(ticket.GroupOf(problems)))
			problems = nil
			return nil
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		rows, err = tx.Query(ctx, `UPDATE tickets t SET problem_group = i.problem_group
			FROM unnest($1::timestamptz[], $2::uuid[], $3::int8[]) AS i (received_at, id, problem_group)
			WHERE t.received_at = i.received_at AND t.id = i.id
			RETURNING t.tableoid::regclass::text`, times, ids, groups)
		if err != nil {
			return err
		}
		partitions, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("group the tickets that the version before stored: %w", err)
	}
	return partitions, nil
}
