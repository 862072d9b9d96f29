package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// insertTickets stores a batch. The arrays are unnested side by side in the select list, which keeps no intermediate copy
// of the rows, as FROM unnest(…) would.
const insertTickets = `
INSERT INTO tickets (id, received_at, source, body, content_type, traceparent, status, problems,
                     order_number, vat, total, extra, lines, parser_version, attempts, next_attempt_at)
SELECT unnest($1::uuid[]), unnest($2::timestamptz[]), unnest($3::text[]), unnest($4::bytea[]), unnest($5::text[]),
       unnest($6::text[]), unnest($7::text[]), unnest($8::jsonb[]), unnest($9::text[]), unnest($10::numeric[]),
       unnest($11::numeric[]), unnest($12::jsonb[]), unnest($13::jsonb[]), $14::int2, $15::int2, $16::timestamptz`

// insertTicketsAgain is for a batch that is sent again, because the answer to its COMMIT was lost: a ticket that is there
// already is left as it is. Looking for it costs a quarter of the statement, so a first attempt does without.
const insertTicketsAgain = insertTickets + `
ON CONFLICT DO NOTHING`

// claimKeys takes the idempotency keys of a batch, in their order so that two batches cannot deadlock. A key that has
// expired is taken over.
const claimKeys = `
INSERT INTO deliveries AS d (source, key, body_sha256, ticket_id, ticket_received_at, expires_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::timestamptz[], $6::timestamptz[]) AS i (source, key)
ORDER BY i.source, i.key
ON CONFLICT (source, key) DO UPDATE SET
    body_sha256 = excluded.body_sha256, ticket_id = excluded.ticket_id,
    ticket_received_at = excluded.ticket_received_at, expires_at = excluded.expires_at
WHERE d.expires_at <= now()`

// lookUpKeys tells whose the keys are. It is a statement of its own, so that it sees what was committed while claimKeys
// waited for another transaction.
const lookUpKeys = `
SELECT d.source, d.key, d.body_sha256, d.ticket_id, coalesce(t.status, 'TREATED'), t.problems
FROM unnest($1::text[], $2::text[]) AS i (source, key)
JOIN deliveries d ON d.source = i.source AND d.key = i.key
LEFT JOIN tickets t ON t.received_at = d.ticket_received_at AND t.id = d.ticket_id`

// Save stores entries, their products and their idempotency keys in one transaction. See intake.Store. A ticket that names new
// products beyond its source's rate is stored as ERROR: its Status and Problems are set (ProblemNewProducts).
func (s *Store) Save(ctx context.Context, entries []*intake.Entry) error {
	sql := insertTickets
	gate := s.newProducts.gate()
	var added []saying
	err := s.retry(ctx, "store tickets", func() error {
		defer func() { sql = insertTicketsAgain }()
		added = nil
		return s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
			if !slices.ContainsFunc(entries, func(e *intake.Entry) bool { return e.Key != "" }) {
				added, err = s.insert(ctx, conn.Conn(), sql, entries, gate)
				return err
			}
			return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				fresh, err := claim(ctx, tx, entries)
				if err != nil || len(fresh) == 0 {
					return err
				}
				added, err = s.insert(ctx, tx.Conn(), sql, fresh, gate)
				return err
			})
		})
	})
	if err == nil {
		gate.committed(added)
	}
	return err
}

// How long a call goes on trying before it says that the database is away: long enough for a connection that broke
// while it was idle, short enough that senders are told within a second.
const (
	retryFor   = 500 * time.Millisecond
	retryPause = 20 * time.Millisecond
)

// retry runs a transaction that is safe to run again. It is run again at once when it lost against another one, and for
// a moment when the connection broke, on a connection of a pool that was reset.
func (s *Store) retry(ctx context.Context, doing string, transaction func() error) error {
	start := time.Now()
	for {
		err := transaction()
		if err == nil {
			return nil
		}
		again := transient(err)
		if broken(err) {
			s.pool.Reset()
			again = true
		}
		if !again || ctx.Err() != nil || time.Since(start) > retryFor {
			return explain(doing, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause/2 + rand.N(retryPause)):
		}
	}
}

// insert sends tickets and products in one round trip and one transaction: without a BEGIN, the statements up to the
// Sync message are a transaction (https://www.postgresql.org/docs/current/protocol-flow.html, "Pipelining"). It returns the
// products that were not there before.
func (s *Store) insert(
	ctx context.Context, conn *pgx.Conn, sql string, entries []*intake.Entry, gate *gate,
) (added []saying, err error) {
	if err := gate.stop(ctx, conn, entries); err != nil {
		return nil, err
	}
	tickets, err := conn.Prepare(ctx, sql, sql) // once a connection
	if err != nil {
		return nil, err
	}
	batch := &pgconn.Batch{}
	batch.ExecPrepared(tickets.Name, insertParams(entries), insertFormats, nil)
	sayings := s.distinctProducts(entries)
	if len(sayings) > 0 {
		products, err := conn.Prepare(ctx, upsertProducts, upsertProducts)
		if err != nil {
			return nil, err
		}
		batch.ExecPrepared(products.Name, s.productParams(sayings), productFormats, nil)
	}
	if s.queries == nil {
		return readAdded(conn.PgConn().ExecBatch(ctx, batch), sayings)
	}
	// pgx tells the tracer of its own queries, not of those of the protocol. It is one round trip, and so one span.
	ctx = s.queries.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: sql})
	added, err = readAdded(conn.PgConn().ExecBatch(ctx, batch), sayings)
	s.queries.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{Err: err})
	return added, err
}

