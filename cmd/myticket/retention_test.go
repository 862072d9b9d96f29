package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func TestRetention_ShowsWhatEachPartitionHolds_AndNeverTouchesTheDefaultOne(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.exec(t, `CREATE TABLE "`+"\x1b[2J"+`" PARTITION OF tickets FOR VALUES FROM (MINVALUE) TO ('2025-01-01 00:00:00+00')`)
	b.exec(t, `CREATE TABLE other PARTITION OF tickets FOR VALUES FROM ('2025-01-01 00:00:00+00') TO ('2025-02-03 04:05:06+00')`)
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status) SELECT gen_random_uuid(), at::timestamptz, 's', '', status
		FROM (VALUES ('2024-01-01', 'TREATED'), ('2024-01-01', 'DISMISSED'), ('2025-01-15', 'TREATED'), ('2025-01-15', 'ERROR'),
			('2025-01-15', 'TO_TREAT'), ('2025-03-01', 'TREATED')) v (at, status)`)

	shown := b.ok(t, "retention", "--keep=52w")
	assertHarmless(t, shown)
	assert.Regexp(t, `PARTITION +FROM +TO +TO_TREAT +TREATED +ERROR +DISMISSED +SIZE +VERDICT\n`, shown)
	assert.Regexp(t, `\\x1b\[2J +the first +2025-01-01 +0 +1 +0 +1 .*B +would be dropped\n`, shown)
	assert.Regexp(t, `other +2025-01-01 +2025-02-03T04:05:06Z +1 +1 +1 +0 .*B +kept: `, shown)

	var report retentionReport
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "retention", "--keep=52w", "--drop-unfinished", "--apply", "-o", "json")), &report))
	require.Len(t, report.Partitions, 2)
	assert.True(t, report.Applied)
	assert.Nil(t, report.Partitions[0].From)
	other := report.Partitions[1]
	assert.True(t, other.Dropped)
	assert.Equal(t, int64(2), other.Unfinished)
	assert.Equal(t, map[ticket.Status]int64{"TO_TREAT": 1, "TREATED": 1, "ERROR": 1, "DISMISSED": 0}, other.Tickets)
	assert.Equal(t, "1 1", b.text(t, `SELECT count(*) || ' ' || (SELECT count(*) FROM tickets_default) FROM tickets`))
	assert.JSONEq(t, `{"applied": true, "partitions": [], "expired_keys": 0}`,
		b.ok(t, "retention", "--keep=52w", "--drop-unfinished", "--apply", "-o", "json"))
}

func TestRetention_KeepIsRequiredAndAtLeastADay(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for _, args := range [][]string{nil, {"--keep=23h"}, {"--keep=90"}, {"--keep=-90d"}, {"--keep=x"}, {"--keep=0"}} {
		code, _, stderr := b.myticket(t, append([]string{"retention"}, args...)...)
		assert.Equal(t, 2, code, args)
		assert.Contains(t, stderr, "--keep", args)
	}
	for keep, want := range map[string]time.Duration{"1d": 24 * time.Hour, "2w": 14 * 24 * time.Hour, "36h": 36 * time.Hour} {
		var got span
		require.NoError(t, got.UnmarshalText([]byte(keep)))
		assert.Equal(t, want, time.Duration(got))
		b.ok(t, "retention", "--keep", keep)
	}
}
