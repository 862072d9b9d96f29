package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"

	"myticket/internal/archive"
	"myticket/internal/archive/archiver"
	"myticket/internal/archive/bucket"
	"myticket/internal/postgres"
)

// archiveCmd is `myticket archive`.
type archiveCmd struct {
	Run     archiveRunCmd     `cmd:"" help:"Take old partitions into the archive, check them there, and drop them. Without --apply it only shows what it would do."`
	List    archiveListCmd    `cmd:"" help:"List the parts of the archive, and how far they have come."`
	Verify  archiveVerifyCmd  `cmd:"" help:"Read parts of the archive again, and compare them with their manifests."`
	Restore archiveRestoreCmd `cmd:"" help:"Put a part back into tickets, or show one ticket of the archive."`
	Release archiveReleaseCmd `cmd:"" help:"Delete a restored part from the archive, so that the next run archives it again as it is now."`
}

// archiveFlags say where the archive is.
type archiveFlags struct {
	Archive string `required:"" env:"MYTICKET_ARCHIVE" group:"Archive" placeholder:"URL" help:"The archive: s3://BUCKET, gs://BUCKET, azblob://CONTAINER or file:///FOLDER, perhaps with ?prefix=FOLDER/. Credentials are those of the environment (docs/archive.md)."`
	Tmp     string `env:"MYTICKET_ARCHIVE_TMP" group:"Archive" placeholder:"DIR" help:"Folder for temporary files, with at least 1 GiB free for large parts. Default: the system's."`
}

// check is for the Validate of commands.
func (f archiveFlags) check() error { return bucket.Check(f.Archive) }

// archiveTurn is the turn of this process to change the archive.
type archiveTurn struct {
	store *postgres.Store
	files *archiver.Archiver
	run   postgres.ArchiveRun
	stop  func()
}

// archiver returns an archiver that writes progress to a terminal.
func (f archiveFlags) archiver(
	ctx context.Context, std streams, store *postgres.Store, holder uuid.UUID,
) (*archiver.Archiver, error) {
	opened, err := bucket.Open(ctx, f.Archive)
	if err != nil {
		return nil, err
	}
	line := newProgress(std.stderr)
	return archiver.New(archiver.Config{
		Bucket: opened, Source: store, Holder: holder, Tmp: f.Tmp, Program: version, Step: archiveStep,
		Progress: func(step string, done, of int64) {
			line.show(fmt.Sprintf("%s: %s of %s", step, humanize.Comma(done), humanize.Comma(of)))
		},
	}), nil
}

// archiveStep is called before each step. Tests end the process there.
var archiveStep func(step string) error

// turn takes the turn. The context that it returns ends if another process has taken it. A turn that another one had in the
// meantime is not taken again, even if that one is done with it: what this process knows of parts is out of date then.
func (f archiveFlags) turn(
	ctx context.Context, std streams, store *postgres.Store, keep time.Duration, begin bool,
) (context.Context, *archiveTurn, error) {
	holder, err := uuid.NewRandom()
	if err != nil {
		return nil, nil, err
	}
	files, err := f.archiver(ctx, std, store, holder)
	if err != nil {
		return nil, nil, err
	}
	t := &archiveTurn{store: store, files: files, run: postgres.ArchiveRun{URL: f.Archive, Keep: keep, Holder: holder}}
	if !begin {
		if t.run, err = store.LastArchiveRun(ctx); err != nil {
			return nil, nil, err
		}
		t.run.Holder, t.run.URL = holder, f.Archive
	}
	if err := store.HoldArchive(ctx, t.run, begin); err != nil {
		return nil, nil, errors.Join(err, files.Bucket.Close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Second):
				if err := store.KeepArchive(ctx, holder); errors.Is(err, archive.ErrHeld) {
					cancel(err)
				}
			}
		}
	}()
	t.stop = func() { cancel(nil); <-ended }
	return ctx, t, nil
}

