package spool_test

import (
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"

	"myticket/internal/spool"
)

// What this version writes is read by the fast decoder, and as the general one reads it.
func FuzzRecord(f *testing.F) {
	for _, e := range []string{"", "x", string(make([]byte, 70_000))} {
		b, err := spool.EncodeRecord(entry(f, e))
		require.NoError(f, err)
		f.Add(b)
		b, err = spool.EncodeRecord(keyed(f, "k", e))
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, fast, general, err := spool.DecodeRecord(b)
		if plain && err == nil {
			require.Equal(t, general, fast)
		}
	})
}

func TestRecord_OfThisVersion_IsReadFast_AndOneOfALaterVersionIsReadToo(t *testing.T) {
	t.Parallel()
	entries := numbered(t, 0, 2)
	entries[1].CameAt = time.UnixMilli(1_800_000_000_000) // it said another time
	for _, e := range entries {
		b, err := spool.EncodeRecord(e)
		require.NoError(t, err)
		plain, fast, general, err := spool.DecodeRecord(b)
		require.NoError(t, err)
		require.True(t, plain)
		require.Equal(t, general, fast)

		var fields map[uint64]any
		require.NoError(t, cbor.Unmarshal(b, &fields))
		fields[10] = []string{"new"}
		b, err = cbor.Marshal(fields)
		require.NoError(t, err)
		plain, _, later, err := spool.DecodeRecord(b)
		require.NoError(t, err)
		require.False(t, plain)
		require.Equal(t, general, later)
	}
}
