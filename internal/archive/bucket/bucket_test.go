package bucket_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/archive/bucket"
)

func TestOpen_ShowsNoSecretOfAnUnknownOption(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"s3://receipts?region=eu-central-1&secret_access_key=Tr0ub4dor%2F3",
		"s3://receipts?region=eu-central-1&role=Tr0ub4dor%2F3",
		"gs://receipts?token=Tr0ub4dor%2F3",
		"azblob://receipts?sig=Tr0ub4dor%2F3",
		"file:///tmp?key=Tr0ub4dor%2F3",
	} {
		_, err := bucket.Open(t.Context(), address)
		require.Error(t, err, address)
		assert.NotContains(t, err.Error(), "Tr0ub4dor", address)
		assert.Contains(t, err.Error(), "open the archive: ", address)
	}
	_, err := bucket.Open(t.Context(), "s3://receipts?secret_access_key=Tr0ub4dor")
	require.ErrorContains(t, err, "secret_access_key", "the name of the option is shown")
}

func TestGet_OfALargerObject_IsBounded(t *testing.T) {
	t.Parallel()
	b, err := bucket.Open(t.Context(), "file://"+t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Put(t.Context(), "manifests/a.json", strings.NewReader(strings.Repeat("x", 1<<20)), true))
	var got bytes.Buffer
	_, err = b.Get(t.Context(), "manifests/a.json", &got, 1<<20-1)
	require.ErrorIs(t, err, bucket.ErrTooLarge)
	require.LessOrEqual(t, got.Len(), 1<<20)
	got.Reset()
	n, err := b.Get(t.Context(), "manifests/a.json", &got, 1<<20)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, n)
}
