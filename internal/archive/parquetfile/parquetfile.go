// Package parquetfile writes and reads the Parquet files of an archive.
package parquetfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"myticket/internal/archive"
)

// Bounds of what is held in memory. Tickets are sorted by source and id within these: a whole partition could be sorted only with
// as much memory, or as much disk, as it has.
const (
	bufferTickets = 100_000
	bufferBytes   = 32 << 20 // of bodies, texts and lines

	// What a line and a field of it take besides their texts, here and in the columns. A ticket of 100 KiB may have ticket.MaxCells
	// empty fields.
	lineBytes  = 128
	fieldBytes = 64

	// readRows is how many tickets are read at once. Each may have a body of ticket.MaxTextBytes, or ticket.MaxCells fields.
	readRows = 8

	// sourceTickets is how many tickets of a source have a row group of their own. Readers that look for one source skip the
	// others. Smaller sources share row groups.
	sourceTickets = 10_000
)

// DefaultFileBytes is how large a file is at most, if nothing else is said. A smaller one has smaller buffers, too.
const DefaultFileBytes = 8 * bufferBytes

// Full reports whether a file is so large that one more buffer could exceed its limit. A ticket has at most some 16 MiB more
// than a full buffer.
func (w *TicketWriter) Full() bool { return w.out.n >= w.most-3*int64(w.buffered) }

// codec is what the readers of docs/archive.md all read. Snappy was not compared with it.
var codec compress.Codec = &zstd.Codec{Level: zstd.SpeedFastest, Concurrency: 1}

func options(codec compress.Codec) []parquet.WriterOption {
	return []parquet.WriterOption{
		parquet.Compression(codec), parquet.CreatedBy("myticket", "1", ""), parquet.PageBufferSize(512 << 10),
		parquet.SkipPageBounds("body"), parquet.SkipPageBounds("text"), parquet.SkipPageBounds(inLines("product_id")...),
		parquet.SkipPageBounds(inLines("product")...), parquet.SkipPageBounds(inLines("price")...),
		parquet.DataPageStatistics(false), // the column index has them, which is read first
		parquet.DictionaryMaxBytes(1 << 20),
	}
}

// Summary is what a file with tickets has.
type Summary struct {
	Rows        int64
	First, Last time.Time // when the first and the last were received; zero without rows
	SHA256      [sha256.Size]byte
}

// summer makes a Summary, row by row, in the order of the file.
type summer struct {
	summary     Summary
	rows        int64
	first, last int64    // microseconds
	head        [24]byte // a field, because what is given to an interface is allocated otherwise
	hash        hash.Hash
}

func newSummer() *summer { return &summer{hash: sha256.New()} }

func (s *summer) add(id []byte, receivedAt int64, body []byte) {
	if s.rows == 0 || receivedAt < s.first {
		s.first = receivedAt
	}
	if s.rows == 0 || receivedAt > s.last {
		s.last = receivedAt
	}
	s.rows++
	copy(s.head[:], id)
	binary.BigEndian.PutUint64(s.head[16:], uint64(len(body)))
	s.hash.Write(s.head[:])
	s.hash.Write(body)
}

func (s *summer) sum() Summary {
	s.summary.Rows = s.rows
	if s.rows > 0 {
		s.summary.First, s.summary.Last = fromMicros(s.first), fromMicros(s.last)
	}
	s.hash.Sum(s.summary.SHA256[:0])
	return s.summary
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// TicketWriter writes a file with tickets.
type TicketWriter struct {
	out     *counter
	file    *parquet.GenericWriter[ticketRow]
	columns *ticketColumns
	buffer  []*archive.Ticket
	held    int // bytes in buffer
	sum     *summer

	most     int64 // bytes of the file
	buffered int   // bytes that are buffered at most
}

// NewTicketWriter begins a file that is to have at most a number of bytes: see Full. Zero is DefaultFileBytes.
func NewTicketWriter(w io.Writer, most int64) *TicketWriter { return newTicketWriter(w, most, codec) }

func newTicketWriter(w io.Writer, most int64, codec compress.Codec) *TicketWriter {
	if most == 0 {
		most = DefaultFileBytes
	}
	out := &counter{w: w}
	sorted := parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("source"), parquet.Ascending("id")))
	file := parquet.NewGenericWriter[ticketRow](out, append(options(codec), sorted)...)
	return &TicketWriter{
		out: out, file: file, columns: newTicketColumns(file), sum: newSummer(), most: most, buffered: int(min(most/8, bufferBytes)),
	}
}

