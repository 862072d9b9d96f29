package charts

import (
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChangelog_SaysWhatAVersionBrings_OrIsRefused(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "CHANGELOG.md")
	require.NoError(t, os.WriteFile(file, []byte("# Changelog\n\n## [Unreleased]\n\n- Later.\n\n## [1.1.0] - 2026-11-29\n\n### Added\n\n- Café.\n\n"+
		"## [1.0.1] - 2026-11-28\n\n## [1.0.0]\n\n- The first.\n\n## [0.9.0] - 2026-11-01\n\n- The last.\n\n[0.9.0]: https://git.example.com/0.9.0\n"), 0o644))
	changelog := func(version string) (string, error) {
		command := exec.CommandContext(t.Context(), "../.ci/changelog", version)
		command.Env = append(os.Environ(), "CHANGELOG="+file)
		printed, err := command.CombinedOutput()
		return string(printed), err
	}
	said, err := changelog("1.1.0")
	require.NoError(t, err, said)
	require.Equal(t, "### Added\n\n- Café.\n\n", said+"\n", "as it is, without its neighbours")
	said, err = changelog("0.9.0")
	require.NoError(t, err, said)
	require.Equal(t, "- The last.\n", said)
	for version, want := range map[string]string{
		"1.0.1": "says nothing", "1.0.0": "has no date", "1.1": "has no section", "1x1.0": "has no section", "Unreleased": "has no date",
	} {
		said, err = changelog(version)
		require.Error(t, err, version)
		require.Contains(t, said, want, version)
	}
}

// The changelog of the repository has what its own format asks for, so that the next release finds its place.
func TestChangelog_HasAPlaceForTheNextVersion(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../CHANGELOG.md")
	require.NoError(t, err)
	first := ""
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "## ") {
			first = strings.TrimSpace(line)
			break
		}
	}
	require.Equal(t, "## [Unreleased]", first)
}

// What is built is unpacked and used, as somebody does who downloads it.
func TestBinaries_AreForTwoProcessors_AndTheSameWhenBuiltAgain(t *testing.T) {
	t.Parallel()
	const version, signedBy = "0.0.3-test", "MyTicket Binaries"
	secret, public := signer(t, signedBy)
	out := "../bin/release/" + version
	t.Cleanup(func() { _ = os.RemoveAll(out) })
	build := func(variables ...string) map[string]string {
		printed, err := script(t, "binaries", append(variables, "VERSION="+version, "KEY="+signedBy, "KEYRING="+secret)...)
		require.NoError(t, err, printed)
		return sumsOf(t, out)
	}
	sums := build()
	require.Len(t, sums, 4, "an archive and an SBOM for each processor")
	// Settings of the machine change nothing, and neither does the folder's state before.
	require.Equal(t, sums, build("GOFLAGS=-buildvcs=auto -tags=unsafeack", "GOAMD64=v3", "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8"))
	requireSummed(t, out, public)

	pgx := requiredVersion(t, "github.com/jackc/pgx/v5")
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		name := "myticket-" + version + "-linux-" + arch
		folder := t.TempDir()
		printed, err := output(t, "tar", "--extract", "--file", filepath.Join(out, name+".tar.gz"), "--directory", folder)
		require.NoError(t, err, printed)
		unpacked := filepath.Join(folder, name)
		program := filepath.Join(unpacked, "myticket")
		requireBuiltFor(t, program, machine)
		requireStatic(t, program)
		for _, file := range []string{"LICENSE", "README.md", "CHANGELOG.md", "man/man1/myticket-doctor.1", "completion/myticket.zsh", "systemd/myticket@.service", "systemd/myticket-migrate.service"} {
			require.FileExists(t, filepath.Join(unpacked, file))
		}
		requireListed(t, filepath.Join(out, name+".cdx.json"), filepath.Join(unpacked, "THIRD-PARTY-LICENSES"), program, version, pgx)
		if arch == runtime.GOARCH {
			printed, err := output(t, program, "version")
			require.NoError(t, err, printed)
			require.Contains(t, printed, version)
			printed, err = output(t, program, "--help")
			require.NoError(t, err, printed)
			require.Contains(t, printed, "serve")
		}
	}
}

