package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// moment is a point in time, written as a time, as a time or a day without a zone, or as a span before now.
type moment struct {
	time  time.Time
	local bool // it has no zone of its own: time has the clock and the calendar, in UTC
}

// UnmarshalText reads a moment.
func (m *moment) UnmarshalText(text []byte) error {
	if t, err := time.Parse(time.RFC3339, string(text)); err == nil {
		*m = moment{time: t}
		return nil
	}
	for _, layout := range []string{
		"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly,
	} {
		if t, err := time.Parse(layout, string(text)); err == nil {
			*m = moment{t, true}
			return nil
		}
	}
	d, err := model.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a time: write 2026-11-23T08:00:00Z, 2026-11-23T08:00, 2026-11-23, or 2h or 3d for a time "+
			"before now", text)
	}
	*m = moment{time: time.Now().Add(-time.Duration(d))}
	return nil
}

func (m *moment) isZero() bool { return *m == moment{} }

// in returns the point in time, whose zone is the given one if it has none of its own. Of a time that a change of the clocks
// skips or repeats, it is one of the two that it may be (time.Date).
func (m *moment) in(zone *time.Location) time.Time {
	if !m.local { // also the zero moment
		return m.time
	}
	t := m.time
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), zone)
}

// zoneFlags choose the time zone of what people write and read. JSON is always in UTC.
type zoneFlags struct {
	TZ zone `name:"tz" placeholder:"ZONE" help:"Time zone of times without one, and of those that are shown, such as Europe/Paris or UTC. Default: that of this terminal (TZ, or the system's)."`
}

// zone is a time zone of the IANA database. The zero zone is that of the system.
type zone struct{ location *time.Location }

// UnmarshalText reads the name of a zone.
func (z *zone) UnmarshalText(text []byte) error {
	location, err := time.LoadLocation(string(text))
	if err != nil || len(text) == 0 {
		return errors.New("write the name of a time zone, such as Europe/Paris or UTC")
	}
	z.location = location
	return nil
}

// zone returns the zone in force.
func (f zoneFlags) zone() *time.Location {
	if f.TZ.location != nil {
		return f.TZ.location
	}
	return time.Local //nolint:gosmopolitan // the flag is for those who want another one
}

// stamp returns a time in the zone in force.
func (f zoneFlags) stamp(t time.Time) string { return t.In(f.zone()).Format(time.RFC3339) }

// tzFlag returns the flag for the command of the next page, if it was given.
func (f zoneFlags) tzFlag() string {
	if f.TZ.location == nil {
		return ""
	}
	return " --tz " + f.TZ.location.String()
}
