//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// An operator who is woken at night must be able to rely on every command of a runbook.
func TestRunbooks_CommandsWork(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "runbooks", 15*time.Minute)
	r.upgrade("helm", imageOne, "monitoring.podMonitor.enabled=true", "monitoring.prometheusRule.enabled=true",
		"monitoring.dashboards.enabled=true", "monitoring.runbookURL=https://git.example.com/runbooks",
		"events.enabled=true", "events.replicas=1", "events.resources.requests.cpu=20m")
	r.routed()
	client := newClient()
	for _, body := range []string{"Order: 1\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n", "unreadable"} {
		_, status, err := post(t.Context(), client, r.host, "/ticket/shop-1", []byte(body), "")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
	}

	tools := onlyOnTheCluster(t)
	paths, err := filepath.Glob(filepath.Join(root(), "docs", "runbooks", "*.md"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	here := strings.NewReplacer("-n myticket", "-n "+r.namespace, "namespaces/myticket/", "namespaces/"+r.namespace+"/")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, block := range blocks.FindAllStringSubmatch(string(text), -1) {
			printed, err := output(r.ctx, root(), "", "bash", "-c", "set -eo pipefail; PATH="+tools+":$PATH\n"+here.Replace(block[1]))
			if assert.NoError(t, err, "%s:\n%s", filepath.Base(path), block[1]) {
				t.Logf("%s:\n%s%s", filepath.Base(path), here.Replace(block[1]), last(printed, 12))
			}
		}
	}

	// The metrics of CloudNativePG that dashboards and alerts use are tested with a record (charts/testdata). Check that they still
	// exist.
	recorded, err := os.ReadFile(filepath.Join(root(), "charts", "testdata", "cnpg-primary.prom"))
	require.NoError(t, err)
	said, err := r.metrics(r.primary(), "9187")
	require.NoError(t, err)
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (cnpg_\w+ \w+)$`).FindAllStringSubmatch(string(recorded), -1) {
		if !strings.HasPrefix(family[1], "cnpg_pg_stat_replication_") && !strings.HasPrefix(family[1], "cnpg_pg_replication_slots_") { // of standbys
			assert.Contains(t, said, "# TYPE "+family[1]+"\n", "CloudNativePG no longer has it, or with another type")
		}
	}
}

// onlyOnTheCluster returns a folder with a kubectl and a helm that know no other cluster.
func onlyOnTheCluster(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	kubectl, err := exec.LookPath("kubectl")
	require.NoError(t, err)
	helm, err := filepath.Abs(filepath.Join(root(), "bin", "helm"))
	require.NoError(t, err)
	for name, command := range map[string]string{"kubectl": kubectl + " --context ", "helm": helm + " --kube-context "} {
		script := "#!/bin/sh\nexec " + command + kubeContext + " \"$@\"\n"
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(script), 0o755))
	}
	return folder
}
