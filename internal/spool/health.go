package spool

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"myticket/internal/ticket"
)

// retryDisk is how long a disk that failed is not tried again: a full disk must not cost more than a refusal.
const retryDisk = 500 * time.Millisecond

// diskHealth knows whether the spool's disk takes tickets, and logs when that changes. Any goroutine may use it, and it
// never waits for the disk.
type diskHealth struct {
	folder string
	logger *slog.Logger

	mu      sync.Mutex // guards what follows
	failure error      // why the disk takes no tickets; nil when it does
	retryAt time.Time  // when a disk that failed is tried again
}

// failed notes why the disk did not take a write, and returns the error that Put returns.
func (h *diskHealth) failed(err error) error {
	h.mu.Lock()
	first := h.failure == nil
	h.failure, h.retryAt = err, time.Now().Add(retryDisk)
	h.mu.Unlock()
	if first {
		h.logger.Error("the spool's disk takes no tickets; while Postgres is away, senders are asked to send again (503)",
			"folder", h.folder, "error", err)
	}
	return fmt.Errorf("%w: write the spool: %w", ticket.ErrUnavailable, err)
}

// works notes that the disk took a write.
func (h *diskHealth) works() {
	h.mu.Lock()
	again := h.failure != nil
	h.failure = nil
	h.mu.Unlock()
	if again {
		h.logger.Info("the spool's disk takes tickets again", "folder", h.folder)
	}
}

// failing returns why the disk takes no tickets, or nil, and how long it is not tried again.
func (h *diskHealth) failing() (wait time.Duration, failure error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failure == nil {
		return 0, nil
	}
	return time.Until(h.retryAt), h.failure
}
