// Package archiver takes parts into an archive, checks them there, and reads them back.
package archiver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"myticket/internal/archive"
	"myticket/internal/archive/bucket"
	"myticket/internal/archive/parquetfile"
)

// Source is where the tickets of detached parts are. Package postgres has it.
type Source interface {
	BeginPart(ctx context.Context, holder uuid.UUID, p archive.Part, run uuid.UUID) error
	CountPart(ctx context.Context, p archive.Part) (tickets, bytes int64, err error)
	ReadPart(ctx context.Context, p archive.Part, do func(*archive.Ticket) error) error
	PartCorrections(ctx context.Context, p archive.Part) ([]archive.Correction, error)
	PartChanges(ctx context.Context, p archive.Part) ([]archive.Change, error)
	PartVerified(ctx context.Context, holder uuid.UUID, p archive.Part, m archive.Manifest, sum []byte, tableBytes int64) error
	PartUnverified(ctx context.Context, holder uuid.UUID, p archive.Part) error
	ReleasedRuns(ctx context.Context) (map[string][]uuid.UUID, error)
}

// Config says where an Archiver works.
type Config struct {
	Bucket *bucket.Bucket
	Source Source    // only for Write
	Holder uuid.UUID // this process; only for Write

	// Tmp is the folder for temporary files: at most two of FileBytes at once. Defaults to the system's.
	Tmp string

	// FileBytes bounds a file with tickets. Defaults to parquetfile.DefaultFileBytes.
	FileBytes int64

	Program string // the version of this program, for manifests

	// Progress is called now and then with what is being done. Defaults to nothing.
	Progress func(step string, done, of int64)

	// Step is called before each step, by its name. Tests make it fail. Defaults to nothing.
	Step func(name string) error
}

// Archiver writes and reads an archive. Only one goroutine uses it at a time.
type Archiver struct {
	Config

	released map[string][]uuid.UUID // see known; nil until it was read. While this process has the turn, nobody releases others
}

// New returns an Archiver.
func New(config Config) *Archiver {
	if config.Progress == nil {
		config.Progress = func(string, int64, int64) {}
	}
	if config.Step == nil {
		config.Step = func(string) error { return nil }
	}
	if config.FileBytes == 0 {
		config.FileBytes = parquetfile.DefaultFileBytes
	}
	if config.Tmp == "" {
		config.Tmp = os.TempDir()
	}
	return &Archiver{Config: config}
}

// The steps of Write, in order. Those of a file are repeated.
const (
	StepBegin    = "begin"
	StepClean    = "clean"
	StepFile     = "file"
	StepUpload   = "upload"
	StepReadBack = "read-back"
	StepManifest = "manifest"
	StepWritten  = "written"
	StepDrop     = "drop"
)

