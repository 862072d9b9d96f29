package httpapi

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// deadlineCounter is a connection that keeps its deadlines, and counts how often they are moved.
type deadlineCounter struct {
	net.Conn

	read, write time.Time
	moved       int
}

func (d *deadlineCounter) Read(p []byte) (int, error) { return len(p), nil }

func (d *deadlineCounter) SetReadDeadline(t time.Time) error {
	d.read = t
	d.moved++
	return nil
}

func (d *deadlineCounter) SetWriteDeadline(t time.Time) error {
	d.write = t
	d.moved++
	return nil
}

// What fasthttp asks for, request after request on one connection: the deadlines that count are never later than that, and
// earlier by at most the slack, so none has passed before its time.
func TestConn_MovesDeadlinesOnlyWhenTheyWouldBeWrong(t *testing.T) {
	t.Parallel()
	const readTimeout, writeTimeout, idleTimeout, requests = 10 * time.Second, 10 * time.Second, 75 * time.Second, 1000
	slack := deadlineSlack(readTimeout, writeTimeout, idleTimeout)
	inner := &deadlineCounter{}
	c := &conn{Conn: inner, deadlines: deadlines{slack: slack}}
	near := func(want, have time.Time) {
		require.False(t, have.After(want))
		require.LessOrEqual(t, want.Sub(have), slack)
	}
	now := time.Now()
	read := func(timeout time.Duration) {
		require.NoError(t, c.SetReadDeadline(now.Add(timeout)))
		_, err := c.Read(make([]byte, 1))
		require.NoError(t, err)
		near(now.Add(timeout), inner.read)
	}
	for range requests {
		read(idleTimeout)
		require.NoError(t, c.SetReadDeadline(now.Add(readTimeout))) // and the rest is there already
		require.NoError(t, c.SetWriteDeadline(now.Add(writeTimeout)))
		near(now.Add(writeTimeout), inner.write)
		now = now.Add(5 * time.Millisecond)
	}
	require.Less(t, inner.moved, requests/5, "of %d that were asked for", 3*requests)

	read(readTimeout) // a request that comes in pieces: its deadline is the nearer one
	read(idleTimeout)
	require.NoError(t, c.SetDeadline(time.Time{}))
	_, err := c.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, inner.read.IsZero() && inner.write.IsZero(), "no deadline")
	read(readTimeout)
}

func TestDeadlineSlack_IsFarBelowTheTimeouts(t *testing.T) {
	t.Parallel()
	require.Equal(t, 100*time.Millisecond, deadlineSlack(10*time.Second, 75*time.Second))
	require.Equal(t, time.Millisecond, deadlineSlack(10*time.Second, 32*time.Millisecond))
}