// leave ends the turn.
func (t *archiveTurn) leave(ctx context.Context, failure error) error {
	t.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	why := ""
	if failure != nil {
		why = failure.Error()
	}
	return errors.Join(t.store.LeaveArchive(ctx, t.run.Holder, why), t.files.Bucket.Close())
}

type archiveRunCmd struct {
	databaseFlags
	outputFlags
	personFlags
	archiveFlags
	Keep        span     `required:"" env:"MYTICKET_ARCHIVE_KEEP" placeholder:"TIME" help:"How long tickets stay in Postgres, in days or weeks: 90d, 12w; at least 1d. There is no default. A partition is archived when its whole period is older."`
	Unfinished  string   `env:"MYTICKET_ARCHIVE_UNFINISHED" enum:"keep,archive" default:"keep" help:"What becomes of TO_TREAT and ERROR tickets: keep leaves them in Postgres, archive takes them along with their problems. Default: ${default}."`
	Undelivered bool     `help:"Also archive partitions of a time that a subscription has not got all events about. It never gets those."`
	FileSize    byteSize `env:"MYTICKET_ARCHIVE_FILE_SIZE" default:"256MiB" help:"Maximum size of a file with tickets, from 1MiB to 1GiB. The folder for temporary files needs twice that. Default: ${default}."`
	Apply       bool     `help:"Archive and drop. Without this flag, only show what would be archived."`
}

// Validate is called by kong.
func (c archiveRunCmd) Validate() error {
	if time.Duration(c.Keep) < 24*time.Hour {
		return errors.New("--keep must be at least 1d")
	}
	if c.FileSize < 1<<20 || c.FileSize > 1<<30 {
		return errors.New("--file-size must be from 1MiB to 1GiB")
	}
	return errors.Join(c.personFlags.check(), c.archiveFlags.check())
}

// archiveReport is what a program reads.
type archiveReport struct {
	Applied bool                `json:"applied"`
	Parts   []archivePartReport `json:"parts"`
}

type archivePartReport struct {
	Part      string `json:"part,omitempty"` // empty if it is none yet
	Partition string `json:"partition"`
	Tickets   int64  `json:"tickets"`
	Kept      int64  `json:"kept"` // unfinished tickets that stay in Postgres
	Bytes     int64  `json:"bytes"`
	FileBytes int64  `json:"file_bytes"`
	Archived  bool   `json:"archived"`
	Verdict   string `json:"verdict"` // for people
}

func (c archiveRunCmd) Run(ctx context.Context, std streams) error {
	by, err := c.person()
	if err != nil {
		return err
	}
	store, err := c.open(ctx, std, "archive")
	if err != nil {
		return err
	}
	defer store.Close()
	if !c.Apply {
		report, err := c.look(ctx, store)
		return errors.Join(err, c.print(std, report))
	}
	working, turn, err := c.turn(ctx, std, store, time.Duration(c.Keep), true)
	if err != nil {
		return err
	}
	turn.files.FileBytes = int64(c.FileSize)
	report, err := c.apply(working, turn, by)
	newProgress(std.stderr).end()
	if cause := context.Cause(working); errors.Is(cause, archive.ErrHeld) {
		err = cause
	}
	err = errors.Join(err, turn.leave(ctx, err))
	return errors.Join(interrupted(ctx, err), c.print(std, report))
}

func (c archiveRunCmd) before() time.Time { return time.Now().Add(-time.Duration(c.Keep)) }

// look says what a run would do.
func (c archiveRunCmd) look(ctx context.Context, store *postgres.Store) (archiveReport, error) {
	report := archiveReport{Parts: []archivePartReport{}}
	parts, err := store.ArchiveParts(ctx)
	if err != nil {
		return report, err
	}
	for _, p := range parts {
		if p.State == archive.Detached || p.State == archive.Verified {
			report.Parts = append(report.Parts, archivePartReport{
				Part: p.Name, Partition: p.Table, Tickets: p.Tickets, Bytes: p.TableBytes,
				Verdict: "would be finished: it is " + string(p.State),
			})
		}
	}
	old, err := store.OldPartitions(ctx, c.before())
	if err != nil {
		return report, err
	}
	for _, p := range old {
		r, why := c.examine(parts, p)
		if r.Verdict = why; why == "" {
			r.Verdict = "would be archived"
		}
		report.Parts = append(report.Parts, r)
	}
	return report, nil
}

