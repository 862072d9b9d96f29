package main

import (
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// moment is a point in time, written as a time, as a day (UTC), or as a span before now.
type moment time.Time

// UnmarshalText reads a moment.
func (m *moment) UnmarshalText(text []byte) error {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, string(text)); err == nil {
			*m = moment(t)
			return nil
		}
	}
	d, err := model.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a time: write 2026-11-23T08:00:00Z, 2026-11-23, or 2h or 3d for a time before now", text)
	}
	*m = moment(time.Now().Add(-time.Duration(d)))
	return nil
}
