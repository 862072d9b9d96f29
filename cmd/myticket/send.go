package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
)

// sendCmd is `myticket send`: a till, to try an installation with.
type sendCmd struct {
	Files []string `arg:"" optional:"" name:"FILE" help:"Files that hold a ticket each, as it is; - is standard input. Default: a sample ticket."`

	URL         string        `name:"url" env:"MYTICKET_SEND_URL" default:"http://localhost:9098/ticket" help:"Where to post to; a source is part of the path: /ticket/shop-1. Default: ${default}."`
	BearerFile  string        `type:"path" placeholder:"FILE" help:"File that holds the bearer token of a source that asks for one (docs/webhook.md)."`
	Count       int           `default:"1" help:"How often to send each file, as tickets of their own; of the sample, each with its own order number. Default: ${default}."`
	Concurrency int           `default:"1" help:"Tickets under way at once. Default: ${default}."`
	RetryFor    time.Duration `default:"30s" help:"How long each ticket is tried again when nobody answers, or with 408, 429 or 5xx. Default: ${default}."`
	Timeout     time.Duration `default:"10s" help:"Longest time of one attempt. Default: ${default}."`
	Output      string        `short:"o" default:"text" enum:"text,json" help:"text for people, json for programs. Default: ${default}."`
}

const (
	maxSent       = 1_000_000 // tickets of one run
	maxSenders    = 1_000
	maxSentBytes  = 1 << 30 // of all files, for they are held in memory
	maxSentLines  = 20      // that say what became of a ticket; above it a summary does
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
		return fmt.Errorf("--count times the files must be at most %d", maxSent)
	case c.Concurrency < 1 || c.Concurrency > maxSenders:
		return fmt.Errorf("--concurrency must be 1 to %d", maxSenders)
	case c.RetryFor < 0:
		return errors.New("--retry-for must not be negative")
	case c.Timeout <= 0:
		return errors.New("--timeout must be more than 0")
	}
	return nil
}

// file is a ticket to send.
type file struct {
	name string
	body []byte
}

// sentTicket is what became of a ticket.
type sentTicket struct {
	File      string  `json:"file"`
	Code      int     `json:"code,omitempty"` // of the last answer; 0 when nobody answered
	ID        string  `json:"id,omitempty"`
	Status    string  `json:"status,omitempty"`
	Duplicate bool    `json:"duplicate,omitempty"` // stored by an attempt before the one that was answered
	Attempts  int     `json:"attempts"`
	Seconds   float64 `json:"seconds"`
	Error     string  `json:"error,omitempty"` // why it is not known to be stored
	unclear   bool    // it is not known not to be stored either
}

// sendReport is what became of all.
type sendReport struct {
	Tickets   int            `json:"tickets"` // to send
	Sent      int            `json:"sent"`
	Stored    int            `json:"stored"`
	Answers   map[string]int `json:"answers"` // tickets by the status code of their last answer, or "none"
	Seconds   float64        `json:"seconds"`
	PerSecond float64        `json:"per_second"` // stored
	Longest   float64        `json:"longest"`    // seconds of one ticket, with its retries
	Each      []sentTicket   `json:"each,omitempty"`
	Failed    []sentTicket   `json:"failed,omitempty"` // the first of those that are not known to be stored
	unclear   int
	failure   string // the first
}

// Run sends all, and fails when one of them is not known to be stored.
func (c sendCmd) Run(ctx context.Context, std streams) error {
	files, err := c.read(std.stdin)
	if err != nil {
		return fmt.Errorf("%w; nothing was sent", err)
	}
	t, err := c.newTill()
	if err != nil {
		return fmt.Errorf("%w; nothing was sent", err)
	}
	defer t.client.CloseIdleConnections()

	report := sendReport{Tickets: len(files) * c.Count, Answers: map[string]int{}}
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
				sent <- t.deliver(ctx, f)
			}
		})
	}
	go func() {
		tills.Wait()
		close(sent)
	}()
	for one := range sent {
		report.add(one)
		if c.Output == "text" && report.Tickets <= maxSentLines {
			fmt.Fprintln(std.stdout, &one)
		}
	}
	report.Seconds = time.Since(began).Seconds()
	report.PerSecond = float64(report.Stored) / report.Seconds
	return errors.Join(c.print(std, report), report.err(ctx))
}

