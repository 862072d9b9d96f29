package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

// logText is what was logged. Summaries come from goroutines of their own.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// take returns the lines that were logged since it was called last.
func (l *logText) take(t *testing.T) (lines []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		var fields map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &fields))
		lines = append(lines, fields)
	}
	l.text.Reset()
	return lines
}

func TestLogger_WritesWhatRepeatsNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log logText
		logger, err := NewLogger(&log, "json", "debug")
		require.NoError(t, err)
		logger = logger.With("server", "a")

		for i := range 1000 {
			logger.Warn("the disk is full", "n", i)
		}
		require.Len(t, log.take(t), repeatLimit)
		logger.Warn("something else")
		for range 1000 {
			logger.Info("told")
			logger.Debug("answered")
		}
		require.Len(t, log.take(t), 1+1000+1000, "only what is wrong is limited, each by itself")

		time.Sleep(repeatInterval)
		synctest.Wait()
		summary := log.take(t)
		require.Len(t, summary, 1)
		require.Equal(t, "the disk is full", summary[0]["msg"])
		require.Equal(t, "a", summary[0]["server"])
		require.InDelta(t, 1000-repeatLimit, summary[0]["repeated"], 0)
		require.InDelta(t, repeatLimit, summary[0]["n"], 0, "the first that was left out")

		logger.Warn("the disk is full")
		time.Sleep(2 * repeatInterval)
		synctest.Wait()
		require.Len(t, log.take(t), 1, "it is written again, and nothing was left out")
	})
}

func TestLogger_NamesTicketSourceAndTrace(t *testing.T) {
	t.Parallel()
	var log logText
	logger, err := NewLogger(&log, "json", "warn")
	require.NoError(t, err)
	id := uuid.MustParse("01a20763-46ee-7c43-b4d2-48ea8de705fe")
	all := ticket.Ticket{ID: id, Source: "shop-1", Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Body: []byte("Coffee")}
	logger.Warn("it is late", all.LogAttr(), slog.Any("error", errors.New("why")))
	logger.Warn("who is it", (&ticket.Ticket{}).LogAttr())

	lines := log.take(t)
	require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", lines[0]["trace_id"])
	require.Equal(t, id.String(), lines[0]["ticket"])
	require.Equal(t, "shop-1", lines[0]["source"])
	require.Equal(t, "why", lines[0]["error"])
	require.NotContains(t, lines[0], "Body")
	require.Len(t, lines[1], 3, "what is not known is left out")
}

func TestLogger_RefusesALevelThatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	_, err := NewLogger(&bytes.Buffer{}, "json", "loud")
	require.ErrorContains(t, err, `log level "loud": use debug, info, warn or error`)
}
