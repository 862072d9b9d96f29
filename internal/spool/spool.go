// Package spool is a durable queue of tickets in a folder, for when Postgres is away or behind: what Put returned is on
// disk. It is kept in bbolt files of some MiB each (segments), which are removed one by one as they are drained.
package spool

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// ErrInUse means that another process works on the folder.
var ErrInUse = errors.New("another process is working on this spool folder")

// Config says where a spool is and how large it may grow. The zero value of a field means its default.
type Config struct {
	Dir          string // Required. It is made if it is not there.
	MaxTickets   int    // Defaults to 1,000,000.
	MaxBytes     int64  // of tickets and what belongs to them; the files are up to a tenth larger. Defaults to 1 GiB.
	SegmentBytes int64  // of one file. Defaults to 16 MiB.

	// ReadOnly is for looking into a folder: nothing is changed in it, Put and Remove fail.
	ReadOnly bool

	Logger *slog.Logger // Defaults to slog.Default.
}

// retryDisk is how long nothing is tried on a disk that failed: a full disk must not cost more than a refusal.
const retryDisk = 500 * time.Millisecond

// idle is how long a drained file is kept open for more tickets.
const idle = time.Second

// Spool is the queue. Any goroutine may call Put, Find and Stats, and the latter two never wait for the
// disk; one at a time Peek, Remove and Refuse.
type Spool struct {
	config Config
	lock   *flock.Flock

	content []byte // of the file that is searched while the folder is loaded: one buffer for all

	write  sync.Mutex // held while a file is written, made or closed
	active *file      // the last of segments, or nil; guarded by write
	number uint64     // of the newest file; guarded by write

	mu       sync.Mutex // guards the rest, and the counts of segments
	segments []*file    // oldest first
	keys     map[deliveryKey]delivery
	oldest   time.Time
	lastPut  time.Time
	failure  error     // why the disk does not take tickets
	retryAt  time.Time // when it is tried again
	aside    int       // files that a person should look at
	refused  *file     // guarded by write
}

// deliveryKey stands for a source and an idempotency key: as many as MaxTickets are kept in memory, and a sender may make
// a key long. It is half of a SHA-256, which nobody makes two texts for.
type deliveryKey [sha256.Size / 2]byte

func newDeliveryKey(source, key string) deliveryKey {
	sum := sha256.Sum256([]byte(source + "\x00" + key)) // neither holds NUL
	return deliveryKey(sum[:])
}

type delivery struct {
	id        uuid.UUID
	body      [sha256.Size]byte
	expiresAt int64 // Unix milliseconds
}

// Stats is what a spool holds.
type Stats struct {
	Tickets int       // not drained yet
	Bytes   int64     // what its files hold, drained or not
	Oldest  time.Time // when the oldest ticket was received; zero when there is none
	Aside   int       // files that were set aside: damaged ones, and tickets that the database refuses
	Failure error     // why it takes no tickets now; nil when it does
}

