//go:build unix && !linux

package lab

import "time"

// timer waits as exactly as Go does.
type timer struct{}

func newTimer() (*timer, error) { return &timer{}, nil }

func (*timer) until(due time.Time) error {
	time.Sleep(time.Until(due))
	return nil
}

func (*timer) close() {}
