//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// delivery is one ticket that a till posts, again and again with the same key until it is acknowledged, as senders do.
type delivery struct {
	body     string // its hash
	id       string // that it was acknowledged with; empty for never
	status   int    // 200 or 202
	begun    time.Time
	refused  time.Time // when it was first refused or not answered; zero for never
	answered time.Time
	refusal  string // what the first refusal was
}

// load is a group of tills that post tickets through the ingress until it is stopped.
type load struct {
	r        *release
	path     string // that the tills post to
	patience time.Duration
	cancel   context.CancelFunc
	group    sync.WaitGroup
	client   *http.Client
	run      string
	count    atomic.Int64

	mu         sync.Mutex
	deliveries []delivery
}

const (
	tills     = 20
	tillPause = 100 * time.Millisecond // two cores serve the whole cluster
	retryWait = 200 * time.Millisecond
	giveUp    = 2 * time.Minute
)

// startLoad starts the tills, and returns when the first tickets are acknowledged.
func (r *release) startLoad() *load {
	r.t.Helper()
	return r.startLoadOf("e2e", giveUp)
}

// startLoadOf is startLoad for the tills of a source, which repeat a ticket for at most patience.
func (r *release) startLoadOf(source string, patience time.Duration) *load {
	r.t.Helper()
	r.routed()
	ctx, cancel := context.WithCancel(r.ctx)
	l := &load{r: r, path: "/ticket/" + source, patience: patience, cancel: cancel, run: rand.Text()[:8], client: newClient()}
	for range tills {
		l.group.Go(func() {
			for ctx.Err() == nil {
				l.deliver(context.WithoutCancel(ctx))
				select {
				case <-ctx.Done():
				case <-time.After(tillPause):
				}
			}
		})
	}
	r.t.Cleanup(func() { cancel(); l.group.Wait() })
	l.await(tills)
	return l
}

func newClient() *http.Client {
	return &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: tills}}
}

// await waits until this many more tickets are acknowledged.
func (l *load) await(more int) {
	l.r.t.Helper()
	before := l.acknowledged()
	l.r.until(fmt.Sprintf("%d more tickets are acknowledged", more), func() (bool, string) {
		return l.acknowledged() >= before+more, ""
	})
}

func (l *load) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.deliveries)
}

// deliver posts a new ticket until it is acknowledged.
func (l *load) deliver(ctx context.Context) {
	n := l.count.Add(1)
	body := fmt.Appendf(nil, "Order: %s-%d\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\nCafé,e2e-%d,2.%02d", l.run, n, n%10, n/100%100)
	if n%50 == 0 {
		body = fmt.Appendf(nil, "unreadable %s %d \x00\xff", l.run, n)
	}
	d, key := delivery{body: hash(body), begun: time.Now()}, uuid.NewString()
	for time.Since(d.begun) < l.patience {
		id, status, err := post(ctx, l.client, l.r.host, l.path, body, key)
		if err == nil && (status == http.StatusOK || status == http.StatusAccepted) {
			d.id, d.status = id, status
			break
		}
		if d.refused.IsZero() {
			d.refused, d.refusal = time.Now(), fmt.Sprint(status, " ", err)
		}
		time.Sleep(retryWait)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d.answered = time.Now()
	l.deliveries = append(l.deliveries, d)
}

// post sends a ticket once.
func post(ctx context.Context, client *http.Client, host, path string, body []byte, key string) (string, int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, *ingress+path, bytes.NewReader(body))
	if err != nil {
		return "", 0, err
	}
	request.Host, request.GetBody = host, nil // so net/http never sends it again by itself
	request.Header.Set("Idempotency-Key", key)
	response, err := client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", 0, err
	}
	var receipt struct {
		ID string `json:"id"`
	}
	if response.StatusCode < 300 {
		err = json.Unmarshal(content, &receipt)
	}
	return receipt.ID, response.StatusCode, err
}

// since returns the longest time between two answers of 200 from a moment on, and how many 202 there were.
func (l *load) since(from time.Time) (gap time.Duration, spooled int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := from
	for _, d := range l.deliveries { // in the order of their answers
		switch {
		case d.answered.Before(from):
		case d.status == http.StatusAccepted:
			spooled++
		default:
			gap, before = max(gap, d.answered.Sub(before)), d.answered
		}
	}
	return gap, spooled
}

// untilServed waits until no sender was refused and no ticket was only spooled for ten seconds, and returns when that began.
func (r *release) untilServed(l *load) (since time.Time) {
	r.t.Helper()
	r.until("tickets are stored at once", func() (bool, string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		since = time.Time{}
		for _, d := range l.deliveries {
			if d.status != 200 || !d.refused.IsZero() {
				since = d.answered
			}
		}
		return time.Since(since) > 10*time.Second, ""
	})
	return since
}

// stop waits for the last answers, and returns all deliveries in their order.
func (l *load) stop() []delivery {
	l.r.t.Helper()
	l.cancel()
	l.group.Wait()
	spooled, refused, longest := 0, 0, time.Duration(0)
	for _, d := range l.deliveries {
		if d.status == http.StatusAccepted {
			spooled++
		}
		if !d.refused.IsZero() {
			refused++
			longest = max(longest, d.answered.Sub(d.refused))
		}
	}
	l.r.t.Logf("%d tickets sent, %d answered 202, %d refused at first, the longest of these for %s",
		len(l.deliveries), spooled, refused, longest.Round(time.Millisecond))
	return l.deliveries
}

// nothingLost checks that all acknowledged tickets are stored.
func (r *release) nothingLost(deliveries []delivery) {
	r.t.Helper()
	r.drained()
	ids, bodies := r.stored()
	lost := 0
	for _, d := range deliveries {
		require.NotEmpty(r.t, d.id, "a ticket was not acknowledged for %s: first %s", giveUp, d.refusal)
		// If the first answer of a ticket was lost, the spool of another server may have acknowledged it with a second id. When that
		// spool is drained, the first id stays. The ticket is stored once.
		if ids[d.id] == d.body || d.status == http.StatusAccepted && !d.refused.IsZero() && bodies[d.body] == 1 {
			continue
		}
		lost++
		r.t.Errorf("LOST: %s, acknowledged with %d at %s", d.id, d.status, d.answered.Format(time.TimeOnly))
		if lost == 10 {
			break
		}
	}
	for body, times := range bodies {
		require.Equal(r.t, 1, times, "DOUBLED: the body with the hash %s", body)
	}
	require.NotEmpty(r.t, deliveries)
	r.t.Logf("%d acknowledged tickets, all stored once as they were sent", len(deliveries))
}

// servedAgainWithin checks that each refused ticket was acknowledged soon after.
func servedAgainWithin(r *release, deliveries []delivery, bound time.Duration) {
	r.t.Helper()
	for _, d := range deliveries {
		if !d.refused.IsZero() {
			require.Less(r.t, d.answered.Sub(d.refused), bound, "a sender was refused at %s with %s", d.refused.Format(time.TimeOnly), d.refusal)
		}
	}
}
