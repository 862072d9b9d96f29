package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/events"
	"myticket/internal/ticket"
)

// Limits of what an eventReader reads at once, and so of a chunk of events. A sender holds two chunks of each subscription.
const (
	eventRows     = 64      // of the outbox, with all rows of the last transaction; only their ids are held
	eventBytes    = 2 << 20 // of the texts of a chunk's tickets, unless it is a single ticket
	eventProducts = 4000    // that a chunk is about
	eventTimeout  = 10 * time.Second
	eventLook     = time.Second // how often it looks for a replay and for dead letters to send again
)

// eventReader is an events.Reader. What it reads is new tickets, those of a replay, and dead letters, in turns.
type eventReader struct {
	store  *Store
	sub    events.Subscribed
	reader outboxReader
	read   ticketReader

	// Only Next uses these.
	place   uint64         // up to which new tickets were read
	rows    []outboxRow    // that are being read
	rowsAt  time.Time      // when they were read
	more    bool           // there were others behind them
	tickets []outboxTicket // of these rows, without those that were read
	product string         // of the first of these tickets, up to which it was read; empty if it was not
	turn    int
	looked  time.Time
	replay  *replayPlace // how far the replay was read; nil for none
	again   bool         // there are dead letters to send again

	// flying counts the chunks of each kind that Next returned and Done was not called for.
	flying [kindsOfChunks]atomic.Int64
}

type kindOfChunk int

const (
	chunkNew kindOfChunk = iota
	chunkReplay
	chunkAgain
	kindsOfChunks
)

// replayPlace is a replay, and how far it has come.
type replayPlace struct {
	from, until time.Time
	after       *uuid.UUID // nil at its beginning
	product     string     // of the ticket after that, up to which it was read; empty if it was not
}

func (p replayPlace) same(other replayPlace) bool {
	return p.from.Equal(other.from) && p.until.Equal(other.until)
}

func (p replayPlace) at(other replayPlace) bool {
	return p.same(other) && (p.after == nil) == (other.after == nil) && (p.after == nil || *p.after == *other.after)
}

// chunkPlace is the place of a chunk.
type chunkPlace struct {
	kind    kindOfChunk
	step    outboxStep  // of new tickets
	replay  replayPlace // before the chunk, if it is one of a replay
	last    *uuid.UUID  // up to which the replay has come with it
	over    bool        // the replay has ended with it
	letters []letter    // dead letters that it has
	rest    bool        // it has further products of a ticket
}

// letter is a dead letter that is sent again.
type letter struct {
	id      int64
	event   string
	ticket  uuid.UUID
	product *string
}

// EventReader implements events.Store.
func (s *Store) EventReader(sub events.Subscribed, process uuid.UUID) events.Reader {
	return &eventReader{
		store: s, sub: sub, reader: outboxReader{s, subscriptionReader(sub.Name), process}, read: s.ticketReader(sub.Subscription),
	}
}

// selectSubscribed is short, because each process asks it every second.
const selectSubscribed = `
SELECT s.name, s.target, s.settings, s.filter, s.body, s.changed_at, s.paused_at IS NOT NULL,
       coalesce(r.holder = $1 OR ` + notHeld + `, true)
FROM subscriptions s LEFT JOIN outbox_readers r ON r.name = '` + subscriptionPrefix + `' || s.name
ORDER BY s.name`

// Subscribed implements events.Store.
func (s *Store) Subscribed(ctx context.Context, process uuid.UUID) ([]events.Subscribed, error) {
	rows, err := s.pool.Query(ctx, selectSubscribed, process)
	if err != nil {
		return nil, explain("look for subscriptions", err)
	}
	subs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (sub events.Subscribed, err error) {
		err = row.Scan(&sub.Name, &sub.Target, &sub.Settings, &sub.Filter, &sub.Body, &sub.ChangedAt, &sub.Paused, &sub.Free)
		return sub, err
	})
	return subs, explain("look for subscriptions", err)
}

// sender is who pauses a subscription that no person paused.
var sender = Person{Who: "myticket events"}

// PauseSending implements events.Store.
func (s *Store) PauseSending(ctx context.Context, name, why string) error {
	return s.pauseSubscription(ctx, sender, name, ticket.CleanText(why, MaxReason))
}