// examine says why a partition is not archived; empty if it is.
func (c archiveRunCmd) examine(parts []archive.Part, p postgres.OldPartition) (r archivePartReport, why string) {
	r = archivePartReport{Partition: p.Name, Bytes: p.Bytes}
	for _, n := range p.Tickets {
		r.Tickets += n
	}
	if c.Unfinished == "keep" {
		r.Kept = p.Unfinished()
		r.Tickets -= r.Kept
	}
	if part := restoredPart(parts, p); part != "" {
		return r, "left alone: it was restored (myticket archive release " + part + ")"
	}
	if r.Kept > 0 && r.Tickets == 0 {
		return r, "kept: it holds only TO_TREAT or ERROR tickets"
	}
	if len(p.Undelivered) > 0 && !c.Undelivered {
		return r, "kept: not all its events are delivered (--undelivered archives it too): " + strings.Join(p.Undelivered, ", ")
	}
	return r, ""
}

// restoredPart returns the part that was restored to a partition; empty for none.
func restoredPart(parts []archive.Part, p postgres.OldPartition) string {
	for i := range parts {
		if parts[i].State == archive.Restored && parts[i].Table == p.Name {
			return parts[i].Name
		}
	}
	return ""
}

// tidyFor is how long after a part was archived each run looks for what late attempts have left of it.
const tidyFor = 7 * 24 * time.Hour

// apply finishes the parts that there are, and archives the partitions that are old enough. What fails does not stop the others.
func (c archiveRunCmd) apply(ctx context.Context, turn *archiveTurn, by postgres.Person) (archiveReport, error) {
	report := archiveReport{Applied: true, Parts: []archivePartReport{}}
	parts, err := turn.store.ArchiveParts(ctx)
	if err != nil {
		return report, err
	}
	var failures []error
	finish := func(p archive.Part, kept int64) {
		done, err := turn.finish(ctx, by, p)
		done.Kept = kept
		report.Parts = append(report.Parts, done)
		failures = append(failures, err)
	}
	for _, p := range parts {
		if (p.State == archive.Detached || p.State == archive.Verified) && ctx.Err() == nil {
			finish(p, 0)
		}
	}
	for _, p := range parts {
		if p.ArchivedAt != nil && time.Since(*p.ArchivedAt) < tidyFor && ctx.Err() == nil {
			if err := turn.files.Tidy(ctx, p); err != nil {
				failures = append(failures, fmt.Errorf("part %s is archived, but what other attempts may have left of it was not "+
					"deleted: readers that list files may read tickets twice, until a later run deletes it: %w", p.Name, err))
			}
		}
	}
	old, err := turn.store.OldPartitions(ctx, c.before())
	failures = append(failures, err)
	for _, p := range old {
		if ctx.Err() != nil {
			break
		}
		r, why := c.examine(parts, p)
		if why == "" {
			if err := turn.files.Ready(ctx); err != nil { // nothing can be archived now, so everything stays where lists show it
				failures = append(failures, fmt.Errorf("no partition was detached any more: %w", err))
				break
			}
			var detached postgres.Detached
			detached, err = turn.store.DetachPartition(ctx, by, turn.run.Holder, p, postgres.DropEven{
				Unfinished: c.Unfinished == "archive", Undelivered: c.Undelivered,
			})
			switch {
			case err == nil:
				finish(detached.Part, detached.Kept)
				continue
			case errors.Is(err, postgres.ErrNoPartition):
				why, err = "gone: another process has dropped it", nil
			case errors.Is(err, postgres.ErrLargeDefault):
				why, err = "kept: "+err.Error(), nil
			case errors.Is(err, postgres.ErrUndelivered): // a subscription was made or restored in the meantime
				why, err = "kept: "+err.Error(), nil
			case errors.Is(err, postgres.ErrManyUnfinished), errors.Is(err, postgres.ErrOnlyUnfinished):
				why, err = "kept: "+err.Error()+" (--unfinished archive takes them along)", nil
			default:
				why = "kept: it could not be detached"
			}
		}
		r.Verdict = why
		report.Parts = append(report.Parts, r)
		failures = append(failures, err)
	}
	if ctx.Err() == nil {
		if _, err := turn.store.DropOldLines(ctx); err != nil {
			err = fmt.Errorf("order_lines still shows lines of archived tickets, until a server drops them: %w", err)
			failures = append(failures, err)
		}
		failures = append(failures, turn.store.DeleteOldCorrections(ctx, c.before()))
	}
	return report, errors.Join(failures...)
}

