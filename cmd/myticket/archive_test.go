package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/archive"
)

// killAt ends this process at a step of the archive: its name, and after a colon which time. stopAt stops it there until it gets
// SIGCONT.
const (
	killAt = "TEST_KILL_AT"
	stopAt = "TEST_STOP_AT"
)

func init() { //nolint:gochecknoinits // it must be set before TestMain runs the program
	sent := syscall.SIGKILL
	step, times, ok := strings.Cut(os.Getenv(killAt), ":")
	if !ok {
		sent = syscall.SIGSTOP
		if step, times, ok = strings.Cut(os.Getenv(stopAt), ":"); !ok {
			return
		}
	}
	n, _ := strconv.Atoi(times)
	archiveStep = func(name string) error {
		if name == step {
			if n--; n == 0 {
				continued := make(chan os.Signal, 1)
				signal.Notify(continued, syscall.SIGCONT)
				_ = syscall.Kill(os.Getpid(), sent) // which may return before the process has stopped
				<-continued
			}
		}
		return nil
	}
}

// archiveBundle is a database with a day of tickets that is long past, and an archive in a folder.
type archiveBundle struct {
	*operatorBundle

	folder string
	ids    []uuid.UUID // of the TREATED tickets
	errors []uuid.UUID
}

const archivedDay = "2026-08-01"

func setupArchive(t *testing.T, treated, failed int) *archiveBundle {
	t.Helper()
	b := &archiveBundle{operatorBundle: setupOperator(t), folder: t.TempDir()}
	b.exec(t, `CREATE TABLE tickets_20260801_20260802 PARTITION OF tickets FOR VALUES FROM ('2026-08-01') TO ('2026-08-02')`)
	b.ids = b.fill(t, treated, "TREATED")
	b.errors = b.fill(t, failed, "ERROR")
	return b
}