// Write takes a detached part into the archive: it writes its files, reads each back, and writes the manifest when all are there.
// What an attempt before left is deleted first, or used if that wrote the manifest. It returns the manifest once Postgres has
// noted it; the part is verified then, and its table may be dropped. The error is archive.ErrForeign if another database wrote a
// part of that name.
func (a *Archiver) Write(ctx context.Context, p archive.Part) (m archive.Manifest, err error) {
	if err := a.Step(StepBegin); err != nil {
		return m, err
	}
	tickets, tableBytes, err := a.Source.CountPart(ctx, p)
	if err != nil {
		return m, err
	}
	known, err := a.known(ctx, p)
	if err != nil {
		return m, err
	}
	manifests, err := a.manifests(ctx, p.Name, known)
	if err != nil {
		return m, err
	}
	if len(p.Runs) > 0 && manifests[archive.ManifestKey(p.Name, p.Runs[0])] == p.Runs[0] {
		// The last attempt may have been killed between its manifest and its note. No earlier one counts: others may be deleting it.
		m, sum, err := a.manifest(ctx, p.Name, archive.ManifestKey(p.Name, p.Runs[0]))
		if err == nil && m.Tickets == tickets {
			if err = a.Check(ctx, m); err == nil {
				return m, a.Source.PartVerified(ctx, a.Holder, p, m, sum, tableBytes)
			}
		}
		if err != nil && !errors.Is(err, archive.ErrDamaged) && !errors.Is(err, archive.ErrNoManifest) {
			return m, err
		}
	}
	run, err := archive.NextRun(known)
	if err != nil {
		return m, err
	}
	if err := a.Source.BeginPart(ctx, a.Holder, p, run); err != nil {
		return m, err
	}
	if err := a.Step(StepClean); err != nil {
		return m, err
	}
	if err := a.Delete(ctx, p); err != nil {
		return m, err
	}
	m, err = a.files(ctx, p, run, tickets)
	if err != nil {
		return m, err
	}
	if _, err := a.manifests(ctx, p.Name, known); err != nil { // another database may have written its own meanwhile
		if errors.Is(err, archive.ErrForeign) { // the next attempt may use another prefix
			err = errors.Join(err, a.deleteFiles(ctx, p, []uuid.UUID{run}))
		}
		return m, err
	}
	sum, err := a.writeManifest(ctx, m)
	if err != nil {
		return m, err
	}
	if err := a.Step(StepWritten); err != nil {
		return m, err
	}
	return m, a.Source.PartVerified(ctx, a.Holder, p, m, sum, tableBytes)
}

// Ready tries whether a part can be written now: whether there is room for temporary files, and whether the archive takes an
// object and gives it back. A partition is detached only then, because nobody finds its tickets in lists until it is archived.
func (a *Archiver) Ready(ctx context.Context) error {
	file, err := a.scratch(2 * a.FileBytes)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	key, content := "probe/"+a.Holder.String(), []byte("MyTicket tries whether it can write, read and delete here.\n")
	if err := a.Bucket.Put(ctx, key, bytes.NewReader(content), false); err != nil {
		return err
	}
	var back bytes.Buffer
	if _, err := a.Bucket.Get(ctx, key, &back, int64(len(content))); err != nil {
		return err
	}
	if !bytes.Equal(back.Bytes(), content) {
		return fmt.Errorf("%w: %s has other bytes", archive.ErrDamaged, key)
	}
	return a.Bucket.Delete(ctx, key)
}

// Confirm checks a verified part once more before its table is dropped: that its manifest is there unchanged, and all its files
// with their sizes. It takes a moment, whatever the sizes are. If the archive does not have them, the part is not verified any
// more.
func (a *Archiver) Confirm(ctx context.Context, p archive.Part) error {
	m, err := a.ManifestOf(ctx, p)
	if err == nil {
		err = a.present(ctx, m)
	}
	if errors.Is(err, archive.ErrNoManifest) || errors.Is(err, archive.ErrDamaged) {
		err = errors.Join(err, a.Source.PartUnverified(ctx, a.Holder, p))
	}
	return err
}

// altered reports whether an object is not the one that was written.
func altered(err error) bool {
	return errors.Is(err, bucket.ErrChecksum) || errors.Is(err, bucket.ErrTooLarge)
}

// maxManifest is the most bytes of a manifest. One of a part of 10,000 files has about 5 MB.
const maxManifest = 32 << 20

