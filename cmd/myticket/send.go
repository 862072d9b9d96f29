package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// sendCmd is `myticket send`: it sends tickets as a till does, to test an installation.
type sendCmd struct {
	Files []string `arg:"" optional:"" name:"FILE" help:"Files to send, with one ticket each. - is standard input. Default: a sample ticket."`

	URL         string        `name:"url" env:"MYTICKET_SEND_URL" default:"http://localhost:9098/ticket" help:"URL to post to. Its path can name a source: /ticket/shop-1. Default: ${default}."`
	BearerFile  string        `type:"path" placeholder:"FILE" help:"File with the bearer token, if the source asks for one (docs/webhook.md)."`
	Count       int           `default:"1" help:"How often to send each file, each time as a new ticket. The samples get different order numbers. Default: ${default}."`
	Concurrency int           `default:"1" help:"Tickets to send at the same time. Default: ${default}."`
	RetryFor    time.Duration `default:"30s" help:"How long to retry each ticket after no answer, 408, 429 or 5xx. Default: ${default}."`
	Timeout     time.Duration `default:"10s" help:"Longest time of one attempt. Default: ${default}."`
	Resume      string        `type:"path" placeholder:"FILE" help:"File in which the run writes down what is stored. The same command with the same file goes on after an interruption and sends nothing twice, if the first run was less than the server's --key-ttl ago."`
	Modified    bool          `help:"Say with the header Ticket-Time that each ticket is as old as its file, by the time of its last change. So the prices of an old file do not overrule newer ones. Needs --bearer-file, because only a source that asks for credentials takes the header."`
	Output      string        `short:"o" default:"text" enum:"text,json" help:"text for people, json for programs. Default: ${default}."`
}

const (
	maxSent       = 1_000_000 // tickets of one run
	maxSenders    = 1_000
	maxSentBytes  = 1 << 30 // of all files, because they are held in memory
	maxSentLines  = 20      // with more samples than this, the summary replaces their lines
	sampleOrder   = 123456
	sampleName    = "sample"
	standardInput = "-"
)

// sampleTicket is testdata/ticket.txt.
const sampleTicket = `Order: 123456
VAT: 3.10
Total: 16.90

product,product_id,price
Formule(s) midi,aZde,14.90
Café,IZ8z,2`

// Validate is called by kong.
func (c sendCmd) Validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("--url must be a URL like http://localhost:9098/ticket")
	case c.Count < 1:
		return errors.New("--count must be at least 1")
	case c.Count > maxSent || c.Count*max(len(c.Files), 1) > maxSent:
		return fmt.Errorf("--count times the number of files must be at most %d", maxSent)
	case c.Concurrency < 1 || c.Concurrency > maxSenders:
		return fmt.Errorf("--concurrency must be 1 to %d", maxSenders)
	case c.RetryFor < 0:
		return errors.New("--retry-for must not be negative")
	case c.Timeout <= 0:
		return errors.New("--timeout must be more than 0")
	}
	return nil
}

// exitStatuses are for the manual page.
func (sendCmd) exitStatuses() []exitStatus {
	return []exitStatus{
		{"0", "All tickets are stored, and none is ERROR."},
		{"1", "At least one is not known to be stored: send those again, best with --resume."},
		commonExits[2],
		{"3", "All are stored, but at least one is ERROR: look at it with tickets show, and do not send it again."},
	}
}

// file is a ticket to send.
type file struct {
	name string
	path string // absolute; empty for standard input and the sample
	body []byte
	at   time.Time // when it was changed, with --modified; otherwise zero
}