// claim takes the keys of the entries that have one, and returns the entries that are to be stored: those without a
// key, and those whose key is theirs. What the others are is written into them.
func claim(ctx context.Context, tx pgx.Tx, entries []*intake.Entry) ([]*intake.Entry, error) {
	first := map[deliveryKey]*intake.Entry{} // by key, the first of this batch
	var sources, keys []string
	var hashes [][]byte
	var ids []uuid.UUID
	var times, expiries []time.Time
	for _, e := range entries {
		e.Original, e.KeyReused = nil, false
		key := deliveryKey{e.Ticket.Source, e.Key}
		if e.Key == "" || first[key] != nil {
			continue
		}
		first[key] = e
		sources, keys = append(sources, key.source), append(keys, key.key)
		hashes = append(hashes, e.BodySHA256[:])
		ids = append(ids, e.Ticket.ID)
		times, expiries = append(times, e.Ticket.ReceivedAt), append(expiries, e.KeyExpiresAt)
	}
	known, err := claimed(ctx, tx, sources, keys, hashes, ids, times, expiries)
	if err != nil {
		return nil, err
	}
	fresh := make([]*intake.Entry, 0, len(entries))
	for _, e := range entries {
		key := deliveryKey{e.Ticket.Source, e.Key}
		d, ok := known[key]
		switch {
		case e.Key == "" || ok && d.ticketID == e.Ticket.ID:
			fresh = append(fresh, e)
		case !ok:
			return nil, fmt.Errorf("the idempotency key %q of source %q is neither taken nor free", key.key, key.source)
		case [32]byte(d.bodySHA256) != e.BodySHA256:
			e.KeyReused = true
		default:
			if own := first[key]; own.Ticket.ID == d.ticketID { // stored by this very batch
				d.status, d.problems = own.Ticket.Status, own.Ticket.Problems
			}
			e.Original = &intake.Receipt{ID: d.ticketID, Status: d.status, Problems: d.problems, Duplicate: true}
		}
	}
	return fresh, nil
}

type deliveryKey struct{ source, key string }

// delivery is a row of deliveries, and what became of its ticket.
type delivery struct {
	bodySHA256 []byte
	ticketID   uuid.UUID
	status     ticket.Status
	problems   []ticket.Problem
}

func claimed(
	ctx context.Context, tx pgx.Tx, sources, keys []string, hashes [][]byte, ids []uuid.UUID, times, expiries []time.Time,
) (map[deliveryKey]delivery, error) {
	batch := &pgx.Batch{}
	batch.Queue(claimKeys, sources, keys, hashes, ids, times, expiries)
	known := make(map[deliveryKey]delivery, len(keys))
	batch.Queue(lookUpKeys, sources, keys).Query(func(rows pgx.Rows) error {
		var key deliveryKey
		var d delivery
		_, err := pgx.ForEachRow(rows, []any{&key.source, &key.key, &d.bodySHA256, &d.ticketID, &d.status, &d.problems}, func() error {
			known[key] = d
			d = delivery{}
			return nil
		})
		return err
	})
	return known, tx.SendBatch(ctx, batch).Close()
}

// ping writes to the write-ahead log and commits that, which waits for the disk and for synchronous standbys as the commit of
// a ticket does (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION). It changes no table.
const ping = `
SELECT read_only, CASE WHEN NOT read_only THEN pg_logical_emit_message(true, 'myticket', 'ping'::text) END IS NOT NULL
FROM (SELECT current_setting('transaction_read_only')::bool AS read_only) AS server`

// Ping tells whether the database answers, takes writes and commits them.
func (s *Store) Ping(ctx context.Context) error {
	var readOnly, wrote bool
	err := s.pool.QueryRow(ctx, ping).Scan(&readOnly, &wrote)
	if denied := (*pgconn.PgError)(nil); errors.As(err, &denied) && denied.Code == "42501" {
		return nil // it answers, and whoever runs it lets nobody write to the log by hand
	}
	if err == nil && readOnly {
		err = errors.New("the server is read-only: a standby, or a primary that was demoted")
	}
	if err != nil {
		if broken(err) || readOnly {
			s.pool.Reset()
		}
		return explain("ask the database", err)
	}
	return nil
}
