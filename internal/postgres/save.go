package postgres

import (
	"context"
	"crypto/sha256"
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
                     order_number, vat, total, extra, lines, parser_version, attempts, next_attempt_at, claims)
SELECT unnest($1::uuid[]), unnest($2::timestamptz[]), unnest($3::text[]), unnest($4::bytea[]), unnest($5::text[]),
       unnest($6::text[]), unnest($7::text[]), unnest($8::jsonb[]), unnest($9::text[]), unnest($10::numeric[]),
       unnest($11::numeric[]), unnest($12::jsonb[]), unnest($13::jsonb[]), $14::int2, $15::int2, now() + $16::interval, $15::int2`

// insertTicketsAgain is for a batch that is sent again, because the answer to its COMMIT was lost: a ticket that is there
// already is left as it is. Looking for it costs a quarter of the statement, so a first attempt does without. Only the
// ticket's own key counts: a unique index of somebody else's must not make a ticket vanish.
const insertTicketsAgain = insertTickets + `
ON CONFLICT (received_at, id) DO NOTHING`

// claimKeys takes idempotency keys, in their order so that two batches cannot deadlock. A key is taken over by a delivery
// that was received after it had expired, however long ago that was. A row that is not taken over is locked even so, which
// waits for the standbys as a write does (https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT).
const claimKeys = `
INSERT INTO deliveries AS d (source, key, body_sha256, ticket_id, ticket_received_at, expires_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::timestamptz[], $6::timestamptz[]) AS i (source, key)
ORDER BY i.source, i.key
ON CONFLICT (source, key) DO UPDATE SET
    body_sha256 = excluded.body_sha256, ticket_id = excluded.ticket_id,
    ticket_received_at = excluded.ticket_received_at, expires_at = excluded.expires_at