// manifest reads a manifest of a part, and returns the SHA-256 of it, too. It returns archive.ErrNoManifest or
// archive.ErrDamaged.
func (a *Archiver) manifest(ctx context.Context, part, key string) (m archive.Manifest, sum []byte, err error) {
	var text bytes.Buffer
	_, err = a.Bucket.Get(ctx, key, &text, maxManifest)
	if errors.Is(err, bucket.ErrNotFound) {
		return m, nil, fmt.Errorf("part %s: %w", part, archive.ErrNoManifest)
	}
	if altered(err) {
		return m, nil, fmt.Errorf("%w: %w", archive.ErrDamaged, err)
	}
	if err != nil {
		return m, nil, err
	}
	var version struct {
		SchemaVersion int `json:"schema_version"`
	}
	if err := json.Unmarshal(text.Bytes(), &version); err != nil {
		return m, nil, fmt.Errorf("%w: the manifest of %s is no JSON: %w", archive.ErrDamaged, part, err)
	}
	if version.SchemaVersion > archive.ManifestVersion {
		return m, nil, fmt.Errorf("the manifest of %s has version %d, and this program knows %d: use the newer program that wrote it",
			part, version.SchemaVersion, archive.ManifestVersion)
	}
	if err := json.Unmarshal(text.Bytes(), &m); err != nil || m.Part != part {
		return m, nil, fmt.Errorf("%w: the manifest of %s cannot be read", archive.ErrDamaged, part)
	}
	all := sha256.Sum256(text.Bytes())
	return m, all[:], nil
}

// ManifestOf reads the manifest of a part that was verified. It returns archive.ErrNoManifest, or archive.ErrDamaged if it is not
// the one that was written.
func (a *Archiver) ManifestOf(ctx context.Context, p archive.Part) (archive.Manifest, error) {
	m, sum, err := a.manifest(ctx, p.Name, p.Manifest)
	if err == nil && !bytes.Equal(sum, p.ManifestSum) {
		err = fmt.Errorf("part %s: %w: its manifest was changed", p.Name, archive.ErrDamaged)
	}
	return m, err
}

func (a *Archiver) writeManifest(ctx context.Context, m archive.Manifest) (sum []byte, err error) {
	if err := a.Step(StepManifest); err != nil {
		return nil, err
	}
	if err := a.present(ctx, m); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	key := archive.ManifestKey(m.Part, m.Run)
	if err := a.Bucket.Put(ctx, key, bytes.NewReader(text), true); err != nil {
		return nil, err
	}
	_, sum, err = a.manifest(ctx, m.Part, key)
	if err != nil {
		return nil, err
	}
	if want := sha256.Sum256(text); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w: the manifest of %s is not what was written", archive.ErrDamaged, m.Part)
	}
	return sum, nil
}