// fill stores tickets of the day.
func (b *archiveBundle) fill(t *testing.T, n int, status string) (ids []uuid.UUID) {
	t.Helper()
	at, err := time.Parse(time.DateOnly, archivedDay)
	require.NoError(t, err)
	times := make([]time.Time, n)
	ids = make([]uuid.UUID, n)
	for i := range ids {
		times[i] = at.Add(time.Hour + time.Duration(i)*time.Millisecond)
		ids[i] = uuid.Must(uuid.NewV7())
		ms := times[i].UnixMilli()
		for at := range 6 {
			ids[i][at] = byte(ms >> (8 * (5 - at)))
		}
	}
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, order_number, vat, total, parser_version, problems, extra)
		SELECT id, at, 'till-' || n % 3, convert_to(format(E'Order: %s\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\nApple,a%s,1.50\nPear,b,2.00', n, n % 10), 'UTF8'),
			$3, n::text, 3.10, 16.90, 1, CASE WHEN $3 = 'ERROR' THEN '[{"line": 1, "code": "fields_count", "message": "m"}]'::jsonb END, NULL
		FROM unnest($1::uuid[], $2::timestamptz[]) WITH ORDINALITY t (id, at, n)`, ids, times, status)
	return ids
}

// allTickets says whether two times every column of every ticket is the same.
const allTickets = `SELECT md5(string_agg(t::text, ',' ORDER BY received_at, id)) FROM tickets t`

func (b *archiveBundle) args(more ...string) []string {
	return append(more, "--archive=file://"+b.folder)
}

func (b *archiveBundle) run(t *testing.T, more ...string) archiveReport {
	t.Helper()
	var report archiveReport
	out := b.ok(t, b.args(append([]string{"archive", "run", "--keep=2w", "--apply", "-o", "json"}, more...)...)...)
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	return report
}

func (b *archiveBundle) parts(t *testing.T) []archive.Part {
	t.Helper()
	var list struct {
		Parts []archive.Part `json:"parts"`
	}
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "archive", "list", "-o", "json")), &list))
	return list.Parts
}

// objects returns what is in the archive, by the first part of its key.
func (b *archiveBundle) objects(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	require.NoError(t, filepath.WalkDir(b.folder, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			rel, _ := filepath.Rel(b.folder, path)
			kind, _, _ := strings.Cut(rel, "/")
			found[kind] = append(found[kind], rel)
		}
		return err
	}))
	return found
}

// manifestPath returns where the one manifest is.
func (b *archiveBundle) manifestPath(t *testing.T) string {
	t.Helper()
	manifests := b.objects(t)["manifests"]
	require.Len(t, manifests, 1)
	return filepath.Join(b.folder, manifests[0])
}

// everywhere checks that each ticket can be shown, wherever it is, and how many manifests there are.
func (b *archiveBundle) everywhere(t *testing.T, ids ...uuid.UUID) {
	t.Helper()
	for _, id := range ids {
		out := b.ok(t, b.args("tickets", "show", id.String(), "--raw")...)
		assert.Contains(t, out, "Total: 16.90", id)
	}
}

// inOneManifest checks that the archive has one manifest and one file with tickets, which are right, and that its first and last
// ticket can be shown.
func (b *archiveBundle) inOneManifest(t *testing.T) {
	t.Helper()
	assert.Len(t, b.objects(t)["manifests"], 1)
	assert.Len(t, b.objects(t)["tickets"], 1)
	assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
	b.everywhere(t, b.ids[0], b.ids[len(b.ids)-1])
}

func TestArchive_TakesAnOldPartition_DropsIt_AndShowsItsTickets(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 500, 3)
	b.exec(t, `INSERT INTO corrections (ticket_id, ticket_received_at, number, text, who, why)
		SELECT id, received_at, 1, 'corrected', 'me', 'why' FROM tickets WHERE id = $1`, b.ids[7])
	b.exec(t, `UPDATE tickets SET correction = 1 WHERE id = $1`, b.ids[7])

	dry := b.ok(t, b.args("archive", "run", "--keep=2w")...)
	assert.Contains(t, dry, "would be archived")
	assert.Contains(t, dry, "Nothing was changed")
	assert.Empty(t, b.objects(t))

	report := b.run(t)
	require.Len(t, report.Parts, 1)
	assert.Equal(t, archivePartReport{
		Part: "20260801-20260802", Partition: "tickets_20260801_20260802", Tickets: 500, Kept: 3, Archived: true,
		Bytes: report.Parts[0].Bytes, FileBytes: report.Parts[0].FileBytes, Verdict: "archived, verified and dropped",
	}, report.Parts[0])
	assert.Equal(t, "3", b.text(t, `SELECT count(*)::text FROM tickets`), "the unfinished ones stay")
	assert.Equal(t, "0", b.text(t, `SELECT count(*)::text FROM corrections`))
	objects := b.objects(t)
	require.Len(t, objects["manifests"], 1)
	assert.Regexp(t, `^manifests/20260801-20260802\.[0-9a-f-]{36}\.json$`, objects["manifests"][0])
	require.Len(t, objects["tickets"], 1)
	assert.Regexp(t, `^tickets/day=2026-08-01/part-20260801-20260802\.[0-9a-f-]{36}\.0001\.parquet$`, objects["tickets"][0])
	assert.Len(t, objects["corrections"], 1)
	parts := b.parts(t)
	require.Len(t, parts, 1)
	assert.Equal(t, archive.Archived, parts[0].State)
	assert.EqualValues(t, 1, parts[0].Corrections)

	b.everywhere(t, b.ids[0], b.ids[7], b.ids[499], b.errors[0])
	assert.Equal(t, "corrected", b.ok(t, b.args("tickets", "show", b.ids[7].String(), "--raw", "--correction=1")...))
	var shown archivedTicket
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, b.args("archive", "restore", "--ticket", b.ids[3].String(), "-o", "json")...)), &shown))
	assert.Equal(t, "20260801-20260802", shown.Part)
	assert.Equal(t, json.Number("16.90"), shown.Total)
	require.Len(t, shown.Lines, 2)
	assert.Equal(t, "Pear", shown.Lines[1].Product)
	_, _, stderr := b.myticket(t, "tickets", "show", b.ids[3].String())
	assert.Contains(t, stderr, "its time is archived in part 20260801-20260802")

	assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
	assert.Contains(t, b.ok(t, "retention", "--keep=2w"), "kept: it is not archived", "the one that was left for unfinished tickets")
	again := b.run(t)
	require.Len(t, again.Parts, 1)
	assert.Contains(t, again.Parts[0].Verdict, "only TO_TREAT or ERROR")
	assert.Equal(t, "archive", b.text(t, `SELECT min(action) FROM audit`))
}

func TestArchive_LateTicketsAreAnotherPartOfTheDay(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 20, 1)
	b.run(t, "--unfinished=archive")
	assert.Equal(t, "0", b.text(t, `SELECT count(*)::text FROM tickets`))
	b.exec(t, `CREATE TABLE tickets_20260801_20260802 PARTITION OF tickets FOR VALUES FROM ('2026-08-01') TO ('2026-08-02')`)
	late := b.fill(t, 5, "TREATED")
	b.run(t)
	parts := b.parts(t)
	require.Len(t, parts, 2)
	assert.Equal(t, "20260801-20260802-2", parts[1].Name)
	assert.EqualValues(t, 5, parts[1].Tickets)
	b.everywhere(t, b.ids[0], b.errors[0], late[4])
	assert.Len(t, b.objects(t)["manifests"], 2)
	assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
}

func TestArchive_KilledAtEachStep_LosesNothing_AndIsFinishedByTheNextRun(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"begin", "clean", "file", "upload", "read-back", "manifest", "written", "drop"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := setupArchive(t, 50, 2)
			before := b.text(t, allTickets)
			b.killedAt(t, step+":1")
			b.everywhere(t, b.ids[0], b.ids[49], b.errors[1])
			assert.LessOrEqual(t, len(b.objects(t)["manifests"]), 1)
			b.minuteLater(t)

			report := b.run(t)
			require.NotEmpty(t, report.Parts)
			assert.True(t, report.Parts[0].Archived, report.Parts[0].Verdict)
			objects := b.objects(t)
			assert.Len(t, objects["manifests"], 1)
			assert.Len(t, objects["tickets"], 1, "no file of the killed run is left")
			assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
			b.everywhere(t, b.ids[0], b.ids[49], b.errors[1])

			b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
			assert.Equal(t, before, b.text(t, allTickets), "every column is as it was")
		})
	}
}

// killedAt runs the real program, which ends itself at a step.
func (b *archiveBundle) killedAt(t *testing.T, step string, more ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := exec.CommandContext(ctx, os.Args[0], b.args(append([]string{"archive", "run", "--keep=2w", "--apply"}, more...)...)...)
	p.Env = []string{runMain + "=1", "DATABASE_URL=" + b.url, killAt + "=" + step, "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	out, err := p.CombinedOutput()
	require.Error(t, err, string(out))
	status, ok := p.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "%v: %s", err, out)
}

// minuteLater ends the turn of a process that was killed or stopped.
func (b *archiveBundle) minuteLater(t *testing.T) {
	t.Helper()
	b.exec(t, `UPDATE archive_runs SET held_until = '-infinity'`)
}

// stoppedAt runs the real program, which stops itself at a step until it gets SIGCONT. It also returns what that says.
func (b *archiveBundle) stoppedAt(t *testing.T, step string, more ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	p := exec.CommandContext(ctx, os.Args[0], b.args(append([]string{"archive", "run", "--keep=2w", "--apply"}, more...)...)...)
	p.Env = []string{runMain + "=1", "DATABASE_URL=" + b.url, stopAt + "=" + step, "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	var said bytes.Buffer
	p.Stdout, p.Stderr = &said, &said
	require.NoError(t, p.Start())
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.Process.Pid) + "/stat")
		return err == nil && strings.Contains(string(stat), ") T ")
	}, 30*time.Second, 10*time.Millisecond)
	return p, &said
}

func TestArchive_ProcessThatSleptThroughItsTurn_DeletesNothingOfTheNextOne(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"clean", "upload", "read-back", "manifest", "written"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			sleptThrough(t, step)
		})
	}
}

func sleptThrough(t *testing.T, step string) {
	t.Helper()
	b := setupArchive(t, 50, 0)
	slept, said := b.stoppedAt(t, step+":1")
	b.minuteLater(t)

	assert.True(t, b.run(t).Parts[0].Archived)
	require.NoError(t, slept.Process.Signal(syscall.SIGCONT))
	require.Error(t, slept.Wait())
	assert.Contains(t, said.String(), archive.ErrHeld.Error())
	assert.NotContains(t, said.String(), "tickets are lost", "the next one has dropped the table")

	assert.Len(t, b.objects(t)["manifests"], 1)
	assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
	b.everywhere(t, b.ids[0], b.ids[49])
}

// late makes the archive as an attempt left it that was killed at a step, and returns a function that has it write all that again,
// as a request does that was held in the network. It writes a manifest, too.
func (b *archiveBundle) late(t *testing.T, step string) func() {
	t.Helper()
	b.killedAt(t, step)
	b.minuteLater(t)
	run := b.text(t, `SELECT runs[1]::text FROM archives`)
	held := map[string][]byte{"manifests/20260801-20260802." + run + ".json": []byte(`{"schema_version": 1, "part": "20260801-20260802", "run": "` + run + `"}`)}
	for _, kind := range b.objects(t) {
		for _, key := range kind {
			content, err := os.ReadFile(filepath.Join(b.folder, key))
			require.NoError(t, err)
			held[key] = content
		}
	}
	require.Len(t, held, 2)
	return func() {
		for key, content := range held {
			path := filepath.Join(b.folder, key)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.WriteFile(path, content, 0o600))
		}
	}
}

func TestArchive_WhatAnAttemptWritesLate_HidesNothing_AndIsDeleted(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 50, 0)
	before := b.text(t, allTickets)
	writeLate := b.late(t, "manifest:1")
	assert.True(t, b.run(t).Parts[0].Archived)
	right := b.objects(t)
	require.Len(t, right["manifests"], 1)
	require.Len(t, right["tickets"], 1)

	writeLate()
	require.Len(t, b.objects(t)["manifests"], 2)
	manifests := b.objects(t)["manifests"]
	assert.Equal(t, right["manifests"][0], manifests[1], "the last run sorts last, and counts")
	b.everywhere(t, b.ids[0], b.ids[49])
	assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
	b.run(t)
	assert.Equal(t, right, b.objects(t))

	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
	assert.Equal(t, before, b.text(t, allTickets))
	b.ok(t, b.args("archive", "release", "20260801-20260802")...)
	writeLate() // no attempt of the next part of this name, but this database knows it
	assert.True(t, b.run(t).Parts[0].Archived)
	b.inOneManifest(t)
}

func TestArchive_WhatAReleasedAttemptWritesLate_IsDeleted(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"file", "file and manifest", "file and manifest of a version before"} {
		for _, when := range []string{"before", "after"} {
			t.Run(what+" "+when+" the part is archived again", func(t *testing.T) {
				t.Parallel()
				b := setupArchive(t, 50, 0)
				writeLate := b.late(t, "manifest:1")
				run := b.text(t, `SELECT runs[1]::text FROM archives`)
				late := func(now string) {
					if now != when {
						return
					}
					writeLate()
					manifest := filepath.Join(b.folder, "manifests/20260801-20260802."+run+".json")
					switch what {
					case "file":
						require.NoError(t, os.Remove(manifest))
					case "file and manifest of a version before":
						require.NoError(t, os.Rename(manifest, filepath.Join(b.folder, "manifests/20260801-20260802.json")))
					}
				}
				b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
				b.ok(t, b.args("archive", "release", "20260801-20260802")...)
				late("before")
				assert.True(t, b.run(t).Parts[0].Archived)
				late("after")
				b.run(t)
				b.inOneManifest(t)
			})
		}
	}
}

// Otherwise no part of that name could be released any more in either of them: each has a manifest that the other does not know.
func TestArchive_TwoDatabasesAtOnce_OnlyOneWritesItsManifest(t *testing.T) {
	t.Parallel()
	slow, fast := setupArchive(t, 50, 0), setupArchive(t, 40, 0)
	fast.folder = slow.folder
	p, _ := slow.stoppedAt(t, "upload:1")
	assert.True(t, fast.run(t).Parts[0].Archived)
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	require.Error(t, p.Wait())

	parts := slow.parts(t)
	assert.Equal(t, archive.Detached, parts[0].State)
	assert.Contains(t, parts[0].Failure, archive.ErrForeign.Error())
	slow.everywhere(t, slow.ids[0], slow.ids[49])
	assert.Len(t, fast.objects(t)["manifests"], 1)
	assert.Len(t, fast.objects(t)["tickets"], 1, "the slow one deletes what it wrote, because it may use another prefix now")
	fast.everywhere(t, fast.ids[0], fast.ids[39])
	fast.ok(t, fast.args("archive", "restore", "20260801-20260802")...)
	fast.ok(t, fast.args("archive", "release", "20260801-20260802")...)
	assert.True(t, slow.run(t).Parts[0].Archived)
}

// A version before wrote the manifests of all attempts to one key.
func TestArchive_ManifestWithoutARunInItsKey_IsReadAndReleased(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"written:1", "drop:1", "done"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := setupArchive(t, 50, 0)
			if step == "done" {
				b.run(t)
			} else {
				b.killedAt(t, step)
				b.minuteLater(t)
			}
			shared := filepath.Join(b.folder, "manifests/20260801-20260802.json")
			require.NoError(t, os.Rename(b.manifestPath(t), shared))
			b.exec(t, `UPDATE archives SET manifest = 'manifests/20260801-20260802.json' WHERE manifest <> ''`)
			b.run(t)
			assert.Equal(t, archive.Archived, b.parts(t)[0].State)
			b.inOneManifest(t)
			b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
			b.ok(t, b.args("archive", "release", "20260801-20260802")...)
			assert.Empty(t, b.objects(t)["manifests"])
			assert.Empty(t, b.objects(t)["tickets"])
		})
	}
}

// Another process had the turn, and was done with it, while this one was stopped. What this one knows of parts is out of date
// then: it archived a partition again that had been restored in the meantime.
func TestArchive_ProcessThatSleptThroughItsTurn_DoesNotTakeItAgain(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 50, 0)
	b.run(t)
	b.exec(t, `CREATE TABLE tickets_20260802_20260803 PARTITION OF tickets FOR VALUES FROM ('2026-08-02') TO ('2026-08-03')`)
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, order_number, vat, total, parser_version)
		VALUES (gen_random_uuid(), '2026-08-02 01:00Z', 'till', 'x', 'TREATED', '1', 1, 1, 1)`)
	b.killedAt(t, "begin:1")
	b.minuteLater(t)

	slept, _ := b.stoppedAt(t, "file:1")
	time.Sleep(10 * time.Second) // so it keeps its turn at once when it wakes
	b.minuteLater(t)
	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
	require.NoError(t, slept.Process.Signal(syscall.SIGCONT))
	require.Error(t, slept.Wait())

	parts := b.parts(t)
	require.Len(t, parts, 2)
	assert.Equal(t, archive.Restored, parts[0].State)
	assert.Equal(t, "51", b.text(t, `SELECT ((SELECT count(*) FROM tickets) + (SELECT count(*) FROM `+parts[1].Table+`))::text`))
	for _, key := range b.objects(t)["manifests"] {
		assert.NotContains(t, key, archive.ManifestPrefix("20260801-20260802-2"), "its tickets are in two manifests")
	}
}