// Running implements events.Store.
func (s *Store) Running(ctx context.Context) (oldest, next uint64, err error) {
	err = s.pool.QueryRow(ctx, `SELECT pg_snapshot_xmin(s), pg_snapshot_xmax(s) FROM pg_current_snapshot() s`).Scan(&oldest, &next)
	return oldest, next, explain("look for running transactions", err)
}

// takeReader takes a place as a step does (moveReader), but does not move it.
const takeReader = `
UPDATE outbox_readers r SET holder = $2, held_until = clock_timestamp() + $3::interval
FROM pg_control_system() c
WHERE r.name = $1 AND (r.holder = $2 OR ` + notHeld + `)
  AND r.system_identifier = c.system_identifier AND r.xid < pg_snapshot_xmax(pg_current_snapshot())
  AND set_config('synchronous_commit', 'off', true) <> ''
RETURNING ` + ownPlace

// Take implements events.Reader.
func (r *eventReader) Take(ctx context.Context) (bool, error) {
	const doing = "take the turn for a subscription"
	short, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	err := r.store.pool.QueryRow(short, takeReader, r.reader.name, r.reader.me, events.Lease).Scan(&r.place)
	if !errors.Is(err, pgx.ErrNoRows) {
		return err == nil, explain(doing, err)
	}
	var place uint64
	var free, here bool
	err = r.store.pool.QueryRow(short, readerPlace, r.reader.name, r.reader.me).Scan(&place, &free, &here)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, r.placeless(short)
	}
	if err == nil && free && !here {
		long, cancel := context.WithTimeout(ctx, renumberTimeout)
		defer cancel()
		err = r.store.renumberOutbox(long, r.reader.name)
	}
	return false, explain(doing, err)
}

// placeless returns an error if the subscription is there, but its place is not, which only happens if somebody deletes that.
func (r *eventReader) placeless(ctx context.Context) error {
	var there bool
	err := r.store.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM subscriptions WHERE name = $1)
		AND NOT EXISTS (SELECT FROM outbox_readers WHERE name = $2)`, r.sub.Name, r.reader.name).Scan(&there)
	if err == nil && there {
		return errors.New("its row of outbox_readers is gone, so it is not known which events it got, and it gets none: " +
			"delete it and create it anew, and replay the time that is missing")
	}
	return explain("look for a subscription", err)
}

// keepReader only lengthens a lease that is there. One that is over and that nobody else took is there.
const keepReader = `
UPDATE outbox_readers r SET held_until = clock_timestamp() + $3::interval
WHERE name = $1 AND holder = $2 AND set_config('synchronous_commit', 'off', true) <> ''`

// Keep implements events.Reader.
func (r *eventReader) Keep(ctx context.Context) (bool, error) {
	tag, err := r.store.pool.Exec(ctx, keepReader, r.reader.name, r.reader.me, events.Lease)
	return err == nil && tag.RowsAffected() == 1, explain("keep the turn for a subscription", err)
}

// Leave implements events.Reader.
func (r *eventReader) Leave(ctx context.Context) error {
	return explain("leave a subscription to another process", r.reader.leave(ctx))
}

// Failing implements events.Reader.
func (r *eventReader) Failing(ctx context.Context, why string) error {
	_, err := r.store.pool.Exec(ctx, `
		UPDATE subscriptions SET failing_since = coalesce(failing_since, now()), failure = $2
		WHERE name = $1 AND set_config('synchronous_commit', 'off', true) <> ''`, r.sub.Name, ticket.CleanText(why, MaxReason))
	return explain("note that a target fails", err)
}

// storingRate looks at the last batches, and of those at the ones of the last second: a burst begins with the first large one,
// and a second after the last one it is over. A time ahead of the clock, which was set back then, says nothing. The length of a
// batch is known without reading it.
const storingRate = `
SELECT coalesce(sum(octet_length(tickets)) / 16 /
    CASE WHEN count(*) < 16 THEN 1 ELSE greatest(extract(epoch FROM clock_timestamp() - min(at)), 0.001) END, 0)::float8
