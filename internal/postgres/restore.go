package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/archive"
)

// ErrRangeTaken means that a part cannot be put back, because too much of its time is in tickets.
var ErrRangeTaken = fmt.Errorf("tickets has a partition for that time with more than %d tickets or %d MiB, or one that another "+
	"part was restored to, so the part cannot be put back beside it; single tickets can be had with "+
	"\"myticket tickets show ID\"", maxUnfinished, maxUnfinishedBytes>>20)

// restoredColumns are the columns of tickets that Restoring.Add writes.
var restoredColumns = []string{
	"id", "received_at", "source", "status", "order_number", "vat", "total", "problems", "extra", "lines", "content_type",
	"traceparent", "version", "parser_version", "dialect", "attempts", "claims", "next_attempt_at", "problem_group", "correction",
	"body",
}

// Restoring is a table that a part is put back into. It is no part of tickets yet.
type Restoring struct {
	store *Store
	part  archive.Part
	name  string
	table string // quoted
	rows  [][]any
	bytes int
	n     int64
}

// BeginRestore makes the table for a part, and drops what an attempt before left.
func (s *Store) BeginRestore(ctx context.Context, holder uuid.UUID, p archive.Part) (*Restoring, error) {
	r := &Restoring{store: s, part: p, name: "tickets_restoring_" + strings.ToLower(strings.ReplaceAll(p.Name, "-", "_"))}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := stillHolds(ctx, tx, holder); err != nil {
			return err
		}
		up := upkeep{Tx: tx}
		if err := up.QueryRow(ctx, defaultPartition).Scan(&up.schema, &up.partition, &up.defaultName); err != nil {
			return err
		}
		r.table = up.table(r.name)
		return up.run(ctx, `DROP TABLE IF EXISTS `+r.table, `CREATE TABLE `+r.table+` (LIKE tickets INCLUDING ALL)`)
	})
	return r, explainArchive("make a table to restore part "+p.Name, err)
}

// DetachedPart returns the table of a part that was detached and is not dropped yet, which Attach puts back. It is not changed.
func (s *Store) DetachedPart(ctx context.Context, p archive.Part) (r *Restoring, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		table, err := s.partTable(ctx, tx, p)
		r = &Restoring{store: s, part: p, name: p.Table, table: table}
		return err
	})
	return r, explainArchive("restore part "+p.Name, err)
}

// Add adds a ticket.
func (r *Restoring) Add(ctx context.Context, t *archive.Ticket) error {
	asJSON := func(text *string) any {
		if text == nil {
			return nil
		}
		return json.RawMessage(*text)
	}
	r.rows = append(r.rows, []any{
		t.ID, t.ReceivedAt, t.Source, t.Status, t.OrderNumber, t.VAT, t.Total, asJSON(t.Problems), asJSON(t.Extra),
		asJSON(t.StoredLines), t.ContentType, t.Traceparent, t.Version, t.ParserVersion, t.Dialect,
		t.Attempts, t.Claims, t.NextAttemptAt, t.ProblemGroup,
		t.Correction, append([]byte{}, t.Body...),
	})
	if r.bytes += len(t.Body); len(r.rows) >= pieceTickets || r.bytes >= pieceBytes {
		return r.flush(ctx)
	}
	return nil
}

func (r *Restoring) flush(ctx context.Context) error {
	if len(r.rows) == 0 {
		return nil
	}
	n, err := r.store.pool.CopyFrom(ctx, pgx.Identifier{r.name}, restoredColumns, pgx.CopyFromRows(r.rows))
	r.n += n
	r.rows, r.bytes = r.rows[:0], 0
	return explain("restore part "+r.part.Name, err)
}