func TestArchive_RestoredPart_IsLeftAlone_UntilItIsReleased(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 30, 2)
	b.run(t)
	assert.Contains(t, b.ok(t, b.args("archive", "restore", "20260801-20260802")...), "30 tickets are in tickets again")
	assert.Equal(t, "32", b.text(t, `SELECT count(*)::text FROM tickets`))
	assert.Equal(t, archive.Restored, b.parts(t)[0].State)
	report := b.run(t)
	assert.Contains(t, report.Parts[0].Verdict, "left alone")
	assert.Contains(t, b.ok(t, "retention", "--keep=2w", "--drop-unarchived"), "kept: it was restored")
	code, _, stderr := b.myticket(t, b.args("archive", "restore", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "is restored: its tickets are in Postgres")

	b.exec(t, `DELETE FROM tickets WHERE id = $1`, b.ids[5])
	code, _, stderr = b.myticket(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "are not in Postgres")
	manifest := b.manifestPath(t)
	text, err := os.ReadFile(manifest)
	require.NoError(t, err)
	begin, _, _ := strings.Cut(string(text), `"files"`)
	require.NoError(t, os.WriteFile(manifest, []byte(begin+`"files": []}`), 0o600))
	code, _, stderr = b.myticket(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "its manifest was changed")
	assert.Len(t, b.objects(t)["manifests"], 1)

	b2 := setupArchive(t, 30, 2)
	b2.run(t)
	b2.ok(t, b2.args("archive", "restore", "20260801-20260802")...)
	b2.ok(t, b2.args("archive", "release", "20260801-20260802")...)
	assert.Empty(t, b2.objects(t)["manifests"])
	assert.Empty(t, b2.objects(t)["tickets"])
	b2.run(t)
	assert.Len(t, b2.objects(t)["manifests"], 1)
	assert.Equal(t, "2", b2.text(t, `SELECT count(*)::text FROM tickets`))
}