// present checks that the archive lists all files of a manifest with their sizes.
func (a *Archiver) present(ctx context.Context, m archive.Manifest) error {
	sizes := map[string]int64{}
	for _, f := range m.Files {
		prefix, _, _ := strings.Cut(f.Key, "/part-")
		if _, listed := sizes[prefix]; listed {
			continue
		}
		sizes[prefix] = 0
		err := a.Bucket.List(ctx, prefix+"/part-"+m.Part+".", func(key string, size int64, _ time.Time) error {
			sizes[key] = size
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, f := range m.Files {
		if size, ok := sizes[f.Key]; !ok || size != f.Bytes {
			return fmt.Errorf("%w: %s has %d bytes instead of %d", archive.ErrDamaged, f.Key, size, f.Bytes)
		}
	}
	return nil
}

// known returns the runs of a part's attempts, and of those of one of that name that was released. All but the one that counts
// were given up.
func (a *Archiver) known(ctx context.Context, p archive.Part) (runs []uuid.UUID, err error) {
	if a.released == nil {
		if a.released, err = a.Source.ReleasedRuns(ctx); err != nil {
			return nil, err
		}
	}
	return slices.Concat(p.Runs, a.released[p.Name]), nil
}

// found returns the runs of the manifests that the archive has of a part, by their keys: uuid.Nil if one cannot be read that has
// no run in its key.
func (a *Archiver) found(ctx context.Context, part string) (map[string]uuid.UUID, error) {
	found := map[string]uuid.UUID{}
	return found, a.Bucket.List(ctx, archive.ManifestPrefix(part), func(key string, _ int64, _ time.Time) error {
		run, shared, ok := archive.ManifestRun(part, key)
		if !ok {
			return nil
		}
		if shared {
			m, _, err := a.manifest(ctx, part, key)
			if err != nil && !errors.Is(err, archive.ErrDamaged) {
				return err
			}
			run = m.Run
		}
		found[key] = run
		return nil
	})
}

// manifests is found if all runs are known, and archive.ErrForeign otherwise.
func (a *Archiver) manifests(ctx context.Context, part string, known []uuid.UUID) (map[string]uuid.UUID, error) {
	found, err := a.found(ctx, part)
	if err != nil {
		return nil, err
	}
	for _, run := range found {
		if run != uuid.Nil && !slices.Contains(known, run) {
			return nil, fmt.Errorf("part %s: %w", part, archive.ErrForeign)
		}
	}
	return found, nil
}

// Delete deletes what the attempts of a part wrote to the archive, the manifests first, so none names files that are gone.
// Postgres must have all its tickets. The error is archive.ErrForeign if there is a manifest of another run; nothing is deleted
// then. Of a process that was stopped meanwhile, and has lost the turn, it deletes nothing that counts: all runs that it knows
// were given up before another process could take the turn.
func (a *Archiver) Delete(ctx context.Context, p archive.Part) error {
	known, err := a.known(ctx, p)
	if err != nil {
		return err
	}
	manifests, err := a.manifests(ctx, p.Name, known)
	if err != nil {
		return err
	}
	return a.deleteAll(ctx, p, manifests, known)
}

// Tidy deletes what the other attempts of an archived part left, also those before it was released last: one that was given up
// may have written something later, and readers that list files would read its tickets twice.
func (a *Archiver) Tidy(ctx context.Context, p archive.Part) error {
	counts, shared, ok := archive.ManifestRun(p.Name, p.Manifest)
	if p.State != archive.Archived || shared || !ok {
		return nil
	}
	known, err := a.known(ctx, p)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(known, func(run uuid.UUID) bool { return run == counts })
	if len(others) == 0 {
		return nil
	}
	manifests, err := a.found(ctx, p.Name)
	if err != nil {
		return err
	}
	maps.DeleteFunc(manifests, func(_ string, run uuid.UUID) bool { return !slices.Contains(others, run) })
	return a.deleteAll(ctx, p, manifests, others)
}

// deleteAll deletes manifests of a part, and then the files of runs.
func (a *Archiver) deleteAll(ctx context.Context, p archive.Part, manifests map[string]uuid.UUID, runs []uuid.UUID) error {
	for key := range manifests {
		if err := a.Bucket.Delete(ctx, key); err != nil {
			return err
		}
	}
	return a.deleteFiles(ctx, p, runs)
}

// deleteFiles deletes the files of some runs of a part. Files of others stay: another process may have taken the turn and written
// them while this one was stopped.
func (a *Archiver) deleteFiles(ctx context.Context, p archive.Part, runs []uuid.UUID) error {
	for _, kind := range []string{archive.KindTickets, archive.KindCorrections, archive.KindChanges} {
		prefixes := []string{kind + "/"} // a long or endless time: all files are looked at
		if p.From != nil && p.To.Sub(*p.From) <= 62*24*time.Hour {
			prefixes = nil
			for day := p.From.Truncate(24 * time.Hour); day.Before(p.To); day = day.AddDate(0, 0, 1) {
				prefixes = append(prefixes, archive.FilePrefix(kind, day, p.Name))
			}
		}
		for _, prefix := range prefixes {
			var old []string
			err := a.Bucket.List(ctx, prefix, func(key string, _ int64, _ time.Time) error {
				_, name, _ := strings.Cut(key, "/part-"+p.Name+".")
				name, _, _ = strings.Cut(name, ".")
				if run, err := uuid.Parse(name); err == nil && slices.Contains(runs, run) {
					old = append(old, key)
				}
				return nil
			})
			if err != nil {
				return err
			}
			for _, key := range old {
				if err := a.Bucket.Delete(ctx, key); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// files writes and checks all files of a part, and returns the manifest that is to be written.
func (a *Archiver) files(ctx context.Context, p archive.Part, run uuid.UUID, tickets int64) (archive.Manifest, error) {
	w := &partWriter{Archiver: a, part: p, run: run, of: tickets, manifest: archive.Manifest{
		SchemaVersion: archive.ManifestVersion, Program: a.Program, Part: p.Name, Run: run, From: p.From, To: p.To,
		WrittenAt: time.Now().UTC().Truncate(time.Second), Columns: parquetfile.Columns(), Files: []archive.File{},
	}}
	defer w.discard()
	err := a.Source.ReadPart(ctx, p, func(t *archive.Ticket) error { return w.add(ctx, t) })
	if err != nil {
		return w.manifest, err
	}
	if err := w.end(ctx); err != nil {
		return w.manifest, err
	}
	m := &w.manifest
	if m.Tickets != tickets {
		return *m, fmt.Errorf("part %s: its table had %d tickets when they were counted and %d when they were read, but nothing may "+
			"change it; it is not archived", p.Name, tickets, m.Tickets)
	}
	sums := sha256.New()
	for _, f := range m.Files {
		sum, err := hex.DecodeString(f.RowsSHA256)
		if err != nil {
			return *m, err
		}
		sums.Write(sum)
	}
	m.SHA256 = hex.EncodeToString(sums.Sum(nil))
	day := p.To.Add(-time.Nanosecond)
	if p.From != nil {
		day = *p.From
	}
	corrections, err := a.Source.PartCorrections(ctx, p)
	if err != nil {
		return *m, err
	}
	changes, err := a.Source.PartChanges(ctx, p)
	if err != nil {
		return *m, err
	}
	m.Corrections, m.Changes = int64(len(corrections)), int64(len(changes))
	if len(corrections) > 0 {
		err := w.small(ctx, archive.KindCorrections, day, m.Corrections,
			func(to io.Writer) error { return parquetfile.WriteCorrections(to, corrections) })
		if err != nil {
			return *m, err
		}
	}
	if len(changes) > 0 {
		err := w.small(ctx, archive.KindChanges, day, m.Changes,
			func(to io.Writer) error { return parquetfile.WriteChanges(to, changes) })
		if err != nil {
			return *m, err
		}
	}
	return *m, nil
}

// partWriter writes the files of a part, one after the other.
type partWriter struct {
	*Archiver

	part     archive.Part
	run      uuid.UUID
	of       int64
	manifest archive.Manifest

	file *Scratch // the present file; nil for none
	to   *parquetfile.TicketWriter
	day  time.Time
}

func (w *partWriter) add(ctx context.Context, t *archive.Ticket) error {
	day := t.ReceivedAt.UTC().Truncate(24 * time.Hour)
	if w.file != nil && (w.to.Full() || !day.Equal(w.day)) {
		if err := w.end(ctx); err != nil {
			return err
		}
	}
	if w.file == nil {
		if err := w.Step(StepFile); err != nil {
			return err
		}
		var err error
		if w.file, err = w.scratch(2 * w.FileBytes); err != nil {
			return err
		}
		w.to, w.day = parquetfile.NewTicketWriter(w.file, w.FileBytes), day
	}
	w.manifest.Tickets++
	if w.manifest.Tickets%10_000 == 0 {
		w.Progress("write", w.manifest.Tickets, w.of)
	}
	return w.full(w.to.Add(t))
}

// end ends the present file, uploads it and reads it back.
func (w *partWriter) end(ctx context.Context) error {
	if w.file == nil {
		return nil
	}
	defer w.discard()
	sum, err := w.to.Close()
	if err != nil {
		return w.full(fmt.Errorf("write a temporary file: %w", err))
	}
	f := archive.File{
		Kind: archive.KindTickets, Rows: sum.Rows, RowsSHA256: hex.EncodeToString(sum.SHA256[:]), First: &sum.First, Last: &sum.Last,
	}
	if err := w.send(ctx, w.day, f, w.file); err != nil {
		return err
	}
	m := &w.manifest
	if m.First == nil || sum.First.Before(*m.First) {
		m.First = &sum.First
	}
	if m.Last == nil || sum.Last.After(*m.Last) {
		m.Last = &sum.Last
	}
	return nil
}

func (w *partWriter) discard() {
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
}

// small writes a file that is no file of tickets.
func (w *partWriter) small(ctx context.Context, kind string, day time.Time, rows int64, write func(io.Writer) error) error {
	file, err := w.scratch(64 << 20)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := write(file); err != nil {
		return w.full(fmt.Errorf("write a temporary file: %w", err))
	}
	return w.send(ctx, day, archive.File{Kind: kind, Rows: rows}, file)
}

// send uploads a file, reads it back, and adds it to the manifest.
func (w *partWriter) send(ctx context.Context, day time.Time, f archive.File, file *Scratch) error {
	f.Key = fmt.Sprintf("%s%s.%04d.parquet", archive.FilePrefix(f.Kind, day, w.part.Name), w.run, len(w.manifest.Files)+1)
	f.Bytes, f.SHA256 = file.n, hex.EncodeToString(file.hash.Sum(nil))
	if err := w.Step(StepUpload); err != nil {
		return err
	}
	if _, err := file.File.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.Progress("upload", w.manifest.Tickets, w.of)
	if err := w.Bucket.Put(ctx, f.Key, file.File, false); err != nil {
		return err
	}
	if err := w.Step(StepReadBack); err != nil {
		return err
	}
	w.Progress("read back", w.manifest.Tickets, w.of)
	if err := w.CheckFile(ctx, f); err != nil {
		return err
	}
	w.manifest.Files = append(w.manifest.Files, f)
	return nil
}

// Check reads all files of a manifest, and compares them with it. It returns archive.ErrDamaged with what is wrong.
func (a *Archiver) Check(ctx context.Context, m archive.Manifest) error {
	sums := sha256.New()
	var tickets int64
	for i, f := range m.Files {
		a.Progress("read", int64(i), int64(len(m.Files)))
		if err := a.CheckFile(ctx, f); err != nil {
			return err
		}
		if f.Kind != archive.KindTickets {
			continue
		}
		sum, err := hex.DecodeString(f.RowsSHA256)
		if err != nil {
			return fmt.Errorf("%w: the manifest of %s cannot be read", archive.ErrDamaged, m.Part)
		}
		sums.Write(sum)
		tickets += f.Rows
	}
	if tickets != m.Tickets || hex.EncodeToString(sums.Sum(nil)) != m.SHA256 {
		return fmt.Errorf("%w: the files of %s do not add up to its manifest", archive.ErrDamaged, m.Part)
	}
	return nil
}

// CheckFile reads a file back: its bytes, and the rows in it.
func (a *Archiver) CheckFile(ctx context.Context, f archive.File) error {
	file, err := a.Fetch(ctx, f)
	if err != nil {
		return err
	}
	defer file.Close()
	if f.Kind != archive.KindTickets {
		rows, err := parquetfile.CountRows(file.File, f.Bytes, f.Kind)
		if err == nil && rows != f.Rows {
			err = fmt.Errorf("%w: %s has %d rows instead of %d", archive.ErrDamaged, f.Key, rows, f.Rows)
		}
		return err
	}
	sum, err := parquetfile.Summarize(file.File, f.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Key, err)
	}
	if sum.Rows != f.Rows || hex.EncodeToString(sum.SHA256[:]) != f.RowsSHA256 || f.First == nil || f.Last == nil ||
		!sum.First.Equal(*f.First) || !sum.Last.Equal(*f.Last) {
		return fmt.Errorf("%w: %s has other tickets", archive.ErrDamaged, f.Key)
	}
	return nil
}

// Fetch copies a file of the archive into a temporary one, whose bytes are those of the manifest. The caller must close it.
func (a *Archiver) Fetch(ctx context.Context, f archive.File) (*Scratch, error) {
	file, err := a.scratch(f.Bytes)
	if err != nil {
		return nil, err
	}
	n, err := a.Bucket.Get(ctx, f.Key, file, f.Bytes)
	err = a.full(err)
	switch {
	case errors.Is(err, bucket.ErrNotFound), altered(err):
		err = fmt.Errorf("%w: %w", archive.ErrDamaged, err)
	case err == nil && (n != f.Bytes || hex.EncodeToString(file.hash.Sum(nil)) != f.SHA256):
		err = fmt.Errorf("%w: %s has other bytes", archive.ErrDamaged, f.Key)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// Tickets calls do with each ticket of a part.
func (a *Archiver) Tickets(ctx context.Context, m archive.Manifest, do func(*archive.Ticket) error) error {
	for _, f := range m.Files {
		if f.Kind != archive.KindTickets {
			continue
		}
		file, err := a.Fetch(ctx, f)
		if err != nil {
			return err
		}
		err = parquetfile.ReadTickets(file.File, f.Bytes, do)
		_ = file.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Ticket returns a ticket of a part, with its corrections; nil if it is not there.
func (a *Archiver) Ticket(ctx context.Context, m archive.Manifest, id uuid.UUID, at time.Time) (*archive.Ticket, error) {
	for _, f := range m.Files {
		if f.Kind != archive.KindTickets || f.First == nil || f.Last == nil || at.Before(*f.First) || at.After(*f.Last) {
			continue
		}
		file, err := a.Fetch(ctx, f)
		if err != nil {
			return nil, err
		}
		found, err := parquetfile.FindTicket(file.File, f.Bytes, id)
		_ = file.Close()
		if err != nil || found != nil {
			return found, err
		}
	}
	return nil, nil //nolint:nilnil // said above
}

// Corrections returns the corrections of a part.
func (a *Archiver) Corrections(ctx context.Context, m archive.Manifest) (all []archive.Correction, err error) {
	for _, f := range m.Files {
		if f.Kind != archive.KindCorrections {
			continue
		}
		file, err := a.Fetch(ctx, f)
		if err != nil {
			return nil, err
		}
		some, err := parquetfile.ReadCorrections(file.File, f.Bytes)
		_ = file.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// Scratch is a temporary file that has no name any more, so nothing of it is left behind, however the process ends. It counts and
// hashes what is written.
type Scratch struct {
	File *os.File // not embedded: its other methods would write past the hash

	n    int64
	hash hash.Hash
}

// Close deletes the file.
func (s *Scratch) Close() error { return s.File.Close() }

// scratch makes a temporary file, if the disk has room for so many bytes.
func (a *Archiver) scratch(need int64) (*Scratch, error) {
	if free, known := freeBytes(a.Tmp); known && free < need {
		return nil, fmt.Errorf("the folder for temporary files, %s, has %d MiB free, and %d are needed: make room, or give another "+
			"one (--tmp). The tickets stay in Postgres", a.Tmp, free>>20, need>>20)
	}
	file, err := os.CreateTemp(a.Tmp, "myticket-archive-*")
	if err != nil {
		return nil, a.full(fmt.Errorf("make a temporary file: %w", err))
	}
	if err := os.Remove(file.Name()); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	return &Scratch{File: file, hash: sha256.New()}, nil
}

// full adds what to do to an error that says that the disk is full.
func (a *Archiver) full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: the folder for temporary files, %s, is full: make room, or give another one (--tmp). The tickets "+
			"stay in Postgres", err, a.Tmp)
	}
	return err
}

func (s *Scratch) Write(b []byte) (int, error) {
	n, err := s.File.Write(b)
	s.hash.Write(b[:n])
	s.n += int64(n)
	return n, err
}
