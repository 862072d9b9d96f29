package main

import (
	"context"
	"errors"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/lab"
)

const (
	s3Key    = "archive"
	s3Secret = "not-to-be-seen"
)

// s3Store is a real S3 server (versitygw), and what stands before it and breaks what goes through it.
type s3Store struct {
	folder string       // where the server keeps the objects of the bucket
	fault  atomic.Value // a func(w http.ResponseWriter, r *http.Request) bool; true if it has answered
	hits   atomic.Int64 // of the fault
	url    string       // of the archive
}

type s3Fault func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool

// startS3 starts a server with a bucket, which only this test uses.
func startS3(t *testing.T) *s3Store {
	t.Helper()
	program, err := filepath.Abs("../../bin/e2e/versitygw")
	require.NoError(t, err)
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: make bin/e2e/versitygw", err)
		}
		t.Skip("the S3 server for this test is missing: make bin/e2e/versitygw (make test does)")
	}
	port, err := lab.FreePort(t.Context())
	require.NoError(t, err)
	root, meta, address := t.TempDir(), t.TempDir(), fmt.Sprintf("127.0.0.1:%d", port)
	log, err := os.Create(filepath.Join(t.TempDir(), "versitygw.log"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = log.Close() })
	server := exec.CommandContext(context.WithoutCancel(t.Context()), program, "--port", address, "--access", s3Key, "--secret", s3Secret,
		"posix", "--sidecar", meta, root)
	server.Stdout, server.Stderr = log, log
	running, err := lab.Start(server, syscall.SIGKILL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = running.Stop(5 * time.Second) })
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 30*time.Second, 20*time.Millisecond, "versitygw does not listen: see %s", log.Name())
	out, err := exec.CommandContext(t.Context(), program, "admin", "--access", s3Key, "--secret", s3Secret, "--endpoint-url", "http://"+address,
		"create-bucket", "--bucket", "receipts", "--owner", s3Key).CombinedOutput()
	require.NoError(t, err, string(out))

	s := &s3Store{folder: filepath.Join(root, "receipts")}
	s.heal()
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: address})
		r.Out.Host = r.In.Host // it is signed
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault, ok := s.fault.Load().(s3Fault); ok && fault(w, r, pass) {
			s.hits.Add(1)
			return
		}
		pass.ServeHTTP(w, r)
	}))
	front.Config.ErrorLog = nil
	t.Cleanup(front.Close)
	s.url = "s3://receipts?region=us-east-1&use_path_style=true&endpoint=" + front.URL
	return s
}

func (s *s3Store) breaks(fault s3Fault) { s.fault.Store(fault); s.hits.Store(0) }

func (s *s3Store) heal() {
	s.fault.Store(s3Fault(func(http.ResponseWriter, *http.Request, http.Handler) bool { return false }))
}

// ofTickets reports whether a request is about a file with tickets.
func ofTickets(r *http.Request, method string) bool {
	return r.Method == method && strings.HasPrefix(r.URL.Path, "/receipts/tickets/")
}

// reset ends the connection of a request as a network that breaks does.
func reset(w http.ResponseWriter) bool {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	return true
}

// program runs the real program, with the credentials of the store.
func (s *s3Store) program(t *testing.T, b *archiveBundle, args ...string) (code int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	p := exec.CommandContext(ctx, os.Args[0], append(args, "--archive="+s.url)...)
	p.Env = []string{
		runMain + "=1", "DATABASE_URL=" + b.url, "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "AWS_ACCESS_KEY_ID=" + s3Key,
		"AWS_SECRET_ACCESS_KEY=" + s3Secret, "AWS_EC2_METADATA_DISABLED=true",
	}
	all, err := p.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(t, err, string(all))
	}
	assert.NotContains(t, string(all), s3Secret)
	return p.ProcessState.ExitCode(), string(all)
}

// fails runs the archive, which must fail with these words and lose nothing.
func (s *s3Store) fails(t *testing.T, b *archiveBundle, words ...string) {
	t.Helper()
	code, out := s.program(t, b, "archive", "run", "--keep=2w", "--apply")
	assert.Equal(t, 1, code, out)
	for _, want := range words {
		assert.Contains(t, out, want)
	}
	assert.Positive(t, s.hits.Load(), "the fault was not met")
	manifests, _ := filepath.Glob(filepath.Join(s.folder, "manifests", "*"))
	assert.Empty(t, manifests)
	b.everywhere(t, b.ids[0], b.ids[len(b.ids)-1]) // without the store
}

// endsWell runs the archive again, and looks for the tickets there.
func (s *s3Store) endsWell(t *testing.T, b *archiveBundle) {
	t.Helper()
	s.heal()
	code, out := s.program(t, b, "archive", "run", "--keep=2w", "--apply")
	require.Equal(t, 0, code, out)
	assert.Contains(t, out, "archived, verified and dropped")
	assert.Equal(t, "0", b.text(t, `SELECT count(*)::text FROM tickets`))
	code, out = s.program(t, b, "archive", "verify")
	assert.Equal(t, 0, code, out)
	for _, id := range []uuid.UUID{b.ids[0], b.ids[len(b.ids)-1]} {
		code, out = s.program(t, b, "tickets", "show", id.String(), "--raw")
		assert.Equal(t, 0, code, out)
		assert.Contains(t, out, "Total: 16.90")
	}
	files, _ := filepath.Glob(filepath.Join(s.folder, "tickets", "*", "*.parquet"))
	assert.Len(t, files, 1, "no file of the runs before is left")
}