// Attach makes the table a partition of tickets, and notes that the part is restored. Tickets of that time that are there, such
// as those that were kept because they were unfinished, go into it, if they are few. All traffic waits for that, for at most 2 s
// at a time.
func (r *Restoring) Attach(ctx context.Context, by Person, holder uuid.UUID, corrections []archive.Correction) error {
	if err := r.flush(ctx); err != nil {
		return err
	}
	if r.part.State == archive.Archived && r.n != r.part.Tickets {
		return fmt.Errorf("part %s has %d tickets, and %d were restored: nothing was attached", r.part.Name, r.part.Tickets, r.n)
	}
	s, p := r.store, r.part
	bounds := fmt.Sprintf(`received_at IS NOT NULL AND received_at < '%s'`, p.To.UTC().Format(time.RFC3339Nano))
	from := "MINVALUE"
	covers := span{always.from, p.To}
	if p.From != nil {
		from = "'" + p.From.UTC().Format(time.RFC3339Nano) + "'"
		bounds += ` AND received_at >= ` + from
		covers.from = *p.From
	}
	if err := r.constrain(ctx, holder, bounds); err != nil {
		return explainArchive("restore part "+p.Name, err)
	}
	err := patiently(ctx, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if err := stillHolds(ctx, tx, holder); err != nil {
				return err
			}
			for _, c := range corrections {
				_, err := tx.Exec(ctx, `INSERT INTO corrections (ticket_received_at, ticket_id, number, text, created_at, who, why)
					VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`, c.ReceivedAt, c.TicketID, c.Number, c.Text, c.At, c.Who, c.Why)
				if err != nil {
					return err
				}
			}
			err := audit(ctx, tx, AuditEntry{
				Who: by.Who, Why: by.Why, Action: ActionRestore, Tickets: int(r.n), Details: map[string]any{"part": p.Name},
			})
			if err != nil {
				return err
			}
			return r.attach(ctx, tx, covers, from)
		})
	})
	if errors.Is(err, ErrRangeTaken) {
		return fmt.Errorf("part %s: %w", p.Name, err)
	}
	return explainArchive("restore part "+p.Name, err)
}

// constrain adds the constraint with which attaching the table does not read it while everything waits. A process that was
// stopped while it read a detached table may still have it locked, and whoever looks for a ticket there would wait behind this.
func (r *Restoring) constrain(ctx context.Context, holder uuid.UUID, bounds string) error {
	err := patiently(ctx, func() error {
		return pgx.BeginFunc(ctx, r.store.pool, func(tx pgx.Tx) error {
			if err := stillHolds(ctx, tx, holder); err != nil {
				return err
			}
			return upkeep{Tx: tx}.run(ctx,
				fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, dropLockTimeout.Milliseconds()),
				`ALTER TABLE `+r.table+` DROP CONSTRAINT IF EXISTS restored, ADD CONSTRAINT restored CHECK (`+bounds+`) NOT VALID`)
		})
	})
	if err != nil {
		return err
	}
	_, err = r.store.pool.Exec(ctx, `ALTER TABLE `+r.table+` VALIDATE CONSTRAINT restored`) // others may read it meanwhile
	return err
}