// Open opens a folder, and verifies every ticket in it. Damaged files are no error: what is readable in them is drained,
// and they are kept for a person. Neither is a disk that cannot be written (Stats tells): the process can still serve.
// ErrInUse when another process has it open.
func Open(config Config) (*Spool, error) {
	if config.MaxTickets == 0 {
		config.MaxTickets = 1_000_000
	}
	if config.MaxBytes == 0 {
		config.MaxBytes = 1 << 30
	}
	if config.SegmentBytes == 0 {
		config.SegmentBytes = 16 << 20
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	s := &Spool{config: config, keys: map[deliveryKey]delivery{}}
	if !config.ReadOnly {
		if err := os.MkdirAll(config.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the spool folder: %w", err)
		}
	}
	if err := s.acquire(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read the spool folder %s: %w", config.Dir, err), s.Close())
	}
	if !config.ReadOnly {
		s.write.Lock()
		_ = s.fail(s.ensureActive()) // kept in mind
		s.write.Unlock()
	}
	return s, nil
}

// acquire takes the folder's lock, which the kernel releases when the process ends, however it ends (flock(2)).
func (s *Spool) acquire() error {
	path := filepath.Join(s.config.Dir, "lock")
	take := (*flock.Flock).TryLock
	s.lock = flock.New(path, flock.SetPermissions(0o600))
	if s.config.ReadOnly {
		if _, err := os.Stat(path); err != nil {
			_, err = os.Stat(s.config.Dir)
			return err // a copied folder may have no lock
		}
		s.lock, take = flock.New(path, flock.SetFlag(os.O_RDONLY)), (*flock.Flock).TryRLock
	}
	ok, err := take(s.lock)
	switch {
	case err != nil && !s.config.ReadOnly && isReadOnlyDisk(err): // nobody else can write there either
		return nil
	case err != nil:
		return fmt.Errorf("lock the spool folder: %w", err)
	case !ok:
		return fmt.Errorf("%w: %s", ErrInUse, s.config.Dir)
	}
	return nil
}

// load reads what processes before this one left.
func (s *Spool) load() error {
	files, err := os.ReadDir(s.config.Dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		path := filepath.Join(s.config.Dir, file.Name())
		switch filepath.Ext(path) {
		case suffixNew:
			if !s.config.ReadOnly {
				_ = os.Remove(path) // it never held a ticket
			}
		case suffixRecovered:
			s.aside++
		case suffixSegment, suffixDamaged, suffixRefused:
			segment, err := parseName(path)
			if err != nil {
				s.config.Logger.Warn("a file in the spool folder is left alone", "error", err)
				continue
			}
			s.segments = append(s.segments, segment)
			s.number = max(s.number, segment.number)
		}
	}
	sortSegments(s.segments)
	defer func() { s.content = nil }()
	for _, segment := range slices.Clone(s.segments) {
		if err := s.loadSegment(segment); err != nil {
			return err
		}
	}
	s.refreshOldest()
	if s.config.ReadOnly {
		return nil
	}
	return s.forgetDrained()
}

// loadSegment verifies a file, and counts what is in it.
func (s *Spool) loadSegment(segment *file) error {
	count := func(r *record, size int64) bool {
		segment.records = r.Sequence
		segment.left++
		segment.bytes += size
		e := r.entry()
		s.remember(&e)
		return true
	}
	err := errDamaged
	if !strings.HasSuffix(segment.path, suffixDamaged) {
		err = segment.each(1, all, count)
		segment.close()
	}
	early := false
	if err == nil {
		if early, err = segment.endsEarly(&s.content); err != nil {
			return err
		}
	}
	switch {
	case err != nil || early:
		if err := s.setAside(segment, &s.content, err); err != nil {
			return err
		}
		return segment.eachSalvaged(1, all, func(r *record, _ int64) bool {
			e := r.entry()
			s.remember(&e)
			return true
		})
	case s.config.ReadOnly:
		return nil
	}
	return ignoreReadOnlyDisk(segment.rename(suffixSegment)) // what the database refused is tried again
}

// setAside finds what is readable in a file whose structure is not right, and says so when something may be missing.
func (s *Spool) setAside(segment *file, content *[]byte, cause error) error {
	found, size, err := segment.salvage(content)
	if err != nil {
		return fmt.Errorf("read the damaged file %s: %w", segment.path, err)
	}
	s.mu.Lock()
	missing := segment.adopt(found, size)
	s.mu.Unlock()
	if cause == nil && missing == 0 {
		return nil // every record is there
	}
	segment.damaged = true
	if !s.config.ReadOnly {
		if err := ignoreReadOnlyDisk(segment.rename(suffixDamaged)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.aside++
	s.mu.Unlock()
	s.config.Logger.Error("a file of the spool is damaged: what is readable is drained, and the file is kept; "+
		"tickets that are missing were acknowledged, and are lost unless a copy of the disk has them (docs/durability.md)",
		"file", segment.path, "readable", segment.left, "missing_at_least", missing, "error", cause)
	return nil
}

// Put stores entries durably, all or none. An entry whose idempotency key the spool holds already is not stored again:
// its outcome says so. intake.ErrSpoolFull, or ticket.ErrUnavailable when the disk does not take them.
func (s *Spool) Put(entries []*intake.Entry) (intake.Saved, error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.config.ReadOnly {
		return intake.Saved{}, fmt.Errorf("%w: the spool was opened read-only", ticket.ErrUnavailable)
	}
	s.mu.Lock()
	fresh, outcomes := s.withoutDuplicates(entries)
	failure, wait := s.failure, time.Until(s.retryAt)
	s.mu.Unlock()
	saved := intake.Saved{Outcomes: outcomes}
	if len(fresh) == 0 {
		return saved, nil
	}
	if failure != nil && wait > 0 {
		return intake.Saved{}, fmt.Errorf("%w: the spool's disk failed a moment ago: %w", ticket.ErrUnavailable, failure)
	}
	if err := s.fail(s.ensureActive()); err != nil {
		return intake.Saved{}, err
	}
	values := make([][]byte, len(fresh))
	var bytes int64
	for i, e := range fresh {
		value, err := s.active.nonce.encode(s.active.records+uint64(i)+1, e)
		if err != nil {
			return intake.Saved{}, err
		}
		values[i] = value
		bytes += cost(value)
	}
	if err := s.room(len(fresh), bytes); err != nil {
		return intake.Saved{}, err
	}
	if err := s.active.append(values); err != nil {
		s.abandon()
		return intake.Saved{}, s.fail(err)
	}
	s.mu.Lock()
	for _, e := range fresh {
		s.remember(e)
	}
	s.lastPut = time.Now()
	s.active.records += uint64(len(fresh))
	s.active.left += len(fresh)
	s.active.bytes += bytes
	full := s.active.bytes >= s.config.SegmentBytes
	if s.oldest.IsZero() {
		s.oldest = fresh[0].Ticket.ReceivedAt
	}
	s.well()
	s.mu.Unlock()
	if full {
		s.active = nil // it stays open for whoever reads it next
	}
	return saved, nil
}

// withoutDuplicates returns the entries that are to be stored, and what becomes of all entries. It holds mu.
func (s *Spool) withoutDuplicates(entries []*intake.Entry) (fresh []*intake.Entry, outcomes []intake.Outcome) {
	fresh, outcomes = make([]*intake.Entry, 0, len(entries)), make([]intake.Outcome, len(entries))
	own := map[deliveryKey]*intake.Entry{}
	for i, e := range entries {
		outcomes[i] = intake.Outcome{ID: e.Ticket.ID, Status: ticket.Spooled}
		if e.Key == "" {
			fresh = append(fresh, e)
			continue
		}
		key := newDeliveryKey(e.Ticket.Source, e.Key)
		known, ok := s.find(key)
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

// room tells whether so much more may be stored.
func (s *Spool) room(tickets int, bytes int64) error {
	have := s.Stats()
	if have.Tickets+tickets > s.config.MaxTickets || have.Bytes+bytes > s.config.MaxBytes {
		return fmt.Errorf("%w: it holds %d tickets (at most %d) in %d bytes (at most %d)",
			intake.ErrSpoolFull, have.Tickets, s.config.MaxTickets, have.Bytes, s.config.MaxBytes)
	}
	return nil
}

// ensureActive makes a file to write to, if there is none. It holds write.
func (s *Spool) ensureActive() error {
	if s.active != nil {
		return nil
	}
	segment, err := createSegment(s.config.Dir, s.number+1, suffixSegment)
	if err != nil {
		return err
	}
	s.number++
	s.active = segment
	s.mu.Lock()
	s.segments = append(s.segments, segment)
	s.mu.Unlock()
	return nil
}

// abandon gives up a file after a failed write. A disk that failed once may have dropped what was written
// (https://lwn.net/Articles/752063/), so nothing is written to that file again; what was acknowledged before is in it.
func (s *Spool) abandon() {
	gone := s.active
	s.active = nil
	gone.close()
	s.mu.Lock()
	from := gone.records + 1
	s.mu.Unlock()
	there := 0 // the write that failed may be there all the same
	if err := gone.each(from, all, func(*record, int64) bool { there++; return true }); err != nil {
		there = 0 // Peek will find out what is the matter
	}
	s.mu.Lock()
	gone.left += there
	s.mu.Unlock()
	if err := s.forgetDrained(); err != nil {
		s.config.Logger.Warn("an empty file of the spool stays", "error", err)
	}
}

// fail keeps in mind what the disk said, and wraps it.
func (s *Spool) fail(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.config.Logger.Error("the spool's disk takes no tickets; while Postgres is away, senders are asked to send again (503)",
			"folder", s.config.Dir, "error", err)
	}
	s.failure, s.retryAt = err, time.Now().Add(retryDisk)
	return fmt.Errorf("%w: write the spool: %w", ticket.ErrUnavailable, err)
}

// Check finds out whether a disk that failed takes tickets again. It is to be called now and then.
func (s *Spool) Check() {
	s.mu.Lock()
	due := s.failure != nil && !time.Now().Before(s.retryAt)
	s.mu.Unlock()
	if !due || s.config.ReadOnly {
		return
	}
	s.write.Lock()
	defer s.write.Unlock()
	if s.fail(s.ensureActive()) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.well()
}

// well notes that the disk takes tickets. It holds mu.
func (s *Spool) well() {
	if s.failure != nil {
		s.failure = nil
		s.config.Logger.Info("the spool's disk takes tickets again", "folder", s.config.Dir)
	}
}

// Find returns the ticket that was spooled for an idempotency key and is not drained yet.
func (s *Spool) Find(source, key string) (id uuid.UUID, body [sha256.Size]byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.find(newDeliveryKey(source, key))
	return d.id, d.body, ok
}

func (s *Spool) find(key deliveryKey) (delivery, bool) {
	d, ok := s.keys[key]
	return d, ok && time.Now().UnixMilli() < d.expiresAt
}

func (s *Spool) remember(e *intake.Entry) {
	if e.Key != "" {
		s.keys[newDeliveryKey(e.Ticket.Source, e.Key)] = delivery{e.Ticket.ID, e.BodySHA256, e.KeyExpiresAt.UnixMilli()}
	}
}

// Peek returns the oldest tickets but for those to skip, in the order in which they were put: at most so many, of at most so
// many bytes, but at least one if there is any. They stay until Remove. What they say is not read. It does not wait for a
// Put that is under way.
func (s *Spool) Peek(tickets int, bytes int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	s.dropIdle()
	var failure error
	for _, segment := range s.withTickets() {
		found, err := segment.read(tickets, bytes, skip)
		if err != nil {
			if err = s.damage(segment, err); err == nil && segment.left > 0 {
				found, err = segment.read(tickets, bytes, skip) // what was salvaged of it
			}
		}
		if err != nil { // its disk does not give it back, but it may give back the next
			failure = errors.Join(failure, fmt.Errorf("read %s: %w", segment.path, err))
			continue
		}
		if len(found) == 0 {
			continue
		}
		if failure != nil {
			s.config.Logger.Error("a file of the spool cannot be read; its tickets stay in it, and those behind it are drained meanwhile",
				"error", failure)
		}
		return found, nil
	}
	return nil, failure
}

// withTickets returns the files that hold tickets, oldest first.
func (s *Spool) withTickets() []*file {
	s.mu.Lock()
	defer s.mu.Unlock()
	var segments []*file
	for _, segment := range s.segments {
		if segment.left > 0 {
			segments = append(segments, segment)
		}
	}
	return segments
}

// damage is what happens to a file that was well when it was opened, and cannot be read now.
func (s *Spool) damage(segment *file, cause error) error {
	s.write.Lock()
	defer s.write.Unlock()
	if segment.scattered || s.config.ReadOnly {
		return fmt.Errorf("read the spool: %w", cause)
	}
	if s.active == segment {
		s.active = nil
	}
	if err := s.setAside(segment, &[]byte{}, cause); err != nil {
		return err
	}
	return s.forgetDrained()
}

// Remove removes tickets that Peek returned: they are in the database, or kept by Refuse. One that is gone already is no
// error. When the process ends before their file goes, which it does when all of its tickets are removed, they are drained
// once more, which stores nothing twice.
func (s *Spool) Remove(tickets []intake.Spooled) error {
	if len(tickets) == 0 {
		return nil
	}
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	for i := range tickets {
		t := &tickets[i]
		for _, segment := range s.segments {
			if segment.number == t.Place.Segment {
				segment.forget(t.Place.Sequence)
			}
		}
		if t.Key == "" {
			continue
		}
		if key := newDeliveryKey(t.Ticket.Source, t.Key); s.keys[key].id == t.Ticket.ID {
			delete(s.keys, key)
		}
	}
	s.mu.Unlock()
	err := s.forgetDrained()
	s.refreshOldest()
	return err
}

// forgetDrained removes the files that hold nothing that is needed, but for the one that is written. It holds write. The
// disk is never touched under mu: one that hangs must not hold up those who only ask.
func (s *Spool) forgetDrained() error {
	var gone []*file
	s.mu.Lock()
	s.segments = slices.DeleteFunc(s.segments, func(segment *file) bool {
		drained := segment.left == 0 && segment != s.active
		if drained {
			gone = append(gone, segment)
		}
		return drained
	})
	s.mu.Unlock()
	var err error
	for _, segment := range gone {
		if removeErr := ignoreReadOnlyDisk(segment.remove()); removeErr != nil {
			err = errors.Join(err, fmt.Errorf("remove a drained file of the spool: %w", removeErr))
		}
	}
	return err
}

// refreshOldest finds out how old the oldest ticket is. It holds write.
func (s *Spool) refreshOldest() {
	var oldest time.Time
	if heads := s.withTickets(); len(heads) > 0 {
		if head, err := heads[0].read(1, 0, none); err == nil && len(head) > 0 {
			oldest = head[0].Ticket.ReceivedAt
		}
	}
	s.mu.Lock()
	s.oldest = oldest
	s.mu.Unlock()
}

// dropIdle removes the active file when it was drained and nothing comes any more: its records would be drained once more
// after a crash, and its bytes count. A file that is being written is not idle, so a disk that hangs is not waited for.
func (s *Spool) dropIdle() {
	if !s.write.TryLock() {
		return
	}
	defer s.write.Unlock()
	s.mu.Lock()
	drop := s.active != nil && s.active.left == 0 && s.active.records > 0 && time.Since(s.lastPut) >= idle
	s.mu.Unlock()
	if !drop {
		return
	}
	s.active = nil
	if err := s.forgetDrained(); err != nil {
		s.config.Logger.Warn("a drained file of the spool stays; its tickets are drained once more after a restart", "error", err)
	}
}

// Refuse keeps a ticket that the database refuses even unread where nothing drains it until the next start.
func (s *Spool) Refuse(e *intake.Entry) error {
	s.write.Lock()
	defer s.write.Unlock()
	if s.refused == nil {
		segment, err := createSegment(s.config.Dir, s.number+1, suffixRefused)
		if err != nil {
			return fmt.Errorf("keep a refused ticket: %w", err)
		}
		s.number++
		s.refused = segment
		s.mu.Lock()
		s.aside++
		s.mu.Unlock()
	}
	value, err := s.refused.nonce.encode(s.refused.records+1, e)
	if err == nil {
		err = s.refused.append([][]byte{value})
	}
	if err != nil {
		s.refused.close()
		s.refused = nil
		return fmt.Errorf("keep a refused ticket: %w", err)
	}
	s.refused.records++
	return nil
}

// All calls f with every ticket, oldest first, and removes none.
func (s *Spool) All(f func(e *intake.Entry) error) error {
	s.mu.Lock()
	segments := slices.Clone(s.segments)
	s.mu.Unlock()
	for _, segment := range segments {
		var err error
		each := segment.each
		if segment.scattered {
			each = segment.eachSalvaged
		}
		if segment.left == 0 {
			continue
		}
		readErr := each(segment.drained+1, segment.needs, func(r *record, _ int64) bool {
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

// Stats tells what the spool holds, and whether it takes more.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := Stats{Oldest: s.oldest, Aside: s.aside, Failure: s.failure}
	for _, segment := range s.segments {
		have.Tickets += segment.left
		have.Bytes += segment.bytes
	}
	if have.Failure == nil && (have.Tickets >= s.config.MaxTickets || have.Bytes >= s.config.MaxBytes) {
		have.Failure = intake.ErrSpoolFull
	}
	return have
}

// Close lets go of the folder. What is in it stays.
func (s *Spool) Close() error {
	s.write.Lock()
	defer s.write.Unlock()
	s.active = nil
	for _, segment := range s.segments {
		segment.close()
	}
	var err error
	if !s.config.ReadOnly {
		err = s.forgetDrained()
	}
	if s.refused != nil {
		s.refused.close()
	}
	s.refused = nil
	if s.lock == nil {
		return err
	}
	return errors.Join(err, s.lock.Close())
}

// Register adds the spool's metrics.
func (s *Spool) Register(r prometheus.Registerer) {
	auto := promauto.With(r)
	gauge := func(name, help string, value func(Stats) float64) {
		auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "myticket_spool_" + name, Help: help}, func() float64 { return value(s.Stats()) })
	}
	gauge("tickets", "Tickets in the spool.", func(h Stats) float64 { return float64(h.Tickets) })
	gauge("bytes", "Bytes in the spool's files.", func(h Stats) float64 { return float64(h.Bytes) })
	gauge("oldest_age_seconds", "Age of the oldest ticket in the spool; 0 when it is empty.", func(h Stats) float64 {
		if h.Oldest.IsZero() {
			return 0
		}
		return max(0, time.Since(h.Oldest).Seconds())
	})
	gauge("files_aside", "Files that a person should look at: damaged ones, and tickets that the database refuses.",
		func(h Stats) float64 { return float64(h.Aside) })
	gauge("failing", "1 while the spool takes no tickets: it is full, or its disk fails.", func(h Stats) float64 {
		if h.Failure != nil {
			return 1
		}
		return 0
	})
	gauge("max_tickets", "Tickets that the spool may hold.", func(Stats) float64 { return float64(s.config.MaxTickets) })
	gauge("max_bytes", "Bytes that the spool may hold.", func(Stats) float64 { return float64(s.config.MaxBytes) })
}

// Watch checks a failing disk every second until ctx ends.
func (s *Spool) Watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.Check()
		}
	}
}
