package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"myticket/internal/admin"
	"myticket/internal/spool"
)

const noStart = "A server with these settings does not start."

func (e *examination) checkSettings(context.Context) finding {
	err := e.Validate()
	if err == nil {
		if sources, unread := e.sources(); unread == nil { // that it cannot be read is another finding
			err = e.checkKeyTTL(sources)
		}
	}
	if err != nil {
		return finding{Status: isProblem, Found: oneLine(err), Means: noStart, Do: "Correct the setting (docs/settings.md)."}
	}
	return well("the settings of a server fit each other")
}

func (e *examination) checkSources(context.Context) finding {
	sources, err := e.sources()
	if err != nil {
		return finding{Status: isProblem, Found: oneLine(err), Means: noStart, Do: "Correct the file (docs/webhook.md)."}
	}
	open, held := sources.Open(), sources.OnHold()
	switch {
	case e.SourcesFile == "":
		return well("no --sources-file: every source may send, without credentials")
	case sources.None():
		return finding{
			Status: isProblem, Found: "the sources file names no source", Means: "Every ticket is refused with 403.",
			Do: `Name the sources that may send, or "*" for all (docs/webhook.md).`,
		}
	case len(held) > 0:
		return finding{
			Status: isWarning, Found: "on hold: " + some(held),
			Means: "Tickets of these sources are not stored, but answered 503, so that they are sent again.",
			Do:    `Once they have moved (docs/scaling.md), or to take them here again, take "hold" out of the sources file and restart.`,
		}
	case len(open) > 0:
		return well("the sources file is right; without credentials may send: %s", some(open))
	}
	return well("the sources file is right, and every source needs credentials")
}

func (e *examination) checkMemory(context.Context) finding {
	memory, from := memoryLimit("")
	limits := e.deriveLimits(memory)
	f := well("a server uses at most %s of %s (%s)",
		humanize.IBytes(uint64(e.memoryNeeded(limits))), humanize.IBytes(uint64(memory)), from)
	if warnings := e.limitWarnings(limits, memory); len(warnings) > 0 {
		worst := warnings[0]
		f.Status, f.Means, f.Do = isWarning, upper(worst.means)+".", upper(worst.do)+"."
		if worst.found != "" {
			f.Found = worst.found
		}
	}
	return f
}

// upper makes a part of a sentence the beginning of one.
func upper(s string) string {
	if strings.HasPrefix(s, "--") {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// filesBesides is how many files a server may need besides connections and files of its spool.
const filesBesides = 64

func (e *examination) checkOpenFiles(context.Context) finding {
	limit, known := openFilesLimit()
	if !known {
		return skipped("not known on this system")
	}
	memory, _ := memoryLimit("")
	need := uint64(e.deriveLimits(memory).connections + e.DatabaseMaxConns + filesBesides)
	if e.SpoolDir != "" {
		need += uint64(e.SpoolMaxBytes)/spool.SegmentBytes + 1
	}
	f := well("this user may have %d files open, and a server needs at most %d", limit, need)
	if limit < need {
		f.Status = isWarning
		f.Means = "A server that may open no more files refuses connections, and its spool takes no tickets."
		f.Do = "Raise the limit (ulimit -n, or LimitNOFILE of the unit), or lower --max-connections."
	}
	return f
}

// spoolProbe is the file that tries whether the spool's folder can be written. A spool knows it for none of its files.
const spoolProbe = ".myticket-doctor-*"

// slowSync is how long a write to a spool may take. Each ticket in it waits for one.
const slowSync = 500 * time.Millisecond

func (e *examination) checkSpool(context.Context) finding {
	const unsafe = "While Postgres is away or behind, tickets are not kept: senders get 503 and have to send again."
	if e.SpoolDir == "" {
		return finding{
			Status: isWarning, Found: "no --spool-dir", Means: unsafe,
			Do: "Give each server a folder on a durable disk (docs/durability.md).",
		}
	}
	info, err := os.Stat(e.SpoolDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(filepath.Clean(e.SpoolDir))); err != nil {
			return finding{
				Status: isProblem, Found: fmt.Sprintf("neither %s nor the folder above it exists", e.SpoolDir), Means: noStart,
				Do: "Mount the disk, or make the folder above it.",
			}.see("MyticketSpoolFailing")
		}
		return finding{
			Status: isWarning, Found: e.SpoolDir + " does not exist",
			Means: "No server has run on it, or its disk is not mounted. A server that starts makes it, empty.",
			Do:    "If a server has run here, mount the disk before it starts again: its spool may hold tickets.",
		}.see("MyticketSpoolFailing")
	case err == nil && !info.IsDir():
		err = fmt.Errorf("%s is not a folder", e.SpoolDir)
	}
	var took time.Duration
	if err == nil {
		took, err = tryFolder(e.SpoolDir)
	}
	if err != nil {
		return finding{
			Status: isProblem, Found: "the spool's folder takes no files: " + oneLine(err), Means: unsafe,
			Do: "Make room on the disk, mount it for writing, or let this user write to the folder.",
		}.see("MyticketSpoolFailing")
	}
	f := well("%s takes files; fsync took %s", e.SpoolDir, took.Round(10*time.Microsecond))
	if took > slowSync {
		f.Status, f.Means = isWarning, "Tickets that are spooled are answered late, or are refused with 503."
		f.Do = "Find out what else uses the disk, or give the spool a faster one."
	}
	return f
}

// tryFolder makes a small file in a folder, writes it to the disk, and removes it.
func tryFolder(dir string) (took time.Duration, err error) {
	began := time.Now()
	file, err := os.CreateTemp(dir, spoolProbe)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(file.Name())) }()
	_, err = file.Write(make([]byte, 4096))
	err = errors.Join(err, file.Sync())
	return time.Since(began), errors.Join(err, file.Close())
}

