package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"myticket/internal/httpapi"
	"myticket/internal/postgres"
)

// keysCmd is `myticket keys`: a source that moves to another database takes its idempotency keys along (docs/scaling.md).
type keysCmd struct {
	Export keysExportCmd `cmd:"" help:"Write the idempotency keys of a source that is on hold, as JSON lines."`
	Import keysImportCmd `cmd:"" help:"Store exported idempotency keys in this database, so that it knows the deliveries of the other one. May be repeated."`
}

const (
	maxKeyLine   = 4096 // bytes of a line of an export; the longest that keys export writes is shorter
	maxStoredKey = 255  // bytes of a key
	importBatch  = 1000 // keys of one transaction
	maxKeysTaken = 20   // of the keys that another ticket holds, how many are listed

	importSilence = 5 * time.Second // how long one transaction may take before the operator is told
)

// keyLine is a line of an export.
type keyLine struct {
	Source     string    `json:"source"`
	Key        string    `json:"key"`
	BodySHA256 string    `json:"body_sha256"` // in hex
	TicketID   uuid.UUID `json:"ticket_id"`
	ReceivedAt time.Time `json:"received_at"` // to the microsecond, as Postgres keeps it
	ExpiresAt  time.Time `json:"expires_at"`
}

// keysEnd is the line after the last key of a source. Without it, nobody would notice that an export was cut, and the deliveries
// of the missing keys would be stored twice.
type keysEnd struct {
	Source string `json:"source"`
	Keys   *int   `json:"keys"` // how many lines there are before
}

type keysExportCmd struct {
	databaseFlags
	Source string `required:"" placeholder:"SOURCE" help:"Exact name of the source. No server may accept its tickets (\"hold\" in the sources file), and no spool may hold one."`
}

// Validate is called by kong.
func (c keysExportCmd) Validate() error {
	if !httpapi.ValidSource(c.Source) {
		return errors.New("--source must be 1 to 63 of the characters a-z, 0-9 and -")
	}
	return nil
}

func (c keysExportCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "keys")
	if err != nil {
		return err
	}
	defer store.Close()
	buffered := bufio.NewWriter(std.stdout)
	encoder := json.NewEncoder(buffered)
	encoder.SetEscapeHTML(false)
	n := 0
	err = store.ExportKeys(ctx, c.Source, func(k postgres.StoredKey) error {
		n++
		return encoder.Encode(keyLine{
			k.Source, k.Key, hex.EncodeToString(k.BodySHA256[:]), k.TicketID, k.ReceivedAt.UTC(), k.ExpiresAt.UTC(),
		})
	})
	if err == nil {
		err = encoder.Encode(keysEnd{c.Source, &n})
	}
	if err = errors.Join(err, buffered.Flush()); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		return fmt.Errorf("the export is not complete, so keys import will refuse its end: %w", err)
	}
	fmt.Fprintf(std.stderr, "%d idempotency keys of %s exported\n", n, c.Source)
	return nil
}

type keysImportCmd struct {
	databaseFlags
	File string `arg:"" optional:"" default:"-" help:"What keys export wrote. - is standard input. Default: ${default}."`
}

func (c keysImportCmd) Run(ctx context.Context, std streams) error {
	in := std.stdin
	if c.File != standardInput {
		file, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	store, err := c.open(ctx, std, "keys")
	if err != nil {
		return err
	}
	defer store.Close()
	i := keysImport{store: store, stderr: std.stderr}
	err = interrupted(ctx, i.read(ctx, in))
	fmt.Fprintf(std.stderr, "%d idempotency keys imported, %d were already there, %d are held by another ticket\n",
		i.stored, i.there, i.taken)
	for _, other := range i.listed {
		fmt.Fprintf(std.stderr, "  %s: key %q: the input has the ticket %s, this database has %s\n",
			other.Source, other.Key, other.Imported, other.Holder)
	}
	if i.taken > len(i.listed) {
		fmt.Fprintf(std.stderr, "  and %d more\n", i.taken-len(i.listed))
	}
	if err != nil {
		return fmt.Errorf("%w; the keys that are counted above are stored: import all of them again before tickets of the source "+
			"come to this database", err)
	}
	if i.taken > 0 {
		return fmt.Errorf("%d keys were left alone, because this database has another ticket under the same key: if both databases "+
			"took the same delivery, it is stored twice; compare the two tickets (myticket tickets show), and dismiss one of two "+
			"that are the same", i.taken)
	}
	return nil
}

// keysImport is one run of keys import. It holds one batch of keys in memory.
type keysImport struct {
	store  *postgres.Store
	stderr io.Writer
	batch  []postgres.StoredKey
	have   map[[2]string]bool // source and key of the batch
	ofPart int                // keys since the last keysEnd

	stored, there, taken int
	listed               []postgres.KeyTaken
}

// read reads an export, or several one after the other.
func (i *keysImport) read(ctx context.Context, in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, maxKeyLine), maxKeyLine)
	n, source, ended := 0, "", false
	for lines.Scan() {
		n++
		k, end, err := readKeyLine(lines.Bytes())
		switch {
		case err != nil:
		case i.ofPart > 0 && source != k.Source+end.Source:
			err = fmt.Errorf("it is of the source %q, but the line with the number of keys of %q is missing before it",
				k.Source+end.Source, source)
		case end.Keys != nil && *end.Keys != i.ofPart:
			err = fmt.Errorf("it says that %s has %d keys, but there are %d before it", end.Source, *end.Keys, i.ofPart)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, errors.Join(err, i.flush(ctx)))
		}
		if ended = end.Keys != nil; ended {
			i.ofPart = 0
			continue
		}
		source = k.Source
		i.ofPart++
		if err := i.add(ctx, k); err != nil {
			return err
		}
	}
	err := lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = fmt.Errorf("line %d has more than %d bytes", n+1, maxKeyLine-1)
	}
	if err == nil && !ended {
		err = errors.New("the last line, with the number of keys, is missing: the export was cut, or has failed")
	}
	return errors.Join(err, i.flush(ctx))
}

