package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/events"
)

func TestEvents_AreReadyWhenTheDatabaseIs(t *testing.T) {
	t.Parallel()
	for databaseURL, want := range map[string]struct {
		status int
		says   string
	}{
		pgtest.New(t):   {http.StatusOK, `"ready":true`},
		pgtest.Empty(t): {http.StatusServiceUnavailable, "migrate up"},
		unreachable:     {http.StatusServiceUnavailable, "does not answer"},
	} {
		log, exited := &logText{}, make(chan int)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			exited <- run(ctx, []string{"events", "--admin-addr", "127.0.0.1:0", "--database-url", databaseURL}, nil, streams{stdout: log, stderr: log})
		}()
		await(t, "it listens", func() bool { return log.line("sending events") != nil })
		internal := "http://" + log.line("sending events")["internal"].(string)
		await(t, "it says "+want.says, func() bool {
			response, err := http.Get(internal + "/readyz")
			require.NoError(t, err)
			defer response.Body.Close()
			content, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			return response.StatusCode == want.status && strings.Contains(string(content), want.says)
		})
		cancel()
		require.Zero(t, <-exited, "%s", log)
		require.NotContains(t, log.String(), "hunter2")
	}
}

// secretTarget is a target that says which secret it was opened with.
type secretTarget struct {
	secret string
	sent   *[]string
	closed bool
}

func (s *secretTarget) Send(_ context.Context, all []events.Event) []error {
	*s.sent = append(*s.sent, s.secret)
	return make([]error, len(all))
}

func (s *secretTarget) Close() { s.closed = true }

func TestTargets_AreOpenedAgainWithAnotherSecret(t *testing.T) {
	t.Parallel()
	var sent []string
	var opened []*secretTarget
	from := targets{logger: slog.New(slog.DiscardHandler), open: func(_ context.Context, at events.Address, _ *slog.Logger) (events.Target, error) {
		opened = append(opened, &secretTarget{secret: string(at.Secret), sent: &sent})
		return opened[len(opened)-1], nil
	}}
	file := write(t, "key", "first\n")
	sub := events.Subscription{Name: "erp", Target: "https://host/", Settings: events.Settings{Secret: "file:" + file}}
	target, err := from.forSubscription(t.Context(), sub)
	require.NoError(t, err)
	send := func(later time.Duration) {
		fresh := target.(*freshTarget)
		fresh.looked = fresh.looked.Add(-later)
		require.Equal(t, []error{nil}, target.Send(t.Context(), make([]events.Event, 1)))
	}
	send(time.Hour)
	require.NoError(t, os.WriteFile(file, []byte("second"), 0o600))
	send(0)
	send(time.Hour)
	require.NoError(t, os.Remove(file))
	send(time.Hour)
	require.Equal(t, []string{"first", "first", "second", "second"}, sent)
	require.Len(t, opened, 2)
	require.True(t, opened[0].closed)
	target.Close()
	require.True(t, opened[1].closed)

	_, err = from.forSubscription(t.Context(), sub)
	require.ErrorContains(t, err, "the secret: ")
}
