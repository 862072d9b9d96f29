package parquetfile_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
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
	w := parquetfile.NewTicketWriter(&file, 0)
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

func TestTickets_TimesThatOnlyPostgresHas_ComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	var all []archive.Ticket
	for _, micros := range []int64{
		math.MaxInt64, math.MinInt64, time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC).UnixMicro(),
		time.Date(-4712, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro(), time.Date(2262, 4, 12, 0, 0, 0, 0, time.UTC).UnixMicro(), -1, 0,
	} {
		all = append(all, archive.Ticket{ID: uuid.Must(uuid.NewV7()), Source: "a", NextAttemptAt: ptr(time.UnixMicro(micros).UTC())})
	}
	var file bytes.Buffer
	w := parquetfile.NewTicketWriter(&file, 0)
	for i := range all {
		require.NoError(t, w.Add(&all[i]))
	}
	_, err := w.Close()
	require.NoError(t, err)
	read := 0
	require.NoError(t, parquetfile.ReadTickets(bytes.NewReader(file.Bytes()), int64(file.Len()), func(got *archive.Ticket) error {
		require.Equal(t, all[read].NextAttemptAt.UnixMicro(), got.NextAttemptAt.UnixMicro())
		read++
		return nil
	}))
	require.Equal(t, len(all), read)
}

func TestFileThatSaysItsFooterIsLargerThanItself_IsDamaged(t *testing.T) {
	t.Parallel()
	file := append(append([]byte("PAR1"), 0xf0, 0xff, 0xff, 0xff), "PAR1"...)
	for _, file := range [][]byte{file, file[5:], nil} {
		_, err := parquetfile.Summarize(bytes.NewReader(file), int64(len(file)))
		require.ErrorIs(t, err, archive.ErrDamaged)
	}
	_, err := parquetfile.Summarize(bytes.NewReader(file), int64(len(file)))
	require.ErrorContains(t, err, "its footer is to have")
}

func TestFileOfTheVersionBefore_IsReadAndVerified(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("testdata/first-version.parquet") // with rows instead of columns written, and without dictionaries of products
	require.NoError(t, err)
	sum, err := parquetfile.Summarize(bytes.NewReader(file), int64(len(file)))
	require.NoError(t, err)
	require.Equal(t, "4cbbbd4fa7c94466c4e570ccd0c88e8a54661cd7588b3c9e996589ea9c026a38", hex.EncodeToString(sum.SHA256[:]))
	require.EqualValues(t, 200, sum.Rows)
	require.Equal(t, time.Date(2026, 8, 1, 10, 0, 0, 199e6, time.UTC), sum.Last)
	all := tickets(200)
	read := 0
	require.NoError(t, parquetfile.ReadTickets(bytes.NewReader(file), int64(len(file)), func(got *archive.Ticket) error {
		read++
		want := all[int(got.ReceivedAt.Sub(sum.First)/time.Millisecond)]
		require.Equal(t, want.Source, got.Source)
		require.Equal(t, string(want.Body), string(got.Body))
		require.Equal(t, want.Lines, got.Lines)
		require.Equal(t, []*string{want.VAT, want.Total, want.Problems, want.OrderNumber}, []*string{got.VAT, got.Total, got.Problems, got.OrderNumber})
		return nil
	}))
	require.Equal(t, 200, read)
	found, err := parquetfile.FindTicket(bytes.NewReader(file), int64(len(file)), uuid.NewSHA1(uuid.Nil, []byte("77")))
	require.NoError(t, err)
	require.Equal(t, all[77].Body, found.Body)
}

