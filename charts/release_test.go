package charts

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"myticket/internal/lab"
)

// release runs .ci/release on the tree as it is, with variables, and returns what it printed.
func release(t *testing.T, variables ...string) (string, error) {
	t.Helper()
	return script(t, "release", variables...)
}

// script runs a script of .ci with a changelog that knows the versions of the tests.
func script(t *testing.T, name string, variables ...string) (string, error) {
	t.Helper()
	changelog := filepath.Join(t.TempDir(), "CHANGELOG.md")
	var text strings.Builder
	for _, version := range []string{"1.2.3-rc.1", "1.2.3", "0.0.5-test", "0.0.4-test", "0.0.3-test", "0.0.2-test", "0.0.1-test", "0.0.0-test"} {
		fmt.Fprintf(&text, "## [%s] - 2026-11-29\n\n- What %[1]s brings.\n\n", version)
	}
	require.NoError(t, os.WriteFile(changelog, []byte(text.String()), 0o644))
	command := exec.CommandContext(t.Context(), "../.ci/"+name)
	command.Env = append(append(os.Environ(), "UNCOMMITTED=yes", "CHANGELOG="+changelog), variables...)
	printed, err := command.CombinedOutput()
	return string(printed), err
}

// crane runs crane, and returns what it printed.
func crane(t *testing.T, args ...string) string {
	t.Helper()
	printed, err := run(t, "..", "crane", args...)
	require.NoError(t, err)
	return strings.TrimSpace(printed)
}

// registry starts a registry that never changes what a tag names, and returns its address.
func registry(t *testing.T) string {
	t.Helper()
	port, err := lab.FreePort(t.Context())
	require.NoError(t, err)
	address := fmt.Sprint("127.0.0.1:", port)
	server := exec.CommandContext(t.Context(), tool(t, "crane"), "registry", "serve", "--address", address)
	require.NoError(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	require.Eventually(t, func() bool {
		connection, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		return err == nil && connection.Close() == nil
	}, time.Minute, 10*time.Millisecond)
	target := &url.URL{Scheme: "http", Host: address}
	proxy := httputil.NewSingleHostReverseProxy(target)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			manifest, err := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(manifest))
			before, there := manifestOf(r.Context(), target.String()+r.URL.Path)
			if err != nil || there && !bytes.Equal(before, manifest) {
				http.Error(w, `{"errors":[{"code":"TAG_INVALID","message":"the tag is immutable"}]}`, http.StatusBadRequest)
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	return strings.TrimPrefix(front.URL, "http://")
}

// manifestOf returns a manifest that a registry has.
func manifestOf(ctx context.Context, from string) (manifest []byte, there bool) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, http.NoBody)
	if err != nil {
		return nil, false
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, false
	}
	defer func() { _ = answer.Body.Close() }()
	manifest, err = io.ReadAll(answer.Body)
	return manifest, err == nil && answer.StatusCode == http.StatusOK
}

// signer makes a GPG key that is valid from now on, and returns the files with its secret and its public part.
func signer(t *testing.T, name string) (secret, public string) {
	t.Helper()
	return signerUntil(t, name, "1d")
}

// signerUntil does the same with a key that expires. Options are more flags of gpg.
func signerUntil(t *testing.T, name, expires string, options ...string) (secret, public string) {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") //nolint:usetesting // the path of a socket in it must be short
	require.NoError(t, err)
	gpg := func(args ...string) {
		printed, err := output(t, "gpg", append([]string{"--homedir", home, "--batch", "--pinentry-mode=loopback", "--passphrase", ""}, args...)...)
		require.NoError(t, err, printed)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		_ = os.RemoveAll(home)
	})
	gpg(append(options, "--quick-generate-key", name, "rsa3072", "sign", expires)...)
	secret, public = filepath.Join(t.TempDir(), "secret.gpg"), filepath.Join(t.TempDir(), "public.gpg")
	gpg("--output", secret, "--export-secret-keys", name)
	gpg("--output", public, "--export", name)
	return secret, public
}

