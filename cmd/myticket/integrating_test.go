package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

// integratingSection returns a section of docs/integrating.md.
func integratingSection(t *testing.T, title string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/integrating.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(page), "\n## "+title+"\n")
	require.True(t, ok, title)
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// badNetwork is a proxy in front of the server. The beginning of a delivery's key says what happens to its attempts.
type badNetwork struct {
	server *server

	mu       sync.Mutex
	attempts map[string][]attempt // by key
}

type attempt struct {
	at      time.Time
	body    string
	headers http.Header
}

func (n *badNetwork) of(key string) []attempt {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attempts[key]
}

func (n *badNetwork) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost {
		http.Error(w, "{}", http.StatusOK) // where a redirect leads
		return
	}
	key := r.Header.Get("Webhook-Id")
	if key == "" {
		key = r.Header.Get("Idempotency-Key")
	}
	n.mu.Lock()
	n.attempts[key] = append(n.attempts[key], attempt{time.Now(), string(body), r.Header.Clone()})
	made := len(n.attempts[key])
	n.mu.Unlock()
	what, _, _ := strings.Cut(key, "-")
	switch {
	case what == "moved":
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
		return
	case what == "captive": // the page of a network that one must log in to
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, "<html>Welcome</html>")
		return
	case what == "down":
		http.Error(w, "down", http.StatusBadGateway)
		return
	case what == "wrong":
		r.Header.Set("Authorization", "Bearer no-token-0123456789")
	case what == "bumpy" && made == 1:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "{}", http.StatusServiceUnavailable)
		return
	case what == "bumpy" && made == 2:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "{}", http.StatusTooManyRequests)
		return
	case what == "bumpy" && made == 3:
		http.Error(w, "<html>", http.StatusBadGateway)
		return
	}
	var headers []string
	for name := range r.Header {
		headers = append(headers, name, r.Header.Get(name))
	}
	a, err := n.server.send(r.URL.RequestURI(), string(body), headers...) //nolint:contextcheck // it has a limit of its own
	if err != nil || what == "bumpy" && made == 4 {                       // stored, and the answer is lost
		panic(http.ErrAbortHandler)
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

// sender is an example of the page.
type sender struct {
	title, kind string
	block       int    // of those of the kind
	file        string // that the example is written to
	needs       []string
	build, run  []string // before the files; FILE and DIR stand for those of the example
	again       bool     // it is run again after a broken connection
	auth        string   // token or signature; empty for both
}

var senders = []sender{
	{title: "curl", kind: "sh", file: "token.sh", needs: []string{"bash", "curl"}, run: []string{"bash", "FILE"}, again: true, auth: "token"},
	{
		title: "curl", kind: "sh", block: 1, file: "signed.sh", needs: []string{"bash", "curl", "openssl", "od"},
		run: []string{"bash", "FILE"}, again: true, auth: "signature",
	},
	{title: "Python", kind: "python", file: "send.py", needs: []string{"python3"}, run: []string{"python3", "FILE"}},
	{title: "Node", kind: "js", file: "send.mjs", needs: []string{"node"}, run: []string{"node", "FILE"}},
	{title: "PHP", kind: "php", file: "send.php", needs: []string{"php"}, run: []string{"php", "FILE"}},
	{title: "Java", kind: "java", file: "Send.java", needs: []string{"java", "javac"}, run: []string{"java", "FILE"}},
	{
		title: "C#", kind: "csharp", file: "send.cs", needs: []string{"mcs", "mono"},
		build: []string{"mcs", "-langversion:latest", "-r:System.Net.Http.dll", "-out:DIR/send.exe", "FILE"},
		run:   []string{"mono", "DIR/send.exe"},
	},
	{
		title: "Go", kind: "go", file: "send.go", needs: []string{"go"}, build: []string{"go", "build", "-o", "DIR/send", "FILE"},
		run: []string{"DIR/send"},
	},
}

// outbox is the sender with the files that it is to send.
type outbox struct {
	sender
	dir, file string
	env       []string
	out       bytes.Buffer
}

// program runs a program of the example, and returns its exit code.
func (o *outbox) program(t *testing.T, words []string, more ...string) int {
	t.Helper()
	fill := strings.NewReplacer("FILE", o.file, "DIR", o.dir)
	args := more
	for i := len(words) - 1; i >= 0; i-- {
		args = append([]string{fill.Replace(words[i])}, args...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = o.dir, append(os.Environ(), o.env...), &o.out, &o.out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	require.NoError(t, ctx.Err(), "%v does not end: %s", args, &o.out)
	if cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode()
}

// put writes a ticket to the outbox.
func (o *outbox) put(t *testing.T, key string) (path, text string) {
	t.Helper()
	path, text = filepath.Join(o.dir, key), body(key, "Café,c,2", "\"Menu, midi\",m,14.90")+"\r\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path, text
}

func TestIntegratingPage_EachSenderLosesNoTicket(t *testing.T) {
	t.Parallel()
	sources := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(sources, []byte(`{
		"token": {"bearer_tokens": ["`+bearerToken+`"]}, "signature": {"webhook_secrets": ["whsec_`+webhookSecret+`"]}}`), 0o600))
	b := setup(t, "--sources-file", sources)
	network := &badNetwork{server: b.server, attempts: map[string][]attempt{}}
	proxy := httptest.NewServer(network)
	t.Cleanup(proxy.Close)
	credentials := map[string]string{"token": "MYTICKET_TOKEN=" + bearerToken, "signature": "MYTICKET_SECRET=whsec_" + webhookSecret}

	t.Run("senders", func(t *testing.T) { // returns when all have ended, and before the server does
		for _, s := range senders {
			for auth, credential := range credentials {
				if s.auth != "" && s.auth != auth {
					continue
				}
				name := s.file + " " + auth
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					o := &outbox{sender: s, dir: t.TempDir(), env: []string{"MYTICKET_URL=" + proxy.URL + "/ticket/" + auth, credential}}
					o.write(t)
					suffix := "-" + strings.ReplaceAll(s.file, ".", "-") + "-" + auth
					o.bumpy(t, b, network, "bumpy"+suffix)
					if auth == "token" {
						o.hopeless(t, b, network, suffix)
					}
				})
			}
		}
	})
}

