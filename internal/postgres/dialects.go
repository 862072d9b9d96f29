package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// OtherSources is the source of the dialect that counts for all sources that have none of their own.
const OtherSources = "*"

// MaxDialects is how many sources may have a dialect. Each server keeps all of them.
const MaxDialects = 1000

// The actions of the audit that change dialects.
const (
	ActionApplyDialect  = "dialects.apply"
	ActionRevertDialect = "dialects.revert"
)

// DialectVersion is a version of the dialect of a source. It never changes.
type DialectVersion struct {
	Version   int             `json:"version"`
	Source    string          `json:"source"`   // OtherSources for all that have none of their own
	Dialect   json.RawMessage `json:"dialect"`  // as package dialect reads it; null if this version took the dialect away
	Previous  int             `json:"previous"` // the version that counted before; 0 for none
	CreatedAt time.Time       `json:"created_at"`
	Who       string          `json:"who"`
	Why       string          `json:"why"`
}

// Errors of what changes dialects.
var (
	// ErrDialectChanged means that another version counts than the person saw. Nothing was changed.
	ErrDialectChanged = errors.New("the dialect was changed meanwhile, and nothing was changed now: look at it, then try again")
	// ErrNoDialect means that there is no such version.
	ErrNoDialect = errors.New("no such version of a dialect")
)

const selectDialects = `
SELECT version, source, dialect::text, coalesce(previous, 0), created_at, who, why FROM dialects`

// selectCurrent selects the version that counts of each source that has a dialect.
const selectCurrent = `
SELECT * FROM (
    SELECT DISTINCT ON (source) version, source, dialect::text AS dialect, coalesce(previous, 0), created_at, who, why
    FROM dialects ORDER BY source, version DESC
) d WHERE dialect IS NOT NULL ORDER BY source`

func scanDialect(row pgx.CollectableRow) (DialectVersion, error) {
	var v DialectVersion
	var written *string
	err := row.Scan(&v.Version, &v.Source, &written, &v.Previous, &v.CreatedAt, &v.Who, &v.Why)
	if written != nil {
		v.Dialect = json.RawMessage(*written)
	}
	v.CreatedAt = v.CreatedAt.UTC()
	return v, err
}

func (s *Store) dialectVersions(ctx context.Context, doing, sql string, args ...any) ([]DialectVersion, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, explain(doing, err)
	}
	versions, err := pgx.CollectRows(rows, scanDialect)
	return versions, explain(doing, err)
}

// Dialects returns the dialects that count, ordered by source.
func (s *Store) Dialects(ctx context.Context) ([]DialectVersion, error) {
	return s.dialectVersions(ctx, "list dialects", selectCurrent)
}

// DialectHistory returns up to limit versions of the dialect of a source, the newest first.
func (s *Store) DialectHistory(ctx context.Context, source string, limit int) ([]DialectVersion, error) {
	return s.dialectVersions(ctx, "list the versions of a dialect",
		selectDialects+` WHERE source = $1 ORDER BY version DESC LIMIT $2`, source, limit)
}

// Dialect returns a version, or ErrNoDialect.
func (s *Store) Dialect(ctx context.Context, version int) (DialectVersion, error) {
	found, err := s.dialectVersions(ctx, "show a dialect", selectDialects+` WHERE version = $1`, version)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("version %d: %w", version, ErrNoDialect)
	}
	if err != nil {
		return DialectVersion{}, err
	}
	return found[0], nil
}

// DialectChange is what a person wants to count for a source from now on.
type DialectChange struct {
	Source   string
	Previous int // the version that the person saw, which must still be the newest of the source; 0 for none
	By       Person
}

// lockDialects makes changes wait for each other, so that versions are committed in their order, and a server that has seen one
// has seen all before it.
const lockDialects = `SELECT pg_advisory_xact_lock(hashtext('myticket_dialects'))`

const insertDialect = `
INSERT INTO dialects (source, dialect, previous, who, why) VALUES ($1, $2::jsonb, nullif($3, 0), $4, $5)
RETURNING version, source, dialect::text, coalesce(previous, 0), created_at, who, why`

// dialectsChannel is where a change is told to servers.
const dialectsChannel = "myticket_dialects"

// countSources counts the other sources that have a dialect.
const countSources = `
SELECT count(*) FROM (
    SELECT DISTINCT ON (source) source, dialect FROM dialects ORDER BY source, version DESC
) d WHERE dialect IS NOT NULL AND source <> $1`