// Run sends all tickets. It fails if one of them is not known to be stored, or became ERROR.
func (c sendCmd) Run(ctx context.Context, std streams) (err error) {
	files, err := c.read(std.stdin)
	if err != nil {
		return fmt.Errorf("%w; nothing was sent", err)
	}
	t, err := c.newTill()
	if err != nil {
		return fmt.Errorf("%w; nothing was sent", err)
	}
	defer t.client.CloseIdleConnections()
	var journal *sendJournal
	if c.Resume != "" {
		if journal, err = openSendJournal(c.Resume, c.URL); err != nil {
			return fmt.Errorf("%w; nothing was sent", err)
		}
		defer func() { err = errors.Join(err, journal.close()) }()
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	report := sendReport{
		Tickets: len(files) * c.Count, Answers: map[string]int{}, Statuses: map[string]int{},
		listed: len(c.Files) > 0 || c.Count <= maxSentLines, resume: c.Resume,
	}
	began := time.Now()
	sent := make(chan sentTicket)
	var next atomic.Int64
	var tills sync.WaitGroup
	for range min(c.Concurrency, report.Tickets) {
		tills.Go(func() {
			for n := int(next.Add(1)) - 1; n < report.Tickets && ctx.Err() == nil; n = int(next.Add(1)) - 1 {
				f := files[n%len(files)]
				if len(c.Files) == 0 {
					f.body = bytes.Replace(f.body, []byte(strconv.Itoa(sampleOrder)), []byte(strconv.Itoa(sampleOrder+n)), 1)
				}
				key := journal.key(f, n/len(files))
				one, ok := journal.before(key)
				if !ok {
					one = t.deliver(ctx, f, key)
				}
				sent <- one
			}
		})
	}
	go func() {
		tills.Wait()
		close(sent)
	}()
	var unwritten error // the first ticket that the journal does not take
	for one := range sent {
		if err := journal.add(one); err != nil && unwritten == nil {
			unwritten = err
			stop()
		}
		report.add(one)
		if c.Output == "text" && report.listed {
			fmt.Fprintln(std.stdout, &one)
		}
	}
	report.Seconds = time.Since(began).Seconds()
	report.PerSecond = float64(report.Stored-report.Before) / report.Seconds
	if err := errors.Join(c.print(std, report), unwritten); err != nil {
		return err
	}
	return report.err(ctx)
}

// read reads all files before anything is sent, so that an unreadable one stops the run.
func (c sendCmd) read(stdin io.Reader) ([]file, error) {
	switch {
	case c.Modified && c.BearerFile == "":
		return nil, errors.New("--modified needs --bearer-file: only a source that asks for credentials takes the time of a ticket")
	case c.Modified && (len(c.Files) == 0 || slices.Contains(c.Files, standardInput)):
		return nil, errors.New("--modified needs files: the sample and standard input have no time of their last change")
	case len(c.Files) == 0:
		return []file{{name: sampleName, body: []byte(sampleTicket)}}, nil
	}
	files := make([]file, 0, len(c.Files))
	named := make(map[string]bool, len(c.Files)) // by path
	room := int64(maxSentBytes)
	for _, name := range c.Files {
		body, err := readFile(name, stdin, room+1)
		room -= int64(len(body))
		switch {
		case err != nil:
			return nil, err
		case len(body) == 0:
			return nil, fmt.Errorf("%s is empty: it holds no ticket", name)
		case room < 0:
			return nil, fmt.Errorf("the files hold more than %d MiB: send them in parts", maxSentBytes>>20)
		}
		f := file{name: name, body: body}
		if name != standardInput {
			if f.path, err = filepath.Abs(name); err != nil {
				return nil, err
			}
			if c.Resume != "" && named[f.path] {
				return nil, fmt.Errorf("%s is named twice: with --resume each file is one ticket, unless --count says otherwise", name)
			}
			named[f.path] = true
			if c.Modified {
				if f.at, err = modified(f.path); err != nil {
					return nil, err
				}
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// modified returns when a file was changed.
func modified(path string) (time.Time, error) {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

func readFile(name string, stdin io.Reader, most int64) ([]byte, error) {
	if name == standardInput {
		body, err := io.ReadAll(io.LimitReader(stdin, most))
		if err != nil {
			err = fmt.Errorf("read standard input: %w", err)
		}
		return body, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// print prints the summary. The line of each ticket was printed as it came; of many, those of which something is wrong follow
// once more.
func (c sendCmd) print(std streams, r sendReport) error {
	switch {
	case c.Output == "json":
		return printJSON(std.stdout, r)
	case r.Tickets == 1:
		return nil
	case r.Tickets > maxSentLines:
		for i := range r.Failed {
			fmt.Fprintln(std.stderr, &r.Failed[i])
		}
	}
	_, err := fmt.Fprintln(std.stdout, &r)
	return err
}
