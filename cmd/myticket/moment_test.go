package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMoment_AsPeopleWriteIt(t *testing.T) {
	t.Parallel()
	paris, err := time.LoadLocation("Europe/Paris")
	require.NoError(t, err)
	// A Tuesday in Paris, and still Monday in UTC.
	now := time.Date(2026, 11, 23, 23, 30, 0, 5, time.UTC)
	for text, want := range map[string]string{
		"now":                       "2026-11-23T23:30:00.000000005Z",
		"2h":                        "2026-11-23T21:30:00.000000005Z",
		"1d":                        "2026-11-22T23:30:00.000000005Z",
		"1w2d":                      "2026-11-14T23:30:00.000000005Z",
		"today":                     "2026-11-23T23:00:00Z",
		"Today 00:15":               "2026-11-23T23:15:00Z",
		"yesterday":                 "2026-11-22T23:00:00Z",
		"yesterday 18:00":           "2026-11-23T17:00:00Z",
		"18:50":                     "2026-11-24T17:50:00Z",
		"18:50:07.5":                "2026-11-24T17:50:07.5Z",
		"monday":                    "2026-11-22T23:00:00Z",
		"tuesday":                   "2026-11-16T23:00:00Z", // not today
		"Friday 08:00":              "2026-11-20T07:00:00Z",
		"2026-11-24":                "2026-11-23T23:00:00Z",
		"2026-11-24 18:50":          "2026-11-24T17:50:00Z",
		"2026-11-24T18:50":          "2026-11-24T17:50:00Z",
		"2026-11-24T18:50:01Z":      "2026-11-24T18:50:01Z",
		"2026-11-24 18:50Z":         "2026-11-24T18:50:00Z",
		"2026-11-24T18:50:01-05:00": "2026-11-24T23:50:01Z",
	} {
		got, err := readMoment(text, now, paris)
		if assert.NoError(t, err, text) {
			assert.Equal(t, want, got.UTC().Format(time.RFC3339Nano), text)
		}
	}
	for _, text := range []string{
		"", " ", "tomorrow", "mon", "last monday", "monday 25:00", "yesterday18:00", "24/11/2026", "11-24", "2026-11-31", "8", "8pm",
		"2026-11-24 18:50 Europe/Paris", "now 18:00", "-2h", "2 h", "18:50 yesterday", "yesterday 2h",
	} {
		_, err := readMoment(text, now, paris)
		if assert.Error(t, err, text) {
			for _, form := range []string{"T18:50:00Z", `"2026-11-24 18:50"`, "now", "yesterday 18:00", "weekday", "1w"} {
				assert.Contains(t, err.Error(), form)
			}
		}
	}
}

// A time that clocks show twice is the first one, and one that they skip is the moment of the change: docs/server.md.
func TestMoment_WhereClocksChange(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 10, 26, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct{ zone, text, want string }{
		{"Europe/Paris", "2026-10-25 02:30", "2026-10-25T00:30:00Z"}, // twice
		{"Europe/Paris", "2026-10-25 03:00", "2026-10-25T02:00:00Z"},
		{"Europe/Paris", "2026-03-29 02:30", "2026-03-29T01:00:00Z"}, // never
		{"Europe/Paris", "2026-03-29 01:59", "2026-03-29T00:59:00Z"},
		{"Europe/Paris", "2026-03-29 03:00", "2026-03-29T01:00:00Z"},
		{"Europe/Paris", "yesterday", "2026-10-24T22:00:00Z"}, // a day of 25 hours
		{"America/New_York", "2026-11-01 01:30", "2026-11-01T05:30:00Z"},
		{"America/New_York", "2026-03-08 02:00", "2026-03-08T07:00:00Z"},
		{"Africa/Cairo", "2026-04-24", "2026-04-23T22:00:00Z"}, // has no midnight
		{"Australia/Lord_Howe", "2026-04-05 01:45", "2026-04-04T14:45:00Z"},
		{"Asia/Kolkata", "today", "2026-10-25T18:30:00Z"},
		{"UTC", "today", "2026-10-26T00:00:00Z"},
	} {
		zone, err := time.LoadLocation(test.zone)
		require.NoError(t, err)
		got, err := readMoment(test.text, now, zone)
		require.NoError(t, err)
		assert.Equal(t, test.want, got.UTC().Format(time.RFC3339), "%s %s", test.zone, test.text)
	}
}

func TestMoment_IsTheSameAsOftenAsItIsRead(t *testing.T) {
	t.Parallel()
	var m moment
	assert.True(t, m.isZero())
	assert.True(t, m.in(time.UTC).IsZero())
	require.NoError(t, m.UnmarshalText([]byte("2h")))
	first := m.in(time.UTC)
	time.Sleep(2 * time.Millisecond)
	assert.Equal(t, first, m.in(time.UTC))
	later := m.again()
	assert.True(t, later.in(time.UTC).After(first), "--watch goes on with the time")
}
