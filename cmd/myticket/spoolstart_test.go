package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/spool"
	"myticket/internal/ticket"
)

// The first of the old files is a pipe. A reader waits until the test writes to it, as on a slow disk.
func TestServe_TakesTickets_WhileTheOldFilesOfItsSpoolAreVerified(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.New(t)
	dir := spoolOf(t, body("1", "Coffee,c,2"), body("2", "Tea,t,2"))
	first := spoolWithKey(t, dir, sample(t), "k")
	pipe := filepath.Join(dir, strings.Repeat("0", 16)+"-"+strings.Repeat("0", 16)+".damaged")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))

	s := serve(t, databaseURL, "--spool-dir", dir, "--request-timeout=10m", "--write-timeout=10m") // it listens
	s.awaitReady(t)
	require.Equal(t, http.StatusOK, s.post(t, "/ticket", sample(t)).status)
	repeated := make(chan answer, 1)
	text := sample(t)
	go func() {
		a, err := s.send("/ticket/shop-1", text, "Idempotency-Key", "k")
		assert.NoError(t, err)
		repeated <- a
	}()
	await(t, "the repeated delivery waits", func() bool { return s.metric(t, "myticket_intake_in_flight") == 1 })
	require.Empty(t, repeated)
	require.InDelta(t, 3, s.metric(t, "myticket_spool_files_unverified"), 0, "the pipe and two files")
	require.InDelta(t, 3, s.metric(t, "myticket_spool_tickets"), 0, "they are not taken for drained")
	require.Positive(t, s.metric(t, "myticket_spool_oldest_age_seconds"))
	require.Zero(t, s.metric(t, "myticket_spool_drained_total"))
	found := fmt.Sprint(s.readiness(t))
	require.Contains(t, found, "holds 3 tickets")
	require.Contains(t, found, "3 files of an earlier process are not verified yet")
	out, code := command(t, "spool", "status", dir)
	require.Equal(t, 1, code, "a second process is refused meanwhile")
	require.Contains(t, out, "another process is working on this spool folder")

	writer, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	require.NoError(t, err)
	require.NoError(t, writer.Close())
	select {
	case a := <-repeated:
		var r receipt // 202, or 200 if the drain was faster
		require.NoError(t, json.Unmarshal(a.body, &r), "%s", a)
		require.Equal(t, first.ID, r.ID)
		require.True(t, r.Duplicate)
	case <-time.After(patience):
		require.Fail(t, "no answer to the repeated delivery")
	}
	await(t, "the spool is drained", func() bool {
		return s.metric(t, "myticket_spool_tickets") == 0 && s.metric(t, "myticket_spool_files_unverified") == 0
	})
	stored := storedBodies(t, databaseURL)
	require.Len(t, stored, 4)
	require.Equal(t, sample(t), stored[first.ID])
	require.NotNil(t, s.log.line("the files of the spool are verified"))
}

// spoolWithKey adds a file with one ticket of shop-1 to a spool folder.
func spoolWithKey(t *testing.T, dir, body, key string) ticket.Ticket {
	t.Helper()
	queue, err := spool.Open(spool.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	id, at, err := ticket.NewID()
	require.NoError(t, err)
	e := &intake.Entry{
		Ticket: ticket.Ticket{ID: id, ReceivedAt: at, Source: "shop-1", Body: []byte(body)},
		Key:    key, KeyExpiresAt: at.Add(time.Hour), BodySHA256: sha256.Sum256([]byte(body)),
	}
	_, err = queue.Put([]*intake.Entry{e})
	require.NoError(t, err)
	require.NoError(t, queue.Close())
	return e.Ticket
}
