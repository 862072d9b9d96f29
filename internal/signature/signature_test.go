package signature_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/signature"
)

// The example is that of the specification.
func TestHeader_IsThatOfStandardWebhooks(t *testing.T) {
	t.Parallel()
	key, err := signature.Key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	require.NoError(t, err)
	const id, at, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", `{"test": 2432232314}`
	require.Equal(t, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", signature.Header([][]byte{key}, id, at, []byte(body)))

	other, err := signature.Key("c2Vjb25kLWtleS10aGF0LWlzLWxvbmc=")
	require.NoError(t, err)
	require.Regexp(t, `^v1,g0hM9SsE\S+ v1,\S{44}$`, signature.Header([][]byte{key, other}, id, at, []byte(body)))
	for _, bad := range []string{"", "whsec_", "whsec_c2hvcnQ=", "whsec_ not base64 at all, really not"} {
		_, err := signature.Key(bad)
		require.Error(t, err, bad)
	}
}
