package bucket_test

import (
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