// finish takes a part to its end: the archive has it, and its table is dropped.
func (t *archiveTurn) finish(ctx context.Context, by postgres.Person, p archive.Part) (archivePartReport, error) {
	r := archivePartReport{Part: p.Name, Partition: p.Table, Bytes: p.TableBytes}
	err := func() (err error) {
		if p.State == archive.Detached {
			if _, err = t.files.Write(ctx, p); err != nil {
				return err
			}
		} else if err = t.confirm(ctx, p); err != nil {
			return err
		}
		if p, err = t.store.ArchivePart(ctx, p.Name); err != nil {
			return err
		}
		if err := t.files.Step(archiver.StepDrop); err != nil {
			return err
		}
		r.Tickets, r.FileBytes, r.Bytes = p.Tickets, p.FileBytes, p.TableBytes
		return t.store.DropPart(ctx, by, t.run.Holder, p)
	}()
	if err != nil && ctx.Err() == nil {
		// Whoever has the turn now may have written other manifests and dropped the table: what this process says of them is wrong.
		if held := t.store.KeepArchive(ctx, t.run.Holder); errors.Is(held, archive.ErrHeld) {
			r.Verdict = held.Error()
			return r, fmt.Errorf("part %s: %w", p.Name, held)
		}
	}
	if err != nil {
		r.Verdict = "in Postgres as table " + p.Table + ", and tried again by the next run: " + err.Error()
		if ctx.Err() == nil {
			err = errors.Join(err, t.store.PartFailed(ctx, t.run.Holder, p, err.Error()))
		}
		return r, fmt.Errorf("part %s: %w", p.Name, err)
	}
	r.Archived, r.Verdict = true, "archived, verified and dropped"
	return r, nil
}

// confirm looks whether the archive still has a verified part. One that was written to another URL is not written again: it would
// be in two manifests.
func (t *archiveTurn) confirm(ctx context.Context, p archive.Part) error {
	if p.URL != t.run.URL {
		_, err := t.files.ManifestOf(ctx, p)
		if errors.Is(err, archive.ErrNoManifest) || errors.Is(err, archive.ErrDamaged) {
			return elsewhere(p)
		}
		if err != nil {
			return err
		}
	}
	return t.files.Confirm(ctx, p)
}

func (c archiveRunCmd) print(std streams, report archiveReport) error {
	if c.Output == "json" {
		return printJSON(std.stdout, report)
	}
	rows := make([][]string, 0, len(report.Parts))
	for _, p := range report.Parts {
		rows = append(rows, []string{
			p.Part, p.Partition, strconv.FormatInt(p.Tickets, 10), strconv.FormatInt(p.Kept, 10), size(p.Bytes), size(p.FileBytes),
			p.Verdict,
		})
	}
	err := printTable(std.stdout, []string{"PART", "PARTITION", "TICKETS", "KEPT", "IN POSTGRES", "IN ARCHIVE", "VERDICT"}, rows)
	if err == nil && !report.Applied {
		_, err = fmt.Fprintln(std.stdout, "Nothing was changed. Use --apply to archive and drop")
	}
	return err
}

func size(n int64) string {
	if n == 0 {
		return ""
	}
	return humanize.IBytes(uint64(max(n, 0)))
}

