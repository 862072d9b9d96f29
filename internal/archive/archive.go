// Package archive says what an archive of tickets is: parts, their files and their manifests.
//
// A part is a partition of tickets that was detached. Its files are Parquet (package parquetfile), in a store of objects (package
// bucket). Its manifest is written last, after all files were read back: what has no manifest is no archive. Package archiver
// does it step by step.
package archive

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// State is how far a part has come.
type State string

// The states of a part. In each of them its tickets are in the detached table, in the archive with its manifest, or in both.
const (
	Detached State = "detached" // the table has the tickets; the archive may have files, but no manifest that counts
	Verified State = "verified" // the table and the archive have them
	Archived State = "archived" // the archive has them, and the table is dropped
	Restored State = "restored" // tickets has them again, and no run archives them until they are released; see InArchive
)

// Part is a partition that was detached, as Postgres keeps it.
type Part struct {
	Name        string      `json:"part"`
	State       State       `json:"state"`
	Table       string      `json:"table"`
	From        *time.Time  `json:"from"` // null if it has no lower bound
	To          time.Time   `json:"to"`
	Tickets     int64       `json:"tickets"` // 0 until it is verified
	Corrections int64       `json:"corrections"`
	First       *time.Time  `json:"first"` // when its first and last ticket were received
	Last        *time.Time  `json:"last"`
	TableBytes  int64       `json:"table_bytes"` // in Postgres, with indexes
	Files       int         `json:"files"`
	FileBytes   int64       `json:"file_bytes"`
	Manifest    string      `json:"manifest,omitempty"` // its key
	ManifestSum []byte      `json:"-"`                  // SHA-256 of the manifest
	URL         string      `json:"archive,omitempty"`  // without credentials
	Runs        []uuid.UUID `json:"-"`                  // its attempts, the last one first
	DetachedAt  time.Time   `json:"detached_at"`
	VerifiedAt  *time.Time  `json:"verified_at"`
	ArchivedAt  *time.Time  `json:"archived_at"`
	RestoredAt  *time.Time  `json:"restored_at"`
	FailedAt    *time.Time  `json:"failed_at"`
	Failure     string      `json:"failure,omitempty"`
}

// InArchive reports whether the archive has the part, too, while tickets has it or no table has it. Of a part that was restored
// from its detached table, the archive does not count, whatever is there.
func (p *Part) InArchive() bool {
	return p.State == Archived || p.State == Restored && p.VerifiedAt != nil
}

// Contains reports whether a ticket that was received at a time may be in the part.
func (p *Part) Contains(at time.Time) bool {
	return (p.From == nil || !at.Before(*p.From)) && at.Before(p.To)
}

// Ticket is a ticket as the archive has it: all that is in its row, and what is read from its text.
type Ticket struct {
	ID                     uuid.UUID
	ReceivedAt             time.Time
	Source, Status         string
	OrderNumber            *string
	VAT, Total             *string // decimal
	Problems, Extra        *string // JSON, as stored
	Lines                  []Line  // as read from the text; none while Unread
	StoredLines            *string // JSON, as an older version has stored it
	ContentType            string
	Traceparent            *string
	ParserVersion, Dialect int
	Version, Attempts      int
	Claims                 int
	NextAttemptAt          *time.Time
	ProblemGroup           *int64
	Correction             *int   // which correction is read instead of the body
	Text                   []byte // its text; nil if the body is read
	Body                   []byte

	// Unread means that the lines are yet to be read from the text, by Reader. Up to 100,000 tickets wait to be written, and their
	// lines would take more memory than their texts, so they are read only then.
	Unread bool
	Reader *ticket.Reader // nil for the dialect of everyone
}

// Line is a product line.
type Line struct {
	ProductID, Product string
	Price              *string // decimal; nil if it was not read
	Extra              []Field
}

// Field is a column that MyTicket does not know.
type Field struct{ Name, Value string }

// Correction is what a person made of the text of a ticket.
type Correction struct {
	TicketID   uuid.UUID
	ReceivedAt time.Time // of the ticket
	Number     int
	Text       []byte // nil if the body is read again
	At         time.Time
	Who, Why   string
}

// Change is a row of the audit.
type Change struct {
	ID          int64
	At          time.Time
	Who, Action string
	Filter      string // JSON
	Tickets     int64
	Why         string
	Details     string // JSON
}

// ManifestVersion is the version of Manifest's schema. A program that reads an archive refuses a newer one.
const ManifestVersion = 1

