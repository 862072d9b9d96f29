package main

import (
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// span is a length of time, written as 90d, 2w, 36h or 1h30m.
type span time.Duration

// UnmarshalText reads a span.
func (s *span) UnmarshalText(text []byte) error {
	d, err := model.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a length of time: write 90d, 2w, 36h or 1h30m", text)
	}
	*s = span(d)
	return nil
}
