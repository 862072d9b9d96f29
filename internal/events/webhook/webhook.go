// Package webhook sends events to a server by HTTP: one or several are the body of a POST, signed as Standard Webhooks says.
package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"myticket/internal/events"
	"myticket/internal/signature"
	"myticket/internal/ticket"
)

// Limits of a target.
const (
	defaultTimeout         = 10 * time.Second
	minTimeout, maxTimeout = 100 * time.Millisecond, 5 * time.Minute
	maxParallel            = 16       // requests at once
	maxSecrets             = 4        // that count at the same time
	maxAnswer              = 64 << 10 // bytes of an answer that are read, so that its connection can be used again
	maxExcerpt             = 300      // bytes of an answer that are shown
	maxRetryAfter          = 24 * time.Hour
)

// The options of an address.
const (
	optionTimeout  = "timeout"  // longest time of a request with its answer, 100ms to 5m; 10s if it is not given
	optionParallel = "parallel" // requests at once, 1 to 16; 16 if it is not given

	optionBatch      = "batch"       // events of a request, 1 to 100; if it is not given, a request is an event and no batch
	optionBatchBytes = "batch-bytes" // bytes of a batch with more than one event, 1024 to 16777216; 1048576 if it is not given
)

// target is an events.Target.
type target struct {
	url      string
	client   *http.Client
	keys     [][]byte
	timeout  time.Duration
	parallel int

	batch      batchSize
	batchBytes int
}

// Open returns the target of an http or https URL. It does not connect. The secret is one of Standard Webhooks ("whsec_" and
// base64), or several with white space between: then each request has a signature by each of them. Without a secret requests are
// not signed. A proxy is used as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say.
func Open(_ context.Context, address events.Address, logger *slog.Logger) (events.Target, error) {
	t := &target{url: address.URL.String(), timeout: defaultTimeout, parallel: maxParallel, batchBytes: defaultBatchBytes}
	switch {
	case address.URL.Scheme != "http" && address.URL.Scheme != "https" || address.URL.Hostname() == "":
		return nil, errors.New("the URL of a webhook is http://HOST/PATH or https://HOST/PATH")
	case address.URL.User != nil:
		return nil, errors.New("the URL of a webhook has a user: leave it out, because requests are signed instead (--secret)")
	}
	if err := t.setOptions(address.Options); err != nil {
		return nil, err
	}
	for secret := range strings.FieldsSeq(string(address.Secret)) {
		key, err := signature.Key(secret)
		if err != nil {
			return nil, err
		}
		t.keys = append(t.keys, key)
	}
	switch n := len(t.keys); {
	case n > maxSecrets:
		return nil, fmt.Errorf("there are %d webhook secrets, and at most %d may count at the same time", n, maxSecrets)
	case n == 0:
		logger.Warn("a webhook has no secret, so its receiver cannot know who sends; set one with --secret")
	}
	trust, err := trusted(address.Authorities)
	if err != nil {
		return nil, err
	}
	t.client = &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:        trust,
			TLSHandshakeTimeout:    5 * time.Second,
			MaxConnsPerHost:        t.parallel,
			MaxIdleConnsPerHost:    t.parallel,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxAnswer,
			DisableCompression:     true,
			ForceAttemptHTTP2:      true,
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
		},
		// A redirect would send a ticket to wherever an answer says.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return t, nil
}

func (t *target) setOptions(options map[string]string) (err error) {
	for _, name := range slices.Sorted(maps.Keys(options)) {
		value := options[name]
		switch name {
		case optionTimeout:
			if t.timeout, err = time.ParseDuration(value); err != nil || t.timeout < minTimeout || t.timeout > maxTimeout {
				return fmt.Errorf("the option timeout is %q: it is a time from %s to %s, such as 10s", value, minTimeout, maxTimeout)
			}
		case optionParallel:
			if t.parallel, err = strconv.Atoi(value); err != nil || t.parallel < 1 || t.parallel > maxParallel {
				return fmt.Errorf("the option parallel is %q: it is a number of requests from 1 to %d", value, maxParallel)
			}
		case optionBatch:
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > maxBatch {
				return fmt.Errorf("the option batch is %q: it is a number of events from 1 to %d", value, maxBatch)
			}
			t.batch.limit, t.batch.most = n, n
		case optionBatchBytes:
			if t.batchBytes, err = strconv.Atoi(value); err != nil || t.batchBytes < minBatchBytes || t.batchBytes > maxBatchBytes {
				return fmt.Errorf("the option batch-bytes is %q: it is a number of bytes from %d to %d", value, minBatchBytes, maxBatchBytes)
			}
		default:
			return fmt.Errorf("a webhook has no option %q: its options are %s", name,
				strings.Join([]string{optionBatch, optionBatchBytes, optionParallel, optionTimeout}, ", "))
		}
	}
	if _, ok := options[optionBatchBytes]; ok && t.batch.limit == 0 {
		return errors.New("the option batch-bytes needs the option batch, which says how many events a request has at most")
	}
	return nil
}

// trusted returns what is trusted: some certificates, or those of the system.
func trusted(authorities []byte) (*tls.Config, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(authorities) > 0 {
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(authorities) {
			return nil, errors.New("the authorities are no certificates: they are PEM, and begin with -----BEGIN CERTIFICATE-----")
		}
	}
	return trust, nil
}

