package main

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/assert"

	"myticket/internal/ticket"
)

// A script must not take what an interrupted command wrote for the whole.
func TestInterrupt_IsAFailure_OfAllCommandsThatEndByThemselves(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "s", "1", "x").String()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		code int
		args []string
	}{
		{1, []string{"problems"}},
		{1, []string{"tickets", "list", "-o", "json"}},
		{1, []string{"tickets", "correct", id, "--yes", "--file", textFile(t, "y")}},
		{1, []string{"dialects", "revert", "s", "--yes"}},
		{1, []string{"keys", "export", "--source=s"}},
		{1, []string{"audit"}},
		{0, []string{"tickets", "follow"}},
	} {
		var stdout, stderr bytes.Buffer
		assert.Equal(t, c.code, run(ctx, append(c.args, "--database-url", b.url), nil, streams{stdout: &stdout, stderr: &stderr}), c.args)
		if c.code != 0 {
			assert.Contains(t, stderr.String(), "interrupted", c.args)
		}
	}
}

func TestTicketsFollow_OfADatabaseThatItCannotRead_Fails(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.exec(t, `ALTER TABLE outbox RENAME TO outbox_of_another_version`)
	code, _, stderr := b.myticket(t, "tickets", "follow")
	assert.Equal(t, 1, code, "it does not wait for ever")
	assert.Contains(t, stderr, "myticket migrate up")
}
