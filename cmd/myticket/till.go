package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
)

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
			return nil, fmt.Errorf("--bearer-file: %s must hold one token and nothing else", c.BearerFile)
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = c.Concurrency, c.Concurrency
	t.client = &http.Client{
		Transport: transport,
		// A redirected POST becomes a GET, and its 200 stores nothing.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return t, nil
}

// deliver sends a ticket until it has a final answer or the time is over. All attempts have the same key, so the ticket is
// stored once even if answers were lost.
func (t *till) deliver(ctx context.Context, f file, key uuid.UUID) sentTicket {
	began := time.Now()
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 200*time.Millisecond, 5*time.Second
	sent := sentTicket{File: f.name, key: key}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		sent.Attempts++
		err := t.post(ctx, f, &sent)
		if err != nil && ctx.Err() == nil {
			sent.Error = err.Error()
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(max(t.retryFor, 1))) // 0 would mean no limit
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
func (t *till) post(ctx context.Context, f file, sent *sentTicket) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(f.body))
	if err != nil {
		return backoff.Permanent(err)
	}
	request.Header.Set("Content-Type", "text/plain")
	request.Header.Set("Idempotency-Key", sent.key.String())
	request.Header.Set("User-Agent", "myticket/"+version)
	if !f.at.IsZero() {
		request.Header.Set("Ticket-Time", f.at.UTC().Format(time.RFC3339Nano))
	}
	if t.token != "" {
		request.Header.Set("Authorization", "Bearer "+t.token)
	}
	var reached atomic.Bool // a server, which may have stored it
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
		return fmt.Errorf("%s, but the answer is incomplete: %w", response.Status, err)
	}
	if response.StatusCode/100 == 2 {
		return sent.receive(response.Status, content)
	}
	return sent.refuse(response, content)
}

// receive reads a receipt. A 200 of another web server is not a receipt.
func (s *sentTicket) receive(status string, content []byte) error {
	var receipt struct {
		ID        string `json:"id"`
		Status    string `json:"status"`
		Duplicate bool   `json:"duplicate"`
	}
	if err := json.Unmarshal(content, &receipt); err != nil || receipt.ID == "" {
		return backoff.Permanent(fmt.Errorf("%s, but the answer has no ticket id: check that the URL is MyTicket's", status))
	}
	s.ID, s.Status, s.Duplicate = receipt.ID, receipt.Status, receipt.Duplicate
	return nil
}

// notStored are the codes of 5xx after which the ticket is certainly not stored (docs/webhook.md).
var notStored = []string{"draining", "internal_error", "overloaded", "spool_full"}

// refuse reads a problem (RFC 9457), or the answer of a proxy in another format. The error says whether to try again.
func (s *sentTicket) refuse(response *http.Response, content []byte) error {
	var problem struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
	}
	_ = json.Unmarshal(content, &problem) // if the content is not JSON, problem stays empty
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

// sentTicket is what became of a ticket.
type sentTicket struct {
	File      string  `json:"file"`
	Code      int     `json:"code,omitempty"` // of the last answer; 0 for no answer
	ID        string  `json:"id,omitempty"`
	Status    string  `json:"status,omitempty"`
	Duplicate bool    `json:"duplicate,omitempty"` // an earlier attempt, whose answer was lost, stored it
	Before    bool    `json:"before,omitempty"`    // a run before stored it: see --resume
	Attempts  int     `json:"attempts"`
	Seconds   float64 `json:"seconds"`
	Error     string  `json:"error,omitempty"` // why it is not known to be stored
	key       uuid.UUID
	unclear   bool // an attempt may have stored it, and no answer says so
}