func TestRelease_WithoutWhatItNeeds_IsRefused(t *testing.T) {
	t.Parallel()
	for want, variables := range map[string][]string{
		"VERSION must be":  {"VERSION=1.2", "REGISTRY=127.0.0.1:1/team", "KEY=none"},
		"REGISTRY must be": {"VERSION=1.2.3", "REGISTRY=127.0.0.1:1/", "KEY=none"},
		"no section":       {"VERSION=1.2.4", "REGISTRY=127.0.0.1:1/team", "KEY=none"},
		"KEY must name":    {"VERSION=1.2.3", "REGISTRY=127.0.0.1:1/team", "KEY="},
		"does not say":     {"VERSION=1.2.3", "REGISTRY=127.0.0.1:1/team", "KEY=none"},
		"KEYRING must be":  {"VERSION=1.2.3", "REGISTRY=127.0.0.1:1/team", "KEY=someone", "KEYRING=no-such-file"},
		"RELEASE_HOME must be like https://git.example.com/myticket, and is 'git.example.com'": {
			"VERSION=1.2.3", "REGISTRY=127.0.0.1:1/team", "KEY=none", "RELEASE_HOME=git.example.com",
		},
		"RELEASE_MAINTAINER must be like 'Name <name@example.com>', and is 'Tills'": {
			"VERSION=1.2.3", "REGISTRY=127.0.0.1:1/team", "KEY=none", "RELEASE_MAINTAINER=Tills",
		},
	} {
		printed, err := release(t, variables...)
		require.Error(t, err, want)
		require.Contains(t, printed, want)
	}
	for _, version := range []string{"01.2.3", "1.2.3-01", "1.2.3-rc..1", "1.2.3-", "v1.2.3", "1.2.3+build"} {
		printed, err := release(t, "VERSION="+version, "REGISTRY=127.0.0.1:1/team", "KEY=none")
		require.Error(t, err, version)
		require.Contains(t, printed, "VERSION must be", "it is not SemVer, or no tag of an image: "+version)
	}
	printed, err := release(t, "VERSION=1.2.3-rc.1", "REGISTRY=team", "KEY=none")
	require.Error(t, err)
	require.Contains(t, printed, "REGISTRY must be", "without a host it is Docker Hub")
}

// What is in no commit cannot be built again, and nobody has read it.
func TestRelease_OfWhatIsInNoCommit_IsRefused(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(tree, ".ci"), 0o755))
	for _, name := range []string{"release", "release-lib", "changelog"} {
		script, err := os.ReadFile("../.ci/" + name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(tree, ".ci", name), script, 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(tree, "CHANGELOG.md"), []byte("## [1.2.3] - 2026-11-29\n\nNews.\n"), 0o644))
	printed, err := output(t, "git", "init", tree)
	require.NoError(t, err, printed)
	command := exec.CommandContext(t.Context(), filepath.Join(tree, ".ci/release"))
	command.Env = append(os.Environ(), "VERSION=1.2.3", "REGISTRY=127.0.0.1:1/team", "KEY=none", "UNCOMMITTED=")
	said, err := command.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(said), "in no commit")
}

// Helm signs with such a key, and refuses the chart when an operator checks it.
func TestRelease_WithAKeyThatExpired_PublishesNothing(t *testing.T) {
	t.Parallel()
	const version, signedBy = "0.0.2-test", "MyTicket Expired"
	team := registry(t) + "/team"
	secret, _ := signerUntil(t, signedBy, "2025-01-05", "--faked-system-time=20250101T000000")
	t.Cleanup(func() { _ = os.RemoveAll("../bin/release/" + version) })
	printed, err := release(t, "VERSION="+version, "REGISTRY="+team, "KEY="+signedBy, "KEYRING="+secret, "HELM_FLAGS=--plain-http")
	require.Error(t, err, printed)
	require.Contains(t, printed, "key expired")
	for _, name := range []string{"/myticket:", "/charts/myticket:"} {
		printed, err = run(t, "..", "crane", "digest", team+name+version)
		require.ErrorContains(t, err, "_UNKNOWN", printed)
	}
}

