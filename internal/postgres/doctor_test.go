package postgres_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
)

func checkUp(t *testing.T, url string) *postgres.CheckUp {
	t.Helper()
	c, err := postgres.OpenCheckUp(t.Context(), postgres.Config{URL: url}, 30*time.Second, func(error) {})
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

func TestCheckUp_KnowsHowItsConnectionIsProtected(t *testing.T) {
	t.Parallel()
	server, url := pgtest.NewServer(t)
	ours, others := newAuthority(t), newAuthority(t)
	root := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(root, []byte(ours.rootFile()), 0o600))
	with := func(mode string) string { return strings.Replace(url, "sslmode=disable", "sslmode="+mode, 1) }
	encrypt(t, server, ours)
	require.Eventually(t, func() bool {
		c, err := postgres.OpenCheckUp(t.Context(), postgres.Config{URL: with("require")}, 30*time.Second, func(error) {})
		if err == nil {
			c.Close()
		}
		return err == nil
	}, 30*time.Second, 10*time.Millisecond, "the server should begin to use TLS")
	for mode, verified := range map[string]bool{
		"require": false, "verify-ca&sslrootcert=" + root: true, "verify-full&sslrootcert=" + root: true,
	} {
		c := checkUp(t, with(mode))
		require.Equal(t, "TLS 1.3", c.Server.TLS, mode)
		require.Equal(t, verified, c.Server.Verified, mode)
		require.True(t, c.Server.Local)
	}
	require.Empty(t, checkUp(t, url).Server.TLS)

	require.NoError(t, os.WriteFile(root, []byte(others.rootFile()), 0o600))
	_, err := postgres.OpenCheckUp(t.Context(), postgres.Config{URL: with("verify-full&sslrootcert=" + root)}, 30*time.Second, func(error) {})
	require.ErrorContains(t, err, "unknown authority")
	require.Equal(t, postgres.BadEncryption, postgres.ObstacleOf(err))
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

func TestOpenCheckUp_ShowsNoPartOfAPassword(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"postgresql://till:pass@secret@127.0.0.1:1/x", "postgresql://till:p@ss@secret@127.0.0.1:1/x"} {
		_, err := postgres.OpenCheckUp(t.Context(), postgres.Config{URL: url}, 0, func(error) {})
		require.ErrorContains(t, err, "%40")
		require.NotContains(t, err.Error(), "secret")
		require.Equal(t, postgres.WrongURL, postgres.ObstacleOf(err))
	}
}