FROM (SELECT at, tickets FROM outbox ORDER BY xid DESC LIMIT 16) o
WHERE at BETWEEN clock_timestamp() - interval '1 second' AND clock_timestamp()`

// Storing implements events.Reader.
func (r *eventReader) Storing(ctx context.Context) (rate float64, err error) {
	err = r.store.steady(ctx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, storingRate).Scan(&rate) })
	return rate, explain("look how many tickets are being stored", err)
}

// Begun implements events.Reader.
func (r *eventReader) Begun(ctx context.Context) error {
	_, err := r.store.pool.Exec(ctx, `
		UPDATE subscriptions SET failing_since = NULL, failure = ''
		WHERE name = $1 AND (starts_with(failure, $2) OR starts_with(failure, $3))`, r.sub.Name, events.NotOpened, events.NotRead)
	return explain("note that events are sent", err)
}

// Next implements events.Reader.
func (r *eventReader) Next(ctx context.Context, most int) (events.Chunk, error) {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	if err := r.look(ctx); err != nil {
		return events.Chunk{}, explain("look for a replay", err)
	}
	kinds := [kindsOfChunks]func(context.Context, int) (events.Chunk, error){
		chunkNew: r.nextNew, chunkReplay: r.nextReplay, chunkAgain: r.nextAgain,
	}
	for range kinds {
		kind := kindOfChunk(r.turn % len(kinds))
		r.turn++
		chunk, err := kinds[kind](ctx, min(max(most, 1), events.ChunkTickets))
		if err != nil {
			return events.Chunk{}, explain("read what is to be sent", err)
		}
		if chunk.Place != nil {
			r.flying[kind].Add(1)
			return chunk, nil
		}
	}
	return events.Chunk{}, nil
}

const selectReplay = `
SELECT replay_from, replay_until, replay_after,
       EXISTS (SELECT FROM dead_letters d WHERE d.subscription = s.name AND d.attempts = 0)