// The archive may be gone for good while a part is only detached. Then nothing but this brings its tickets back into lists.
func TestArchive_PartThatIsOnlyDetached_IsRestoredWithoutTheArchive(t *testing.T) {
	t.Parallel()
	for step, state := range map[string]archive.State{
		"file:1": archive.Detached, "manifest:1": archive.Detached, "written:1": archive.Detached, "drop:1": archive.Verified,
	} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := setupArchive(t, 30, 2)
			before := b.text(t, allTickets)
			b.killedAt(t, step)
			b.minuteLater(t)
			require.Equal(t, state, b.parts(t)[0].State)
			require.Equal(t, "2", b.text(t, `SELECT count(*)::text FROM tickets`))
			b.exec(t, `ALTER TABLE `+b.parts(t)[0].Table+` ADD CONSTRAINT restored CHECK (true)`) // of an attempt that was killed
			there := b.folder
			b.folder = filepath.Join(t.TempDir(), "gone")
			require.NoError(t, os.Mkdir(b.folder, 0o700))

			assert.Contains(t, b.ok(t, b.args("archive", "restore", "20260801-20260802")...), "tickets are in tickets again")
			assert.Equal(t, before, b.text(t, allTickets))
			p := b.parts(t)[0]
			assert.Equal(t, archive.Restored, p.State)
			assert.Empty(t, b.text(t, `SELECT coalesce(obj_description('`+p.Table+`'::regclass), '')`))
			code, _, stderr := b.myticket(t, b.args("archive", "restore", "20260801-20260802")...)
			assert.Equal(t, 1, code)
			assert.Contains(t, stderr, "is restored")
			b.folder = there
			assert.Contains(t, b.run(t).Parts[0].Verdict, "left alone")
			b.ok(t, b.args("archive", "verify")...)
			missing := b.ids[0]
			missing[15]++
			code, _, stderr = b.myticket(t, b.args("tickets", "show", missing.String())...)
			assert.Equal(t, 1, code)
			assert.NotContains(t, stderr, "manifest")

			b.ok(t, b.args("archive", "release", "20260801-20260802")...)
			assert.Empty(t, b.objects(t)["manifests"])
			assert.Empty(t, b.objects(t)["tickets"])
			assert.True(t, b.run(t).Parts[0].Archived)
			b.everywhere(t, b.ids[0], b.ids[29])
		})
	}
}