// read reads all that is to be sent, so that what cannot be read is known before anything is sent.
func (c sendCmd) read(stdin io.Reader) ([]file, error) {
	if len(c.Files) == 0 {
		return []file{{sampleName, []byte(sampleTicket)}}, nil
	}
	files := make([]file, 0, len(c.Files))
	room := int64(maxSentBytes)
	for _, name := range c.Files {
		body, err := readFile(name, stdin, room+1)
		room -= int64(len(body))
		switch {
		case err != nil:
			return nil, err
		case len(body) == 0:
			return nil, fmt.Errorf("%s is empty, which is no ticket", name)
		case room < 0:
			return nil, fmt.Errorf("the files hold more than %d MiB: send them in parts", maxSentBytes>>20)
		}
		files = append(files, file{name, body})
	}
	return files, nil
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

// till posts tickets.
type till struct {
	url, token string
	retryFor   time.Duration
	timeout    time.Duration
	client     *http.Client
}

func (c sendCmd) newTill() (*till, error) {
	t := &till{url: c.URL, retryFor: c.RetryFor, timeout: c.Timeout}
	if c.BearerFile != "" {
		token, err := os.ReadFile(c.BearerFile)
		if err != nil {
			return nil, fmt.Errorf("read --bearer-file: %w", err)
		}
		t.token = strings.TrimSpace(string(token))
		if t.token == "" || strings.ContainsFunc(t.token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("--bearer-file: %s does not hold one token and nothing else", c.BearerFile)
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = c.Concurrency, c.Concurrency
	t.client = &http.Client{
		Transport: transport,
		// A POST that is sent elsewhere becomes a GET, whose 200 stores nothing.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return t, nil
}

// deliver sends a ticket until it is answered for good or the time is over. All attempts have the same key, so that it
// is stored once, whatever became of the answers.
func (t *till) deliver(ctx context.Context, f file) sentTicket {
	began := time.Now()
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 200*time.Millisecond, 5*time.Second
	key := uuid.NewString()
	sent := sentTicket{File: f.name}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		sent.Attempts++
		err := t.post(ctx, f.body, key, &sent)
		if err != nil && ctx.Err() == nil {
			sent.Error = err.Error()
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(max(t.retryFor, 1))) // 0 would be for ever
	switch {
	case err == nil:
		sent.Error = ""
	case sent.Error == "":
		sent.Error = "interrupted"
	}
	sent.Seconds = time.Since(began).Seconds()
	return sent
}

// retryLaterError is an answer that names the time of the next attempt.
type retryLaterError struct {
	error
	after *backoff.RetryAfterError
}

func (r retryLaterError) Unwrap() error { return r.after }

// post makes one attempt.
func (t *till) post(ctx context.Context, body []byte, key string, sent *sentTicket) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return backoff.Permanent(err)
	}
	request.Header.Set("Content-Type", "text/plain")
	request.Header.Set("Idempotency-Key", key)
	request.Header.Set("User-Agent", "myticket/"+version)
	if t.token != "" {
		request.Header.Set("Authorization", "Bearer "+t.token)
	}
	var reached atomic.Bool // somebody who may have stored it
	request = request.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { reached.Store(true) },
	}))
	sent.Code = 0
	response, err := t.client.Do(request)
	if err != nil {
		sent.unclear = sent.unclear || reached.Load()
		return err
	}
	defer response.Body.Close()
	sent.Code = response.StatusCode
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		sent.unclear = true
		return fmt.Errorf("%s, and the answer broke off: %w", response.Status, err)
	}
	if response.StatusCode/100 == 2 {
		return sent.receive(response.Status, content)
	}
	return sent.refuse(response, content)
}

// receive reads a receipt. Another web server's 200 is none.
func (s *sentTicket) receive(status string, content []byte) error {
	var receipt struct {
		ID        string `json:"id"`
		Status    string `json:"status"`
		Duplicate bool   `json:"duplicate"`
	}
	if err := json.Unmarshal(content, &receipt); err != nil || receipt.ID == "" {
		return backoff.Permanent(fmt.Errorf("%s, but without a ticket's id: is it MyTicket who answers on this URL?", status))
	}
	s.ID, s.Status, s.Duplicate = receipt.ID, receipt.Status, receipt.Duplicate
	return nil
}

