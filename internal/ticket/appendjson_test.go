package ticket_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func TestAppendJSON_IsReadBackAsItWas(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for c := range rune(0x250) {
		all.WriteRune(c)
	}
	all.WriteString("\u2028\u2029\ufffd😀")
	var got string
	require.NoError(t, json.Unmarshal(ticket.AppendJSON(nil, all.String()), &got))
	assert.Equal(t, all.String(), got)

	problems := []ticket.Problem{{Line: 12, Code: "a", Message: all.String()}, {Code: "b"}}
	var read []ticket.Problem
	require.NoError(t, json.Unmarshal(ticket.AppendProblems(nil, problems), &read))
	assert.Equal(t, problems, read)
}