// ApplyDialect makes a dialect count for a source. It is in the form that package dialect writes for the database. Servers use it
// within seconds.
func (s *Store) ApplyDialect(ctx context.Context, c DialectChange, written []byte) (DialectVersion, error) {
	if _, err := newReader(written); err != nil {
		return DialectVersion{}, fmt.Errorf("nothing was changed: %w", err)
	}
	return s.changeDialect(ctx, c, ActionApplyDialect, written, map[string]any{})
}

// RevertDialect makes the content of an earlier version of the source count again, as a new version. To is that version; 0 for
// the one before the present one. If there was none before, the source has no dialect of its own any more.
func (s *Store) RevertDialect(ctx context.Context, c DialectChange, to int) (DialectVersion, error) {
	if c.Previous == 0 {
		return DialectVersion{}, fmt.Errorf("the source %s never had a dialect: %w", c.Source, ErrNoDialect)
	}
	if to == 0 {
		now, err := s.Dialect(ctx, c.Previous)
		if err != nil {
			return DialectVersion{}, err
		}
		to = now.Previous
	}
	var earlier DialectVersion
	if to != 0 {
		var err error
		if earlier, err = s.Dialect(ctx, to); err != nil {
			return DialectVersion{}, err
		}
		if earlier.Source != c.Source {
			return DialectVersion{}, fmt.Errorf("version %d is of the source %s and not of %s; nothing was changed: %w",
				to, earlier.Source, c.Source, ErrNoDialect)
		}
	}
	return s.changeDialect(ctx, c, ActionRevertDialect, earlier.Dialect, map[string]any{"to": to})
}

// changeDialect adds a version. Written is nil to take the dialect away.
func (s *Store) changeDialect(
	ctx context.Context, c DialectChange, action string, written []byte, details map[string]any,
) (made DialectVersion, err error) {
	who, why := ticket.CleanText(c.By.Who, MaxWho), ticket.CleanText(c.By.Why, MaxReason)
	var content *string
	if written != nil {
		text := string(written)
		content = &text
	}
	again := false
	var refusal error
	err = s.commit(ctx, "change a dialect", func(conn *pgxpool.Conn) error {
		defer func() { again = true }()
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, lockDialects); err != nil {
				return err
			}
			newest, err := newestDialect(ctx, tx, c.Source)
			if err != nil {
				return err
			}
			if again && newest.Previous == c.Previous && newest.Who == who && newest.Why == why && newest.Version > c.Previous {
				made, refusal = newest, nil // by the attempt before, whose answer was lost
				return nil
			}
			if newest.Version != c.Previous {
				refusal = fmt.Errorf("version %d of the source %s, by %s: %w", newest.Version, c.Source, newest.Who, ErrDialectChanged)
				return nil
			}
			var others int
			if err := tx.QueryRow(ctx, countSources, c.Source).Scan(&others); err != nil {
				return err
			}
			if content != nil && others >= MaxDialects {
				refusal = fmt.Errorf("%d sources have a dialect, which is the most that servers keep; nothing was changed: "+
					"take others away, or use %q", others, OtherSources)
				return nil
			}
			rows, err := tx.Query(ctx, insertDialect, c.Source, content, c.Previous, who, why)
			if err != nil {
				return err
			}
			if made, err = pgx.CollectExactlyOneRow(rows, scanDialect); err != nil {
				return err
			}
			details["source"], details["version"], details["previous"] = made.Source, made.Version, made.Previous
			if err := audit(ctx, tx, AuditEntry{Who: who, Action: action, Why: why, Details: details}); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `SELECT pg_notify($1, '')`, dialectsChannel)
			return err
		})
	})
	if err == nil {
		err = refusal
	}
	return made, err
}

// newestDialect returns the newest version of a source; the zero value if there is none.
func newestDialect(ctx context.Context, tx pgx.Tx, source string) (DialectVersion, error) {
	rows, err := tx.Query(ctx, selectDialects+` WHERE source = $1 ORDER BY version DESC LIMIT 1`, source)
	if err != nil {
		return DialectVersion{}, err
	}
	newest, err := pgx.CollectRows(rows, scanDialect)
	if err != nil || len(newest) == 0 {
		return DialectVersion{}, err
	}
	return newest[0], nil
}