func (i *keysImport) add(ctx context.Context, k postgres.StoredKey) error {
	name := [2]string{k.Source, k.Key}
	if len(i.batch) == importBatch || i.have[name] {
		if err := i.flush(ctx); err != nil {
			return err
		}
	}
	if i.have == nil {
		i.have = make(map[[2]string]bool, importBatch)
	}
	i.have[name] = true
	i.batch = append(i.batch, k)
	return nil
}

// flush stores the batch. Without a standby that confirms it, that takes until there is one.
func (i *keysImport) flush(ctx context.Context) error {
	if len(i.batch) == 0 {
		return nil
	}
	waits := fmt.Sprintf("waiting until the database confirms %d keys, after %d: if this takes long, see that its synchronous "+
		"standbys run\n", len(i.batch), i.stored+i.there+i.taken)
	said := make(chan struct{})
	slow := time.AfterFunc(importSilence, func() {
		defer close(said)
		_, _ = io.WriteString(i.stderr, waits)
	})
	done, err := i.store.ImportKeys(ctx, i.batch)
	if !slow.Stop() {
		<-said
	}
	if err != nil {
		return err
	}
	i.batch = i.batch[:0]
	clear(i.have)
	i.stored, i.there, i.taken = i.stored+done.Stored, i.there+done.There, i.taken+len(done.Others)
	i.listed = append(i.listed, done.Others[:min(len(done.Others), maxKeysTaken-len(i.listed))]...)
	return nil
}

// readKeyLine reads a line of an export: a key, or the end of a source, which has the number of its keys.
func readKeyLine(line []byte) (postgres.StoredKey, keysEnd, error) {
	var end keysEnd
	if decodeStrictly(line, &end) == nil && end.Keys != nil {
		if !httpapi.ValidSource(end.Source) {
			return postgres.StoredKey{}, keysEnd{}, fmt.Errorf("%q cannot be a source", end.Source)
		}
		return postgres.StoredKey{}, end, nil
	}
	var l keyLine
	if err := decodeStrictly(line, &l); err != nil {
		return postgres.StoredKey{}, keysEnd{}, err
	}
	k, err := l.check()
	return k, keysEnd{}, err
}

func decodeStrictly(line []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("its JSON is not complete")
		}
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the end of the JSON object")
	}
	return nil
}

// check accepts only what keys export writes. Everything that is missing has a value that is refused.
func (l keyLine) check() (postgres.StoredKey, error) {
	sum, err := hex.DecodeString(l.BodySHA256)
	switch {
	case !httpapi.ValidSource(l.Source):
		err = fmt.Errorf("%q cannot be a source: a name has 1 to 63 of the characters a-z, 0-9 and -", cut(l.Source, 80))
	case l.Key == "" || len(l.Key) > maxStoredKey || strings.ContainsFunc(l.Key, func(r rune) bool { return r < 0x20 || r > 0x7e }):
		err = fmt.Errorf("key must have 1 to %d bytes of printable ASCII", maxStoredKey)
	case err != nil || len(sum) != sha256.Size:
		err = fmt.Errorf("body_sha256 must be %d bytes in hex", sha256.Size)
	case l.TicketID == uuid.Nil:
		err = errors.New("ticket_id is missing")
	case l.ReceivedAt.IsZero() || !l.ExpiresAt.After(l.ReceivedAt):
		err = errors.New("received_at must be given, and expires_at must be later")
	case l.ReceivedAt.Nanosecond()%1000 != 0 || l.ExpiresAt.Nanosecond()%1000 != 0:
		err = errors.New("received_at and expires_at have at most 6 decimals, which is what Postgres keeps")
	}
	if err != nil {
		return postgres.StoredKey{}, err
	}
	return postgres.StoredKey{
		Source: l.Source, Key: l.Key, BodySHA256: [sha256.Size]byte(sum), TicketID: l.TicketID,
		ReceivedAt: l.ReceivedAt, ExpiresAt: l.ExpiresAt,
	}, nil
}
