package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// moment is a point in time as a person writes it: see readMoment. It is read when the zone is known, and means the same each
// time, because it keeps what time it was when it was given.
type moment struct {
	text string
	now  time.Time
}

// UnmarshalText reads a moment.
func (m *moment) UnmarshalText(text []byte) error {
	*m = moment{string(text), time.Now()}
	_, err := readMoment(m.text, m.now, time.UTC)
	return err
}

func (m *moment) isZero() bool { return m.text == "" }

// again returns the moment as it would be read now: 2h is another time then.
func (m *moment) again() moment { return moment{m.text, time.Now()} }

// in returns the point in time, whose zone is the given one if it has none of its own.
func (m *moment) in(zone *time.Location) time.Time {
	if m.isZero() {
		return time.Time{}
	}
	t, _ := readMoment(m.text, m.now, zone) // that it can be read does not depend on the zone
	return t
}

// Layouts of times. A T between day and time is replaced by a space before.
var (
	zonedLayouts = []string{"2006-01-02 15:04:05Z07:00", "2006-01-02 15:04Z07:00"}
	clockLayouts = []string{"15:04:05", "15:04"}
)

// readMoment reads a time of RFC 3339, a day with or without a time, a time of today, "now", or a length of time before now. It
// has no library: those that read such words take what they understand of a text and pass over the rest, or guess whether 3/4 is
// in March. Here a text means one thing, or is an error.
func readMoment(text string, now time.Time, zone *time.Location) (time.Time, error) {
	if strings.EqualFold(text, "now") {
		return now, nil
	}
	if d, err := model.ParseDuration(text); err == nil {
		return now.Add(-time.Duration(d)), nil
	}
	spaced := text
	if len(text) > 10 && (text[10] == 'T' || text[10] == 't') {
		spaced = text[:10] + " " + text[11:]
	}
	for _, layout := range zonedLayouts {
		if t, err := time.Parse(layout, spaced); err == nil {
			return t, nil
		}
	}
	first, rest, two := strings.Cut(spaced, " ")
	now = now.In(zone)
	day, isDay := readDay(first, now)
	if !isDay {
		day, rest, two = now, spaced, true
	}
	clock := time.Time{}
	if two {
		var ok bool
		if clock, ok = readClock(rest); !ok {
			return time.Time{}, fmt.Errorf("%q is not a time: write 2026-11-24T18:50:00Z, \"2026-11-24 18:50\" or 2026-11-24; now, "+
				"today, yesterday or the name of a weekday (the last one before today), and a time after it if you like, as in "+
				"\"yesterday 18:00\"; 18:50 for a time of today; or 2h, 1d or 1w for a time before now", text)
		}
	}
	return localTime(time.Date(day.Year(), day.Month(), day.Day(), clock.Hour(), clock.Minute(), clock.Second(),
		clock.Nanosecond(), time.UTC), zone), nil
}

// readDay reads a day. It returns a time on it, in the calendar of now.
func readDay(text string, now time.Time) (day time.Time, ok bool) {
	switch lower := strings.ToLower(text); lower {
	case "today":
		return now, true
	case "yesterday":
		return noon(now, 1), true
	default:
		for back := 1; back <= 7; back++ {
			if day := noon(now, back); lower == strings.ToLower(day.Weekday().String()) {
				return day, true
			}
		}
	}
	day, err := time.Parse(time.DateOnly, text)
	return day, err == nil
}

// noon returns the noon of a number of days before a time. It is on that day whatever the clocks do.
func noon(t time.Time, daysBefore int) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day()-daysBefore, 12, 0, 0, 0, time.UTC)
}

func readClock(text string) (clock time.Time, ok bool) {
	for _, layout := range clockLayouts {
		if clock, err := time.Parse(layout, text); err == nil {
			return clock, true
		}
	}
	return time.Time{}, false
}

// localTime returns when the clocks of a zone show a time, which is given in UTC. If they show it twice, it is the first time. If
// they skip it, it is the moment of the change. (time.Date does not say which one it returns.)
func localTime(clock time.Time, zone *time.Location) time.Time {
	_, before := clock.Add(-24 * time.Hour).In(zone).Zone() // offsets from UTC, on either side of a change
	_, after := clock.Add(24 * time.Hour).In(zone).Zone()
	first := clock.Add(-time.Duration(max(before, after)) * time.Second).In(zone)
	second := clock.Add(-time.Duration(min(before, after)) * time.Second).In(zone)
	for _, t := range []time.Time{first, second} {
		if _, offset := t.Zone(); t.Add(time.Duration(offset) * time.Second).Equal(clock) {
			return t
		}
	}
	change, _ := second.ZoneBounds()
	return change
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
