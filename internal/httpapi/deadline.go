package httpapi

import (
	"time"
)

// deadlines are those of a connection. fasthttp sets three a request, and each costs about as much as reading the request's
// head. So a deadline is moved only when it would be wrong by more than slack, and that for reading only before something is
// read: mostly a request has come whole with its first byte. They belong to the goroutine that serves the connection.
type deadlines struct {
	slack       time.Duration // by how much a deadline may be earlier than it should be
	read, write deadline
}

type deadline struct {
	wanted, set time.Time // zero for none
}

// deadlineSlack returns the slack of connections with these timeouts: far below each, or else a deadline that was not moved
// could have passed.
func deadlineSlack(timeouts ...time.Duration) time.Duration {
	slack := 100 * time.Millisecond
	for _, timeout := range timeouts {
		slack = min(slack, timeout/32)
	}
	return slack
}

// due reports whether the deadline must be moved, and notes that it is.
func (d *deadline) due(slack time.Duration) bool {
	if d.wanted.IsZero() == d.set.IsZero() {
		if later := d.wanted.Sub(d.set); 0 <= later && later < slack || d.wanted.IsZero() {
			return false
		}
	}
	d.set = d.wanted
	return true
}

// SetReadDeadline sets the deadline of the reads that follow. One that is under way keeps its own.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.deadlines.read.wanted = t
	return nil
}

// SetWriteDeadline sets the deadline of writes.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.deadlines.write.wanted = t
	if !c.deadlines.write.due(c.deadlines.slack) {
		return nil
	}
	return c.Conn.SetWriteDeadline(t) //nolint:wrapcheck // fasthttp looks at it
}

// SetDeadline sets both.
func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}
