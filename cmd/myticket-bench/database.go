package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"myticket/internal/lab"
	"myticket/internal/postgres"
)

// template is the database that each row's is a copy of. It has the schema and no rows.
const template = "bench"

// prepare makes the template, and says what Postgres is. It must be durable, unless a test wants it otherwise.
func (b *bench) prepare(ctx context.Context) (description string, err error) {
	if err := b.database.CreateDatabase(ctx, template); err != nil {
		return "", err
	}
	if err := postgres.MigrateUp(ctx, b.database.URL(template)); err != nil {
		return "", err
	}
	var version, fsync, commit string
	err = withConn(ctx, b.database.URL("postgres"), func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('fsync'),
			current_setting('synchronous_commit')`).Scan(&version, &fsync, &commit)
	})
	if err == nil && b.postgres["fsync"] != "off" && (fsync != "on" || commit != "on") {
		err = fmt.Errorf("fsync is %s and synchronous_commit is %s: without both there is nothing to measure", fsync, commit)
	}
	return fmt.Sprintf("PostgreSQL %s with fsync %s and synchronous_commit %s", version, fsync, commit), err
}

// database is one row's.
type database struct {
	url    string
	filled time.Time // when the product base was filled
}

// newDatabase makes the only database beside the template: without tickets, and with the products that the tickets name, if
// any. A database and not empty tables, because what a server keeps beside its tickets is then also new.
func (b *bench) newDatabase(ctx context.Context, products int) (*database, error) {
	err := withConn(ctx, b.database.URL("postgres"), func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, fmt.Sprintf(`DROP DATABASE IF EXISTS bench_%d WITH (FORCE)`, b.made)); err != nil {
			return err
		}
		b.made++
		_, err := conn.Exec(ctx, fmt.Sprintf(`CREATE DATABASE bench_%d TEMPLATE %s`, b.made, template))
		return err
	})
	if err != nil {
		return nil, err
	}
	d := &database{url: b.database.URL(fmt.Sprintf("bench_%d", b.made))}
	if products > 0 {
		if err := d.fill(ctx, products); err != nil {
			return nil, fmt.Errorf("fill the product base: %w", err)
		}
	}
	return d, d.exec(ctx, `CHECKPOINT`)
}

// exec runs statements, each in a transaction of its own.
func (d *database) exec(ctx context.Context, statements ...string) error {
	return withConn(ctx, d.url, func(conn *pgx.Conn) error {
		for _, sql := range statements {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

// fill makes the product base of a shop that has been open for a while: every product got its name and price a day ago, and was
// last seen at some moment of the last minute. So a row also pays for last_seen_at, which each product moves on once a minute.
func (d *database) fill(ctx context.Context, products int) error {
	d.filled = time.Now()
	changed := d.filled.Add(-24 * time.Hour).Truncate(time.Millisecond)
	columns := []string{"product_id", "name", "price", "first_seen_at", "changed_at", "last_seen_at", "ticket_id"}
	err := withConn(ctx, d.url, func(conn *pgx.Conn) error {
		rows := pgx.CopyFromSlice(products, func(i int) ([]any, error) {
			p := productOf(i)
			var price pgtype.Numeric
			if err := price.Scan(p.price); err != nil {
				return nil, err
			}
			seen := d.filled.Add(-rand.N(time.Minute))
			return []any{p.id, p.name, price, changed, changed, seen, [16]byte(idAt(changed))}, nil
		})
		if _, err := conn.CopyFrom(ctx, pgx.Identifier{"products"}, columns, rows); err != nil {
			return err
		}
		// A shop's table was vacuumed long ago. Otherwise autovacuum would do it during some row.
		_, err := conn.Exec(ctx, `VACUUM (ANALYZE) products`)
		return err
	})
	if err != nil {
		return err
	}
	return d.awaitSettled(ctx)
}

// idAt makes a UUIDv7 (RFC 9562, section 5.7) of a time, like a ticket's.
func idAt(at time.Time) uuid.UUID {
	id := uuid.New()
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	return id
}

// awaitSettled waits until no product is due for a second look. A change is looked at half a minute later.
func (d *database) awaitSettled(ctx context.Context) error {
	const limit = 2 * time.Minute
	return lab.Await(ctx, limit, "products to be settled", func(ctx context.Context) error {
		n, err := d.count(ctx, `SELECT count(*) FROM products WHERE unsettled_since IS NOT NULL`)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d products are not", n)
		}
		return err
	})
}

// checkStored compares what was acknowledged with what is stored, because a benchmark that loses tickets measures nothing. What
// was said about products must not have been news, if they were filled in.
func (d *database) checkStored(ctx context.Context, acked int) error {
	stored, err := d.count(ctx, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`)
	if err != nil {
		return err
	}
	if stored != acked {
		return fmt.Errorf("%d tickets were acknowledged and %d are stored and treated", acked, stored)
	}
	if d.filled.IsZero() {
		return nil
	}
	news, err := d.count(ctx, `SELECT count(*) FROM products WHERE changed_at >= $1`, d.filled)
	if err == nil && news > 0 {
		err = fmt.Errorf("%d products were new or changed: the product base was not filled with what the tickets say", news)
	}
	return err
}

// count returns the number that a query answers.
func (d *database) count(ctx context.Context, sql string, args ...any) (n int, err error) {
	err = withConn(ctx, d.url, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, sql, args...).Scan(&n) })
	return n, err
}

func withConn(ctx context.Context, url string, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(do(conn), conn.Close(context.WithoutCancel(ctx)))
}
