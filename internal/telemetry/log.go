package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// NewLogger returns a logger that writes to w, as "json" or "text", from a level on: debug, info, warn or error. A warning
// or an error that repeats is written repeatLimit times in each repeatInterval, and after it how often it was left out.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var options slog.HandlerOptions
	var from slog.Level
	if err := from.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: use debug, info, warn or error", level)
	}
	options.Level = from
	if format == "text" {
		return slog.New(limitRepeats(slog.NewTextHandler(w, &options))), nil
	}
	return slog.New(limitRepeats(slog.NewJSONHandler(w, &options))), nil
}

// What repeats faster than this says nothing new, and hides what else is in the log: in an outage each batch fails.
const (
	repeatLimit    = 5
	repeatInterval = time.Minute
)

// repeatLimiter leaves out warnings and errors that repeat. Two are the same when their messages are: what differs, such as
// a ticket's id, is in the attributes.
type repeatLimiter struct {
	slog.Handler
	seen *repeats
}

type repeats struct {
	mu sync.Mutex
	of map[string]*repeat
}

type repeat struct {
	since   time.Time
	written int
	left    int // out
}

func limitRepeats(next slog.Handler) slog.Handler {
	return repeatLimiter{next, &repeats{of: map[string]*repeat{}}}
}

// Handle implements slog.Handler.
func (l repeatLimiter) Handle(ctx context.Context, r slog.Record) error {
	summarise := func(left int) { l.summarise(r, left) } //nolint:contextcheck // it is called when the request is over
	if r.Level >= slog.LevelWarn && !l.seen.allow(r.Message, summarise) {
		return nil
	}
	return l.Handler.Handle(ctx, r) //nolint:wrapcheck // a handler's error has no context to add
}

// WithAttrs implements slog.Handler.
func (l repeatLimiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return repeatLimiter{l.Handler.WithAttrs(attrs), l.seen}
}

// WithGroup implements slog.Handler.
func (l repeatLimiter) WithGroup(name string) slog.Handler {
	return repeatLimiter{l.Handler.WithGroup(name), l.seen}
}

// summarise writes how often a message was left out, with what the first of these said.
func (l repeatLimiter) summarise(first slog.Record, left int) {
	summary := slog.NewRecord(time.Now(), first.Level, first.Message, first.PC)
	first.Attrs(func(a slog.Attr) bool { summary.AddAttrs(a); return true })
	summary.AddAttrs(slog.Int("repeated", left))
	_ = l.Handler.Handle(context.Background(), summary)
}

// allow tells whether a message may be written. The first that may not makes summarise be called when the interval ends.
func (r *repeats) allow(message string, summarise func(left int)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	one := r.of[message]
	if one == nil || now.Sub(one.since) >= repeatInterval && one.left == 0 {
		one = &repeat{since: now}
		r.of[message] = one
	}
	if one.written < repeatLimit {
		one.written++
		return true
	}
	if one.left++; one.left == 1 {
		time.AfterFunc(one.since.Add(repeatInterval).Sub(now), func() {
			r.mu.Lock()
			left := one.left
			delete(r.of, message)
			r.mu.Unlock()
			summarise(left)
		})
	}
	return false
}