// notStored are the codes of 5xx that are sure of it (docs/webhook.md).
var notStored = []string{"draining", "internal_error", "overloaded", "spool_full"}

// refuse reads a problem (RFC 9457), or what a proxy said in its own words, and tells whether to try again.
func (s *sentTicket) refuse(response *http.Response, content []byte) error {
	var problem struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
	}
	_ = json.Unmarshal(content, &problem) // what is not JSON leaves it empty
	refused := errors.New(strings.TrimRight(fmt.Sprintf("%s %s: %s", response.Status, problem.Code, problem.Detail), ": "))
	switch code := response.StatusCode; {
	case code >= http.StatusInternalServerError:
		s.unclear = s.unclear || !slices.Contains(notStored, problem.Code)
	case code != http.StatusTooManyRequests && code != http.StatusRequestTimeout:
		return backoff.Permanent(refused)
	}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 && seconds < 1<<30 {
		return retryLaterError{refused, &backoff.RetryAfterError{Duration: time.Duration(seconds) * time.Second}}
	}
	return refused
}

func (s *sentTicket) String() string {
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return printable(s)
	}
	code, status := "-", dash(s.Status)
	if s.Code != 0 {
		code = strconv.Itoa(s.Code)
	}
	if s.Duplicate {
		status += " (duplicate)"
	}
	line := fmt.Sprintf("%s  %s  %s  %s", code, dash(s.ID), status, seconds(s.Seconds))
	if s.Error != "" {
		line += "  " + printable(s.File+": "+s.Error)
	}
	return line
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Microsecond).String()
}

func (r *sendReport) add(s sentTicket) {
	r.Sent++
	answer := "none"
	if s.Code != 0 {
		answer = strconv.Itoa(s.Code)
	}
	r.Answers[answer]++
	r.Longest = max(r.Longest, s.Seconds)
	if r.Tickets <= maxSentLines {
		r.Each = append(r.Each, s)
	}
	if s.Error == "" {
		r.Stored++
		return
	}
	if s.unclear {
		r.unclear++
	}
	if r.failure == "" {
		r.failure = printable(s.File + ": " + s.Error)
	}
	if len(r.Failed) < maxSentLines {
		r.Failed = append(r.Failed, s)
	}
}

// err says how many tickets are not known to be stored, and whether they can be sent again.
func (r *sendReport) err(ctx context.Context) error {
	missing := r.Tickets - r.Stored
	if missing == 0 {
		return nil
	}
	text := fmt.Sprintf("%d of %d tickets were not stored", missing, r.Tickets)
	if ctx.Err() != nil {
		text = "interrupted: " + text
	}
	if r.failure != "" {
		text += "; the first was " + r.failure
	}
	switch {
	case r.Stored > 0:
		text += fmt.Sprintf(". A second run sends all with new keys, so the %d that were stored would be there twice: "+
			"send only the others", r.Stored)
		if r.unclear > 0 {
			text += fmt.Sprintf("; of those, up to %d may be stored all the same, for no answer tells", r.unclear)
		}
	case r.unclear > 0:
		text += fmt.Sprintf(". Up to %d of them may be stored all the same, for no answer tells; "+
			"a second run sends all with new keys, so these would be there twice", r.unclear)
	default:
		text += ". It is safe to run it again: nothing was stored"
	}
	return errors.New(text)
}

// print prints what is left to say: the lines of a few tickets are printed as they come.
func (c sendCmd) print(std streams, r sendReport) error {
	if c.Output == "json" {
		return printJSON(std.stdout, r)
	}
	if r.Tickets <= maxSentLines {
		return nil
	}
	for i := range r.Failed {
		fmt.Fprintln(std.stderr, &r.Failed[i])
	}
	if failed := r.Sent - r.Stored; failed > len(r.Failed) {
		fmt.Fprintf(std.stderr, "and %d more like these\n", failed-len(r.Failed))
	}
	var answers []string
	for _, answer := range slices.Sorted(maps.Keys(r.Answers)) {
		answers = append(answers, fmt.Sprintf("%s: %d", answer, r.Answers[answer]))
	}
	_, err := fmt.Fprintf(std.stdout, "%d tickets sent, %d stored (%s) in %s: %.0f tickets/s, the longest took %s\n",
		r.Sent, r.Stored, strings.Join(answers, ", "), seconds(r.Seconds), r.PerSecond, seconds(r.Longest))
	return err
}
