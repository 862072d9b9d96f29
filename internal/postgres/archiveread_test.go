package postgres_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/archive"
	"myticket/internal/postgres"
)

func TestReadPart_ReadsEachColumnAsItIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	full, empty := uuid.MustParse("019f0000-0000-7000-8000-000000000001"), uuid.MustParse("019f0000-0000-7000-8000-000000000002")
	for _, sql := range []string{
		`CREATE TABLE tickets_old PARTITION OF tickets FOR VALUES FROM ('1999-01-01') TO ('1999-01-02')`,
		`INSERT INTO tickets (id, received_at, source, status, order_number, vat, total, problems, extra, lines, content_type, traceparent,
			version, parser_version, attempts, claims, next_attempt_at, problem_group, correction, body)
		VALUES ('` + full.String() + `', '1999-01-01 12:00:00.123456Z', 'till ä', 'ERROR', '', -0.123456, 123456789012.10, '[{"line": 1}]',
			'[{"name": "n", "value": "v"}]', '[]', 'text/plain', '00-1', 2147483647, 32767, 32766, 7, '2031-05-06 07:08:09.000001Z', -5, 3,
			'\x00ff' || convert_to(repeat('x', 100000), 'UTF8'))`,
		`INSERT INTO corrections (ticket_received_at, ticket_id, number, text, who, why)
		VALUES ('1999-01-01 12:00:00.123456Z', '` + full.String() + `', 3, 'corrected', 'me', 'why')`,
		`INSERT INTO tickets (id, received_at, source, status, content_type, body)
		VALUES ('` + empty.String() + `', '1999-01-01 12:00:01Z', '', 'TO_TREAT', '', '')`,
	} {
		exec(t, b, sql)
	}
	ctx, holder := t.Context(), uuid.New()
	require.NoError(t, b.store.HoldArchive(ctx, postgres.ArchiveRun{URL: "file:///x", Keep: time.Hour, Holder: holder}, true))
	old, err := b.store.OldPartitions(ctx, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
	require.NoError(t, err)
	require.Len(t, old, 1)
	detached, err := b.store.DetachPartition(ctx, tester, holder, old[0], postgres.DropEven{Unfinished: true})
	require.NoError(t, err)

	var read []archive.Ticket
	require.NoError(t, b.store.ReadPart(ctx, detached.Part, func(ticket *archive.Ticket) error {
		read = append(read, *ticket)
		return nil
	}))
	require.Len(t, read, 2)
	body := append([]byte{0, 0xff}, make([]byte, 100_000)...)
	for i := range body[2:] {
		body[2+i] = 'x'
	}
	require.Equal(t, archive.Ticket{
		ID: full, ReceivedAt: time.Date(1999, 1, 1, 12, 0, 0, 123_456_000, time.UTC), Source: "till ä", Status: "ERROR", OrderNumber: new(""),
		VAT: new("-0.123456"), Total: new("123456789012.10"), Problems: new(`[{"line": 1}]`), Extra: new(`[{"name": "n", "value": "v"}]`),
		StoredLines: new("[]"), ContentType: "text/plain", Traceparent: new("00-1"), Version: 2147483647, ParserVersion: 32767, Attempts: 32766,
		Claims: 7, NextAttemptAt: new(time.Date(2031, 5, 6, 7, 8, 9, 1000, time.UTC)), ProblemGroup: new(int64(-5)), Correction: new(3),
		Text: []byte("corrected"), Body: body, Unread: true,
	}, read[0])
	require.Equal(t, archive.Ticket{
		ID: empty, ReceivedAt: time.Date(1999, 1, 1, 12, 0, 1, 0, time.UTC), Status: "TO_TREAT", Version: 1, Body: []byte{},
	}, read[1])
}