FROM subscriptions s WHERE name = $1`

// look looks from time to time for a replay, and for dead letters that are to be sent again. While chunks of a replay are under
// way, this reader knows better how far it has come.
func (r *eventReader) look(ctx context.Context) error {
	if time.Since(r.looked) < eventLook {
		return nil
	}
	flying := r.flying[chunkReplay].Load() > 0 // before what Done may write now
	var from, until *time.Time
	var after *uuid.UUID
	var again bool
	err := r.store.pool.QueryRow(ctx, selectReplay, r.sub.Name).Scan(&from, &until, &after, &again)
	if errors.Is(err, pgx.ErrNoRows) {
		return events.ErrLost
	}
	if err != nil {
		return err
	}
	r.looked, r.again = time.Now(), again
	if from == nil || until == nil {
		r.replay = nil
		return nil
	}
	there := replayPlace{from: *from, until: *until, after: after}
	if r.replay == nil && !flying || r.replay != nil && (!r.replay.same(there) || !flying && !r.replay.at(there)) {
		r.replay = &there
	}
	return nil
}

// nextNew reads new tickets.
func (r *eventReader) nextNew(ctx context.Context, most int) (events.Chunk, error) {
	if len(r.rows) == 0 {
		err := r.store.steady(ctx, func(tx pgx.Tx) (err error) {
			r.rows, err = readOutbox(ctx, tx, r.place, eventRows)
			return err
		})
		if err != nil || len(r.rows) == 0 {
			return events.Chunk{}, err
		}
		r.rowsAt, r.more = time.Now(), len(r.rows) >= eventRows
		r.tickets = ticketsOf(r.rows, func(string) bool { return true })
	}
	start, age := time.Now(), time.Duration(0)
	if len(r.tickets) > 0 {
		age = r.tickets[0].row.age + start.Sub(r.rowsAt)
	}
	refs := make([]eventTicket, min(len(r.tickets), most))
	for i := range refs {
		t := r.tickets[i]
		refs[i] = eventTicket{id: t.id, at: t.row.at, ticket: t.row.kind != kindProducts, products: t.row.kind != kindChanged}
	}
	chunk, to, err := r.read.read(ctx, refs, r.product)
	if err != nil {
		return events.Chunk{}, err
	}
	step := outboxStep{from: r.place}
	switch n := to.n; {
	case n == len(r.tickets): // also over rows without tickets
		last := &r.rows[len(r.rows)-1]
		step.to, step.at = last.xid, last.at
	case n > 0:
		step = stepTo(r.tickets, n, r.place)
	}
	chunk.Place = &chunkPlace{kind: chunkNew, step: step, rest: r.product != ""}
	chunk.Tickets, chunk.Full = min(max(to.n, 1), len(refs)), len(refs) == most
	r.place, r.product = max(r.place, step.to), to.after
	if r.tickets = r.tickets[to.n:]; len(r.tickets) == 0 {
		r.rows = nil
	}
	chunk.Age, chunk.More, chunk.Took = age, r.more || len(r.tickets) > 0, time.Since(start)
	return chunk, nil
}

// ticketsToReplay goes through the tickets by their primary key. The comparison of rows excludes no partition: see page.
const ticketsToReplay = `
SELECT id FROM tickets
WHERE received_at >= $1 AND received_at < $2 AND (received_at, id) > ($1, $3)
ORDER BY received_at, id LIMIT $4`

// nextReplay reads tickets of a replay.
func (r *eventReader) nextReplay(ctx context.Context, most int) (events.Chunk, error) {
	if r.replay == nil {
		return events.Chunk{}, nil
	}
	place := *r.replay
	from, after := place.from, uuid.Nil
	if place.after != nil {
		from, after = ticket.IDTime(*place.after), *place.after
	}
	rows, err := r.store.pool.Query(ctx, ticketsToReplay, from, place.until, after, most)
	if err != nil {
		return events.Chunk{}, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return events.Chunk{}, err
	}
	refs := make([]eventTicket, len(ids))
	for i, id := range ids {
		refs[i] = eventTicket{id: id, at: ticket.IDTime(id), ticket: true, products: true}
	}
	chunk, to, err := r.read.read(ctx, refs, place.product)
	if err != nil {
		return events.Chunk{}, err
	}
	at := &chunkPlace{
		kind: chunkReplay, step: outboxStep{from: r.place}, replay: place, last: place.after, rest: place.product != "",
	}
	if to.n > 0 {
		at.last = &ids[to.n-1]
	}
	if at.over = to.n == len(ids) && to.n < most; at.over {
		r.replay = nil
	} else {
		r.replay = &replayPlace{place.from, place.until, at.last, to.after}
	}
	chunk.Place, chunk.Tickets, chunk.Full = at, min(max(to.n, 1), len(ids)), len(ids) == most
	return chunk, nil
}

// deadLettersToSend uses the number of attempts as a mark: see ReplayDeadLetters.
const deadLettersToSend = `
SELECT id, event, ticket_id, product_id FROM dead_letters WHERE subscription = $1 AND attempts = 0 ORDER BY id LIMIT $2`

// nextAgain reads dead letters that are to be sent again, one chunk at a time. The filter does not count, because a person wants
// these.
func (r *eventReader) nextAgain(ctx context.Context, most int) (events.Chunk, error) {
	if !r.again || r.flying[chunkAgain].Load() > 0 {
		return events.Chunk{}, nil
	}
	rows, err := r.store.pool.Query(ctx, deadLettersToSend, r.sub.Name, most)
	if err != nil {
		return events.Chunk{}, err
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l letter, err error) {
		err = row.Scan(&l.id, &l.event, &l.ticket, &l.product)
		return l, err
	})
	if err != nil || len(letters) == 0 {
		r.again = false
		return events.Chunk{}, err
	}
	chunk, n, err := r.read.again(ctx, letters)
	if err != nil {
		return events.Chunk{}, err
	}
	chunk.Place = &chunkPlace{kind: chunkAgain, step: outboxStep{from: r.place}, letters: letters[:n]}
	chunk.Tickets, chunk.Full = n, len(letters) == most
	return chunk, nil
}

// markDone moves the place as moveReader does, and with it everything else that is known of the chunk. If another process has
// the turn, or Postgres lost what was read, it changes nothing. Nor does it if the subscription was changed ($21): what was read
// with the filter before may have been stored after the change.
const markDone = `
WITH moved AS (` + moveReader + `
    AND EXISTS (SELECT FROM subscriptions WHERE name = $8 AND changed_at = $21)
    RETURNING r.name
), counted AS (
    UPDATE subscriptions s
    SET delivered = delivered + $7, delivered_at = CASE WHEN $7 > 0 THEN now() ELSE delivered_at END,
        failing_since = NULL, failure = '',
        replay_after = CASE WHEN (replay_from, replay_until) = ($9, $10) AND replay_after IS NOT DISTINCT FROM $11
                       THEN CASE WHEN NOT $13 THEN $12::uuid END ELSE replay_after END,
        replay_from  = CASE WHEN (replay_from, replay_until) = ($9, $10) AND replay_after IS NOT DISTINCT FROM $11 AND $13
                       THEN NULL ELSE replay_from END,
        replay_until = CASE WHEN (replay_from, replay_until) = ($9, $10) AND replay_after IS NOT DISTINCT FROM $11 AND $13
                       THEN NULL ELSE replay_until END
    FROM moved WHERE s.name = $8 AND ($7 > 0 OR failing_since IS NOT NULL OR $9::timestamptz IS NOT NULL)
), sent AS (
    DELETE FROM dead_letters d USING moved WHERE d.subscription = $8 AND d.id = ANY ($14::bigint[])
), dead AS (
    INSERT INTO dead_letters (subscription, event, type, ticket_id, product_id, attempts, reason)
    SELECT $8, d.event, d.type, d.ticket_id, nullif(d.product_id, ''), d.attempts, d.reason
    FROM moved, unnest($15::text[], $16::text[], $17::uuid[], $18::text[], $19::int[], $20::text[])
                AS d (event, type, ticket_id, product_id, attempts, reason)
    ON CONFLICT (subscription, event) DO UPDATE
    SET at = excluded.at, attempts = excluded.attempts, reason = excluded.reason
)
SELECT FROM moved`

// Done implements events.Reader.
func (r *eventReader) Done(ctx context.Context, chunk events.Chunk, delivery events.Delivery) error {
	at, ok := chunk.Place.(*chunkPlace)
	if !ok {
		return fmt.Errorf("a chunk of another reader: %T", chunk.Place)
	}
	// A ticket that was begun is ended, so that one with more products than dead letters are kept does not stop a subscription
	// for ever.
	if len(delivery.Dead) > 0 && !at.rest {
		var letters int
		err := r.store.pool.QueryRow(ctx, `SELECT count(*) FROM dead_letters WHERE subscription = $1 AND attempts > 0`, r.sub.Name).
			Scan(&letters)
		if err != nil {
			return explain("count dead letters", err)
		}
		if letters+len(delivery.Dead) > events.MaxDeadLetters {
			return events.ErrTooManyDeadLetters
		}
	}
	moved := false
	err := r.store.retry(ctx, "note what was sent", func() error {
		tag, err := r.store.pool.Exec(ctx, markDone, r.doneArgs(at, delivery)...)
		moved = tag.RowsAffected() == 1
		return err
	})
	r.flying[at.kind].Add(-1)
	if err == nil && !moved {
		return events.ErrLost
	}
	return err
}

// doneArgs are the parameters of markDone.
func (r *eventReader) doneArgs(at *chunkPlace, delivery events.Delivery) []any {
	to, newest := at.step.from, (*time.Time)(nil)
	if at.step.to != 0 {
		to, newest = at.step.to, &at.step.at
	}
	var from, until *time.Time
	if at.kind == chunkReplay {
		from, until = &at.replay.from, &at.replay.until
	}
	var dead deadColumns
	for i := range delivery.Dead {
		dead.add(&delivery.Dead[i])
	}
	var sent []int64
	for i := range at.letters {
		if !slices.Contains(dead.events, at.letters[i].event) {
			sent = append(sent, at.letters[i].id)
		}
	}
	return []any{
		r.reader.name, at.step.from, to, newest, r.reader.me, events.Lease, delivery.Delivered, r.sub.Name,
		from, until, at.replay.after, at.last, at.over, sent,
		dead.events, dead.types, dead.tickets, dead.products, dead.attempts, dead.reasons,
		r.sub.ChangedAt,
	}
}

// deadColumns are arrays with one element per dead letter.
type deadColumns struct {
	events, types, products, reasons []string
	tickets                          []uuid.UUID
	attempts                         []int
}

func (c *deadColumns) add(d *events.DeadLetter) {
	c.events, c.types, c.products = append(c.events, d.Event), append(c.types, d.Type), append(c.products, d.Product)
	c.tickets, c.attempts = append(c.tickets, d.Ticket), append(c.attempts, max(d.Attempts, 1))
	c.reasons = append(c.reasons, ticket.CleanText(d.Reason, MaxReason))
}