type archiveListCmd struct {
	databaseFlags
	outputFlags
}

func (c archiveListCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "archive")
	if err != nil {
		return err
	}
	defer store.Close()
	parts, err := store.ArchiveParts(ctx)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(std.stdout, map[string]any{"parts": append([]archive.Part{}, parts...)})
	}
	rows := make([][]string, 0, len(parts))
	for _, p := range parts {
		from, at := "the first", p.DetachedAt
		if p.From != nil {
			from = day(*p.From)
		}
		for _, later := range []*time.Time{p.VerifiedAt, p.ArchivedAt, p.RestoredAt} {
			if later != nil {
				at = *later
			}
		}
		rows = append(rows, []string{
			p.Name, string(p.State), stamp(at), from, day(p.To), strconv.FormatInt(p.Tickets, 10), size(p.TableBytes), size(p.FileBytes),
			p.Failure,
		})
	}
	return printTable(std.stdout, []string{"PART", "STATE", "SINCE", "FROM", "TO", "TICKETS", "WAS", "IS", "PROBLEM"}, rows)
}

type archiveVerifyCmd struct {
	databaseFlags
	outputFlags
	archiveFlags
	Parts []string `arg:"" optional:"" name:"part" help:"The parts. Without any, all that the archive should have."`
}

// Validate is called by kong.
func (c archiveVerifyCmd) Validate() error { return c.check() }

type archiveVerdict struct {
	Part    string `json:"part"`
	Tickets int64  `json:"tickets"`
	Bytes   int64  `json:"bytes"`
	Right   bool   `json:"right"`
	Verdict string `json:"verdict"` // for people
}

func (c archiveVerifyCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "archive")
	if err != nil {
		return err
	}
	defer store.Close()
	files, err := c.archiver(ctx, std, store, uuid.Nil)
	if err != nil {
		return err
	}
	defer files.Bucket.Close()
	parts, err := store.ArchiveParts(ctx)
	if err != nil {
		return err
	}
	if len(c.Parts) > 0 {
		parts = parts[:0]
		for _, name := range c.Parts {
			p, err := store.ArchivePart(ctx, name)
			if err != nil {
				return err
			}
			parts = append(parts, p)
		}
	}
	verdicts := []archiveVerdict{}
	damaged := 0
	for _, p := range parts {
		if p.State != archive.Verified && !p.InArchive() {
			continue // only Postgres has it
		}
		v := archiveVerdict{Part: p.Name, Tickets: p.Tickets, Bytes: p.FileBytes, Right: true, Verdict: "right"}
		m, err := files.ManifestOf(ctx, p)
		if err == nil {
			err = files.Check(ctx, m)
		}
		switch {
		case errors.Is(err, archive.ErrDamaged), errors.Is(err, archive.ErrNoManifest):
			v.Right, v.Verdict = false, err.Error()
			damaged++
		case err != nil:
			return err
		}
		verdicts = append(verdicts, v)
	}
	newProgress(std.stderr).end()
	if c.Output == "json" {
		err = printJSON(std.stdout, map[string]any{"parts": verdicts})
	} else {
		rows := make([][]string, 0, len(verdicts))
		for _, v := range verdicts {
			rows = append(rows, []string{v.Part, strconv.FormatInt(v.Tickets, 10), size(v.Bytes), v.Verdict})
		}
		err = printTable(std.stdout, []string{"PART", "TICKETS", "SIZE", "VERDICT"}, rows)
	}
	if damaged > 0 {
		err = errors.Join(err, fmt.Errorf("%d parts are not in the archive as they were written: restore the bucket from its versions "+
			"or its copy (docs/archive.md)", damaged))
	}
	return err
}

type archiveRestoreCmd struct {
	databaseFlags
	outputFlags
	personFlags
	archiveFlags
	Part   string    `arg:"" optional:"" help:"The part that is put back into tickets: from the archive, or its table if that is only detached. No run archives it again until it is released."`
	Ticket uuid.UUID `placeholder:"ID" help:"Show this ticket of the archive instead. Nothing is changed."`
	Raw    bool      `help:"With --ticket: write only the bytes that were sent."`
}