func TestArchive_PartWhoseArchiveIsGone_IsReleasedIfItsTableWasNeverDropped(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 30, 0)
	b.killedAt(t, "written:1")
	b.minuteLater(t)
	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
	b.folder = t.TempDir()
	code, _, stderr := b.myticket(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "or --archive-gone")
	b.ok(t, b.args("archive", "release", "20260801-20260802", "--archive-gone")...)
	assert.Empty(t, b.parts(t))
	assert.Equal(t, "true", b.text(t, `SELECT details->>'archive_gone' FROM audit WHERE action = 'archive.release'`))
	assert.True(t, b.run(t).Parts[0].Archived)
	b.everywhere(t, b.ids[0], b.ids[29])

	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
	b.exec(t, `DELETE FROM tickets WHERE id = $1`, b.ids[5])
	code, _, stderr = b.myticket(t, b.args("archive", "release", "20260801-20260802", "--archive-gone")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "was in the archive alone")
	assert.Len(t, b.objects(t)["manifests"], 1)
}

// What an attempt wrote to another URL would stay there when the part is released: a manifest of tickets that are archived again.
func TestArchive_PartThatWasOnlyDetached_IsReleasedOnlyWhereItsAttemptsWrote(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 30, 0)
	b.killedAt(t, "written:1")
	b.minuteLater(t)
	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
	there := b.folder
	b.folder = t.TempDir()
	code, _, stderr := b.myticket(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "it was written to file://"+there)
	b.folder = there

	runs := b.text(t, `SELECT runs::text FROM archives`)
	b.exec(t, `UPDATE archives SET runs = '{}'`) // as one that a stopped process wrote, whose part was released meanwhile
	code, _, stderr = b.myticket(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, archive.ErrForeign.Error(), "to wait a minute would not help")
	assert.Len(t, b.objects(t)["manifests"], 1)

	b.exec(t, `UPDATE archives SET runs = $1`, runs)
	b.ok(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Empty(t, b.objects(t)["manifests"])
	assert.True(t, b.run(t).Parts[0].Archived)
}

