package spool

import (
	"bytes"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/google/uuid"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// keyIndex knows the idempotency keys of the tickets in the spool: at most Config.MaxTickets, because each ticket has at
// most one. Any goroutine may use it, and it never waits for the disk.
type keyIndex struct {
	read     chan struct{} // closed when the keys of all files are known
	complete func()        // closes read; may be called more than once

	mu         sync.Mutex // guards deliveries
	deliveries map[deliveryKey]delivery
}

func newKeyIndex() *keyIndex {
	read := make(chan struct{})
	return &keyIndex{
		read: read, complete: sync.OnceFunc(func() { close(read) }), deliveries: map[deliveryKey]delivery{},
	}
}

// deliveryKey stands for a source and an idempotency key. It is half of a SHA-256: a sender may make a key long, and no
// sender can find two texts with the same half.
type deliveryKey [sha256.Size / 2]byte

func newDeliveryKey(source, key string) deliveryKey {
	sum := sha256.Sum256([]byte(source + "\x00" + key)) // neither holds NUL
	return deliveryKey(sum[:])
}

// delivery is the ticket that came with a key.
type delivery struct {
	id        uuid.UUID
	body      [sha256.Size]byte
	expiresAt int64 // Unix milliseconds
}

func newDelivery(e *intake.Entry) delivery {
	return delivery{e.Ticket.ID, e.BodySHA256, e.KeyExpiresAt.UnixMilli()}
}

// isValid reports whether the key has not expired.
func (d delivery) isValid() bool { return time.Now().UnixMilli() < d.expiresAt }

// find returns the ticket that came with a key which has not expired.
func (k *keyIndex) find(source, key string) (delivery, bool) {
	sought := newDeliveryKey(source, key)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lookUp(sought)
}

// withoutDuplicates returns the entries that are to be stored, and what becomes of all entries if they are.
func (k *keyIndex) withoutDuplicates(entries []*intake.Entry) (fresh []*intake.Entry, outcomes []intake.Outcome) {
	fresh, outcomes = make([]*intake.Entry, 0, len(entries)), make([]intake.Outcome, len(entries))
	own := map[deliveryKey]*intake.Entry{}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, e := range entries {
		outcomes[i] = intake.Outcome{ID: e.Ticket.ID, Status: ticket.Spooled}
		if e.Key == "" {
			fresh = append(fresh, e)
			continue
		}
		key := newDeliveryKey(e.Ticket.Source, e.Key)
		known, ok := k.lookUp(key)
		if first := own[key]; first != nil {
			known, ok = delivery{id: first.Ticket.ID, body: first.BodySHA256}, true
		}
		switch {
		case !ok || known.id == e.Ticket.ID:
			own[key] = e
			fresh = append(fresh, e)
		case known.body != e.BodySHA256:
			outcomes[i] = intake.Outcome{KeyReused: true}
		default:
			outcomes[i] = intake.Outcome{ID: known.id, Status: ticket.Spooled, Duplicate: true}
		}
	}
	return fresh, outcomes
}

// lookUp does what find does. The caller must hold k.mu.
func (k *keyIndex) lookUp(key deliveryKey) (delivery, bool) {
	d, ok := k.deliveries[key]
	return d, ok && d.isValid()
}

// add adds the keys of tickets that are in the spool now.
func (k *keyIndex) add(entries ...*intake.Entry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range entries {
		if e.Key != "" {
			k.deliveries[newDeliveryKey(e.Ticket.Source, e.Key)] = newDelivery(e)
		}
	}
}

// addRecord adds the key of a ticket that was read from the disk. If another ticket with that key is known, the older one of
// those that have not expired counts, in whatever order the files are read.
func (k *keyIndex) addRecord(r *record) {
	if r.Key == "" {
		return
	}
	e := r.entry()
	key, d := newDeliveryKey(r.Source, r.Key), newDelivery(&e)
	k.mu.Lock()
	defer k.mu.Unlock()
	if known, ok := k.lookUp(key); !ok || d.isValid() && bytes.Compare(d.id[:], known.id[:]) < 0 {
		k.deliveries[key] = d
	}
}

// remove removes the key of a ticket, unless another ticket came with the same key after it had expired.
func (k *keyIndex) remove(e *intake.Entry) {
	if e.Key == "" {
		return
	}
	key := newDeliveryKey(e.Ticket.Source, e.Key)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.deliveries[key].id == e.Ticket.ID {
		delete(k.deliveries, key)
	}
}