// Validate is called by kong.
func (c archiveRestoreCmd) Validate() error {
	if (c.Part == "") == (c.Ticket == uuid.Nil) {
		return errors.New("give a part, or --ticket")
	}
	if c.Raw && c.Ticket == uuid.Nil {
		return errors.New("--raw needs --ticket")
	}
	return errors.Join(c.personFlags.check(), c.archiveFlags.check())
}

func (c archiveRestoreCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "archive")
	if err != nil {
		return err
	}
	defer store.Close()
	if c.Ticket != uuid.Nil {
		show := ticketsShowCmd{outputFlags: c.outputFlags, ID: c.Ticket, Raw: c.Raw, Archive: c.Archive}
		found, err := show.fromArchive(ctx, std, store)
		if err == nil && !found {
			err = fmt.Errorf("no part of the archive has ticket %s", c.Ticket)
		}
		return err
	}
	by, err := c.person()
	if err != nil {
		return err
	}
	working, turn, err := c.turn(ctx, std, store, 0, false)
	if err != nil {
		return err
	}
	p, err := turn.restore(working, by, c.Part)
	newProgress(std.stderr).end()
	turn.stop()
	err = errors.Join(err, store.LeaveArchiveQuietly(context.WithoutCancel(ctx), turn.run.Holder), turn.files.Bucket.Close())
	if err != nil {
		return interrupted(ctx, err)
	}
	if c.Output == "json" {
		return printJSON(std.stdout, p)
	}
	what := "The tickets"
	if p.Tickets > 0 {
		what = strconv.FormatInt(p.Tickets, 10) + " tickets"
	}
	_, err = fmt.Fprintf(std.stdout, "%s are in tickets again, in the partition %s. No run archives or drops it until: "+
		"myticket archive release %s\n", what, p.Table, p.Name)
	return err
}

func (t *archiveTurn) restore(ctx context.Context, by postgres.Person, name string) (archive.Part, error) {
	p, err := t.store.ArchivePart(ctx, name)
	if err != nil {
		return p, err
	}
	switch p.State {
	case archive.Detached, archive.Verified: // the archive is not needed
		err = t.restoreTable(ctx, by, p)
	case archive.Archived:
		err = t.restoreFiles(ctx, by, p)
	case archive.Restored:
		err = fmt.Errorf("part %s is %s: its tickets are in Postgres, and nothing was changed", p.Name, p.State)
	}
	if err != nil {
		return p, err
	}
	return t.store.ArchivePart(ctx, name)
}

func (t *archiveTurn) restoreTable(ctx context.Context, by postgres.Person, p archive.Part) error {
	table, err := t.store.DetachedPart(ctx, p)
	if err != nil {
		return err
	}
	return table.Attach(ctx, by, t.run.Holder, nil)
}

func (t *archiveTurn) restoreFiles(ctx context.Context, by postgres.Person, p archive.Part) error {
	m, err := t.files.ManifestOf(ctx, p)
	if err != nil {
		return err
	}
	corrections, err := t.files.Corrections(ctx, m)
	if err != nil {
		return err
	}
	into, err := t.store.BeginRestore(ctx, t.run.Holder, p)
	if err != nil {
		return err
	}
	n := int64(0)
	err = t.files.Tickets(ctx, m, func(ticket *archive.Ticket) error {
		if n++; n%10_000 == 0 {
			t.files.Progress("restore", n, m.Tickets)
		}
		return into.Add(ctx, ticket)
	})
	if err != nil {
		return err
	}
	return into.Attach(ctx, by, t.run.Holder, corrections)
}

type archiveReleaseCmd struct {
	databaseFlags
	personFlags
	archiveFlags
	Part        string `arg:"" help:"The part, which must be restored."`
	ArchiveGone bool   `help:"The archive that the part was written to is gone for good: forget what it may have. Only for a part that was restored from its own table, of which Postgres has always had all tickets."`
}

