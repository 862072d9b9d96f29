package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"myticket/internal/lab"
)

// honestSender is one till, and what it saw.
type honestSender struct {
	attempts []attempt // in order
}

// attempt is one request, and whether its ticket was taken.
type attempt struct {
	span
	status int // 0 for no answer
}

func (a attempt) taken() bool { return a.status == http.StatusOK || a.status == http.StatusAccepted }

// excused reports whether the attempt falls into an outage of our own making.
func (a attempt) excused(outages []span) bool {
	return slices.ContainsFunc(outages, func(o span) bool { return a.from.Before(o.to) && o.from.Before(a.to) })
}

// startHonest starts senders that behave. Every second one gives its tickets a key, and repeats what is refused; the others
// open a connection for each ticket.
func (g *siege) startHonest(ctx context.Context) (stop func()) {
	const senders, gap, betweenTries = 20, 100 * time.Millisecond, 50 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	for i := range senders {
		sender := &honestSender{}
		g.senders = append(g.senders, sender)
		keyed := i%2 == 0
		client := honestClient(keyed)
		group.Go(func() {
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				g.sendHonest(context.WithoutCancel(ctx), client, sender, keyed, betweenTries)
				lab.Pause(ctx, gap)
			}
		})
	}
	return sync.OnceFunc(func() { cancel(); group.Wait() })
}

// honestClient comes from another address than everybody else.
func honestClient(keepAlive bool) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(honestAddr)}}
	return &http.Client{Timeout: 3 * deadline, Transport: &http.Transport{
		DialContext: dialer.DialContext, DisableKeepAlives: !keepAlive, DisableCompression: true,
	}}
}

func (g *siege) sendHonest(ctx context.Context, client *http.Client, sender *honestSender, keyed bool, gap time.Duration) {
	const patience = 10 * time.Second
	maker := g.trial.maker
	d := delivery{source: honestSource, token: honestToken, body: maker.next()}
	if keyed {
		d.key = fmt.Sprintf("%s-%d", maker.run, maker.keys.Add(1))
	}
	n := g.ledger.begin(d.body, keyed)
	for end := time.Now().Add(patience); ; lab.Pause(ctx, gap) {
		from := time.Now()
		a, err := post(ctx, client, g.server.http, d)
		if err != nil {
			a = answer{}
		}
		tried := attempt{span{from, time.Now()}, a.status}
		sender.attempts = append(sender.attempts, tried)
		if tried.taken() || !keyed || time.Now().After(end) {
			g.ledger.end(n, a)
			return
		}
		g.ledger.repeated.Add(1)
	}
}

// longestRefusal returns the longest time in which a sender was refused again and again: from the begin of the first attempt
// to the end of the last. Attempts that fall into outages do not count.
func longestRefusal(attempts []attempt, outages []span) span {
	var longest, current span
	for _, a := range attempts {
		switch {
		case a.excused(outages) || a.taken():
			current = span{}
			continue
		case current.from.IsZero():
			current.from = a.from
		}
		current.to = a.to
		if current.to.Sub(current.from) > longest.to.Sub(longest.from) {
			longest = current
		}
	}
	return longest
}