// Its table was never dropped, so what became of the archive does not matter.
func TestArchive_PartThatWasOnlyVerified_IsReleasedEvenIfTheArchiveIsDamaged(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{"manifests", "tickets"} {
		t.Run(damage, func(t *testing.T) {
			t.Parallel()
			b := setupArchive(t, 30, 0)
			b.killedAt(t, "drop:1")
			b.minuteLater(t)
			require.NoError(t, os.WriteFile(filepath.Join(b.folder, b.objects(t)[damage][0]), []byte("{"), 0o600))
			b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
			b.ok(t, b.args("archive", "verify")...)
			b.ok(t, b.args("archive", "release", "20260801-20260802")...)
			assert.Empty(t, b.objects(t)["manifests"])
			assert.True(t, b.run(t).Parts[0].Archived)
			b.ok(t, b.args("archive", "verify")...)
			b.everywhere(t, b.ids[0], b.ids[29])
		})
	}
}

// A process that was stopped while it read the table has it locked.
func TestArchive_RestoreOfADetachedPart_DoesNotWaitLongForOneWhoReadsIt(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 30, 0)
	b.killedAt(t, "begin:1")
	b.minuteLater(t)
	reader, err := pgx.Connect(t.Context(), b.url)
	require.NoError(t, err)
	_, err = reader.Exec(t.Context(), `BEGIN; SELECT FROM `+b.parts(t)[0].Table)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := exec.CommandContext(ctx, os.Args[0], b.args("archive", "restore", "20260801-20260802")...)
	p.Env = []string{runMain + "=1", "DATABASE_URL=" + b.url, "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	out, err := p.CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "lock timeout")
	b.everywhere(t, b.ids[0])
	require.NoError(t, reader.Close(t.Context()))
	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
}