// Validate is called by kong.
func (c archiveReleaseCmd) Validate() error {
	return errors.Join(c.personFlags.check(), c.archiveFlags.check())
}

func (c archiveReleaseCmd) Run(ctx context.Context, std streams) error {
	by, err := c.person()
	if err != nil {
		return err
	}
	store, err := c.open(ctx, std, "archive")
	if err != nil {
		return err
	}
	defer store.Close()
	working, turn, err := c.turn(ctx, std, store, 0, false)
	if err != nil {
		return err
	}
	err = turn.release(working, by, c.Part, c.ArchiveGone)
	newProgress(std.stderr).end()
	turn.stop()
	err = errors.Join(err, store.LeaveArchiveQuietly(context.WithoutCancel(ctx), turn.run.Holder), turn.files.Bucket.Close())
	if err != nil {
		return interrupted(ctx, err)
	}
	_, err = fmt.Fprintf(std.stdout, "%s is not in the archive any more. The next run archives its partition as it is then\n",
		c.Part)
	return err
}

// elsewhere says that a part was written to an archive of another URL, and is not in this one.
func elsewhere(p archive.Part) error {
	hint := ""
	if p.State == archive.Restored && !p.InArchive() {
		hint = ", or --archive-gone if that is gone for good"
	}
	return fmt.Errorf("part %s is not in this archive: it was written to %s. Give that URL (--archive)%s; nothing was changed",
		p.Name, p.URL, hint)
}

// release deletes a restored part from the archive, once all its tickets were found in Postgres.
func (t *archiveTurn) release(ctx context.Context, by postgres.Person, name string, gone bool) error {
	p, err := t.store.ArchivePart(ctx, name)
	if err != nil {
		return err
	}
	if p.State != archive.Restored {
		return fmt.Errorf("part %s is %s, and only a restored one can be released: nothing was changed", p.Name, p.State)
	}
	if gone && p.InArchive() {
		return fmt.Errorf("part %s was in the archive alone. That must be read to know that Postgres has all its tickets again: "+
			"nothing was changed", p.Name)
	}
	if gone {
		return t.store.ReleasePart(ctx, by, t.run.Holder, p, true)
	}
	if !p.InArchive() { // its table was never dropped
		if p.URL != t.run.URL && p.URL != "" { // what attempts wrote would stay there, perhaps with a manifest
			return elsewhere(p)
		}
		if err := t.files.Delete(ctx, p); err != nil {
			return err
		}
		return t.store.ReleasePart(ctx, by, t.run.Holder, p, false)
	}
	m, err := t.files.ManifestOf(ctx, p)
	switch {
	case errors.Is(err, archive.ErrDamaged): // it may not name all tickets
		return fmt.Errorf("%w; nothing was deleted", err)
	case errors.Is(err, archive.ErrNoManifest) && p.URL != t.run.URL:
		return elsewhere(p)
	case errors.Is(err, archive.ErrNoManifest): // it was killed after that was deleted; all tickets were found before
	case err != nil:
		return err
	default:
		if err := t.allInPostgres(ctx, m); err != nil {
			return err
		}
	}
	if err := t.files.Delete(ctx, p); err != nil {
		return err
	}
	return t.store.ReleasePart(ctx, by, t.run.Holder, p, false)
}

func (t *archiveTurn) allInPostgres(ctx context.Context, m archive.Manifest) error {
	var ids []uuid.UUID
	var times []time.Time
	check := func() error {
		missing, err := t.store.MissingTickets(ctx, ids, times)
		if err == nil && missing > 0 {
			err = fmt.Errorf("%d or more tickets of part %s are not in Postgres, so it stays in the archive: nothing was changed",
				missing, m.Part)
		}
		ids, times = ids[:0], times[:0]
		return err
	}
	err := t.files.Tickets(ctx, m, func(ticket *archive.Ticket) error {
		ids, times = append(ids, ticket.ID), append(times, ticket.ReceivedAt)
		if len(ids) < 5000 {
			return nil
		}
		return check()
	})
	if err != nil {
		return err
	}
	return check()
}