func (r *Restoring) attach(ctx context.Context, tx pgx.Tx, covers span, from string) error {
	settings := fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'; SET LOCAL idle_in_transaction_session_timeout = '5s';
		SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'`, dropLockTimeout.Milliseconds())
	if _, err := tx.Exec(ctx, settings); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(partitionLock)); err != nil {
		return err
	}
	up := upkeep{Tx: tx}
	if err := up.QueryRow(ctx, defaultPartition).Scan(&up.schema, &up.partition, &up.defaultName); err != nil {
		return err
	}
	all, err := up.partitions(ctx, "tickets")
	if err != nil {
		return err
	}
	var inside []partition
	quiet := up.partition
	for _, p := range all {
		if !p.from.Before(covers.to) || !covers.from.Before(p.to) {
			continue
		}
		var restored bool
		err := up.QueryRow(ctx, `SELECT EXISTS (SELECT FROM archives WHERE state = 'restored' AND table_name = $1)`, p.plain).
			Scan(&restored)
		if err != nil {
			return err
		}
		if restored || p.from.Before(covers.from) || p.to.After(covers.to) {
			return ErrRangeTaken
		}
		inside = append(inside, p)
		if quiet != "" {
			quiet += ", ONLY "
		}
		quiet += p.table
	}
	var statements []string
	if quiet != "" {
		statements = append(statements, `LOCK TABLE ONLY `+quiet+` IN SHARE UPDATE EXCLUSIVE MODE`)
	}
	statements = append(statements, `LOCK TABLE ONLY tickets IN ACCESS EXCLUSIVE MODE`)
	if quiet != "" {
		statements = append(statements, `LOCK TABLE ONLY `+quiet+` IN ACCESS EXCLUSIVE MODE`)
	}
	if err := up.run(ctx, statements...); err != nil {
		return err
	}
	columns, err := up.columns(ctx, r.table)
	if err != nil {
		return err
	}
	move := func(table, which string) error {
		return up.run(ctx,
			fmt.Sprintf(`DELETE FROM %s r USING %s p WHERE %s AND r.received_at = p.received_at AND r.id = p.id`, r.table, table, which),
			fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s FROM %s p WHERE %s`, r.table, columns, columns, table, which))
	}
	for _, p := range inside {
		var n, size int64
		counted := fmt.Sprintf(`SELECT count(*), coalesce(sum(octet_length(body)), 0) FROM (SELECT body FROM %s LIMIT %d) t`,
			p.table, maxUnfinished+1)
		if err := up.QueryRow(ctx, counted).Scan(&n, &size); err != nil {
			return err
		}
		if n > maxUnfinished || size > maxUnfinishedBytes {
			return ErrRangeTaken
		}
		if err := move(p.table, "true"); err != nil {
			return err
		}
		if err := up.run(ctx, `ALTER TABLE tickets DETACH PARTITION `+p.table, `DROP TABLE `+p.table); err != nil {
			return err
		}
	}
	if up.partition != "" {
		if _, tooMuch, err := up.load(ctx, covers); err != nil || tooMuch {
			return errors.Join(err, ErrRangeTaken)
		}
		which := fmt.Sprintf(`p.received_at >= '%s' AND p.received_at < '%s'`,
			covers.from.UTC().Format(time.RFC3339Nano), covers.to.UTC().Format(time.RFC3339Nano))
		if r.part.From == nil {
			which = fmt.Sprintf(`p.received_at < '%s'`, covers.to.UTC().Format(time.RFC3339Nano))
		}
		if err := move(up.partition, which); err != nil {
			return err
		}
		if err := up.run(ctx, `DELETE FROM `+up.partition+` p WHERE `+which); err != nil {
			return err
		}
	}
	name, err := up.freeName(ctx, keptName(OldPartition{From: r.part.From, To: r.part.To}), 0)
	if err != nil {
		return err
	}
	done, err := tx.Exec(ctx, `UPDATE archives SET state = 'restored', restored_at = now(), table_name = $2,
			verified_at = CASE WHEN state = 'archived' THEN verified_at END -- see archive.Part.InArchive
		WHERE part = $1 AND state = $3`,
		r.part.Name, name, r.part.State)
	if err == nil && done.RowsAffected() == 0 {
		return archive.ErrHeld
	}
	if err != nil {
		return err
	}
	return up.run(ctx,
		`COMMENT ON TABLE `+r.table+` IS NULL`,
		`ALTER TABLE `+r.table+` RENAME TO `+pgx.Identifier{name}.Sanitize(),
		fmt.Sprintf(`ALTER TABLE tickets ATTACH PARTITION %s FOR VALUES FROM (%s) TO ('%s')`, up.table(name), from,
			covers.to.UTC().Format(time.RFC3339Nano)),
		`ALTER TABLE `+up.table(name)+` DROP CONSTRAINT restored`)
}

// MissingTickets returns how many of some tickets are not in tickets.
func (s *Store) MissingTickets(ctx context.Context, ids []uuid.UUID, times []time.Time) (missing int64, err error) {
	err = s.pool.QueryRow(ctx, `SELECT count(*) FROM unnest($1::uuid[], $2::timestamptz[]) w (id, at)
		WHERE NOT EXISTS (SELECT FROM tickets t WHERE t.received_at = w.at AND t.id = w.id)`, ids, times).Scan(&missing)
	return missing, explain("look for restored tickets", err)
}

// ReleasePart forgets a restored part, which the archive must not have any more, or is gone for good. Its partition is archived
// again by the next run. The audit keeps its runs, for ReleasedRuns.
func (s *Store) ReleasePart(ctx context.Context, by Person, holder uuid.UUID, p archive.Part, gone bool) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := stillHolds(ctx, tx, holder); err != nil {
			return err
		}
		done, err := tx.Exec(ctx, `DELETE FROM archives WHERE part = $1 AND state = 'restored'`, p.Name)
		if err == nil && done.RowsAffected() == 0 {
			return archive.ErrHeld
		}
		if err != nil {
			return err
		}
		return audit(ctx, tx, AuditEntry{
			Who: by.Who, Why: by.Why, Action: ActionRelease, Tickets: int(p.Tickets),
			Details: map[string]any{"part": p.Name, "runs": p.Runs, "archive_gone": gone},
		})
	})
	return explainArchive("release part "+p.Name, err)
}

// ReleasedRuns returns the attempts of all parts that were released, by the names of those. What they write after that counts for
// nothing.
func (s *Store) ReleasedRuns(ctx context.Context) (map[string][]uuid.UUID, error) {
	released := map[string][]uuid.UUID{}
	err := s.atLeisure(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT details->>'part', (jsonb_path_query(details, '$.runs[*]') #>> '{}')::uuid FROM audit
			WHERE action = $1 AND jsonb_typeof(details->'runs') = 'array'`, ActionRelease)
		if err != nil {
			return err
		}
		var part string
		var run uuid.UUID
		_, err = pgx.ForEachRow(rows, []any{&part, &run}, func() error {
			released[part] = append(released[part], run)
			return nil
		})
		return err
	})
	return released, explain("look which runs of the archive were released", err)
}