func TestArchive_StoreThatChangesOrLosesBytes_IsNoticed(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 30, 0)
	b.run(t)
	file := filepath.Join(b.folder, b.objects(t)["tickets"][0])
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	for what, content := range map[string][]byte{
		"one bit":   append(append([]byte{}, good[:50]...), append([]byte{good[50] ^ 1}, good[51:]...)...),
		"its end":   good[:len(good)-1],
		"all of it": {},
	} {
		require.NoError(t, os.WriteFile(file, content, 0o600))
		code, out, stderr := b.myticket(t, b.args("archive", "verify")...)
		assert.Equal(t, 1, code, what)
		assert.Contains(t, out+stderr, archive.ErrDamaged.Error(), what)
		code, _, _ = b.myticket(t, b.args("archive", "restore", "20260801-20260802")...)
		assert.Equal(t, 1, code, what)
		assert.Equal(t, "0", b.text(t, `SELECT count(*)::text FROM tickets`), what)
	}
	require.NoError(t, os.WriteFile(file, good, 0o600))
	require.NoError(t, os.Remove(b.manifestPath(t)))
	code, out, _ := b.myticket(t, b.args("archive", "verify")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "no manifest")
}

func TestArchive_VerifiedPartWhoseFilesVanish_IsNotDropped(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 30, 0)
	b.killedAt(t, "drop:1")
	require.NoError(t, os.RemoveAll(filepath.Join(b.folder, "tickets")))
	b.minuteLater(t)
	code, _, stderr := b.myticket(t, b.args("archive", "run", "--keep=2w", "--apply")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, archive.ErrDamaged.Error())
	b.everywhere(t, b.ids[0])
	require.True(t, b.run(t).Parts[0].Archived)
	b.everywhere(t, b.ids...)
}

func TestArchive_NeverOverwritesAPartOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	b, other := setupArchive(t, 10, 0), setupArchive(t, 10, 0)
	b.run(t)
	other.folder = b.folder
	code, _, stderr := other.myticket(t, other.args("archive", "run", "--keep=2w", "--apply")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "which this database does not know")
	b.everywhere(t, b.ids[0])
	other.everywhere(t, other.ids[0]) // in its detached table
	assert.Contains(t, b.ok(t, b.args("archive", "verify")...), "right")
}

func TestArchive_OnlyOneProcessArchives(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 10, 0)
	b.exec(t, `UPDATE archive_runs SET holder = gen_random_uuid(), held_until = now() + interval '30 s'`)
	code, _, stderr := b.myticket(t, b.args("archive", "run", "--keep=2w", "--apply")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "another process archives")
	assert.Equal(t, "10", b.text(t, `SELECT count(*)::text FROM tickets`))
}

func TestArchive_PartitionThatASubscriptionHasNotRead_IsKept(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 10, 0)
	b.exec(t, `INSERT INTO subscriptions (name, target) VALUES ('erp', 'https://example.com')`)
	b.exec(t, `INSERT INTO outbox (kind, tickets, at) VALUES ('stored', '', '2026-08-01 12:00Z')`)
	b.exec(t, `INSERT INTO outbox_readers (name, system_identifier, xid, at)
		SELECT 'subscription/erp', system_identifier, '0', now() FROM pg_control_system()`)
	assert.Contains(t, b.run(t).Parts[0].Verdict, "not all its events are delivered")
	assert.Contains(t, b.ok(t, "retention", "--keep=2w", "--drop-unarchived"), "not all its events are delivered")
	assert.True(t, b.run(t, "--undelivered").Parts[0].Archived)
}

func TestArchive_RefusesWrongSettings(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for args, want := range map[string]string{
		"--keep=1h --archive=file:///x":                                  "--keep must be at least 1d",
		"--keep=2w --archive=s3://u:secret@x":                            "must not have a password",
		"--keep=2w --archive=s3://b?endpoint=http://u:secret@x":          "must not have a password",
		"--keep=2w --archive=ftp://x":                                    "must be s3://",
		"--keep=2w --archive=file:///x --by=" + strings.Repeat("x", 201): "--by has 201 bytes",
	} {
		code, _, stderr := b.myticket(t, append([]string{"archive", "run"}, strings.Fields(args)...)...)
		assert.Equal(t, 2, code, args)
		assert.Contains(t, stderr, want, args)
		assert.NotContains(t, stderr, "secret", args)
	}
	_, _, stderr := b.myticket(t, "archive", "run", "--keep=2w", "--apply", "--archive=file:///no/such/folder")
	assert.Contains(t, stderr, "is no folder")
}

