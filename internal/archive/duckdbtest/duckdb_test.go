// Package duckdbtest reads files of the archive with DuckDB, so with another library than the one that wrote them. It is a module
// of its own, so that DuckDB is no dependency of the program:
//
//	cd internal/archive/duckdbtest && go test ./...
package duckdbtest

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"
	"time"

	_ "github.com/duckdb/duckdb-go/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/archive"
	"myticket/internal/archive/parquetfile"
)

var firstDay = time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)

// perDay is how many tickets a day has. A source has more than a row group of its own.
const perDay = 30_000

func idOf(day, n int) uuid.UUID {
	return uuid.UUID{0x01, 0x9f, byte(day), 0, 0, 0, 0x70, 0, 0x80, 0, 0xff, 0xfe, 0, byte(n >> 16), byte(n >> 8), byte(n)}
}

// write writes two days of tickets into a folder, under the keys of the archive.
func write(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	for day := range 2 {
		at := firstDay.AddDate(0, 0, day)
		path := filepath.Join(folder, archive.FilePrefix(archive.KindTickets, at, "20260801-20260803")+"run.0001.parquet")
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		file, err := os.Create(path)
		require.NoError(t, err)
		w := parquetfile.NewTicketWriter(file, 0)
		for n := range perDay {
			vat, total, price := "-0.10", "16.90", "1.500001"
			ticket := archive.Ticket{
				ID: idOf(day, n), ReceivedAt: at.Add(time.Duration(n) * time.Millisecond), Source: "till-1", Status: "TREATED",
				VAT: &vat, Total: &total, ContentType: "text/plain", Body: []byte{0, 0xff, byte(n)},
				Lines: []archive.Line{
					{ProductID: "a", Product: "Apfel ä", Price: &price, Extra: []archive.Field{{Name: "n", Value: "v"}}}, {ProductID: "b"},
				},
			}
			switch n {
			case 0:
				ticket.Source, total = "till-2", "999999999999.999999"
			case 1:
				ticket.Source, total = "till-3", "1234567890123.1234567" // does not fit
			}
			require.NoError(t, w.Add(&ticket))
		}
		_, err = w.Close()
		require.NoError(t, err)
		require.NoError(t, file.Close())
	}
	return folder
}

func TestDuckDB_ReadsTickets(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("duckdb", "")
	require.NoError(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), `SET TimeZone = 'UTC'; CREATE VIEW tickets AS SELECT * FROM read_parquet('`+write(t)+
		`/tickets/*/*.parquet', hive_partitioning = true)`)
	require.NoError(t, err)
	for _, c := range [][2]string{
		{`SELECT string_agg(column_name || ' ' || data_type, ', ') FROM duckdb_columns() WHERE table_name = 'tickets'
			AND column_name IN ('id', 'received_at', 'total', 'body', 'day')`, "id UUID, received_at TIMESTAMP WITH TIME ZONE, " +
			"total DECIMAL(18,6), body BLOB, day DATE"},
		{`SELECT count(*) FROM tickets`, "60000"},
		{`SELECT count(DISTINCT id) FROM tickets`, "60000"},
		{`SELECT min(id) FROM tickets`, idOf(0, 0).String()},
		{`SELECT max(id) FROM tickets`, idOf(1, perDay-1).String()},
		{`SELECT source FROM tickets WHERE id = '` + idOf(1, 0).String() + `'`, "till-2"},
		{`SELECT sum(total) FROM tickets WHERE source = 'till-1'`, "1013932.400000"},
		{`SELECT sum(vat) FROM tickets`, "-6000.000000"},
		{`SELECT total FROM tickets WHERE day = '2026-08-02' AND source = 'till-2'`, "999999999999.999999"},
		{`SELECT coalesce(total::text, total_text) FROM tickets WHERE day = '2026-08-01' AND source = 'till-3'`, "1234567890123.1234567"},
		{`SELECT count(*) FROM tickets WHERE source = 'till-1' AND day = '2026-08-01'`, "29998"},
		{`SELECT count(*) FROM tickets WHERE source = 'till-4'`, "0"},
		{`SELECT max(received_at) FROM tickets`, "2026-08-02 00:00:29.999+00"},
		{`SELECT sum(l.price) FROM (SELECT unnest(lines) AS l FROM tickets)`, "90000.060000"},
		{`SELECT count(*) FROM (SELECT unnest(lines) AS l FROM tickets) WHERE l.price IS NULL`, "60000"},
		{`SELECT min(l.extra[1].name || l.extra[1].value || l.product) FROM (SELECT unnest(lines) AS l FROM tickets)
			WHERE l.product_id = 'a'`, "nvApfel ä"},
		{`SELECT hex(body) FROM tickets WHERE id = '` + idOf(1, 7).String() + `'`, "00FF07"},
	} {
		query, want := c[0], c[1]
		var got string
		err := db.QueryRowContext(t.Context(), `SELECT (`+query+`)::text`).Scan(&got)
		if assert.NoError(t, err, query) {
			assert.Equal(t, want, got, query)
		}
	}
}