// reserve is the least room and the fewest files that a spool's disk should have left.
const reserveBytes, reserveFiles = 64 << 20, 100

func (e *examination) checkSpoolDisk(context.Context) finding {
	if e.SpoolDir == "" {
		return skipped("no --spool-dir")
	}
	d, known, err := diskOf(e.SpoolDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return skipped("%s does not exist", e.SpoolDir)
	case err != nil:
		return cannotSay(err)
	case !known:
		return skipped("not known on this system")
	}
	used, err := sizeOf(e.SpoolDir)
	if err != nil {
		return cannotSay(err)
	}
	need := uint64(e.SpoolMaxBytes) / 4 * 5 // the files are larger than the tickets in them: --spool-max-bytes
	f := well("%s are free, for a spool of up to %s", humanize.IBytes(d.free), humanize.IBytes(uint64(e.SpoolMaxBytes)))
	f.Means = "A spool that cannot grow takes no more tickets: while Postgres is away, they are answered 503."
	f.Do = "Make room, take a larger disk, or lower --spool-max-bytes."
	switch {
	case d.free < reserveBytes || !d.noInodes && d.inodes < reserveFiles:
		f.Status = isProblem
		if !d.noInodes && d.inodes < reserveFiles {
			f.Found = fmt.Sprintf("the disk can take only %d more files", d.inodes)
		}
	case d.free+used < need:
		f.Status = isWarning
		f.Found += fmt.Sprintf(", which needs %s on the disk", humanize.IBytes(need))
	case d.volatile != "":
		f.Status, f.Found = isWarning, "the folder is in "+d.volatile
		f.Means = "Tickets in the spool were answered 202."
		f.Do = "Put the spool on a disk that outlives the server."
	default:
		f.Means, f.Do = "", ""
		return f
	}
	return f.see("MyticketSpoolFilling")
}

// sizeOf returns how many bytes the files of a folder have.
func sizeOf(dir string) (bytes uint64, err error) {
	files, err := os.ReadDir(dir)
	for _, file := range files {
		if info, err := file.Info(); err == nil { // it may be drained meanwhile
			bytes += uint64(info.Size())
		}
	}
	return bytes, err
}

// spoolContent is what a spool holds.
type spoolContent struct {
	tickets, maxTickets, bytes, maxBytes, aside float64
	age                                         time.Duration
	by                                          string // who says so
}

// When a spool is filling or old, as in the alerts (charts/alerts).
const (
	halfFull   = 0.5
	almostFull = 0.8
	oldSpool   = 30 * time.Minute
)

func (e *examination) checkSpoolTickets(ctx context.Context) finding {
	if e.SpoolDir == "" {
		return skipped("no --spool-dir")
	}
	g, err := spool.LookInto(e.SpoolDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return skipped("%s does not exist", e.SpoolDir)
	case err != nil:
		return cannotSay(err)
	}
	have := spoolContent{
		tickets: float64(g.Tickets), maxTickets: float64(e.SpoolMaxTickets),
		bytes: float64(g.Bytes), maxBytes: float64(e.SpoolMaxBytes), aside: float64(g.Aside), by: "by its files",
	}
	if !g.Oldest.IsZero() {
		have.age = max(0, time.Since(g.Oldest))
	}
	if g.InUse {
		if have, err = e.askServer(ctx); err != nil {
			return skipped("a server uses the folder, and cannot be asked what it holds: %s", oneLine(err))
		}
	}
	f := have.finding(g.InUse)
	if g.Unknown > 0 && f.Status != isProblem {
		f = cannotSay(fmt.Errorf("%d of its files cannot be read by this user, so they may hold tickets", g.Unknown))
		f.Do = "Run the command as the user of the server, who owns the files."
	}
	return f
}