// Manifest says what a part consists of. It is one JSON object in the archive.
type Manifest struct {
	SchemaVersion int        `json:"schema_version"`
	Program       string     `json:"program"` // the version of MyTicket that wrote it
	Part          string     `json:"part"`
	Run           uuid.UUID  `json:"run"` // in the names of its files
	From          *time.Time `json:"from"`
	To            time.Time  `json:"to"`
	WrittenAt     time.Time  `json:"written_at"`
	Tickets       int64      `json:"tickets"`
	Corrections   int64      `json:"corrections"`
	Changes       int64      `json:"changes"` // rows of the audit
	First         *time.Time `json:"first"`   // when the first and the last ticket were received
	Last          *time.Time `json:"last"`
	SHA256        string     `json:"sha256"`  // over RowsSHA256 of the files with tickets, in order, as bytes
	Columns       string     `json:"columns"` // the Parquet schema of tickets
	Files         []File     `json:"files"`
}

// What a file has.
const (
	KindTickets     = "tickets"
	KindCorrections = "corrections"
	KindChanges     = "audit"
)

// File is a file of a part.
type File struct {
	Key        string     `json:"key"`
	Kind       string     `json:"kind"`
	Rows       int64      `json:"rows"`
	Bytes      int64      `json:"bytes"`
	SHA256     string     `json:"sha256"`                // of the file
	RowsSHA256 string     `json:"rows_sha256,omitempty"` // of tickets: for each its id, its body's length as 8 bytes, and its body
	First      *time.Time `json:"first,omitempty"`       // of tickets: when the first and the last were received
	Last       *time.Time `json:"last,omitempty"`
}

// ManifestKey returns where an attempt writes the manifest of a part. Each attempt has a key of its own, so one that was given up
// can neither overwrite nor delete the manifest of another one, however late it is. If a part has several, that of the last run
// counts: their ids sort by time.
func ManifestKey(part string, run uuid.UUID) string {
	return ManifestPrefix(part) + run.String() + manifestSuffix
}

// ManifestPrefix returns how the keys of a part's manifests begin. The name of a part has no dot, so those of no other part do.
func ManifestPrefix(part string) string { return "manifests/" + part + "." }

const manifestSuffix = ".json"

// ManifestRun returns the run that is in the key of a manifest. Shared means that there is none in it, because a version before
// wrote it, at one key for all attempts. It returns false for other keys, such as those that people made.
func ManifestRun(part, key string) (run uuid.UUID, shared, ok bool) {
	name, ok := strings.CutPrefix(key, ManifestPrefix(part))
	if !ok || "."+name == manifestSuffix {
		return uuid.Nil, ok, ok
	}
	name, ok = strings.CutSuffix(name, manifestSuffix)
	if !ok {
		return uuid.Nil, false, false
	}
	run, err := uuid.Parse(name)
	return run, false, err == nil && run != uuid.Nil && run.String() == name // not in the other forms that Parse takes
}

// NextRun returns the id of a further attempt. It sorts after those before, even if a clock was set back.
func NextRun(before []uuid.UUID) (uuid.UUID, error) {
	run, err := uuid.NewV7()
	if err != nil || len(before) == 0 {
		return run, err
	}
	last := slices.MaxFunc(before, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	if bytes.Compare(run[:], last[:]) > 0 {
		return run, nil
	}
	run = last
	for at := len(run) - 1; at >= 0; at-- {
		if run[at]++; run[at] != 0 {
			break
		}
	}
	return run, nil
}

// FilePrefix returns how the keys of a part's files begin, of one kind and one day. The name of a part has no dot, so no other
// part has files that begin so.
func FilePrefix(kind string, day time.Time, part string) string {
	return fmt.Sprintf("%s/day=%s/part-%s.", kind, day.UTC().Format(time.DateOnly), part)
}

var (
	// ErrNoPart means that there is no such part.
	ErrNoPart = errors.New("there is no such part in the table archives: see \"myticket archive list\"")

	// ErrNoManifest means that the archive has no manifest of a part.
	ErrNoManifest = errors.New("the archive has no manifest of it")

	// ErrDamaged means that the archive does not have what was written to it.
	ErrDamaged = errors.New("the archive does not have what was written to it")

	// ErrForeign means that the archive has a manifest that this database did not write.
	ErrForeign = errors.New("the archive has a manifest of that name which this database does not know: the database was restored " +
		"from a backup, or another one uses the same archive. Nothing was overwritten, and the tickets stay in Postgres: use another " +
		"prefix, or look what that manifest has and move it away")

	// ErrHeld means that another process archives at this moment.
	ErrHeld = errors.New("another process archives at this moment; nothing was changed, and it may be tried again in a minute")
)
