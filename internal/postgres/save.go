package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// insertTickets stores a batch. The arrays are unnested side by side in the select list. FROM unnest(…) would keep a copy of
// the rows.
const insertTickets = `
INSERT INTO tickets (id, received_at, source, body, content_type, traceparent, status, problems,
                     order_number, vat, total, extra, parser_version, attempts, next_attempt_at, claims)
SELECT unnest($1::uuid[]), unnest($2::timestamptz[]), unnest($3::text[]), unnest($4::bytea[]), unnest($5::text[]),
       unnest($6::text[]), unnest($7::text[]), unnest($8::jsonb[]), unnest($9::text[]), unnest($10::numeric[]),
       unnest($11::numeric[]), unnest($12::jsonb[]), $13::int2, $14::int2, now() + $15::interval, $14::int2`

// insertUnusual is insertTickets for a batch in which a ticket was read in a dialect of its own, or could not be read.
const insertUnusual = `
INSERT INTO tickets (id, received_at, source, body, content_type, traceparent, status, problems,
                     order_number, vat, total, extra, parser_version, attempts, next_attempt_at, claims, dialect,
                     problem_group)
SELECT unnest($1::uuid[]), unnest($2::timestamptz[]), unnest($3::text[]), unnest($4::bytea[]), unnest($5::text[]),
       unnest($6::text[]), unnest($7::text[]), unnest($8::jsonb[]), unnest($9::text[]), unnest($10::numeric[]),
       unnest($11::numeric[]), unnest($12::jsonb[]), $13::int2, $14::int2, now() + $15::interval, $14::int2, unnest($16::int4[]),
       unnest($17::int8[])`

// ifAbsent is added for a batch that is sent again because the answer to its COMMIT was lost. A ticket that is there
// already stays as it is. Looking for it costs a quarter of the statement, so the first attempt does not. Only the conflict
// on the ticket's own key is ignored: a unique index that a user added must not make a ticket vanish.
const ifAbsent = `
ON CONFLICT (received_at, id) DO NOTHING`

// Save stores a batch's tickets, their products and their idempotency keys in one transaction. See intake.Store. It returns
// only when the synchronous standbys have them, however often they were sent before. If a ticket names new products beyond
// the rate of its source, it is stored as ERROR (ProblemNewProducts).
func (s *Store) Save(ctx context.Context, b intake.Batch) (intake.Saved, error) {
	again := false
	gate := s.newProducts.gate()
	var done saved
	var sent time.Duration
	err := s.commit(ctx, "store tickets", func(conn *pgxpool.Conn) (err error) {
		defer func() { again = true }()
		sent = time.Since(s.known.start)
		done, err = s.save(ctx, conn, b, gate, again, s.news)
		if tooLate(err) { // nothing is stored; asked about all products, Postgres does not refuse it again
			s.known.forget()
			done, err = s.save(ctx, conn, b, gate, again, s.everything)
		}
		if isCode(err, uniqueViolation) && !again { // a ticket is there already, from an attempt whose answer was lost
			done, err = s.save(ctx, conn, b, gate, true, s.everything)
		}
		return err
	})
	if err != nil {
		return intake.Saved{}, err
	}
	gate.committed(done.added)
	done.seen.sent = sent
	s.known.remember(done.seen)
	s.newGroups.stored(done.rows)
	return intake.Saved{Outcomes: done.outcomes(b.Entries)}, nil
}

// saved is the result of an attempt of Save. It is valid once the transaction is committed.
type saved struct {
	rows    []row          // what is stored
	repeats map[int]repeat // the entries that are not stored because another delivery has their key, by their index
	added   []saying       // the products that were not there before
	seen    seenProducts   // the products that were asked about
}

// outcomes returns what became of each entry.
func (s saved) outcomes(entries []*intake.Entry) []intake.Outcome {
	outcomes := make([]intake.Outcome, len(entries))
	rows := s.rows
	for i, e := range entries {
		if _, ok := s.repeats[i]; !ok {
			outcomes[i] = intake.Outcome{ID: e.Ticket.ID, Status: rows[0].status, Problems: rows[0].problems}
			rows = rows[1:]
		}
	}
	for i, r := range s.repeats {
		outcomes[i] = r.outcome(s.rows)
	}
	return outcomes
}

// save is one attempt of Save. Ask returns what to ask about products.
func (s *Store) save(
	ctx context.Context, conn *pgxpool.Conn, b intake.Batch, gate *gate, again bool, ask func([]row) ([]saying, reliance),
) (done saved, err error) {
	keyed := slices.ContainsFunc(b.Entries, func(e *intake.Entry) bool { return e.Key != "" })
	if !keyed && !again {
		done.rows = rowsOf(b, nil)
		err = s.insert(ctx, conn.Conn(), b, &done, gate, ask)
		return done, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
		if keyed {
			done.repeats, err = claim(ctx, tx, b.Entries)
		}
		if err != nil {
			return err
		}
		done.rows = rowsOf(b, done.repeats)
		switch {
		case len(done.rows) == 0:
		case again:
			done.added, err = s.insertAgain(ctx, tx, b, done.rows, gate)
		default:
			err = s.insert(ctx, tx.Conn(), b, &done, gate, ask)
		}
		return err
	})
	return done, err
}