// sumsOf returns the SHA-256 of each file of a release, by its name. The signature has the time in it, so it is no part.
func sumsOf(t *testing.T, folder string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "myticket-*"))
	require.NoError(t, err)
	sums := map[string]string{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		sums[filepath.Base(file)] = fmt.Sprintf("%x", sha256.Sum256(content))
	}
	return sums
}

// requireSummed checks a release as docs/without-kubernetes.md says: the signature of the checksums, then the files. None of them is left
// out. A byte more, or another key, is noticed.
func requireSummed(t *testing.T, folder, public string, files ...string) {
	t.Helper()
	gpg := func(args ...string) (string, error) {
		return output(t, "gpg", append([]string{"--homedir", t.TempDir(), "--no-default-keyring", "--trust-model", "always"}, args...)...)
	}
	verify := func(key string) (string, error) {
		return gpg("--keyring", key, "--verify", filepath.Join(folder, "SHA256SUMS.asc"), filepath.Join(folder, "SHA256SUMS"))
	}
	printed, err := verify(public)
	require.NoError(t, err, printed)
	_, stranger := signer(t, "A Stranger")
	printed, err = verify(stranger)
	require.Error(t, err, printed)

	check := func(in string) (string, error) {
		command := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
		command.Dir = in
		printed, err := command.CombinedOutput()
		return string(printed), err
	}
	printed, err = check(folder)
	require.NoError(t, err, printed)
	for name := range sumsOf(t, folder) {
		require.Contains(t, printed, name+": OK")
	}
	for _, name := range files {
		require.Contains(t, printed, name+": OK")
	}
}

// requireStatic fails if a program needs a loader or a library of the system.
func requireStatic(t *testing.T, path string) {
	t.Helper()
	program, err := elf.Open(path)
	require.NoError(t, err)
	defer func() { _ = program.Close() }()
	for _, part := range program.Progs {
		require.NotContains(t, []elf.ProgType{elf.PT_INTERP, elf.PT_DYNAMIC}, part.Type)
	}
}

// requiredVersion returns the version of a module that go.mod pins.
func requiredVersion(t *testing.T, module string) string {
	t.Helper()
	printed, err := output(t, "go", "list", "-m", "-f", "{{.Version}}", module)
	require.NoError(t, err, printed)
	return strings.TrimSpace(printed)
}

// requireListed checks that an SBOM and the licences name every module of a program, with its version.
func requireListed(t *testing.T, path, licences, program, version, pgx string) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var bom struct {
		Format   string `json:"bomFormat"` //nolint:tagliatelle // as CycloneDX has it
		Metadata struct {
			Component component `json:"component"`
		} `json:"metadata"`
		Components []component `json:"components"`
	}
	require.NoError(t, json.Unmarshal(text, &bom))
	require.Equal(t, "CycloneDX", bom.Format)
	require.Equal(t, "v"+version, bom.Metadata.Component.Version)
	versions, unlicensed := map[string]string{}, []string{}
	for _, c := range bom.Components {
		versions[c.Name] = c.Version
		if len(c.Evidence.Licenses) == 0 && c.Name != "std" { // Go's licence is with the others in the archive
			unlicensed = append(unlicensed, c.Name)
		}
	}
	require.Equal(t, pgx, versions["github.com/jackc/pgx/v5"])
	require.Contains(t, versions, "std")
	require.Empty(t, unlicensed)
	info, err := buildinfo.ReadFile(program)
	require.NoError(t, err)
	all, err := os.ReadFile(licences)
	require.NoError(t, err)
	require.Contains(t, string(all), "==== go1.")
	require.Greater(t, len(info.Deps), 20)
	for _, module := range info.Deps {
		require.Equal(t, module.Version, versions[module.Path], module.Path)
		require.Contains(t, string(all), "==== "+module.Path+"@"+module.Version+"\n")
	}
}

type component struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Evidence struct {
		Licenses []json.RawMessage `json:"licenses"`
	} `json:"evidence"`
}