// What is published is pulled again, as an operator does: the chart, whose signature is checked, and the image that it names.
func TestRelease_IsSigned_ForTwoProcessors_AndNeverChanges(t *testing.T) {
	t.Parallel()
	const version, signedBy = "0.0.0-test", "MyTicket Test"
	team := registry(t) + "/team"
	secret, public := signer(t, signedBy)
	variables := func(version, flags string) []string {
		return []string{
			"VERSION=" + version, "REGISTRY=" + team, "KEY=" + signedBy, "KEYRING=" + secret, "HELM_FLAGS=" + flags,
			"RELEASE_HOME=https://git.example.com/myticket", "RELEASE_MAINTAINER=Tills & Co <tills@example.com>",
		}
	}
	t.Cleanup(func() { _ = os.RemoveAll("../bin/release/" + version) })

	// Settings of the machine for its own programs change nothing: what is in Git's tags, or a build that answers before the commit.
	machine := []string{"GOFLAGS=-buildvcs=auto -tags=unsafeack", "GOAMD64=v3"}
	printed, err := release(t, append(variables(version, "--no-such-flag"), machine...)...)
	require.Error(t, err, "it is interrupted before the chart is pushed")
	require.Contains(t, printed, "no-such-flag")
	image := team + "/myticket"
	digest := crane(t, "digest", image+":"+version)
	printed, err = release(t, variables(version, "--plain-http")...)
	require.NoError(t, err, printed)
	require.Contains(t, printed, "published: "+image+":"+version+"@"+digest, "repeated, it gives the same bytes")

	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		platform := "--platform=linux/" + arch
		var config struct {
			Architecture string `json:"architecture"`
			Config       struct {
				User         string              `json:"user"`
				Entrypoint   []string            `json:"entrypoint"`
				Cmd          []string            `json:"cmd"`
				Labels       map[string]string   `json:"labels"`
				ExposedPorts map[string]struct{} `json:"ExposedPorts"` //nolint:tagliatelle // as the OCI image specification has it
			} `json:"config"`
		}
		require.NoError(t, json.Unmarshal([]byte(crane(t, "config", platform, image+":"+version)), &config))
		c := config.Config
		require.Equal(t, []any{
			arch, "65532:65532", []string{"/myticket"}, []string{"serve"}, version, "Apache-2.0", 2,
		},
			[]any{
				config.Architecture, c.User, c.Entrypoint, c.Cmd, c.Labels["org.opencontainers.image.version"],
				c.Labels["org.opencontainers.image.licenses"], len(c.ExposedPorts),
			}, "as the Dockerfile says")
		folder := t.TempDir()
		content := filepath.Join(folder, "content.tar")
		crane(t, "export", platform, image+":"+version, content)
		printed, err := output(t, "tar", "--extract", "--file", content, "--directory", folder)
		require.NoError(t, err, printed)
		requireBuiltFor(t, filepath.Join(folder, "myticket"), machine)
	}

	requireSummed(t, "../bin/release/"+version, public, "myticket-"+version+".tgz")

	pulled := t.TempDir()
	pull := func(keyring string) error {
		_, err := run(t, "..", helm4, "pull", "oci://"+team+"/charts/myticket", "--version", version, "--plain-http",
			"--verify", "--keyring", keyring, "--destination", pulled)
		return err
	}
	_, stranger := signer(t, "Somebody Else")
	require.ErrorContains(t, pull(stranger), "openpgp", "the signature is of another key")
	require.NoError(t, pull(public))
	packed := filepath.Join(pulled, "myticket-"+version+".tgz")
	requireDescribed(t, packed, image+":"+version+"@"+digest)
	rendered, err := run(t, "..", helm4, "template", "t", packed, "--api-versions", "postgresql.cnpg.io/v1",
		"--set", "ingress.hosts={a.example},networkPolicy.ingressNamespace=web")
	require.NoError(t, err)
	require.Contains(t, rendered, "image: \""+image+":"+version+"@"+digest+"\"", "the chart names the image by its digest")
	require.Contains(t, rendered, `app.kubernetes.io/version: "`+version+`"`)

	printed, err = release(t, variables(version, "--plain-http")...)
	require.Error(t, err)
	require.Contains(t, printed, "a version never changes")

	const taken = "0.0.1-test"
	t.Cleanup(func() { _ = os.RemoveAll("../bin/release/" + taken) })
	crane(t, "copy", image+":"+version+"-amd64", image+":"+taken)
	printed, err = release(t, variables(taken, "--plain-http")...)
	require.Error(t, err)
	require.Contains(t, printed, "published with other content")
}

// requireDescribed checks what a packed chart says about itself.
func requireDescribed(t *testing.T, packed, image string) {
	t.Helper()
	printed, err := run(t, "..", helm4, "show", "chart", packed)
	require.NoError(t, err)
	var chart struct {
		Home        string              `yaml:"home"`
		Sources     []string            `yaml:"sources"`
		Maintainers []map[string]string `yaml:"maintainers"`
		Annotations map[string]string   `yaml:"annotations"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(printed), &chart), printed)
	require.Equal(t, "https://git.example.com/myticket", chart.Home)
	require.Equal(t, []string{chart.Home}, chart.Sources)
	require.Equal(t, []map[string]string{{"name": "Tills & Co", "email": "tills@example.com"}}, chart.Maintainers)
	require.Equal(t, "Apache-2.0", chart.Annotations["artifacthub.io/license"])
	var images []struct {
		Name      string   `yaml:"name"`
		Image     string   `yaml:"image"`
		Platforms []string `yaml:"platforms"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(chart.Annotations["artifacthub.io/images"]), &images))
	require.Len(t, images, 3)
	require.Equal(t, image, images[0].Image)
	require.Equal(t, []string{"linux/amd64", "linux/arm64"}, images[0].Platforms)
	printed, err = run(t, "..", helm4, "show", "values", packed)
	require.NoError(t, err)
	values := object{}
	require.NoError(t, yaml.Unmarshal([]byte(printed), &values))
	require.Equal(t, at(values, "database.cluster.image"), images[1].Image)
	require.Equal(t, at(values, "database.cluster.kubectlImage"), images[2].Image)
	require.NotContains(t, chart.Annotations["artifacthub.io/images"], "#")
	licence, err := output(t, "tar", "--extract", "--to-stdout", "--file", packed, "myticket/LICENSE")
	require.NoError(t, err, licence)
	ours, err := os.ReadFile("../LICENSE")
	require.NoError(t, err)
	require.Equal(t, string(ours), licence)
}

func requireBuiltFor(t *testing.T, path string, machine elf.Machine) {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	program, err := elf.NewFile(io.ReaderAt(file))
	require.NoError(t, err)
	require.Equal(t, machine, program.Machine)
	info, err := file.Stat()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode().Perm())
}
