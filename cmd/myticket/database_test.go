package main

import (
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The node of a new pod may not let it through to the database for some seconds.
func TestCommands_DatabaseThatCannotBeReachedYet_IsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	proxy, url := newDatabaseProxy(t, b.url)
	for _, args := range [][]string{
		{"retention", "--keep", "90d"}, {"tickets", "list"}, {"read", "--source", "shop-1", "../../testdata/ticket.txt"}, {"migrate", "status"},
	} {
		proxy.cut()
		time.AfterFunc(time.Second, proxy.mend)
		code, _, stderr := (&operatorBundle{url, b.pool}).myticket(t, args...)
		assert.Zero(t, code, "%s: %s", args, stderr)
		assert.Contains(t, stderr, "The database cannot be reached; trying for up to 10s", args)
	}
}

func TestCommands_DatabaseThatStaysAway_IsGivenUp(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	proxy, url := newDatabaseProxy(t, b.url)
	proxy.cut()
	began := time.Now()
	code, _, stderr := (&operatorBundle{url, b.pool}).myticket(t, "retention", "--keep", "90d", "--apply")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "nothing was changed: log in to the database")
	assert.Less(t, time.Since(began), 3*databasePatience)
}

// What waiting does not mend is an error at once.
func TestCommands_DatabaseThatRefuses_IsNotWaitedFor(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	change := func(change func(*url.URL)) string {
		u, err := url.Parse(b.url)
		require.NoError(t, err)
		change(u)
		return u.String()
	}
	for name, wrong := range map[string]struct{ url, says string }{
		"no such database": {change(func(u *url.URL) { u.Path = "/none" }), "3D000"},
		"wrong login":      {change(func(u *url.URL) { u.User = url.UserPassword("nobody", "x") }), "28"},
		"no such host":     {change(func(u *url.URL) { u.Host = "host.invalid" }), "host.invalid"},
		"no such socket":   {"postgresql:///x?host=/nowhere", "/nowhere"},
		"no URL":           {"postgresql://[", "database URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := (&operatorBundle{wrong.url, b.pool}).myticket(t, "tickets", "list")
			assert.Equal(t, 1, code)
			assert.Contains(t, stderr, wrong.says)
			assert.NotContains(t, stderr, "trying for up to")
		})
	}
}