func TestArchive_StoreThatIsAway_LeavesPartitionsWhereListsShowThem(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 10, 0)
	code, _, stderr := b.myticket(t, "archive", "run", "--keep=2w", "--apply", "--tmp=/no/such/folder", "--archive=file://"+b.folder)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "no partition was detached")
	assert.Equal(t, "10", b.text(t, `SELECT count(*)::text FROM tickets`))
	assert.Empty(t, b.parts(t))

	require.NoError(t, os.WriteFile(filepath.Join(b.folder, "probe"), nil, 0o600)) // so the folder for the probe cannot be made
	code, _, stderr = b.myticket(t, b.args("archive", "run", "--keep=2w", "--apply")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "no partition was detached")
	assert.Equal(t, "10", b.text(t, `SELECT count(*)::text FROM tickets`))
	require.NoError(t, os.Remove(filepath.Join(b.folder, "probe")))
	assert.True(t, b.run(t).Parts[0].Archived)
	assert.Empty(t, b.objects(t)["probe"])
}

func TestArchive_PartitionWithManyBytesThatAreUnfinished_StaysWhole(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 10, 70)
	b.exec(t, `UPDATE tickets SET body = convert_to(repeat('x', 1 << 20), 'UTF8') WHERE status = 'ERROR'`)
	assert.Contains(t, b.run(t).Parts[0].Verdict, "more than 64 MiB of them")
	assert.Equal(t, "80", b.text(t, `SELECT count(*)::text FROM tickets`))
}

func TestArchive_PartOfAnotherURL_IsNeitherForgottenNorWrittenAgain(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 30, 0)
	right, wrong := b.folder, t.TempDir()
	b.killedAt(t, "drop:1")
	b.minuteLater(t)
	b.folder = wrong
	code, _, stderr := b.myticket(t, b.args("archive", "run", "--keep=2w", "--apply")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "was written to file://"+right)
	damaged := filepath.Join(wrong, b.parts(t)[0].Manifest) // of a copy
	require.NoError(t, os.MkdirAll(filepath.Dir(damaged), 0o700))
	require.NoError(t, os.WriteFile(damaged, []byte("{"), 0o600))
	code, _, stderr = b.myticket(t, b.args("archive", "run", "--keep=2w", "--apply")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "was written to file://"+right)
	assert.Equal(t, archive.Verified, b.parts(t)[0].State)
	require.NoError(t, os.RemoveAll(filepath.Dir(damaged)))
	b.folder = right
	assert.True(t, b.run(t).Parts[0].Archived)

	b.ok(t, b.args("archive", "restore", "20260801-20260802")...)
	b.exec(t, `DELETE FROM tickets WHERE id = $1`, b.ids[5])
	b.folder = wrong
	code, _, stderr = b.myticket(t, b.args("archive", "release", "20260801-20260802")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "was written to file://"+right)
	assert.Equal(t, archive.Restored, b.parts(t)[0].State)
	assert.Empty(t, b.objects(t))
}

func TestArchive_ManifestThatLostItsFiles_HidesNoTicket(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 10, 0)
	b.run(t)
	path := b.manifestPath(t)
	var m map[string]any
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &m))
	m["files"] = []any{}
	text, err = json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
	code, _, stderr := b.myticket(t, b.args("tickets", "show", b.ids[0].String())...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "its manifest was changed")
}

func TestArchive_PartitionThatCouldNeverBeArchived_IsNotDetached(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 10, 0)
	b.exec(t, `INSERT INTO audit (at, who, action, why, details, tickets, filter)
		SELECT '2026-08-01 03:00Z', 'me', 'retry', 'why', '{}', 1, '{}' FROM generate_series(1, 100001)`)
	code, _, stderr := b.myticket(t, b.args("archive", "run", "--keep=2w", "--apply")...)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "more than 100000 corrections or rows of the audit")
	assert.Equal(t, "10", b.text(t, `SELECT count(*)::text FROM tickets`))
	assert.Empty(t, b.parts(t))
}

func TestArchive_UnfinishedTicketsBesideALargeDefaultPartition_StayWhereTheyAre(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 10, 2)
	b.exec(t, `ALTER TABLE tickets_default ALTER body SET STORAGE PLAIN`)
	b.exec(t, `INSERT INTO tickets (id, received_at, source, status, body)
		SELECT gen_random_uuid(), '2031-01-01', 'till', 'TREATED', convert_to(repeat('x', 7500), 'UTF8') FROM generate_series(1, 5000)`)
	report := b.run(t)
	assert.Contains(t, report.Parts[0].Verdict, "that has more than 32 MiB: the servers empty it in the background")
	assert.Empty(t, b.parts(t))
	assert.Equal(t, "5012", b.text(t, `SELECT count(*)::text FROM tickets`))

	b.exec(t, `DELETE FROM tickets WHERE received_at = '2031-01-01'`)
	b.exec(t, `VACUUM (TRUNCATE) tickets_default`)
	report = b.run(t)
	assert.True(t, report.Parts[0].Archived, report.Parts[0].Verdict)
	assert.Equal(t, "2", b.text(t, `SELECT count(*)::text FROM tickets`))
}
