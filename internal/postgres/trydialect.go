package postgres

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"myticket/internal/ticket"
)

// DialectTry says which tickets TryDialect reads: the newest of a source.
type DialectTry struct {
	Source  string // OtherSources for all that have no dialect of their own
	Reader  *ticket.Reader
	Errors  int            // most ERROR tickets
	Treated int            // most TREATED tickets
	Show    func(read int) // is called now and then with the number of tickets that were read; nil for not at all
}

// DialectTrial is what tickets would become in a dialect.
type DialectTrial struct {
	Source  string          `json:"source"`
	Errors  ErrorsOfTrial   `json:"errors"`
	Treated TreatedsOfTrial `json:"treated"`
}

// ErrorsOfTrial are the ERROR tickets of a trial.
type ErrorsOfTrial struct {
	Read    int           `json:"read"`
	Treated int           `json:"would_be_treated"`
	Left    []LeftProblem `json:"left"` // of the others: those of most tickets first
	More    bool          `json:"more"` // there may be more tickets, which were not read
}

// LeftProblem is a problem that tickets would still have.
type LeftProblem struct {
	Code    string         `json:"code"`
	Tickets int            `json:"tickets"`
	Example uuid.UUID      `json:"example"` // the newest of these tickets
	Problem ticket.Problem `json:"problem"` // of that ticket
}

// TreatedsOfTrial are the TREATED tickets of a trial, compared with how they were read.
type TreatedsOfTrial struct {
	Read    int             `json:"read"`
	Changed int             `json:"would_change"` // with those that would be ERROR
	Errors  int             `json:"would_be_error"`
	Changes []ChangeOfTrial `json:"changes"` // of the newest tickets that would change, at most tryChanges
	More    bool            `json:"more"`    // there may be more tickets, which were not read
}

// ChangeOfTrial is how one ticket would change: the lines of what it says.
type ChangeOfTrial struct {
	ID      uuid.UUID     `json:"id"`
	Status  ticket.Status `json:"status"` // what it would be
	Removed []string      `json:"removed"`
	Added   []string      `json:"added"`
}

// Limits of a trial. They bound its memory.
const (
	tryPage    = 2000      // tickets that one statement looks at
	tryLook    = 1_000_000 // tickets of a status, of any source, that are looked at
	tryBytes   = 256 << 20 // of what is being read; one ticket always fits
	tryFactor  = 32        // what reading a body takes, for each byte of it
	tryChanges = 20
	tryLines   = 40  // of a change
	tryText    = 300 // bytes of such a line
)

// tryTickets selects tickets before a place, with their texts if they are of the right source.
const tryTickets = `
SELECT t.id, CASE WHEN t.source %s THEN ` + textSQL + ` END, ` + dialectSQL + ` FROM tickets t
WHERE %s AND t.received_at <= $2 AND (t.received_at, t.id) < ($2, $3)
ORDER BY t.received_at DESC, t.id DESC LIMIT $4`

// tryByIndex forbids plans that sort all tickets for each page, which Postgres may choose while it knows little about the table.
const tryByIndex = `SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off`

// TryDialect reads tickets in a dialect and changes nothing. It reads on all processors, and takes a bounded amount of memory. A
// ticket that is ERROR for another reason than its text counts as one that would be TREATED.
func (s *Store) TryDialect(ctx context.Context, try DialectTry) (DialectTrial, error) {
	t := trial{store: s, try: try, budget: semaphore.NewWeighted(tryBytes), left: map[string]LeftProblem{}}
	t.done.Source = try.Source
	t.isOf, t.source = `= $1`, try.Source
	if try.Source == OtherSources {
		own, err := s.Dialects(ctx)
		if err != nil {
			return t.done, err
		}
		sources := []string{}
		for _, v := range own {
			if v.Source != OtherSources {
				sources = append(sources, v.Source)
			}
		}
		t.isOf, t.source = `<> ALL ($1)`, sources
	}
	var err error
	if t.done.Errors.Read, t.done.Errors.More, err = t.all(ctx, ticket.Error, try.Errors, t.readError); err == nil {
		t.done.Treated.Read, t.done.Treated.More, err = t.all(ctx, ticket.Treated, try.Treated, t.readTreated)
	}
	return t.result(), explain("try a dialect", err)
}

// trial is a TryDialect at work.
type trial struct {
	store  *Store
	try    DialectTry
	isOf   string // condition on the source, which is $1
	source any
	budget *semaphore.Weighted

	mu   sync.Mutex // guards all fields below
	done DialectTrial
	left map[string]LeftProblem // by code
}

