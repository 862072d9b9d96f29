package postgres_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
)

func checkUp(t *testing.T, url string) *postgres.CheckUp {
	t.Helper()
	c, err := postgres.OpenCheckUp(t.Context(), postgres.Config{URL: url}, time.Second, func(error) {})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// Whatever a check does: its session cannot write.
func TestCheckUp_ChangesNothing(t *testing.T) {
	t.Parallel()
	c := checkUp(t, pgtest.New(t))
	_, err := c.EnsurePartitions(t.Context(), postgres.Day, 3, time.Now())
	require.ErrorContains(t, err, "read-only transaction")
	require.ErrorContains(t, c.Ping(t.Context()), "read-only")
	_, err = c.Backlog(t.Context())
	require.NoError(t, err)
}

func TestCheckUp_KnowsTheStandbysThatAreNeeded(t *testing.T) {
	t.Parallel()
	c := checkUp(t, pgtest.New(t))
	for names, want := range map[string]int{
		"": 0, " ": 0, "*": 1, "a, b": 1, "2 (a, b)": 2, "FIRST 1 (a)": 1, "ANY 3 (*)": 3, `any 2("x y", b)`: 2, `"ANY 2 (x)"`: 1,
	} {
		c.Server.Settings["synchronous_standby_names"] = names
		s, err := c.Standbys(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, s.Needed, names)
		require.Zero(t, s.Attached)
	}
}

func TestCheckUp_TellsObstaclesApart(t *testing.T) {
	t.Parallel()
	for want, errs := range map[postgres.Obstacle][]error{
		postgres.NoSuchHost:       {&net.DNSError{IsNotFound: true}, &net.DNSError{IsTimeout: true}},
		postgres.NoAnswer:         {&net.OpError{Op: "dial", Err: io.EOF}, context.DeadlineExceeded, io.ErrUnexpectedEOF},
		postgres.BadEncryption:    {&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, tls.AlertError(42), x509.HostnameError{Certificate: &x509.Certificate{}}},
		postgres.LoginRefused:     {&pgconn.PgError{Code: "28P01"}, &pgconn.PgError{Code: "28000"}, &pgconn.PgError{Code: "42501"}},
		postgres.NoSuchDatabase:   {&pgconn.PgError{Code: "3D000"}},
		postgres.NoConnectionLeft: {&pgconn.PgError{Code: "53300"}},
		postgres.Starting:         {&pgconn.PgError{Code: "57P03"}},
		postgres.WrongURL:         {pgconn.NewParseConfigError("x", "y", nil)},
		postgres.UnknownObstacle:  {&pgconn.PgError{Code: "XX000"}, io.ErrShortWrite},
	} {
		for _, err := range errs {
			require.Equal(t, want, postgres.ObstacleOf(fmt.Errorf("connect: %w", err)), "%T", err)
		}
	}
}