// insert sends tickets and products in one round trip and one transaction: without a BEGIN, the statements up to the Sync
// message are a transaction (https://www.postgresql.org/docs/current/protocol-flow.html, "Pipelining"). It stores done.rows, and
// sets what it learns about products.
func (s *Store) insert(
	ctx context.Context, conn *pgx.Conn, b intake.Batch, done *saved, gate *gate, ask func([]row) ([]saying, reliance),
) error {
	rows := done.rows
	if err := gate.stop(ctx, conn, rows); err != nil {
		return err
	}
	batch, sql, err := insertBatch(ctx, conn, false, b, rows)
	if err != nil {
		return err
	}
	sayings, relies := ask(rows)
	if len(sayings) > 0 {
		if err := s.queueProducts(ctx, conn, batch, sayings); err != nil {
			return err
		}
		if err := queueSeen(ctx, conn, batch, sayings); err != nil {
			return err
		}
	}
	if err := queueOutbox(ctx, conn, batch, kindStored, rows, relies); err != nil {
		return err
	}
	a, err := s.send(ctx, conn, sql, batch, sayings)
	done.added, done.seen = a.added, a.seen
	return err
}

// insertBatch returns a batch of one statement, which stores tickets, and the text of that. Again means that some may be there.
func insertBatch(
	ctx context.Context, conn *pgx.Conn, again bool, b intake.Batch, rows []row,
) (batch *pgconn.Batch, sql string, err error) {
	sql, params, formats := insertTickets, insertParams(b, rows), insertFormats
	if anyUnusual(rows) {
		sql, params, formats = insertUnusual, append(params, unusualParams(rows)...), unusualFormats
	}
	if again {
		sql += ifAbsent
	}
	tickets, err := conn.Prepare(ctx, sql, sql) // once a connection
	if err != nil {
		return nil, "", err
	}
	batch = &pgconn.Batch{}
	batch.ExecPrepared(tickets.Name, params, formats, nil)
	return batch, sql, nil
}

// send runs a batch of statements.
func (s *Store) send(
	ctx context.Context, conn *pgx.Conn, sql string, batch *pgconn.Batch, sayings []saying,
) (a answers, err error) {
	if s.queries == nil {
		return s.readAnswers(conn.PgConn().ExecBatch(ctx, batch), sayings)
	}
	// pgx traces its own queries, but not those that use the protocol directly. One round trip is one span.
	ctx = s.queries.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: sql})
	a, err = s.readAnswers(conn.PgConn().ExecBatch(ctx, batch), sayings)
	s.queries.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{Err: err})
	return a, err
}

const selectStandings = `
SELECT t.id, t.status, t.problems, t.correction IS NOT NULL, t.dialect
FROM unnest($1::timestamptz[], $2::uuid[]) AS i (received_at, id)
JOIN tickets t ON t.received_at = i.received_at AND t.id = i.id`

// insertAgain is insert for tickets of which some may be there already. Those stay as they were stored, even if they would be
// read or judged differently now (another version of the parser, another state of the limit of new products). A ticket says
// something about products only if it was stored as TREATED and would be now, in the same dialect, and nobody has corrected it
// since.
func (s *Store) insertAgain(
	ctx context.Context, tx pgx.Tx, b intake.Batch, rows []row, gate *gate,
) (added []saying, err error) {
	conn := tx.Conn()
	if err := gate.stop(ctx, conn, rows); err != nil {
		return nil, err
	}
	batch, sql, err := insertBatch(ctx, conn, true, b, rows)
	if err != nil {
		return nil, err
	}
	if err := queueOutbox(ctx, conn, batch, kindStored, rows, reliance{}); err != nil {
		return nil, err
	}
	lock, err := conn.Prepare(ctx, lockTicket, lockTicket)
	if err != nil {
		return nil, err
	}
	t := rows[0].ticket
	batch.ExecPrepared(lock.Name, [][]byte{appendTime(nil, t.ReceivedAt), t.ID[:]}, []int16{formatBinary, formatBinary}, nil)
	a, err := s.send(ctx, conn, sql, batch, nil)
	if err != nil {
		return nil, err
	}
	if a.last.RowsAffected() != 1 {
		return nil, errors.New("a ticket that was there already has vanished meanwhile, so it is not certain what is stored: " +
			"the batch must be sent again")
	}
	there, err := standings(ctx, tx, rows)
	if err != nil {
		return nil, err
	}
	var treated []row
	for i := range rows {
		is, ok := there[rows[i].ticket.ID]
		if !ok {
			continue
		}
		read := rows[i].status
		same := is.status == ticket.Treated && is.dialect == rows[i].dialect && !is.corrected
		if rows[i].standing = is.standing; read == ticket.Treated && same {
			treated = append(treated, rows[i])
		}
	}
	if sayings := s.distinctProducts(treated); len(sayings) > 0 {
		added, err = s.upsert(ctx, conn, sayings)
	}
	return added, err
}

// storedAs is what a ticket that is there is stored as.
type storedAs struct {
	standing

	dialect int // in which it was read
}

// standings returns what the tickets that are there are stored as.
func standings(ctx context.Context, tx pgx.Tx, rows []row) (map[uuid.UUID]storedAs, error) {
	times, ids := make([]time.Time, len(rows)), make([]uuid.UUID, len(rows))
	for i := range rows {
		times[i], ids[i] = rows[i].ticket.ReceivedAt, rows[i].ticket.ID
	}
	found, err := tx.Query(ctx, selectStandings, times, ids)
	if err != nil {
		return nil, err
	}
	there := make(map[uuid.UUID]storedAs, len(rows))
	var id uuid.UUID
	var is storedAs
	_, err = pgx.ForEachRow(found, []any{&id, &is.status, &is.problems, &is.corrected, &is.dialect}, func() error {
		there[id] = is
		is = storedAs{}
		return nil
	})
	return there, err
}