// all reads up to most tickets of a status, the newest first. More means that there may be more of the source.
func (t *trial) all(
	ctx context.Context, status ticket.Status, most int, read func(uuid.UUID, text) error,
) (n int, more bool, err error) {
	if most == 0 {
		return 0, false, nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	last := place{time.Now().AddDate(1, 0, 0), uuid.UUID{math.MaxUint8}}
	for looked, end := 0, false; err == nil && !end && !more; looked += tryPage {
		var found, rows int
		found, rows, last, err = t.page(ctx, group, status, last, most-n, read)
		n += found
		end, more = rows < tryPage, n >= most || looked+tryPage >= tryLook
		if t.try.Show != nil {
			t.try.Show(n)
		}
	}
	if failed := group.Wait(); failed != nil {
		err = failed
	}
	return n, more, err
}

// page looks at the tickets of one statement, and has up to most of them read. It returns how many it found, at how many it
// looked, and the place of the last one.
func (t *trial) page(
	ctx context.Context, group *errgroup.Group, status ticket.Status, last place, most int, read func(uuid.UUID, text) error,
) (found, looked int, end place, err error) {
	var id uuid.UUID
	err = pgx.BeginTxFunc(ctx, t.store.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, tryByIndex); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, fmt.Sprintf(tryTickets, t.isOf, statusIs[status]), t.source, last.at, last.id, tryPage)
		if err != nil {
			return err
		}
		var row text // valid until the next row
		_, err = pgx.ForEachRow(rows, append([]any{&id}, row.scan()...), func() error {
			looked++
			if row.body == nil || found == most {
				return nil
			}
			found++
			return t.start(ctx, group, id, text{bytes.Clone(row.body), row.version, bytes.Clone(row.dialect)}, read)
		})
		return err
	})
	return found, looked, place{ticket.IDTime(id), id}, err
}

// start has a ticket read. It waits until there are a processor and memory for that.
func (t *trial) start(
	ctx context.Context, group *errgroup.Group, id uuid.UUID, of text, read func(uuid.UUID, text) error,
) error {
	weight := min(int64(tryFactor*len(of.body)), tryBytes)
	if err := t.budget.Acquire(ctx, weight); err != nil {
		return err
	}
	group.Go(func() error {
		defer t.budget.Release(weight)
		return read(id, of)
	})
	return nil
}

func (t *trial) readError(id uuid.UUID, of text) error {
	_, problems := t.try.Reader.Parse(of.body)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(problems) == 0 {
		t.done.Errors.Treated++
		return nil
	}
	counted := map[string]bool{}
	for _, p := range problems {
		if counted[p.Code] {
			continue
		}
		counted[p.Code] = true
		l := t.left[p.Code]
		if l.Code, l.Tickets = p.Code, l.Tickets+1; l.Tickets == 1 || compareIDs(id, l.Example) > 0 {
			l.Example, l.Problem = id, p
		}
		t.left[p.Code] = l
	}
	return nil
}

func (t *trial) readTreated(id uuid.UUID, of text) error {
	before, had, err := t.store.parse(of)
	if err != nil {
		return err
	}
	after, problems := t.try.Reader.Parse(of.body)
	change := ChangeOfTrial{ID: id, Status: ticket.Treated}
	change.Removed, change.Added = differences(said(&before, had), said(&after, problems))
	if len(problems) > 0 {
		change.Status = ticket.Error
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	treated := &t.done.Treated
	if len(problems) > 0 {
		treated.Errors++
	}
	if len(change.Removed)+len(change.Added) == 0 {
		return nil
	}
	treated.Changed++
	treated.Changes = append(treated.Changes, change)
	slices.SortFunc(treated.Changes, func(a, b ChangeOfTrial) int { return compareIDs(b.ID, a.ID) })
	treated.Changes = treated.Changes[:min(len(treated.Changes), tryChanges)]
	return nil
}

// result returns what was found.
func (t *trial) result() DialectTrial {
	t.mu.Lock()
	defer t.mu.Unlock()
	done := t.done
	done.Errors.Left = []LeftProblem{}
	for _, l := range t.left {
		done.Errors.Left = append(done.Errors.Left, l)
	}
	slices.SortFunc(done.Errors.Left, func(a, b LeftProblem) int {
		return cmp.Or(cmp.Compare(b.Tickets, a.Tickets), cmp.Compare(a.Code, b.Code))
	})
	if done.Treated.Changes == nil {
		done.Treated.Changes = []ChangeOfTrial{}
	}
	return done
}

// said returns what a ticket says, in lines.
func said(order *ticket.Order, problems []ticket.Problem) []string {
	lines := []string{"Order: " + order.Number, "VAT: " + order.VAT.String(), "Total: " + order.Total.String()}
	for _, f := range order.Extra {
		lines = append(lines, f.Name+": "+f.Value)
	}
	for i := range order.Lines {
		l := &order.Lines[i]
		fields := []string{l.ProductID, l.Price.String(), l.Name}
		for column, name := range order.Columns {
			fields = append(fields, name+"="+l.Extra[column])
		}
		lines = append(lines, strings.Join(fields, ", "))
	}
	for _, p := range problems {
		lines = append(lines, fmt.Sprintf("line %d: %s: %s", p.Line, p.Code, p.Message))
	}
	return lines
}

// differences returns the lines between the first and the last ones that differ, at most tryLines each.
func differences(before, after []string) (removed, added []string) {
	for len(before) > 0 && len(after) > 0 && before[0] == after[0] {
		before, after = before[1:], after[1:]
	}
	for len(before) > 0 && len(after) > 0 && before[len(before)-1] == after[len(after)-1] {
		before, after = before[:len(before)-1], after[:len(after)-1]
	}
	return short(before), short(after)
}

// short returns the first tryLines of some lines, and how many there are more. They share no memory with the ticket.
func short(lines []string) []string {
	shown := []string{}
	for i, line := range lines {
		if i == tryLines {
			return append(shown, fmt.Sprintf("… and %d lines more", len(lines)-i))
		}
		shown = append(shown, string([]byte(ticket.CleanText(line, tryText))))
	}
	return shown
}