func TestTickets_LinesAreReadFromTheText_WhenTheyAreWritten(t *testing.T) {
	t.Parallel()
	const body = "Order: 1\nVAT: 1\nTotal: 2\n\nproduct,product_id,price,size\nApple,a,1.5,L\nPear,b,-0.123456,\n"
	all := []archive.Ticket{
		{ID: uuid.New(), Body: []byte(body), Unread: true},
		{ID: uuid.New(), Body: []byte("nothing"), Unread: true, Correction: ptr(1), Text: []byte(body)},
		{ID: uuid.New(), Body: []byte(body)}, // it was never treated
		{ID: uuid.New(), Body: []byte("nothing"), Unread: true},
	}
	var file bytes.Buffer
	w := parquetfile.NewTicketWriter(&file, 0)
	for i := range all {
		all[i].Source = fmt.Sprint(i)
		require.NoError(t, w.Add(&all[i]))
	}
	_, err := w.Close()
	require.NoError(t, err)
	lines := []archive.Line{
		{ProductID: "a", Product: "Apple", Price: ptr("1.50"), Extra: []archive.Field{{Name: "size", Value: "L"}}},
		{ProductID: "b", Product: "Pear", Price: ptr("-0.123456"), Extra: []archive.Field{{Name: "size"}}},
	}
	var read [][]archive.Line
	require.NoError(t, parquetfile.ReadTickets(bytes.NewReader(file.Bytes()), int64(file.Len()), func(got *archive.Ticket) error {
		read = append(read, got.Lines)
		return nil
	}))
	require.Equal(t, [][]archive.Line{lines, lines, nil, nil}, read)
}

func TestTickets_OfWildShapes_ComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	chance := rand.New(rand.NewPCG(3, 4))
	all := tickets(800)
	byID := map[uuid.UUID]*archive.Ticket{}
	for i := range all {
		one := &all[i]
		byID[one.ID] = one
		one.Body = bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, chance.IntN(1<<(1+chance.IntN(14)))) // also many blocks and pages
		one.Lines = nil
		for range chance.IntN(40) {
			line := archive.Line{ProductID: fmt.Sprint(chance.IntN(10_000)), Product: strings.Repeat("é", chance.IntN(300))}
			if chance.IntN(3) > 0 {
				line.Price = ptr("1.50")
			}
			for range chance.IntN(4) {
				line.Extra = append(line.Extra, archive.Field{Name: fmt.Sprint(chance.IntN(5)), Value: fmt.Sprint(chance.IntN(1000))})
			}
			one.Lines = append(one.Lines, line)
		}
	}
	var file bytes.Buffer
	w := parquetfile.NewTicketWriter(&file, 0)
	for i := range all {
		require.NoError(t, w.Add(&all[i]))
	}
	written, err := w.Close()
	require.NoError(t, err)
	read, err := parquetfile.Summarize(bytes.NewReader(file.Bytes()), int64(file.Len()))
	require.NoError(t, err)
	require.Equal(t, written, read)
	require.NoError(t, parquetfile.ReadTickets(bytes.NewReader(file.Bytes()), int64(file.Len()), func(got *archive.Ticket) error {
		want := byID[got.ID]
		require.True(t, bytes.Equal(want.Body, got.Body))
		require.Equal(t, want.Lines, got.Lines)
		require.Equal(t, want.Total, got.Total)
		delete(byID, got.ID)
		return nil
	}))
	require.Empty(t, byID)
}

func TestSummarize_OfADamagedFile_SaysSo(t *testing.T) {
	t.Parallel()
	all := tickets(50)
	var file bytes.Buffer
	w := parquetfile.NewTicketWriter(&file, 0)
	for i := range all {
		require.NoError(t, w.Add(&all[i]))
	}
	_, err := w.Close()
	require.NoError(t, err)
	for cut := 0; cut < file.Len(); cut += 97 {
		_, err := parquetfile.Summarize(bytes.NewReader(file.Bytes()[:cut]), int64(cut))
		require.ErrorIs(t, err, archive.ErrDamaged, cut)
	}
	for at := 0; at < file.Len(); at += 97 { // a byte may be of another column; CheckFile compares the hash of the file, too
		changed := bytes.Clone(file.Bytes())
		changed[at] ^= 0x10
		if _, err := parquetfile.Summarize(bytes.NewReader(changed), int64(len(changed))); err != nil {
			require.ErrorIs(t, err, archive.ErrDamaged, at)
		}
	}
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
