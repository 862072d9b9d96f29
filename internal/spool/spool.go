// Package spool is a durable queue of tickets in a folder. It takes them while Postgres is away or behind. When Put returns
// without an error, its tickets are on disk. They are in bbolt files of some MiB each (segments), and each file is removed
// when it is drained.
package spool

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"myticket/internal/intake"
)

// Config says where a spool is and how large it may grow. The zero value of a field means its default.
type Config struct {
	Dir          string // Required. It is made if it is not there, but not the folders above it.
	MaxTickets   int    // Defaults to 1,000,000.
	MaxBytes     int64  // Of the records of tickets; the files are up to a tenth larger. Defaults to 1 GiB.
	SegmentBytes int64  // Of one file; the last batch in it may exceed that. Defaults to SegmentBytes.

	// ReadOnly is for looking into a folder: nothing is changed in it. Put, Remove and Refuse fail.
	ReadOnly bool

	Logger *slog.Logger // Defaults to slog.Default.
}

// SegmentBytes is the default size of a file of a spool.
const SegmentBytes = 16 << 20

// idle is how long a drained file is kept open for more tickets.
const idle = time.Second

// Spool is the queue. Any goroutine may call Put, Find and Stats; Find and Stats never wait for the disk. Only one goroutine
// at a time may call Peek, Remove and Refuse, and only one Verify.
type Spool struct {
	config Config
	health diskHealth
	keys   *keyIndex
	queue  queue
	aside  atomic.Int64 // how many files a person should look at

	// write guards what follows. It is held while a file is made, written, renamed or removed.
	write   sync.Mutex
	folder  *folder
	active  *segment // the last of the queue, to which tickets are appended; nil for none
	refused *segment // what Refuse appends to; nil for none
	lastPut time.Time
}

// Stats is what a spool holds.
type Stats struct {
	Tickets int       // not drained yet
	Bytes   int64     // about what the records in its files take, drained or not
	Oldest  time.Time // when the oldest ticket was received; zero when there is none
	Aside   int       // files that were set aside: damaged ones, and tickets that the database refuses
	Failure error     // why it takes no tickets now; nil when it does

	// Unverified is how many files of a process before this one are not verified. Tickets, Bytes and Oldest count what their
	// structure says that they hold, or if it makes no sense, their size and no tickets.
	Unverified int
}

// Open opens a folder, and takes tickets at once. What processes before this one left is verified by Verify, which the caller
// should run. A damaged file is not an error: what is readable in it is drained, and the file is kept for a person. A disk
// that cannot be written is not an error either, because the process can still serve; Stats reports it. Open returns ErrInUse
// when another process has the folder open.
func Open(config Config) (*Spool, error) {
	config.MaxTickets = cmp.Or(config.MaxTickets, 1_000_000)
	config.MaxBytes = cmp.Or(config.MaxBytes, 1<<30)
	config.SegmentBytes = cmp.Or(config.SegmentBytes, SegmentBytes)
	config.Logger = cmp.Or(config.Logger, slog.Default())
	s := &Spool{
		config: config,
		health: diskHealth{folder: config.Dir, logger: config.Logger},
		keys:   newKeyIndex(),
	}
	s.write.Lock()
	defer s.write.Unlock()
	var err error
	if s.folder, err = openFolder(config.Dir, config.ReadOnly, config.Logger); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read the spool folder %s: %w", config.Dir, err), s.close())
	}
	if !config.ReadOnly {
		if err := s.ensureActive(); err != nil {
			_ = s.health.failed(err) // Stats reports it
		}
	}
	return s, nil
}

// load lists what processes before this one left, and counts it as far as that is quickly known. The caller must hold
// s.write.
func (s *Spool) load() error {
	segments, recovered, err := s.folder.list(s.config.Logger)
	if err != nil {
		return err
	}
	s.aside.Add(int64(recovered))
	for _, segment := range segments {
		if err := segment.estimate(); err != nil {
			return err
		}
	}
	s.queue.add(segments...)
	s.refreshOldest()
	if len(segments) == 0 {
		s.keys.complete()
	}
	return nil
}

// setAside keeps a damaged file for a person, and logs what is known of it. The caller must hold s.write.
func (s *Spool) setAside(segment *segment, d *damage) error {
	err := s.folder.rename(segment, suffixDamaged)
	s.aside.Add(1)
	readable, _ := segment.holds()
	s.config.Logger.Error("a file of the spool is damaged: what is readable is drained, and the file is kept; "+
		"tickets that are missing were acknowledged, and are lost unless a copy of the disk has them (docs/durability.md)",
		"file", segment.name(), "readable", readable, "missing_at_least", d.missing, "error", d.cause)
	return err
}

// Find returns the ticket that was spooled for an idempotency key and is not drained yet.
func (s *Spool) Find(source, key string) (id uuid.UUID, body [sha256.Size]byte, ok bool) {
	d, ok := s.keys.find(source, key)
	return d.id, d.body, ok
}

// All calls f with every ticket, oldest first, and removes none.
func (s *Spool) All(f func(e *intake.Entry) error) error {
	for _, segment := range s.queue.all() {
		if err := s.verify(segment); err != nil {
			return err
		}
		var err error
		readErr := segment.each(func(r *record, _ int64) bool {
			e := r.entry()
			err = f(&e)
			return err == nil
		})
		if err := errors.Join(readErr, err); err != nil {
			return err
		}
	}
	return nil
}

// Stats returns what the spool holds, and whether it takes more.
func (s *Spool) Stats() Stats {
	have := Stats{Aside: int(s.aside.Load())}
	have.Tickets, have.Bytes, have.Oldest = s.queue.holds()
	have.Unverified = s.queue.unverified()
	_, have.Failure = s.health.failing()
	if have.Failure == nil && (have.Tickets >= s.config.MaxTickets || have.Bytes >= s.config.MaxBytes) {
		have.Failure = intake.ErrSpoolFull
	}
	return have
}

// Close closes the files and releases the folder. The tickets stay in it. All other calls must have returned.
func (s *Spool) Close() error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.close()
}

// close does the same. The caller must hold s.write.
func (s *Spool) close() error {
	s.active = nil
	for _, segment := range s.queue.all() {
		segment.close()
	}
	err := s.forgetDrained()
	if s.refused != nil {
		s.refused.close()
		s.refused = nil
	}
	return errors.Join(err, s.folder.close())
}
