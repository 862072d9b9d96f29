package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// StoredKey is an idempotency key, and the delivery that holds it.
type StoredKey struct {
	Source     string
	Key        string
	BodySHA256 [sha256.Size]byte
	TicketID   uuid.UUID
	ReceivedAt time.Time
	ExpiresAt  time.Time
}

const (
	keyPage     = 5000 // keys that are read at once
	writersWait = 30 * time.Second
	writersPoll = 50 * time.Millisecond
)

// keyWriters selects the transactions that may have stored keys and are not over. A transaction whose commit waits for a standby
// keeps its locks, and what it stored cannot be seen yet, even if its server is gone.
const keyWriters = `
SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') FROM pg_locks
WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND relation = 'deliveries'::regclass AND mode = 'RowExclusiveLock'`

const selectKeys = `
SELECT source, key, body_sha256, ticket_id, ticket_received_at, expires_at FROM deliveries
WHERE source = $1 AND key > $2 AND expires_at > now() ORDER BY key LIMIT $3`

// lockKey makes the transaction that it is in wait for the standbys, as lockTicket does.
const lockKey = `SELECT FROM deliveries WHERE source = $1 AND expires_at > now() LIMIT 1 FOR KEY SHARE`

// ErrWriters means that a transaction may yet store keys, so that an export might miss them.
var ErrWriters = errors.New("a transaction that began before is still not over (perhaps its commit waits for a standby), and " +
	"may have stored keys of the source that cannot be seen yet: no key was exported; see that the standbys run, and export again")

// ErrOnlyPrimary means that a failover may lose the keys and their tickets, which the other database would call stored.
var ErrOnlyPrimary = errors.New("no standby confirms that it has the keys and their tickets: no key was exported; see that the " +
	"standbys run, and export again")

// ExportKeys calls each with every key of a source that has not expired, in their order. It reads pages of bounded size. It
// misses no key if no server accepts tickets of the source any more: it first waits for the transactions that may have stored
// one. Then it waits for the standbys, because a key whose own wait for them was canceled can be seen, too.
func (s *Store) ExportKeys(ctx context.Context, source string, each func(StoredKey) error) error {
	if err := s.awaitKeyWriters(ctx); err != nil {
		return err
	}
	if err := s.awaitReplicatedKeys(ctx, source); err != nil {
		return err
	}
	for after := ""; ; {
		var page []StoredKey
		err := s.retry(ctx, "read idempotency keys", func() error {
			rows, err := s.pool.Query(ctx, selectKeys, source, after, keyPage)
			if err != nil {
				return err
			}
			page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (k StoredKey, err error) {
				var sum []byte
				err = row.Scan(&k.Source, &k.Key, &sum, &k.TicketID, &k.ReceivedAt, &k.ExpiresAt)
				if err == nil && len(sum) != sha256.Size {
					err = fmt.Errorf("the key %q has a hash of %d bytes, and not of %d", k.Key, len(sum), sha256.Size)
				}
				copy(k.BodySHA256[:], sum)
				return k, err
			})
			return err
		})
		if err != nil {
			return err
		}
		for _, k := range page {
			if err := each(k); err != nil {
				return err
			}
		}
		if len(page) < keyPage {
			return nil
		}
		after = page[len(page)-1].Key
	}
}

// awaitKeyWriters waits until the transactions are over that may have stored keys by now.
func (s *Store) awaitKeyWriters(ctx context.Context) error {
	var before []string
	deadline := time.Now().Add(writersWait)
	for first := true; ; first = false {
		var now []string
		err := s.retry(ctx, "look for transactions that store idempotency keys", func() error {
			return s.pool.QueryRow(ctx, keyWriters).Scan(&now)
		})
		if err != nil {
			return err
		}
		if first {
			before = now
		}
		before = slices.DeleteFunc(before, func(writer string) bool { return !slices.Contains(now, writer) })
		switch {
		case len(before) == 0:
			return nil
		case time.Now().After(deadline):
			return ErrWriters
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for transactions that store idempotency keys: %w", ctx.Err())
		case <-time.After(writersPoll):
		}
	}
}

// awaitReplicatedKeys waits until the standbys have the keys of the source that can be seen by now.
func (s *Store) awaitReplicatedKeys(ctx context.Context, source string) error {
	waiting, cancel := context.WithTimeout(ctx, writersWait)
	defer cancel()
	err := s.commit(waiting, "wait until a standby has the idempotency keys", func(conn *pgxpool.Conn) error {
		_, err := conn.Exec(waiting, lockKey, source)
		return err
	})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", ErrOnlyPrimary, err)
	}
	return err
}

// lookUpHolders returns the deliveries that hold the keys.
const lookUpHolders = `
SELECT d.source, d.key, d.body_sha256, d.ticket_id
FROM unnest($1::text[], $2::text[]) AS i (source, key)
JOIN deliveries d ON d.source = i.source AND d.key = i.key`

// ImportedKeys is what became of keys that were imported.
type ImportedKeys struct {
	Stored int        // were not there, or had expired before the imported delivery was received
	There  int        // were there already, with the same ticket and body
	Others []KeyTaken // are held by another ticket, and were left alone
}

// KeyTaken is a key that was not imported, because another ticket holds it.
type KeyTaken struct {
	Source, Key string
	Imported    uuid.UUID // the ticket that was to be stored
	Holder      uuid.UUID // the ticket that holds the key here
}

// ImportKeys stores keys of another database in one transaction, as if their deliveries had been stored here. No two of them may
// have the same source and key. It may be repeated: keys that are there already stay as they are.
func (s *Store) ImportKeys(ctx context.Context, keys []StoredKey) (ImportedKeys, error) {
	var sources, names []string
	var hashes [][]byte
	var ids []uuid.UUID
	var times, expiries []time.Time
	imported := make(map[deliveryKey]StoredKey, len(keys))
	for _, k := range keys {
		imported[deliveryKey{k.Source, k.Key}] = k
		sources, names = append(sources, k.Source), append(names, k.Key)
		hashes, ids = append(hashes, k.BodySHA256[:]), append(ids, k.TicketID)
		times, expiries = append(times, k.ReceivedAt), append(expiries, k.ExpiresAt)
	}
	if len(imported) < len(keys) {
		return ImportedKeys{}, fmt.Errorf("import idempotency keys: %w: a key is given twice", ticket.ErrRefused)
	}
	var done ImportedKeys
	err := s.commit(ctx, "import idempotency keys", func(conn *pgxpool.Conn) error {
		done = ImportedKeys{}
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(claimKeys, sources, names, hashes, ids, times, expiries, times).Exec(func(tag pgconn.CommandTag) error {
				done.Stored = int(tag.RowsAffected())
				return nil
			})
			batch.Queue(lookUpHolders, sources, names).Query(func(rows pgx.Rows) error {
				var key deliveryKey
				var sum []byte
				var holder uuid.UUID
				_, err := pgx.ForEachRow(rows, []any{&key.source, &key.key, &sum, &holder}, func() error {
					k := imported[key]
					if k.TicketID != holder || !bytes.Equal(k.BodySHA256[:], sum) {
						done.Others = append(done.Others, KeyTaken{key.source, key.key, k.TicketID, holder})
					}
					return nil
				})
				return err
			})
			return tx.SendBatch(ctx, batch).Close()
		})
	})
	done.There = len(keys) - done.Stored - len(done.Others)
	return done, err
}
