package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// NewLogger returns a logger that writes to w as "json" or "text", from a level on: debug, info, warn or error. A repeated
// warning or error is written at most repeatLimit times in each repeatInterval, and then once more with how often it was
// left out.
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

// Limits of repeated messages. In an outage each batch fails, and more of the same messages would hide the rest of the log.
const (
	repeatLimit    = 5
	repeatInterval = time.Minute
)

// repeatLimiter leaves out repeated warnings and errors. Two are the same if their messages are the same. What differs, such
// as the id of a ticket, is in the attributes.
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
	left    int // left out
}

func limitRepeats(next slog.Handler) slog.Handler {
	return repeatLimiter{next, &repeats{of: map[string]*repeat{}}}
}

// Handle implements slog.Handler.
func (l repeatLimiter) Handle(ctx context.Context, r slog.Record) error {
	summarise := func(left int) { l.summarise(r, left) } //nolint:contextcheck // it is called after the end of the request
	if r.Level >= slog.LevelWarn && !l.seen.allow(r.Message, summarise) {
		return nil
	}
	return l.Handler.Handle(ctx, r) //nolint:wrapcheck // there is no context to add
}

// WithAttrs implements slog.Handler.
func (l repeatLimiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return repeatLimiter{l.Handler.WithAttrs(attrs), l.seen}
}

// WithGroup implements slog.Handler.
func (l repeatLimiter) WithGroup(name string) slog.Handler {
	return repeatLimiter{l.Handler.WithGroup(name), l.seen}
}

// summarise writes how often a message was left out, with the attributes of the first of these.
func (l repeatLimiter) summarise(first slog.Record, left int) {
	summary := slog.NewRecord(time.Now(), first.Level, first.Message, first.PC)
	first.Attrs(func(a slog.Attr) bool { summary.AddAttrs(a); return true })
	summary.AddAttrs(slog.Int("repeated", left))
	_ = l.Handler.Handle(context.Background(), summary)
}

// allow reports whether a message may be written. After the first one that may not, summarise is called at the end of the
// interval.
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