// write extracts the example, and builds it. Without its programs, the test is skipped.
func (o *outbox) write(t *testing.T) {
	t.Helper()
	for _, program := range o.needs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("not tested here: %s is not installed", program)
		}
	}
	if o.kind == "php" {
		if modules, err := exec.CommandContext(t.Context(), "php", "-m").Output(); err != nil || !bytes.Contains(modules, []byte("curl")) {
			t.Skip("not tested here: PHP has no extension curl")
		}
	}
	var blocks []string
	for _, block := range blocksOf(integratingSection(t, o.title)) {
		if block.kind == o.kind {
			blocks = append(blocks, block.text)
		}
	}
	require.Greater(t, len(blocks), o.block)
	text := blocks[o.block]
	if o.kind != "sh" { // the random waits are a tenth as long; those for Retry-After stay
		text = strings.NewReplacer("0.5 *", "0.05 *", "500*time", "50*time").Replace(text)
		require.NotEqual(t, blocks[o.block], text)
	}
	o.file = filepath.Join(o.dir, o.sender.file)
	require.NoError(t, os.WriteFile(o.file, []byte(text), 0o600))
	if o.build != nil {
		require.Zero(t, o.program(t, o.build), "%s", &o.out)
	}
}

// bumpy sends a ticket over a network that fails in four ways before the ticket is answered.
func (o *outbox) bumpy(t *testing.T, b *testBundle, network *badNetwork, key string) {
	t.Helper()
	path, text := o.put(t, key)
	code := o.program(t, o.run, path)
	for runs := 1; o.again && code != 0 && runs < 5; runs++ {
		require.FileExists(t, path)
		code = o.program(t, o.run, path)
	}
	require.Zero(t, code, "%s", &o.out)
	require.NoFileExists(t, path, "it is stored")
	require.Contains(t, o.out.String(), `"duplicate":true`, "its first answer was lost")
	attempts := network.of(key)
	require.Len(t, attempts, 5, "%s", &o.out)
	for _, a := range attempts {
		require.Equal(t, text, a.body)
	}
	if o.auth != "signature" { // that script knows no Retry-After
		require.GreaterOrEqual(t, attempts[1].at.Sub(attempts[0].at), time.Second, "Retry-After of a 503")
		require.GreaterOrEqual(t, attempts[2].at.Sub(attempts[1].at), time.Second, "Retry-After of a 429")
	}
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE body = $1 AND status = 'TREATED'`, []byte(text)))
}

// hopeless sends tickets that cannot be stored. They must stay in the outbox.
func (o *outbox) hopeless(t *testing.T, b *testBundle, network *badNetwork, suffix string) {
	t.Helper()
	attempts := map[string]int{"wrong": 1, "moved": 1, "captive": 1}
	if o.kind != "sh" { // curl's own retries take half a minute
		attempts["down"] = 6
	}
	for what := range attempts {
		o.put(t, what+suffix)
	}
	last, text := o.put(t, "well"+suffix)
	paths, err := filepath.Glob(filepath.Join(o.dir, "*"+suffix))
	require.NoError(t, err)
	require.Equal(t, 1, o.program(t, o.run, paths...), "%s", &o.out)
	require.NoFileExists(t, last, "the others do not hold it up: %s", &o.out)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE body = $1`, []byte(text)))
	for what, times := range attempts {
		require.FileExists(t, filepath.Join(o.dir, what+suffix), "%s", &o.out)
		require.Len(t, network.of(what+suffix), times, "%s: %s", what, &o.out)
		require.Zero(t, b.count(t, `SELECT count(*) FROM tickets WHERE order_number = $1`, what+suffix))
	}
}

// TestIntegratingPage_FirstTicket shows what curl does with and without --data-binary.
func TestIntegratingPage_FirstTicket(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("not tested here: curl is not installed")
	}
	b := setup(t)
	o := &outbox{dir: t.TempDir()}
	require.NoError(t, os.WriteFile(filepath.Join(o.dir, "ticket.txt"), []byte(sample(t)), 0o600))
	var stored []storedTicket
	for _, block := range blocksOf(integratingSection(t, "The first ticket")) {
		if block.kind != "sh" {
			continue
		}
		o.out.Reset()
		command := strings.Replace(block.text, "http://localhost:9098", b.webhook, 1)
		require.NotEqual(t, block.text, command)
		require.Zero(t, o.program(t, []string{"sh", "-c"}, command), "%s", &o.out)
		_, id, _ := strings.Cut(o.out.String(), `{"id":"`)
		stored = append(stored, b.ticket(t, uuid.MustParse(fmt.Sprintf("%.36s", id))))
	}
	require.Len(t, stored, 2)
	require.Equal(t, ticket.Treated, stored[0].Status)
	require.Equal(t, sample(t), stored[0].Body)
	require.Equal(t, ticket.Error, stored[1].Status)
	require.Equal(t, strings.ReplaceAll(sample(t), "\n", ""), stored[1].Body, "what -d makes of it")
}
