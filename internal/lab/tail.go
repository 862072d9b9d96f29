package lab

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

const (
	// tailBytes is how much of a log a Tail keeps at least.
	tailBytes = 16 << 10
	// lastLines is how many lines of it an error shows.
	lastLines = 20
)

// Tail keeps the end of a log, for an error that says why a program failed. The zero value is ready, and may be used by
// several goroutines.
type Tail struct {
	// Next also receives everything that is written. Nil for nothing. Its errors are ignored: returned, they would break the
	// pipe of the program that writes.
	Next io.Writer

	mu  sync.Mutex // guards end
	end []byte
}

// Write implements io.Writer. It never fails.
func (t *Tail) Write(text []byte) (int, error) {
	t.mu.Lock()
	t.end = append(t.end, text...)
	if excess := len(t.end) - tailBytes; excess > tailBytes { // rarely, so that little is copied
		t.end = append(t.end[:0], t.end[excess:]...)
	}
	t.mu.Unlock()

	if t.Next != nil {
		_, _ = t.Next.Write(text)
	}
	return len(text), nil
}

// Contains reports whether the end of the log contains a text.
func (t *Tail) Contains(text string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Contains(t.end, []byte(text))
}

// String returns the last 20 lines.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.end)), "\n")
	return strings.Join(lines[max(0, len(lines)-lastLines):], "\n")
}
