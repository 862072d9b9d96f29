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

const (
	honestSource = "shop-1"
	honestToken  = "honest-3f8a17c29b604d5e8a71" //nolint:gosec // of a server that lives for a minute
	honestAddr   = "127.0.0.2"                   // so that a limit for each address does not count them with the hostile ones

	// mostRefused is how long an honest sender may be refused in a row.
	mostRefused = time.Second
)

// span is the time between two moments.
type span struct{ from, to time.Time }

func (s span) length() time.Duration { return s.to.Sub(s.from) }

// honestSender is one till and its attempts.
type honestSender struct {
	attempts []attempt // in order
}

// attempt is one request, and whether its ticket was taken.
type attempt struct {
	span
	status int // 0 for no answer
}

func (a attempt) taken() bool { return a.status == http.StatusOK || a.status == http.StatusAccepted }

// excused reports whether the attempt overlaps an outage that the trial itself made.
func (a attempt) excused(outages []span) bool {
	return slices.ContainsFunc(outages, func(o span) bool { return a.from.Before(o.to) && o.from.Before(a.to) })
}

// startHonest starts senders that behave. Every second one gives its tickets a key and repeats what is refused. The others open
// a connection for each ticket.
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

// honestClient returns a client that connects from an address of its own.
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

// longestRefusal returns the longest time in which every attempt of a sender was refused: from the start of the first attempt to
// the end of the last. Attempts during outages do not count.
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
		if current.length() > longest.length() {
			longest = current
		}
	}
	return longest
}

// judgeHonest demands what honest senders may expect.
func (g *siege) judgeHonest() {
	var longest span
	refusals, late := 0, 0
	for _, sender := range g.senders {
		refused := longestRefusal(sender.attempts, g.outages)
		if refused.length() > longest.length() {
			longest = refused
		}
		for _, a := range sender.attempts {
			if !a.taken() && !a.excused(g.outages) {
				refusals++
			}
			if a.length() > deadline {
				late++
			}
		}
	}
	if late > 0 {
		g.failf("%d honest requests took longer than %s", late, deadline)
	}
	if took := longest.length(); took > mostRefused {
		g.failf("%s: an honest sender was refused for %s, and %s are allowed",
			g.during(longest.from), took.Round(10*time.Millisecond), mostRefused)
	}
	g.notef("honest senders were refused %d times while the server was there, the longest in a row for %.2f s",
		refusals, longest.length().Seconds())
}
