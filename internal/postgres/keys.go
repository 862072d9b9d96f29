package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/intake"
)

// claimKeys claims idempotency keys, in their order so that two batches cannot deadlock. A delivery takes over a key if it came
// ($7) after the key had expired, even if both are long ago. Its ticket may say that it is older. A row that is not taken over is
// locked all the same, which waits for the standbys as a write does
// (https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT).
const claimKeys = `
INSERT INTO deliveries AS d (source, key, body_sha256, ticket_id, ticket_received_at, expires_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::timestamptz[], $6::timestamptz[]) AS i (source, key)
ORDER BY i.source, i.key
ON CONFLICT (source, key) DO UPDATE SET
    body_sha256 = excluded.body_sha256, ticket_id = excluded.ticket_id,
    ticket_received_at = excluded.ticket_received_at, expires_at = excluded.expires_at
WHERE ($7::timestamptz[])[array_position($4::uuid[], excluded.ticket_id)] >= d.expires_at`

// lookUpKeys returns the deliveries that hold the keys. It is a separate statement, so that it sees what was committed while
// claimKeys waited for another transaction.
const lookUpKeys = `
SELECT d.source, d.key, d.body_sha256, d.ticket_id, d.ticket_received_at, d.expires_at, coalesce(t.status, 'TREATED'), t.problems
FROM unnest($1::text[], $2::text[]) AS i (source, key)
JOIN deliveries d ON d.source = i.source AND d.key = i.key
LEFT JOIN tickets t ON t.received_at = d.ticket_received_at AND t.id = d.ticket_id`

// claim claims the keys of the entries that have one. It returns the entries that must not be stored because another delivery
// has their key. To be stored are the entries without a key, those that hold their key, and those whose key belongs to a
// delivery that is too far away in time to be the same one.
//
// Two deliveries with one key are the same only if they came less than the key's time to live apart. The times of the servers are
// compared, because with a spool either delivery may come here first, and long after both came.
func claim(ctx context.Context, tx pgx.Tx, entries []*intake.Entry) (map[int]repeat, error) {
	open := map[deliveryKey][]claimant{}
	for i, e := range entries {
		if e.Key != "" {
			key := deliveryKey{e.Ticket.Source, e.Key}
			open[key] = append(open[key], claimant{e, i})
		}
	}
	for _, same := range open {
		slices.SortStableFunc(same, func(a, b claimant) int {
			return cmp.Or(a.Came().Compare(b.Came()), compareIDs(a.Ticket.ID, b.Ticket.ID))
		})
	}
	repeats := map[int]repeat{}
	for len(open) > 0 { // one round, unless a batch spans the time to live of one of its keys
		known, err := claimed(ctx, tx, open)
		if err != nil {
			return nil, err
		}
		for key, same := range open {
			d, ok := known[key]
			if !ok {
				return nil, fmt.Errorf("the idempotency key %q of source %q is neither taken nor free", key.key, key.source)
			}
			if later := d.settle(same, repeats); len(later) == len(same) {
				return nil, fmt.Errorf("the idempotency key %q of source %q has expired and is not free", key.key, key.source)
			} else if len(later) > 0 {
				open[key] = later
			} else {
				delete(open, key)
			}
		}
	}
	return repeats, nil
}

// claimant is an entry with a key, and its index in its batch.
type claimant struct {
	*intake.Entry
	index int
}

// repeat is what is known of an entry that has the key of another delivery.
type repeat struct {
	of       delivery
	sameBody bool
}

// outcome returns what the sender of a repeat is told. The other delivery may be in the same batch, in one of rows.
func (r repeat) outcome(rows []row) intake.Outcome {
	if !r.sameBody {
		return intake.Outcome{KeyReused: true}
	}
	is := r.of.standing
	for i := range rows {
		if rows[i].ticket.ID == r.of.ticketID {
			is = rows[i].standing
		}
	}
	return intake.Outcome{ID: r.of.ticketID, Status: is.status, Problems: is.problems, Duplicate: true}
}

type deliveryKey struct{ source, key string }

// delivery is a row of deliveries, and what became of its ticket.
type delivery struct {
	bodySHA256 []byte
	ticketID   uuid.UUID
	receivedAt time.Time
	expiresAt  time.Time
	standing
}

// settle looks at the entries that have the delivery's key, the oldest first. It adds those that repeat a delivery to repeats.
// It returns those that came after the key had expired: they must claim the key anew. The others are to be stored.
func (d delivery) settle(entries []claimant, repeats map[int]repeat) (later []claimant) {
	var late delivery // the last entry of this batch that is to be stored without the key
	for _, e := range entries {
		switch {
		case e.Ticket.ID == d.ticketID:
		case !e.Came().Before(d.expiresAt):
			later = append(later, e)
		case e.KeyExpiresAt.After(d.receivedAt):
			repeats[e.index] = d.repeatedBy(e.Entry)
		default: // the entry is older and comes late, so the newer delivery keeps the key
			if e.Came().Before(late.expiresAt) {
				repeats[e.index] = late.repeatedBy(e.Entry)
				continue
			}
			late = delivery{bodySHA256: e.BodySHA256[:], ticketID: e.Ticket.ID, expiresAt: e.KeyExpiresAt}
		}
	}
	return later
}

// repeatedBy returns an entry with the delivery's key as a repeat of it.
func (d delivery) repeatedBy(e *intake.Entry) repeat {
	return repeat{of: d, sameBody: [sha256.Size]byte(d.bodySHA256) == e.BodySHA256}
}

// claimed claims each key for the first of its entries, and returns the deliveries that hold the keys.
func claimed(ctx context.Context, tx pgx.Tx, entries map[deliveryKey][]claimant) (map[deliveryKey]delivery, error) {
	var sources, keys []string
	var hashes [][]byte
	var ids []uuid.UUID
	var times, expiries, came []time.Time
	for key, same := range entries {
		e := same[0]
		sources, keys = append(sources, key.source), append(keys, key.key)
		hashes = append(hashes, e.BodySHA256[:])
		ids = append(ids, e.Ticket.ID)
		times, expiries = append(times, e.Ticket.ReceivedAt), append(expiries, e.KeyExpiresAt)
		came = append(came, e.Came())
	}
	batch := &pgx.Batch{}
	batch.Queue(claimKeys, sources, keys, hashes, ids, times, expiries, came)
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