func (s spoolContent) finding(inUse bool) finding {
	f := well("it holds %.0f tickets (%s)", s.tickets, s.by)
	fill := max(s.tickets/s.maxTickets, s.bytes/s.maxBytes)
	if s.tickets > 0 {
		f.Found = fmt.Sprintf("it holds %.0f tickets, the oldest for %s, and is full to %.0f %% (%s)",
			s.tickets, s.age.Round(time.Second), 100*fill, s.by)
	}
	switch {
	case s.aside > 0:
		f.Status, f.Found = isProblem, f.Found+fmt.Sprintf("; %.0f files are set aside", s.aside)
		f.Means = "They are damaged, or hold tickets that Postgres refuses: tickets that were answered 202 may be in them alone."
		f.Do = "Keep them, and look at them as the runbook says."
		return f.see("MyticketSpoolFilesAside")
	case fill > halfFull:
		f.Status = isWarning
		if fill > almostFull {
			f.Status = isProblem
		}
		f.Means = "They are safe, and are stored when Postgres takes tickets again. When the spool is full, tickets are answered 503."
		f.Do = "Have Postgres take tickets again (see the checks of the database)."
		return f.see("MyticketSpoolFilling")
	case s.tickets > 0 && !inUse:
		f.Status, f.Means = isWarning, "They are safe, but no server seems to drain them."
		f.Do = `Start the server on this folder, or store them with "myticket spool drain".`
		return f.see("MyticketSpoolLeftBehind")
	case s.tickets > 0 && s.age > oldSpool:
		f.Status, f.Means = isWarning, "They are safe, but not in Postgres yet."
		f.Do = "Look at the checks of the database, and at the log of the server."
		return f.see("MyticketSpoolAgeing")
	}
	return f
}

// internalURL returns the URL of the internal listener of the server on this machine.
func (e *examination) internalURL(path string) (string, error) {
	host, port, err := net.SplitHostPort(e.AdminAddr)
	if err != nil {
		return "", fmt.Errorf("--admin-addr: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port) + path, nil
}

// mostAnswer bounds what is read of an answer.
const mostAnswer = 4 << 20

// ask reads an answer of the server's internal listener.
func (e *examination) ask(ctx context.Context, path string) ([]byte, error) {
	url, err := e.internalURL(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout/2)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(io.LimitReader(response.Body, mostAnswer))
}

// askServer asks the server on this machine what its spool holds.
func (e *examination) askServer(ctx context.Context) (s spoolContent, err error) {
	answer, err := e.ask(ctx, "/metrics")
	if err != nil {
		return s, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	metrics, err := parser.TextToMetricFamilies(strings.NewReader(string(answer)))
	if err != nil {
		return s, err
	}
	var age float64
	for name, value := range map[string]*float64{
		"tickets": &s.tickets, "max_tickets": &s.maxTickets, "bytes": &s.bytes, "max_bytes": &s.maxBytes,
		"files_aside": &s.aside, "oldest_age_seconds": &age,
	} {
		family := metrics["myticket_spool_"+name]
		if len(family.GetMetric()) != 1 {
			return s, fmt.Errorf("the server has no metric myticket_spool_%s", name)
		}
		*value = family.GetMetric()[0].GetGauge().GetValue()
	}
	s.age, s.by = time.Duration(age*float64(time.Second)), "by its server"
	return s, nil
}

// checkServer asks the server on this machine whether it is ready, if there is one.
func (e *examination) checkServer(ctx context.Context) finding {
	answer, err := e.ask(ctx, "/readyz")
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return skipped("no server listens on --admin-addr here (%s)", e.AdminAddr)
	case err != nil:
		return cannotSay(err)
	}
	var ready struct {
		Ready  *bool         `json:"ready"`
		Checks []admin.Check `json:"checks"`
	}
	if err := json.Unmarshal(answer, &ready); err != nil || ready.Ready == nil {
		return cannotSay(fmt.Errorf("what listens on --admin-addr here (%s) is not MyTicket", e.AdminAddr))
	}
	var failing []string
	for _, c := range ready.Checks {
		if !c.OK {
			failing = append(failing, c.Name+": "+strings.Join(strings.Fields(c.Detail), " "))
		}
	}
	f := well("the server on %s is ready", e.AdminAddr)
	switch {
	case !*ready.Ready:
		f.Status, f.Found = isProblem, fmt.Sprintf("the server on %s is not ready: %s", e.AdminAddr, strings.Join(failing, "; "))
		f.Means = "Load balancers send it no tickets. One that reaches it is answered 202 or 503."
		f.Do = "Do what it says."
	case len(failing) > 0:
		f.Status, f.Found = isWarning, fmt.Sprintf("the server on %s is ready, but %s", e.AdminAddr, strings.Join(failing, "; "))
		f.Means = "It keeps tickets in its spool and answers 202."
		f.Do = "Do what it says, before the spool is full."
	default:
		return f
	}
	return f.see("MyticketServerDown")
}
