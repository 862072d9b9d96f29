package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/httpapi"
)

// A ticket's text may come from anyone, and people look at JSON on a terminal.
func TestPrintJSON_ShowsNothingThatATerminalObeys_AndMeansTheSame(t *testing.T) {
	t.Parallel()
	value := map[string]string{
		"C0":       "a\x1b[31m\x00\r\n\tb",
		"DEL, C1":  "a\x7f\u0080\u009b31m\u009db",
		"bidi":     "a\u202eb\u2066c\u2069\u200f\u061c",
		"hidden":   "a\u200b\u2060\ufeff\u00ad\U000e0041\u034f\u115f\u3164\uffa0b",
		"lines":    "a\u2028\u2029\u0085b",
		"shown":    `Café <é> & "✓" \ Ελ 🙂`,
		"\u202eky": "a key",
	}
	raw := struct {
		Raw json.RawMessage   `json:"raw"`
		Map map[string]string `json:"map"`
	}{json.RawMessage("{\"k\":\"\u009b\u202e\"}"), value}
	var printed bytes.Buffer
	require.NoError(t, printJSON(&printed, raw))
	for _, r := range printed.String() {
		require.True(t, r == '\n' || strings.ContainsRune("Café <é> & \"✓\" \\ Ελ 🙂", r) || r > ' ' && r < 0x7f, "%U", r)
	}
	require.Contains(t, printed.String(), `Café <é> & \"✓\" \\ Ελ 🙂`, "what prints stays readable")
	again := raw
	again.Map = nil
	require.NoError(t, json.Unmarshal(printed.Bytes(), &again))
	require.Equal(t, value, again.Map)
	var inside map[string]string
	require.NoError(t, json.Unmarshal(again.Raw, &inside))
	require.Equal(t, map[string]string{"k": "\u009b\u202e"}, inside)
}

func TestPasswordAmongTheArguments_IsWarnedOf(t *testing.T) {
	t.Parallel()
	for args, warned := range map[string]bool{
		"serve --database-url=postgresql://u:hunter2@h/d":                 true,
		"serve --database-url postgresql://u:hunter2@h/d --batch-bytes 1": true,
		"serve --database-url=postgresql://u@h/d?password=hunter2":        true,
		"serve --database-url=postgresql://u:hunter2%zz@h/d":              true,
		"serve --database-url=user=u\u00a0password=hunter2":               true,
		"serve --database-url=postgresql://u@h/d":                         false,
		"serve --database-url=postgresql://h:5432/d":                      false,
		"serve --database-url-file=/hunter2":                              false,
		"serve":                                                           false,
	} {
		var log bytes.Buffer
		warnSecretsInArgs(slog.New(slog.NewTextHandler(&log, nil)), strings.Split(args, " "))
		require.Equal(t, warned, strings.Contains(log.String(), "--database-url-file"), args)
		require.NotContains(t, log.String(), "hunter2")
	}
}

func TestLimits_FollowFromTheMemory(t *testing.T) {
	t.Parallel()
	flags := serverFlags{MaxBody: 1 << 20, MaxHeader: 8 << 10, MaxConnectionsPerPeer: -1}
	for memory, want := range map[int64]clientLimits{
		8 << 30:   {1 << 30, 4096, 1024, 512 << 20},
		1 << 30:   {128 << 20, 4096, 1024, 64 << 20},
		256 << 20: {32 << 20, 1191, 297, 16 << 20},
		64 << 20:  {8 << 20, 297, 74, 4 << 20},
		1 << 20:   {4 << 20, 4, 0, 4 << 20},
	} {
		require.Equal(t, want, flags.deriveLimits(memory), "%d", memory)
	}
	flags.BodyBytes, flags.MaxConnections, flags.MaxConnectionsPerPeer, flags.WaitingBytes = 5<<20, 77, 0, 3
	require.Equal(t, clientLimits{5 << 20, 77, 0, 3}, flags.deriveLimits(1<<30), "what is set is set")

	root := t.TempDir()
	write := func(file, content string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(root+file), 0o755))
		require.NoError(t, os.WriteFile(root+file, []byte(content), 0o600))
	}
	requireLimit := func(want int64) {
		limit, _ := memoryLimit(root)
		require.Equal(t, want, limit)
	}
	requireLimit(assumedMemory)
	write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
	requireLimit(assumedMemory)
	write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n")
	requireLimit(256 << 20)
	write("/sys/fs/cgroup/memory.max", "max\n")
	requireLimit(256 << 20)
	write("/sys/fs/cgroup/memory.max", "536870912\n")
	requireLimit(512 << 20)
}

// docs/server.md has the sum. A server with less memory warns at its start.
func TestLimits_ThatDoNotFitIntoTheMemory_AreWarnedOf(t *testing.T) {
	t.Parallel()
	flags := serverFlags{
		MaxBody: 1 << 20, MaxHeader: 8 << 10, MaxConnectionsPerPeer: -1, BatchBytes: 4 << 20, BatchesInFlight: 2,
		SpoolDir: "spool", SpoolMaxTickets: 1_000_000, OrderLines: true,
	}
	warnings := func(memory int64) string {
		var log bytes.Buffer
		flags.warnOfLimits(slog.New(slog.NewTextHandler(&log, nil)), flags.deriveLimits(memory), memory)
		return log.String()
	}
	require.Equal(t, int64(671), flags.memoryNeeded(flags.deriveLimits(1<<30))>>20, "the sum in docs/server.md, in MiB")
	require.Empty(t, warnings(1<<30))
	require.Contains(t, warnings(64<<20), "more memory than it has", "a full spool alone has 143 MiB of keys")
	flags.SpoolMaxTickets = 200_000
	require.Empty(t, warnings(256<<20))
	flags.BodyBytes, flags.MaxConnections = 4<<20, 4096
	require.Contains(t, warnings(1<<30), "--max-connections is more than", "docs/server.md promises that for derived ones")
}

// A server says at its start which sources may not send, because a file that allowed them before no longer does.
func TestLog_SaysWhomTheSourcesFileClosesTheWebhookTo(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "sources.json")
	for content, want := range map[string]struct{ has, hasNot string }{
		`{}`: {"every ticket is refused with 403", "asks for credentials"},
		`{"shop-1": {"bearer_tokens": ["a-long-random-token"]}}`: {"other sources may not send", "every source asks"},
		`{"shop-1": {}}`: {"other sources may not send", "every source asks"},
		`{"*": {"bearer_tokens": ["a-long-random-token"]}}`: {"every source asks for credentials", "may not send"},
		`{"shop-1": {"hold": true}, "*": {}}`:               {`on_hold=[shop-1]`, "open=\"[* shop-1]\""},
	} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		sources, err := httpapi.ReadSources(file)
		require.NoError(t, err)
		var log bytes.Buffer
		logSources(slog.New(slog.NewTextHandler(&log, nil)), sources, file)
		require.Contains(t, log.String(), want.has, content)
		require.NotContains(t, log.String(), want.hasNot, content)
	}
}

// A captured ticket is recognized by its key for as long as its signature is valid.
func TestServe_ForgetsNoKeyOfASignedTicketTooEarly(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"shop-1": {"webhook_secrets": ["whsec_`+webhookSecret+`"]}}`), 0o600))
	o := runCommand(t, nil, "serve", "--database-url", unreachable, "--sources-file", file, "--key-ttl=9m")
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "--key-ttl must be at least 10m0s")
}