func TestArchiveS3_UploadThatIsCutOff_LosesNothing(t *testing.T) {
	t.Parallel()
	b, s := setupArchive(t, 400, 0), startS3(t)
	b.bulky(t)
	s.breaks(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !ofTickets(r, http.MethodPut) {
			return false
		}
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		return reset(w)
	})
	s.fails(t, b, "write tickets/day=2026-08-01/part-20260801-20260802.", "in the archive", "tried again by the next run")

	s.breaks(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool { // and what is read back
		if !ofTickets(r, http.MethodGet) {
			return false
		}
		back := httptest.NewRecorder()
		pass.ServeHTTP(back, r)
		w.Header().Set("Content-Length", back.Header().Get("Content-Length"))
		_, _ = w.Write(back.Body.Bytes()[:back.Body.Len()/2])
		return reset(w)
	})
	s.fails(t, b, "read tickets/day=2026-08-01/part-20260801-20260802.", "tried again by the next run")
	s.endsWell(t, b)
}

func TestArchiveS3_StoreThatSaysYesAndLies_IsNoticedBeforeAnythingIsDropped(t *testing.T) {
	t.Parallel()
	// kept changes what the server has kept of an upload, after it said yes.
	kept := func(change func(path string) error) func(s *s3Store) s3Fault {
		return func(s *s3Store) s3Fault {
			return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
				if !ofTickets(r, http.MethodPut) {
					return false
				}
				pass.ServeHTTP(w, r)
				assert.NoError(t, change(filepath.Join(s.folder, strings.TrimPrefix(r.URL.Path, "/receipts/"))))
				return true
			}
		}
	}
	for name, fault := range map[string]func(s *s3Store) s3Fault{
		"it keeps nothing": kept(os.Remove),
		"it keeps half": kept(func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()/2)
		}),
		"it keeps other bytes": kept(func(path string) error {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content[len(content)/3] ^= 1
			return os.WriteFile(path, content, 0o600)
		}),
		"it loses the file when it was read back": func(s *s3Store) s3Fault {
			return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
				if !ofTickets(r, http.MethodGet) {
					return false
				}
				pass.ServeHTTP(w, r)
				assert.NoError(t, os.Remove(filepath.Join(s.folder, strings.TrimPrefix(r.URL.Path, "/receipts/"))))
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, s := setupArchive(t, 30, 0), startS3(t)
			s.breaks(fault(s))
			s.fails(t, b, "the archive does not have what was written to it", "tried again by the next run")
			s.endsWell(t, b)

			files, err := filepath.Glob(filepath.Join(s.folder, "*s", "*", "*.parquet"))
			require.NoError(t, err)
			require.NotEmpty(t, files)
			content, err := os.ReadFile(files[0])
			require.NoError(t, err)
			content[len(content)/2] ^= 1
			require.NoError(t, os.WriteFile(files[0], content, 0o600))
			code, out := s.program(t, b, "archive", "verify")
			assert.Equal(t, 1, code)
			assert.Contains(t, out, "1 parts are not in the archive as they were written", "later, too, it is named and not only an error")
		})
	}
}

func TestArchiveS3_ClocksThatDiffer_AreNamed(t *testing.T) {
	t.Parallel()
	b, s := setupArchive(t, 30, 0), startS3(t)
	s.breaks(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.Header().Set("Content-Type", "application/xml")
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>RequestTimeTooSkewed</Code>`+
			`<Message>The difference between the request time and the current time is too large.</Message></Error>`)
		return true
	})
	s.fails(t, b, "no partition was detached", "the clocks of this machine and of the store differ", "RequestTimeTooSkewed")
	assert.Equal(t, "30", b.text(t, `SELECT count(*)::text FROM tickets`), "lists still show them")
	s.endsWell(t, b)
}

func TestArchive_FolderForTemporaryFilesThatIsFull_LosesNothing(t *testing.T) {
	t.Parallel()
	b := setupArchive(t, 1000, 0)
	b.bulky(t)
	fill := func(dir string) (name string) {
		file, err := os.Create(filepath.Join(dir, "other"))
		require.NoError(t, err)
		for err == nil {
			_, err = file.Write(make([]byte, 4096))
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.NoError(t, file.Close())
		return file.Name()
	}
	full := mount(t, "size=3m")
	fill(full)
	noInode := mount(t, "size=3m,nr_inodes=1")
	for dir, want := range map[string]string{full: "has 0 MiB free, and 2 are needed", noInode: "is full"} {
		code, _, stderr := b.myticket(t, b.args("archive", "run", "--keep=2w", "--apply", "--file-size=1MiB", "--tmp="+dir)...)
		assert.Equal(t, 1, code)
		assert.Contains(t, stderr, want)
		assert.Contains(t, stderr, "(--tmp)")
		assert.Contains(t, stderr, "The tickets stay in Postgres")
		assert.Contains(t, stderr, "no partition was detached")
	}

	dir := mount(t, "size=3m") // becomes full between the upload and the check
	p, out := b.stoppedAt(t, "upload:1", "--file-size=1MiB", "--tmp="+dir)
	other := fill(dir)
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	require.Error(t, p.Wait())
	assert.Contains(t, out.String(), "make room, or give another one (--tmp). The tickets stay in Postgres")
	assert.Empty(t, b.objects(t)["manifests"])
	b.everywhere(t, b.ids[0], b.ids[999])

	require.NoError(t, os.Remove(other))
	assert.True(t, b.run(t, "--file-size=1MiB", "--tmp="+dir).Parts[0].Archived)
	b.everywhere(t, b.ids[0], b.ids[999])
}