// Close ends its connections.
func (t *target) Close() { t.client.CloseIdleConnections() }

// Send sends each key's events one after the other, and up to parallel keys at once. After a failure that is not of one event
// alone, no further request is begun, so that a target which hangs is waited for only once.
func (t *target) Send(ctx context.Context, all []events.Event) []error {
	outcomes := make([]error, len(all))
	send, keys := t.sendInOrder, byKey(all)
	if t.batch.limit > 0 {
		most := t.batch.now()
		send, keys = t.sendBatches, lanes(keys, min(t.parallel, (len(all)+most-1)/most))
	}
	var next atomic.Int64
	var down atomic.Bool
	var senders sync.WaitGroup
	for range min(t.parallel, len(keys)) {
		senders.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= len(keys) {
					return
				}
				send(ctx, all, keys[n], outcomes, &down)
			}
		})
	}
	senders.Wait()
	return outcomes
}

// byKey returns the places of the events of each key, in their order.
func byKey(all []events.Event) (keys [][]int) {
	places := make(map[string]int)
	for i := range all {
		place, ok := places[all[i].Key]
		if !ok {
			place = len(keys)
			places[all[i].Key] = place
			keys = append(keys, nil)
		}
		keys[place] = append(keys[place], i)
	}
	return keys
}

// sendInOrder sends the events of one key, and sets their outcomes.
func (t *target) sendInOrder(ctx context.Context, all []events.Event, key []int, outcomes []error, down *atomic.Bool) {
	failed := false
	for _, i := range key {
		if failed || down.Load() {
			outcomes[i] = events.ErrNotSent
			continue
		}
		whole, err := t.post(ctx, message{all[i].ID, events.ContentType, all[i].JSON})
		outcomes[i] = err
		failed = err != nil && !errors.Is(err, events.ErrRejected)
		if whole {
			down.Store(true)
		}
	}
}

// message is what one request brings.
type message struct {
	id, contentType string
	body            []byte
}

// post sends one message. It reports whether the target as a whole fails, not only for what this message has.
func (t *target) post(ctx context.Context, m message) (targetFails bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, t.timeout, fmt.Errorf("no answer within %s (option timeout)", t.timeout))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(m.body))
	if err != nil {
		return true, withoutURL(err)
	}
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header.Set("Content-Type", m.contentType)
	request.Header.Set("User-Agent", "MyTicket")
	request.Header.Set("Webhook-Id", m.id)
	request.Header.Set("Webhook-Timestamp", timestamp)
	if len(t.keys) > 0 {
		request.Header.Set("Webhook-Signature", signature.Header(t.keys, m.id, timestamp, m.body))
	}
	// An empty list sends no header, and has net/http repeat a request whose idle connection was just closed.
	request.Header["Idempotency-Key"] = []string{}
	response, err := t.client.Do(request)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return true, cause
		}
		return true, withoutURL(err)
	}
	defer response.Body.Close()
	// What the target says counts from its status on, even if the rest does not come.
	answer, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if response.StatusCode == http.StatusUnsupportedMediaType && t.batch.limit > 0 { // which would be true of each event
		return true, errors.New("it answered 415 Unsupported Media Type: it takes no batches of events; leave the option batch out")
	}
	return outcome(response, answer)
}

// outcome returns what an answer means for an event, and whether the target as a whole fails.
func outcome(response *http.Response, answer []byte) (targetFails bool, err error) {
	status := response.StatusCode
	if status >= 200 && status < 300 {
		return false, nil
	}
	text := "it answered " + strconv.Itoa(status) + " " + http.StatusText(status)
	if excerpt := excerpt(answer); excerpt != "" {
		text += ": " + excerpt
	}
	switch status {
	case http.StatusGone:
		return true, fmt.Errorf("%w: %s", events.ErrGone, text)
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusUnsupportedMediaType,
		http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge:
		return false, fmt.Errorf("%w: %s", events.ErrRejected, text)
	case http.StatusUnauthorized, http.StatusForbidden:
		text += " (does it have the same secret?)"
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		text += " (is the URL right?)"
	}
	if status >= 300 && status < 400 {
		text += " (redirects are not followed: give the URL to which it leads)"
	}
	err = errors.New(text)
	if after, ok := retryAfter(response.Header.Get("Retry-After"), time.Now()); ok {
		err = &events.RetryAfter{After: after, Err: err}
	}
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusInternalServerError:
		return false, err // it may be because of this event
	default:
		return true, err
	}
}

// retryAfter reads a header Retry-After, in seconds or as a date (RFC 9110, section 10.2.3). A day is the most.
func retryAfter(header string, now time.Time) (after time.Duration, ok bool) {
	if header == "" {
		return 0, false
	}
	if seconds, err := strconv.ParseUint(header, 10, 63); err == nil {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second, true
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter), true
	}
	return 0, false
}

// excerpt returns the beginning of an answer as one line.
func excerpt(answer []byte) string {
	text := ticket.CleanText(string(answer[:min(len(answer), maxExcerpt)]), maxExcerpt)
	return strings.Join(strings.Fields(text), " ")
}

// withoutURL removes the URL from an error of net/http, because it may have a token.
func withoutURL(err error) error {
	if with, ok := errors.AsType[*url.Error](err); ok {
		return with.Err
	}
	return err
}
