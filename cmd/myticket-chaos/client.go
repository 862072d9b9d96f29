package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"myticket/internal/lab"
)

// maker makes tickets that all differ. They name few products, whose prices change from time to time.
type maker struct {
	run     string
	count   atomic.Int64
	keys    atomic.Int64
	padding int  // further bytes of each ticket
	seasons bool // no product is sold for long, and its last ticket but one has another price: so no later ticket hides a mistake
}

const (
	hotProducts     = 10
	ticketsPerPrice = 300 // between two changes of a price
	unreadableEvery = 100
	soldPerSeason   = 20 // tickets of one product
)

func newMaker() *maker { return &maker{run: rand.Text()[:10]} }

func (m *maker) next() []byte {
	n := m.count.Add(1)
	if n%unreadableEvery == 0 {
		return fmt.Appendf(nil, "hello %s %d", m.run, n)
	}
	note := ""
	if m.padding > 0 {
		note = "Note: " + strings.Repeat("x", m.padding) + "\n"
	}
	product, cents := n%hotProducts, n/ticketsPerPrice%100
	if m.seasons {
		product += n / hotProducts / soldPerSeason * hotProducts
		cents = 0
		if n/hotProducts%soldPerSeason == soldPerSeason-2 {
			cents = 50
		}
	}
	return fmt.Appendf(nil, "Order: %s-%d\nVAT: 3.10\nTotal: 16.90\n%s\nproduct,product_id,price\nCoffee %d,p%d,%d.%02d",
		m.run, n, note, product, product, 1+product, cents)
}

// newClient returns a client for a number of tills. It keeps a connection for each, and gives up long after the server had to
// answer.
func newClient(tills int) *http.Client {
	return &http.Client{Timeout: 3 * deadline, Transport: &http.Transport{
		MaxIdleConnsPerHost: tills, DisableCompression: true, IdleConnTimeout: 30 * time.Second,
	}}
}

// answer is what the server said. The zero value is no answer.
type answer struct {
	status int
	id     uuid.UUID
}

// delivery is a request that brings a ticket.
type delivery struct {
	source string // empty for the default one
	token  string // bearer token; empty for none
	key    string // idempotency key; empty for none
	body   []byte
}

// post sends a ticket once: without GetBody, net/http never sends it again by itself.
func post(ctx context.Context, client *http.Client, addr string, d delivery) (answer, error) {
	path := "/ticket"
	if d.source != "" {
		path += "/" + d.source
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, bytes.NewReader(d.body))
	if err != nil {
		return answer{}, err
	}
	request.GetBody = nil
	if d.key != "" {
		request.Header.Set("Idempotency-Key", d.key)
	}
	if d.token != "" {
		request.Header.Set("Authorization", "Bearer "+d.token)
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return answer{}, err
	}
	a := answer{status: response.StatusCode}
	var receipt struct {
		ID uuid.UUID `json:"id"`
	}
	// A ticket whose answer has no id cannot be found in the database: the check will say so.
	if json.Unmarshal(content, &receipt) == nil {
		a.id = receipt.ID
	}
	return a, nil
}

// send sends one new ticket once, and returns the status of the answer, or 0 for none. The end of ctx does not cancel the
// request: the end of a load is no reason to drop it.
func (t *trial) send(ctx context.Context, client *http.Client, addr string) int {
	body := t.maker.next()
	n := t.ledger.begin(body, false)
	a, err := post(context.WithoutCancel(ctx), client, addr, delivery{body: body})
	if err != nil {
		a = answer{}
	}
	t.ledger.end(n, a)
	return a.status
}

// load is tills that send tickets until it is stopped.
type load struct {
	cancel context.CancelFunc
	group  sync.WaitGroup
	client *http.Client
}

// stop returns when every till has its last answer.
func (l *load) stop() {
	l.cancel()
	l.group.Wait()
	l.client.CloseIdleConnections()
}

// tillPause is what a till needs between two tickets, so that tills do not outrun what a short run can check.
const tillPause = 10 * time.Millisecond

// tills starts tills that send a ticket, wait for the answer, and send the next one.
func (t *trial) tills(ctx context.Context, tills int, addr string) *load {
	return t.start(ctx, tills, func(ctx context.Context, client *http.Client, _ int) {
		t.send(ctx, client, addr)
	})
}

// start starts tills that do something again and again.
func (t *trial) start(ctx context.Context, tills int, do func(context.Context, *http.Client, int)) *load {
	l := &load{client: newClient(tills)}
	ctx, l.cancel = context.WithCancel(ctx)
	for till := range tills {
		l.group.Go(func() {
			for ctx.Err() == nil {
				do(ctx, l.client, till)
				lab.Pause(ctx, tillPause)
			}
		})
	}
	return l
}

// busy sends tickets for a time over a number of connections, each as soon as the one before is answered.
func (t *trial) busy(ctx context.Context, addr string, connections int, d time.Duration) {
	client := newClient(connections)
	defer client.CloseIdleConnections()
	end := time.Now().Add(d)
	var group sync.WaitGroup
	for range connections {
		group.Go(func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				t.send(ctx, client, addr)
			}
		})
	}
	group.Wait()
}

// openLoop sends tickets for a time at a rate, whatever the answers are, over at most the given number of connections. It returns
// the rate that it reached, because a machine may be too slow to send more.
func (t *trial) openLoop(ctx context.Context, addr string, rate float64, connections int, d time.Duration) float64 {
	client := newClient(connections)
	defer client.CloseIdleConnections()
	start := time.Now()
	end := start.Add(d)
	due := make(chan struct{}, int(rate*d.Seconds())+1)
	var count atomic.Int64
	var group sync.WaitGroup
	for range connections {
		group.Go(func() {
			for range due {
				if time.Now().After(end) {
					return
				}
				count.Add(1)
				t.send(ctx, client, addr)
			}
		})
	}
	given := 0
	for now := start; now.Before(end) && ctx.Err() == nil; now = time.Now() {
		for want := int(rate * now.Sub(start).Seconds()); given < want; given++ {
			due <- struct{}{}
		}
		lab.Pause(ctx, time.Millisecond)
	}
	close(due)
	group.Wait()
	return float64(count.Load()) / d.Seconds()
}

// paced sends tickets for a time at a rate over connections that stay the same, each with its share, and closes opened when
// all of them are open. It returns the rate that was reached: a connection that waits for an answer sends nothing.
func (t *trial) paced(
	ctx context.Context, addr string, rate float64, connections int, d time.Duration, opened chan<- struct{},
) float64 {
	gap := time.Duration(float64(connections) / rate * float64(time.Second))
	var count atomic.Int64
	var first, group sync.WaitGroup
	first.Add(connections)
	start := time.Now()
	for i := range connections {
		group.Go(func() {
			client := newClient(1)
			defer client.CloseIdleConnections()
			next := start.Add(gap * time.Duration(i) / time.Duration(connections))
			opening := sync.OnceFunc(first.Done)
			defer opening()
			for ; next.Sub(start) < d && ctx.Err() == nil; next = next.Add(gap) {
				lab.Pause(ctx, time.Until(next))
				count.Add(1)
				t.send(ctx, client, addr)
				opening()
			}
		})
	}
	first.Wait()
	close(opened)
	group.Wait()
	return float64(count.Load()) / time.Since(start).Seconds()
}