// Columns returns the schema of a file with tickets, as Parquet writes it.
func Columns() string { return parquet.SchemaOf(ticketRow{}).String() }

// Add adds a ticket, and keeps it until it is written.
func (w *TicketWriter) Add(t *archive.Ticket) error {
	w.buffer = append(w.buffer, t)
	w.held += len(t.Body) + len(t.Text) + len(text(t.StoredLines)) + len(text(t.Extra)) + len(text(t.Problems))
	for i := range t.Lines {
		line := &t.Lines[i]
		w.held += len(line.Product) + len(line.ProductID) + lineBytes + len(line.Extra)*fieldBytes
		for j := range line.Extra {
			w.held += len(line.Extra[j].Value)
		}
	}
	if len(w.buffer) >= bufferTickets || w.held >= w.buffered {
		return w.flush()
	}
	return nil
}

// flush writes the buffer, as one or more row groups.
func (w *TicketWriter) flush() error {
	// By source first: of one source, tickets usually come in the order of their ids, which is found at once.
	sources := map[string][]*archive.Ticket{}
	for _, t := range w.buffer {
		sources[t.Source] = append(sources[t.Source], t)
	}
	pending := false // rows that are in no row group yet
	for _, source := range slices.Sorted(maps.Keys(sources)) {
		tickets := sources[source]
		slices.SortFunc(tickets, func(a, b *archive.Ticket) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		large := len(tickets) >= sourceTickets
		if large && pending {
			if err := w.group(); err != nil {
				return err
			}
		}
		for _, t := range tickets {
			w.sum.add(t.ID[:], micros(t.ReceivedAt), t.Body)
			if err := w.columns.add(t); err != nil {
				return err
			}
		}
		pending = !large
		if large {
			if err := w.group(); err != nil {
				return err
			}
		}
	}
	clear(w.buffer)
	w.buffer, w.held = w.buffer[:0], 0
	return w.group()
}

// group ends a row group.
func (w *TicketWriter) group() error {
	if err := w.columns.write(); err != nil {
		return err
	}
	return w.file.Flush()
}

// Close ends the file, and returns what is in it. It does not close the writer below.
func (w *TicketWriter) Close() (Summary, error) {
	err := w.flush()
	err = errors.Join(err, w.file.Close())
	return w.sum.sum(), err
}

// Summarize reads ids, times and bodies of a file with tickets.
func Summarize(file io.ReaderAt, size int64) (Summary, error) {
	sum := newSummer()
	err := eachContent(file, size, func(id []byte, receivedAt int64, body []byte) error {
		sum.add(id, receivedAt, body)
		return nil
	})
	return sum.sum(), err
}

// ReadTickets calls do with each ticket of a file, which is valid until do returns.
func ReadTickets(file io.ReaderAt, size int64, do func(*archive.Ticket) error) error {
	return each(file, size, func(_ int64, row *ticketRow) error {
		t := row.ticket()
		return do(&t)
	})
}

// FindTicket returns a ticket of a file; nil if it is not there.
func FindTicket(file io.ReaderAt, size int64, id uuid.UUID) (found *archive.Ticket, err error) {
	place := int64(-1)
	type idRow struct {
		ID uuid.UUID `parquet:"id,uuid"`
	}
	err = each(file, size, func(n int64, row *idRow) error {
		if row.ID == id {
			place = n
			return io.EOF
		}
		return nil
	})
	if place < 0 || err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	err = eachFrom(file, size, place, func(_ int64, row *ticketRow) error {
		t := row.ticket()
		t.Body, t.Text = bytes.Clone(t.Body), bytes.Clone(t.Text)
		found = &t
		return io.EOF
	})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return found, err
}

func each[R any](file io.ReaderAt, size int64, do func(n int64, row *R) error) error {
	return eachFrom(file, size, 0, do)
}

func eachFrom[R any](file io.ReaderAt, size, from int64, do func(n int64, row *R) error) error {
	return open(file, size, func(opened *parquet.File) error { return eachOf(opened, from, do) })
}

// open opens a file, and calls do with it.
func open(file io.ReaderAt, size int64, do func(*parquet.File) error) (err error) {
	defer func() {
		if p := recover(); p != nil { // the library panics on some files that are no Parquet
			err = fmt.Errorf("%w: %v", archive.ErrDamaged, p)
		}
	}()
	if err := checkFooter(file, size); err != nil {
		return err
	}
	opened, err := parquet.OpenFile(file, size, parquet.SkipBloomFilters(true), parquet.ReadBufferSize(256<<10))
	if err != nil {
		return fmt.Errorf("%w: %w", archive.ErrDamaged, err)
	}
	return do(opened)
}

// checkFooter makes sure that a file has the footer whose length it says: the library would make memory for up to 4 GiB.
func checkFooter(file io.ReaderAt, size int64) error {
	const tail = 8 // the length and "PAR1" (https://parquet.apache.org/docs/file-format/)
	var end [tail]byte
	if size < tail {
		return fmt.Errorf("%w: it has %d bytes, which is no Parquet", archive.ErrDamaged, size)
	}
	if _, err := file.ReadAt(end[:], size-tail); err != nil {
		return err
	}
	if footer := int64(binary.LittleEndian.Uint32(end[:])); footer > size-tail {
		return fmt.Errorf("%w: its footer is to have %d bytes, and the file has %d", archive.ErrDamaged, footer, size)
	}
	return nil
}

func eachOf[R any](opened *parquet.File, from int64, do func(n int64, row *R) error) error {
	reader := parquet.NewGenericReader[R](opened)
	defer reader.Close()
	if from > 0 {
		if err := reader.SeekToRow(from); err != nil {
			return err
		}
	}
	var rows [readRows]R
	for n := from; ; {
		read, err := reader.Read(rows[:])
		for i := range read {
			if err := do(n, &rows[i]); err != nil {
				return err
			}
			n++
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", archive.ErrDamaged, err)
		}
		clear(rows[:])
	}
}

// WriteCorrections writes a file with corrections.
func WriteCorrections(w io.Writer, corrections []archive.Correction) error {
	rows := make([]correctionRow, len(corrections))
	for i, c := range corrections {
		rows[i] = correctionRow{
			TicketID: c.TicketID, ReceivedAt: micros(c.ReceivedAt), Number: int32(c.Number), Reverted: c.Text == nil, Text: c.Text,
			At: micros(c.At), Who: c.Who, Why: c.Why,
		}
	}
	return write(w, rows)
}

// ReadCorrections reads a file with corrections.
func ReadCorrections(file io.ReaderAt, size int64) (corrections []archive.Correction, err error) {
	err = each(file, size, func(_ int64, row *correctionRow) error {
		c := archive.Correction{
			TicketID: row.TicketID, ReceivedAt: fromMicros(row.ReceivedAt), Number: int(row.Number), At: fromMicros(row.At),
			Who: row.Who, Why: row.Why,
		}
		if !row.Reverted {
			c.Text = append([]byte{}, row.Text...)
		}
		corrections = append(corrections, c)
		return nil
	})
	return corrections, err
}

// WriteChanges writes a file with rows of the audit.
func WriteChanges(w io.Writer, changes []archive.Change) error {
	rows := make([]changeRow, len(changes))
	for i, c := range changes {
		rows[i] = changeRow{
			ID: c.ID, At: micros(c.At), Who: c.Who, Action: c.Action, Filter: c.Filter, Tickets: c.Tickets, Why: c.Why, Details: c.Details,
		}
	}
	return write(w, rows)
}

// CountRows returns how many rows a file has that is not of tickets. It reads all of them.
func CountRows(file io.ReaderAt, size int64, kind string) (rows int64, err error) {
	if kind == archive.KindCorrections {
		err = each(file, size, func(int64, *correctionRow) error { rows++; return nil })
	} else {
		err = each(file, size, func(int64, *changeRow) error { rows++; return nil })
	}
	return rows, err
}

func write[R any](w io.Writer, rows []R) error {
	file := parquet.NewGenericWriter[R](w, parquet.Compression(codec), parquet.CreatedBy("myticket", "1", ""))
	_, err := file.Write(rows)
	return errors.Join(err, file.Close())
}
