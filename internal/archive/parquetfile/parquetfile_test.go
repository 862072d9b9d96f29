package parquetfile_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/archive"
	"myticket/internal/archive/parquetfile"
)

func ptr[T any](v T) *T { return &v }

// tickets returns n tickets with all that a ticket may have.
func tickets(n int) []archive.Ticket {
	at := time.Date(2026, 8, 1, 10, 0, 0, 0, time.UTC)
	all := make([]archive.Ticket, n)
	for i := range all {
		t := &all[i]
		*t = archive.Ticket{
			ID: uuid.New(), ReceivedAt: at.Add(time.Duration(i) * time.Millisecond), Source: fmt.Sprintf("till-%d", i%3),
			Status: "TREATED", ContentType: "text/plain", Body: fmt.Appendf(nil, "body \x00\xff %d", i), Version: 1, ParserVersion: 3,
			OrderNumber: ptr(fmt.Sprint(i)), VAT: ptr("3.10"), Total: ptr("16.90"),
			Lines: []archive.Line{{ProductID: "p1", Product: "Apple", Price: ptr("1.50")}, {ProductID: "p2", Product: "Pear"}},
		}
		switch i % 5 {
		case 1:
			t.VAT, t.Total, t.Lines, t.OrderNumber = nil, ptr("-0.123456"), nil, ptr("")
			t.Problems, t.Status = ptr(`[{"code": "x", "line": 1, "message": "m"}]`), "ERROR"
		case 2:
			t.VAT, t.Total = ptr("7"), ptr("123456789012345.1234567") // no amount that MyTicket reads
			t.Lines[0].Extra = []archive.Field{{Name: "n", Value: "v"}}
			t.Lines[0].Price = ptr("1.5000000000")
		case 3:
			t.Correction, t.Text, t.Traceparent = ptr(2), []byte("text"), ptr("00-1")
			t.NextAttemptAt, t.ProblemGroup, t.StoredLines = ptr(at.Add(time.Microsecond)), ptr(int64(-5)), ptr(`[]`)
			t.Attempts, t.Claims, t.Dialect = 1, 2, 3
			t.Body = []byte{}
		}
	}
	return all
}

func TestTickets_ComeBackAsTheyWere_SortedBySourceAndID(t *testing.T) {
	t.Parallel()
	all := tickets(1000)
	var file bytes.Buffer
	w := parquetfile.NewTicketWriter(&file)
	byID := map[uuid.UUID]archive.Ticket{}
	for i := range all {
		byID[all[i].ID] = all[i]
		require.NoError(t, w.Add(&all[i]))
	}
	written, err := w.Close()
	require.NoError(t, err)
	read, err := parquetfile.Summarize(bytes.NewReader(file.Bytes()), int64(file.Len()))
	require.NoError(t, err)
	require.Equal(t, written, read)
	require.EqualValues(t, 1000, read.Rows)
	require.Equal(t, all[0].ReceivedAt, read.First)
	require.Equal(t, all[999].ReceivedAt, read.Last)

	before := ""
	require.NoError(t, parquetfile.ReadTickets(bytes.NewReader(file.Bytes()), int64(file.Len()), func(got *archive.Ticket) error {
		want := byID[got.ID]
		if want.Lines != nil && want.Lines[0].Price != nil && strings.HasSuffix(*want.Lines[0].Price, "0000") {
			require.Equal(t, "1.5000000000", *got.Lines[0].Price)
		}
		if want.NextAttemptAt != nil {
			require.True(t, want.NextAttemptAt.Equal(*got.NextAttemptAt))
			got.NextAttemptAt = want.NextAttemptAt
		}
		if len(want.Text) == 0 {
			got.Text = nil
		}
		if len(got.Body) == 0 {
			got.Body = []byte{}
		}
		require.Equal(t, want, *got)
		key := got.Source + got.ID.String()
		require.Less(t, before, key)
		before = key
		return nil
	}))

	found, err := parquetfile.FindTicket(bytes.NewReader(file.Bytes()), int64(file.Len()), all[500].ID)
	require.NoError(t, err)
	require.Equal(t, all[500].Body, found.Body)
	found, err = parquetfile.FindTicket(bytes.NewReader(file.Bytes()), int64(file.Len()), uuid.New())
	require.NoError(t, err)
	require.Nil(t, found)
}

func TestSummarize_FindsEveryChangedByteOfABody_OrFails(t *testing.T) {
	t.Parallel()
	all := tickets(50)
	var file bytes.Buffer
	w := parquetfile.NewTicketWriter(&file)
	for i := range all {
		require.NoError(t, w.Add(&all[i]))
	}
	written, err := w.Close()
	require.NoError(t, err)
	for cut := 0; cut < file.Len(); cut += 97 {
		_, err := parquetfile.Summarize(bytes.NewReader(file.Bytes()[:cut]), int64(cut))
		require.ErrorIs(t, err, archive.ErrDamaged, cut)
	}
	_ = written
}

func TestCorrections_ComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 8, 1, 10, 0, 0, 0, time.UTC)
	all := []archive.Correction{
		{TicketID: uuid.New(), ReceivedAt: at, Number: 1, Text: []byte("x"), At: at, Who: "a", Why: "b"},
		{TicketID: uuid.New(), ReceivedAt: at, Number: 2, Text: []byte{}, At: at, Who: "a", Why: ""},
		{TicketID: uuid.New(), ReceivedAt: at, Number: 3, At: at, Who: "a", Why: ""},
	}
	var file bytes.Buffer
	require.NoError(t, parquetfile.WriteCorrections(&file, all))
	read, err := parquetfile.ReadCorrections(bytes.NewReader(file.Bytes()), int64(file.Len()))
	require.NoError(t, err)
	require.Equal(t, all, read)
}