WHERE excluded.ticket_received_at >= d.expires_at`

// lookUpKeys tells whose the keys are. It is a statement of its own, so that it sees what was committed while claimKeys
// waited for another transaction.
const lookUpKeys = `
SELECT d.source, d.key, d.body_sha256, d.ticket_id, d.ticket_received_at, d.expires_at, coalesce(t.status, 'TREATED'), t.problems
FROM unnest($1::text[], $2::text[]) AS i (source, key)
JOIN deliveries d ON d.source = i.source AND d.key = i.key
LEFT JOIN tickets t ON t.received_at = d.ticket_received_at AND t.id = d.ticket_id`

// Save stores entries, their products and their idempotency keys in one transaction. See intake.Store. It returns only
// when the synchronous standbys have them, however often they were sent before. A ticket that names new products beyond its
// source's rate is stored as ERROR: its Status and Problems are set (ProblemNewProducts), as are those of a ticket that is there
// already as something else.
func (s *Store) Save(ctx context.Context, entries []*intake.Entry) error {
	again := false
	gate := s.newProducts.gate()
	var done saved
	err := s.commit(ctx, "store tickets", func(conn *pgxpool.Conn) (err error) {
		defer func() { again = true }()
		done, err = s.save(ctx, conn, entries, gate, again)
		if isCode(err, "23505") && !again { // unique_violation: a ticket is there, from an attempt whose answer was lost
			done, err = s.save(ctx, conn, entries, gate, true)
		}
		return err
	})
	if err != nil {
		return err
	}
	gate.committed(done.added)
	done.tell(entries)
	return nil
}

// saved is what an attempt of Save has done.
type saved struct {
	added []saying               // the products that were not there before
	there map[uuid.UUID]standing // what the tickets are, where some were there already; nil where none was
}

// standing is what a stored ticket is.
type standing struct {
	status   ticket.Status
	problems []ticket.Problem
}

// tell writes into entries what they are stored as, and into those that repeat another one of them what that is stored as.
// Before the commit neither is certain.
func (s saved) tell(entries []*intake.Entry) {
	own := make(map[uuid.UUID]*ticket.Ticket, len(entries))
	for _, e := range entries {
		if e.Original != nil || e.KeyReused {
			continue
		}
		own[e.Ticket.ID] = &e.Ticket
		if is, ok := s.there[e.Ticket.ID]; ok {
			e.Ticket.Status, e.Ticket.Problems = is.status, is.problems
		}
	}
	for _, e := range entries {
		if e.Original == nil {
			continue
		}
		if t := own[e.Original.ID]; t != nil {
			e.Original.Status, e.Original.Problems = t.Status, t.Problems
		}
	}
}

// save is one attempt of Save.
func (s *Store) save(
	ctx context.Context, conn *pgxpool.Conn, entries []*intake.Entry, gate *gate, again bool,
) (done saved, err error) {
	keyed := slices.ContainsFunc(entries, func(e *intake.Entry) bool { return e.Key != "" })
	if !keyed && !again {
		done.added, err = s.insert(ctx, conn.Conn(), entries, gate)
		return done, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
		fresh := entries
		if keyed {
			fresh, err = claim(ctx, tx, entries)
		}
		switch {
		case err != nil || len(fresh) == 0:
		case again:
			done, err = s.insertAgain(ctx, tx, fresh, gate)
		default:
			done.added, err = s.insert(ctx, tx.Conn(), fresh, gate)
		}
		return err
	})
	return done, err
}

// How long a call goes on trying before it says that the database is away: long enough for a connection that broke
// while it was idle, short enough that senders are told within a second.
const (
	retryFor   = 500 * time.Millisecond
	retryPause = 20 * time.Millisecond
)

// retry runs a transaction that is safe to run again. It is run again at once when it lost against another one, and for
// a moment when the connection broke, on a connection of a pool that was reset. One that no standby has is run again until
// ctx ends: each time it waits for them anew.
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
		again = again && time.Since(start) <= retryFor || errors.Is(err, errUnreplicated)
		if !again || ctx.Err() != nil {
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
func (s *Store) insert(ctx context.Context, conn *pgx.Conn, entries []*intake.Entry, gate *gate) (added []saying, err error) {
	if err := gate.stop(ctx, conn, entries); err != nil {
		return nil, err
	}
	batch, err := insertBatch(ctx, conn, insertTickets, entries)
	if err != nil {
		return nil, err
	}
	sayings := s.distinctProducts(entries)
	if len(sayings) > 0 {
		products, err := conn.Prepare(ctx, upsertProducts, upsertProducts)
		if err != nil {
			return nil, err
		}
		batch.ExecPrepared(products.Name, s.productParams(sayings), productFormats, nil)
	}
	added, _, err = s.send(ctx, conn, insertTickets, batch, sayings)
	return added, err
}

// insertBatch returns a batch of one statement, which stores tickets.
func insertBatch(ctx context.Context, conn *pgx.Conn, sql string, entries []*intake.Entry) (*pgconn.Batch, error) {
	tickets, err := conn.Prepare(ctx, sql, sql) // once a connection
	if err != nil {
		return nil, err
	}
	batch := &pgconn.Batch{}
	batch.ExecPrepared(tickets.Name, insertParams(entries), insertFormats, nil)
	return batch, nil
}

// send runs a batch of statements. It returns the products that were not there before, and what the last statement did.
func (s *Store) send(
	ctx context.Context, conn *pgx.Conn, sql string, batch *pgconn.Batch, sayings []saying,
) (added []saying, last pgconn.CommandTag, err error) {
	if s.queries == nil {
		return readAdded(conn.PgConn().ExecBatch(ctx, batch), sayings)
	}
	// pgx tells the tracer of its own queries, not of those of the protocol. It is one round trip, and so one span.
	ctx = s.queries.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: sql})
	added, last, err = readAdded(conn.PgConn().ExecBatch(ctx, batch), sayings)
	s.queries.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{Err: err})
	return added, last, err
}

const selectStandings = `
SELECT t.id, t.status, t.problems
FROM unnest($1::timestamptz[], $2::uuid[]) AS i (received_at, id)
JOIN tickets t ON t.received_at = i.received_at AND t.id = i.id`

// insertAgain is insert for tickets of which some may be there already. Those are what was stored, even where they would be
// read or judged otherwise now (another version of the parser, another moment for the limit of new products): one that was
// not stored as TREATED says nothing about products.
func (s *Store) insertAgain(ctx context.Context, tx pgx.Tx, entries []*intake.Entry, gate *gate) (done saved, err error) {
	conn := tx.Conn()
	if err := gate.stop(ctx, conn, entries); err != nil {
		return done, err
	}
	batch, err := insertBatch(ctx, conn, insertTicketsAgain, entries)
	if err != nil {
		return done, err
	}
	lock, err := conn.Prepare(ctx, lockTicket, lockTicket)
	if err != nil {
		return done, err
	}
	t := &entries[0].Ticket
	batch.ExecPrepared(lock.Name, [][]byte{appendTime(nil, t.ReceivedAt), t.ID[:]}, []int16{formatBinary, formatBinary}, nil)
	_, locked, err := s.send(ctx, conn, insertTicketsAgain, batch, nil)
	if err != nil {
		return done, err
	}
	if locked.RowsAffected() != 1 {
		return done, errors.New("a ticket that was there already has vanished meanwhile, so nothing is certain: it must be sent again")
	}
	if done.there, err = standings(ctx, tx, entries); err != nil {
		return done, err
	}
	treated := slices.DeleteFunc(slices.Clone(entries), func(e *intake.Entry) bool {
		return done.there[e.Ticket.ID].status != ticket.Treated
	})
	if sayings := s.distinctProducts(treated); len(sayings) > 0 {
		done.added, err = s.upsert(ctx, conn, sayings)
	}
	return done, err
}

// standings returns what tickets are that are there.
func standings(ctx context.Context, tx pgx.Tx, entries []*intake.Entry) (map[uuid.UUID]standing, error) {
	times, ids := make([]time.Time, len(entries)), make([]uuid.UUID, len(entries))
	for i, e := range entries {
		times[i], ids[i] = e.Ticket.ReceivedAt, e.Ticket.ID
	}
	rows, err := tx.Query(ctx, selectStandings, times, ids)
	if err != nil {
		return nil, err
	}
	there := make(map[uuid.UUID]standing, len(entries))
	var id uuid.UUID
	var is standing
	_, err = pgx.ForEachRow(rows, []any{&id, &is.status, &is.problems}, func() error {
		there[id] = is
		is = standing{}
		return nil
	})
	return there, err
}

// claim takes the keys of the entries that have one, and returns the entries that are to be stored: those without a
// key, those whose key is theirs, and those whose key belongs to a delivery that is too far away to be the same one. What
// the others are is written into them.
//
// Two deliveries with one key are the same only if they were received less than the key's time to live apart. It is the
// servers' times that are compared, because a spool may bring either delivery here first, and long after both.
func claim(ctx context.Context, tx pgx.Tx, entries []*intake.Entry) ([]*intake.Entry, error) {
	open := map[deliveryKey][]*intake.Entry{}
	for _, e := range entries {
		e.Original, e.KeyReused = nil, false
		if e.Key != "" {
			key := deliveryKey{e.Ticket.Source, e.Key}
			open[key] = append(open[key], e)
		}
	}
	for _, same := range open {
		slices.SortStableFunc(same, func(a, b *intake.Entry) int { return compareIDs(a.Ticket.ID, b.Ticket.ID) })
	}
	for len(open) > 0 { // once, unless a batch spans the time to live of one of its keys
		known, err := claimed(ctx, tx, open)
		if err != nil {
			return nil, err
		}
		for key, same := range open {
			d, ok := known[key]
			if !ok {
				return nil, fmt.Errorf("the idempotency key %q of source %q is neither taken nor free", key.key, key.source)
			}
			if later := d.settle(same); len(later) == len(same) {
				return nil, fmt.Errorf("the idempotency key %q of source %q has expired and is not free", key.key, key.source)
			} else if len(later) > 0 {
				open[key] = later
			} else {
				delete(open, key)
			}
		}
	}
	fresh := make([]*intake.Entry, 0, len(entries))
	for _, e := range entries {
		if e.Original == nil && !e.KeyReused {
			fresh = append(fresh, e)
		}
	}
	return fresh, nil
}

type deliveryKey struct{ source, key string }

// delivery is a row of deliveries, and what became of its ticket.
type delivery struct {
	bodySHA256 []byte
	ticketID   uuid.UUID
	receivedAt time.Time
	expiresAt  time.Time
	status     ticket.Status
	problems   []ticket.Problem
}

// settle writes into entries with the delivery's key, the oldest first, what they are: nothing into those that are to be
// stored. It returns those that were received after the key had expired, for which it is to be claimed anew.
func (d delivery) settle(entries []*intake.Entry) (later []*intake.Entry) {
	var late delivery // of this batch, the last one that is to be stored without the key
	for _, e := range entries {
		switch {
		case e.Ticket.ID == d.ticketID:
		case !e.Ticket.ReceivedAt.Before(d.expiresAt):
			later = append(later, e)
		case e.KeyExpiresAt.After(d.receivedAt):
			d.repeat(e)
		default: // it is older, and comes late: the newer one keeps the key
			if e.Ticket.ReceivedAt.Before(late.expiresAt) {
				late.repeat(e)
				continue
			}
			late = delivery{bodySHA256: e.BodySHA256[:], ticketID: e.Ticket.ID, expiresAt: e.KeyExpiresAt}
		}
	}
	return later
}

// repeat notes that an entry is the same delivery, or claims to be.
func (d delivery) repeat(e *intake.Entry) {
	if [sha256.Size]byte(d.bodySHA256) != e.BodySHA256 {
		e.KeyReused = true
		return
	}
	e.Original = &intake.Receipt{ID: d.ticketID, Status: d.status, Problems: d.problems, Duplicate: true}
}

// claimed claims each key for the first of its entries, and returns whose the keys are.
func claimed(ctx context.Context, tx pgx.Tx, entries map[deliveryKey][]*intake.Entry) (map[deliveryKey]delivery, error) {
	var sources, keys []string
	var hashes [][]byte
	var ids []uuid.UUID
	var times, expiries []time.Time
	for key, same := range entries {
		e := same[0]
		sources, keys = append(sources, key.source), append(keys, key.key)
		hashes = append(hashes, e.BodySHA256[:])
		ids = append(ids, e.Ticket.ID)
		times, expiries = append(times, e.Ticket.ReceivedAt), append(expiries, e.KeyExpiresAt)
	}
	batch := &pgx.Batch{}
	batch.Queue(claimKeys, sources, keys, hashes, ids, times, expiries)
	known := make(map[deliveryKey]delivery, len(keys))
	batch.Queue(lookUpKeys, sources, keys).Query(func(rows pgx.Rows) error {
		var key deliveryKey
		var d delivery
		columns := []any{&key.source, &key.key, &d.bodySHA256, &d.ticketID, &d.receivedAt, &d.expiresAt, &d.status, &d.problems}
		_, err := pgx.ForEachRow(rows, columns, func() error {
			known[key] = d
			d = delivery{}
			return nil
		})
		return err
	})
	return known, tx.SendBatch(ctx, batch).Close()
}
