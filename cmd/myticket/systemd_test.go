package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"
)

const unitsFolder = "../../docs/systemd"

// TestWithoutKubernetesPage_ShowsTheFiles: what the page shows is what is installed.
func TestWithoutKubernetesPage_ShowsTheFiles(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/without-kubernetes.md")
	require.NoError(t, err)
	for language, file := range map[string]string{"ini": "myticket@.service", "nginx": "nginx.conf"} {
		content, err := os.ReadFile(filepath.Join(unitsFolder, file))
		require.NoError(t, err)
		shown := regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(page), -1)
		require.Len(t, shown, 1, language)
		require.Equal(t, string(content), shown[0][1], "docs/without-kubernetes.md lags behind docs/systemd/%s", file)
	}
}

// TestUnits_AllowWhatTheServerNeeds_AndNoMore: what systemd says of them, without starting one.
func TestUnits_AllowWhatTheServerNeeds_AndNoMore(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is missing (apt-get install systemd), so only files were compared")
	}
	folder := t.TempDir()
	program := filepath.Join(folder, "myticket") // the verification wants it to be there
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	units, err := filepath.Glob(filepath.Join(unitsFolder, "myticket*"))
	require.NoError(t, err)
	require.Len(t, units, 4)
	var services, names []string
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		require.NoError(t, err)
		name := filepath.Join(folder, strings.Replace(filepath.Base(unit), "@.", "@a.", 1))
		changed := strings.ReplaceAll(string(text), "/usr/local/bin/myticket", program)
		require.NoError(t, os.WriteFile(name, []byte(changed), 0o644))
		names = append(names, name)
		if strings.HasSuffix(name, ".service") {
			services = append(services, name)
		}
	}
	said, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"verify", "--recursive-errors=one"}, names...)...).CombinedOutput()
	require.NoError(t, err, "%s", said)
	require.Empty(t, string(said), "no warning")
	for _, service := range services {
		// 0 is a unit that may do nothing, 100 one without any bound.
		said, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=yes", "--threshold=25", service).CombinedOutput()
		require.NoError(t, err, "%s", said)
	}
}

// TestUnits_StopLaterThanTheServer: systemd kills no server that is still finishing what it has.
func TestUnits_StopLaterThanTheServer(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile(filepath.Join(unitsFolder, "myticket@.service"))
	require.NoError(t, err)
	stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+s)$`).FindStringSubmatch(string(unit))
	require.NotNil(t, stop)
	limit, err := time.ParseDuration(stop[1])
	require.NoError(t, err)
	var c cli
	parser, err := kong.New(&c, kong.Name("myticket"))
	require.NoError(t, err)
	_, err = parser.Parse([]string{"serve", "--database-url", "postgresql:///x"})
	require.NoError(t, err)
	f := c.Serve
	require.Greater(t, limit, f.ShutdownDelay+f.ShutdownSpoolWait+f.ShutdownTimeout+3*time.Second)
}
