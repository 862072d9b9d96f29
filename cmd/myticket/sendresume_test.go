package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// writeTickets writes n files, every fifth of which is no ticket, and returns their names.
func writeTickets(t *testing.T, n int) (files []string) {
	t.Helper()
	folder := t.TempDir()
	for i := range n {
		text := body(fmt.Sprint(i), "Café,a,2")
		if i%5 == 4 {
			text = fmt.Sprintf("no ticket %d", i)
		}
		files = append(files, filepath.Join(folder, fmt.Sprintf("%03d.txt", i)))
		require.NoError(t, os.WriteFile(files[i], []byte(text), 0o600))
	}
	return files
}

func TestSend_ManyFiles_SaysWhatBecameOfEach(t *testing.T) {
	t.Parallel()
	b := setup(t, "--max-body=1KiB")
	files := writeTickets(t, 60)
	large := []string{write(t, "large-1", strings.Repeat("x", 2000)), write(t, "large-2", strings.Repeat("y", 2000))}
	args := append([]string{"send", "--url", b.webhook + "/ticket", "--concurrency=4"}, files...)

	o := runCommand(t, nil, args...)
	require.Equal(t, exitUnread, o.code, o.stderr)
	for i, name := range files {
		status := map[bool]string{true: "ERROR", false: "TREATED"}[i%5 == 4]
		require.Regexp(t, `(?m)^200  [0-9a-f-]{36}  `+status+`  \S+  `+name+`$`, o.stdout)
		require.Equal(t, status == "ERROR", strings.Contains(o.stderr, name), "those of which something is wrong are listed once more")
	}
	require.Contains(t, o.stdout, "\n60 tickets sent, 60 stored (ERROR: 12, TREATED: 48), answers (200: 60), in ")

	o = runCommand(t, nil, append(append(args, large...), "-o", "json")...)
	require.Equal(t, 1, o.code, "refused weighs more than ERROR")
	require.Contains(t, o.stderr, "2 of 62 tickets were not stored; the first was ")
	require.NotContains(t, o.stderr, "..")
	var r sendReport
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &r))
	require.Len(t, r.Each, 62)
	require.Len(t, r.Failed, 14, "all of them")
	require.Equal(t, map[string]int{"ERROR": 12, "TREATED": 48}, r.Statuses)
	for _, one := range r.Each {
		require.NotEmpty(t, one.File)
		require.Equal(t, one.Error == "", one.ID != "" && one.Status != "")
	}
}

func TestSend_Resume_AfterAnInterruption_SendsOnlyTheRest(t *testing.T) {
	t.Parallel()
	s := setup(t)
	b := &operatorBundle{url: s.databaseURL, pool: s.pool}
	slow := inFront(t, s.server, func(_ int64, w http.ResponseWriter, pass func(http.ResponseWriter)) {
		time.Sleep(20 * time.Millisecond)
		pass(w)
	})
	journal := filepath.Join(t.TempDir(), "sent.jsonl")
	args := append([]string{"send", "--url", slow, "--resume", journal, "--concurrency=3", "-o", "json"}, writeTickets(t, 100)...)
	for i, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} { // wherever it is just then
		p := b.start(t, args...)
		await(t, "some are stored", func() bool { return s.count(t, `SELECT count(*) FROM tickets`) >= 30*(i+1) })
		require.NoError(t, p.Process.Signal(signal))
		require.Error(t, p.Wait())
		if signal == syscall.SIGINT {
			assert.Contains(t, p.err.String(), "interrupted: ")
			assert.Contains(t, p.err.String(), "Run the same command again: it sends only the others")
		}
	}
	stored := s.count(t, `SELECT count(*) FROM tickets`)
	require.Less(t, stored, 100)
	file, err := os.OpenFile(journal, os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = file.WriteString(`{"file":"cut off`) // as a machine leaves it that stops
	require.NoError(t, err)
	require.NoError(t, file.Close())

	o := runCommand(t, nil, args...)
	var r sendReport
	require.Equal(t, exitUnread, o.code, o.stderr)
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &r))
	assert.Equal(t, []int{100, 100, 100 - r.Before}, []int{r.Tickets, r.Stored, r.Sent})
	assert.Greater(t, r.Before, 50)
	assert.LessOrEqual(t, r.Before, stored)
	assert.Equal(t, map[string]int{"ERROR": 20, "TREATED": 80}, r.Statuses, "with those of before")
	assert.Equal(t, 100, s.count(t, `SELECT count(*) FROM tickets`), "each once")
	assert.Equal(t, 100, s.count(t, `SELECT count(DISTINCT body) FROM tickets`))

	o = runCommand(t, nil, args...)
	require.Equal(t, exitUnread, o.code, o.stderr)
	var again sendReport
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &again))
	assert.Equal(t, []int{0, 100}, []int{again.Sent, again.Before})
	assert.Equal(t, 100, s.count(t, `SELECT count(*) FROM tickets`))
}

func TestSend_Resume_AnswerThatWasNotWrittenDown_IsADuplicate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	journal := filepath.Join(t.TempDir(), "sent.jsonl")
	args := []string{"send", "--url", b.webhook + "/ticket", "--resume", journal, "--count=2", write(t, "a", sample(t))}
	require.Zero(t, runCommand(t, nil, args...).code)
	content, err := os.ReadFile(journal)
	require.NoError(t, err)
	head, _, _ := strings.Cut(string(content), "\n")
	require.NoError(t, os.WriteFile(journal, []byte(head+"\n"), 0o600))
	o := runCommand(t, nil, args...)
	require.Zero(t, o.code, o.stderr)
	assert.Equal(t, 2, strings.Count(o.stdout, "  TREATED (duplicate)  "), o.stdout)
	assert.Equal(t, 2, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestSend_Resume_ThatCannotBe_SendsNothing(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		t.Error("something was sent")
	}))
	t.Cleanup(server.Close)
	good := write(t, "good", sample(t))
	other := write(t, "other", `{"run":"01a20763-46ee-7c43-b4d2-48ea8de705fe","url":"http://other/ticket"}`+"\n")
	for says, args := range map[string][]string{
		"line 1 is not of a run of myticket send": {"--resume", good, good},
		"is named twice": {"--resume", filepath.Join(t.TempDir(), "new"), good, good},
		"it is of a run that sends to http://other/ticket": {"--resume", other, good},
		"no such file or directory":                        {"--resume", good + "-not/new", good},
		"line 2 is not of a run":                           {"--resume", write(t, "damaged", `{"run":"01a20763-46ee-7c43-b4d2-48ea8de705fe"}`+"\n{}\n"), good},
	} {
		o := runCommand(t, nil, append([]string{"send", "--url", server.URL}, args...)...)
		require.Equal(t, 1, o.code)
		require.Contains(t, o.stderr, says)
		require.Contains(t, o.stderr, "nothing was sent")
	}
	text, err := os.ReadFile(good)
	require.NoError(t, err)
	require.Equal(t, sample(t), string(text), "a file that is named by mistake is left as it is")
}
