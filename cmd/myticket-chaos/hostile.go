package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// containerMemory is the limit of the chart's values (resources.limits.memory).
	containerMemory = 1 << 30
	// backendMemory is what one process of Postgres may take for itself, beside what they share.
	backendMemory = 512 << 20
	// tooLittleMemory is a limit that a server keeps until it has work to do, if it is not told of it.
	tooLittleMemory = 64 << 20
	tooMuchMemory   = "the server took more memory than it may"
	// mostRefused is how long an honest sender may be refused in a row.
	mostRefused = time.Second
	// drainedWithin is how long it may take until everything that was spooled or unread is stored and read.
	drainedWithin = time.Minute
	// mostStarts is how often a server that was killed for its memory is started again.
	mostStarts = 3

	honestSource = "shop-1"
	honestToken  = "honest-3f8a17c29b604d5e8a71" //nolint:gosec // of a server that lives for a minute
	honestAddr   = "127.0.0.2"                   // so that a limit for each address tells them from the hostile ones
)

// siege is the fault hostile while it is played.
type siege struct {
	*trial

	server  *server
	maker   *hostileMaker
	client  *http.Client // of the hostile senders
	begin   time.Time
	starts  int
	phases  []phase
	senders []*honestSender
	outages []span  // of our own making
	slow    float64 // tickets that the spool may keep for as long as Postgres is slow with them
}

// phase is a step of the siege. Honest tickets are sent all the time.
type phase struct {
	name string
	from time.Time
}

// span is a time from and to.
type span struct{ from, to time.Time }

// hostile plays everything that one sender can do to the others.
func hostile(ctx context.Context, t *trial) error {
	memory, steps := int64(containerMemory), siegeSteps
	if t.config.selfCheck {
		memory, steps = tooLittleMemory, []siegeStep{{"many lines", manyLines}}
	}
	g, err := newSiege(ctx, t, memory)
	if err != nil {
		return err
	}
	stopHonest := g.startHonest(ctx)
	defer stopHonest()
	for _, step := range steps {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.enter(step.name)
		err := g.step(ctx, step.play)
		if err == nil {
			pause(ctx, warmUp)
			err = g.revive(ctx)
		}
		if err != nil { // what it has cost until here is worth knowing all the same
			g.failf("%s: %s", step.name, err)
			break
		}
	}
	g.enter("afterwards")
	stopHonest()
	return g.finish(ctx)
}

// siegeStep is one kind of attack.
type siegeStep struct {
	name string
	play func(context.Context, *siege) error
}

var siegeSteps = []siegeStep{
	{"wide tickets", wideTickets},
	{"wide tickets in the spool", wideSpooled},
	{"wide tickets while Postgres is frozen", widePaused},
	{"many lines", manyLines},
	{"new products", newProducts},
	{"a slow head of the spool", slowHead},
	{"connections that stall", stalledConnections},
	{"idle connections", idleConnections},
	{"odd framing", oddFraming},
}

func newSiege(ctx context.Context, t *trial, memory int64) (*siege, error) {
	sources := filepath.Join(t.dir, "sources.json")
	entries := fmt.Sprintf(`{%q: {"bearer_tokens": [%q]}, "*": {}}`, honestSource, honestToken)
	if err := os.WriteFile(sources, []byte(entries), 0o600); err != nil {
		return nil, fmt.Errorf("write the sources: %w", err)
	}
	if err := t.exec(ctx, slowInserts); err != nil {
		return nil, err
	}
	s, err := t.newServer(ctx, t.url, "--sources-file", sources)
	if err != nil {
		return nil, err
	}
	s.memory = &memoryLimit{bytes: memory, told: containerMemory}
	if err := errors.Join(s.start(ctx), s.awaitReady(ctx)); err != nil {
		return nil, err
	}
	g := &siege{trial: t, server: s, maker: newHostileMaker(), client: newClient(64), begin: time.Now()}
	t.onEnd(func() error { g.client.CloseIdleConnections(); return nil })
	g.watchBackends(ctx)
	return g, nil
}

func (g *siege) enter(name string) { g.phases = append(g.phases, phase{name, time.Now()}) }

// during names the phase of a moment.
func (g *siege) during(at time.Time) string {
	name := "before the first step"
	for _, p := range g.phases {
		if !p.from.After(at) {
			name = p.name
		}
	}
	return name
}

// step plays a step. While the server is dead for its memory, everything that a step awaits is in vain; it ends.
func (g *siege) step(ctx context.Context, play func(context.Context, *siege) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	killed := g.server.memory.killed.Load()
	go func() {
		for ctx.Err() == nil && g.server.memory.killed.Load() == killed {
			pause(ctx, memoryPoll)
		}
		cancel()
	}()
	if err := play(ctx, g); err != nil && g.server.memory.killed.Load() == killed {
		return err
	}
	return nil
}

// revive starts a server again that has ended, as Kubernetes does, which is a failure.
func (g *siege) revive(ctx context.Context) error {
	if err := g.databaseUp(ctx); err != nil {
		return err
	}
	for g.server.hasExited() {
		why := fmt.Errorf("the server ended by itself: %w", g.server.why())
		if g.server.memory.killed.Load() > 0 {
			why = fmt.Errorf("%s, %d MiB, and was killed", tooMuchMemory, g.server.memory.bytes>>20)
		}
		g.failf("%s: %s", g.phases[len(g.phases)-1].name, why)
		if g.starts++; g.starts > mostStarts {
			return errors.New("the server was started again too often")
		}
		if err := g.server.start(ctx); err != nil && !g.server.hasExited() {
			return err
		}
		pause(ctx, time.Second) // what is in its spool may kill it at once
	}
	return nil
}

// watchBackends demands of Postgres' processes that none takes too much, until the trial ends.
func (g *siege) watchBackends(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var most int64
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for _, backend := range childrenOf(g.database.PID()) {
				if memory, err := memoryOf(backend, "RssAnon"); err == nil {
					most = max(most, memory)
				}
			}
			pause(ctx, 5*memoryPoll)
		}
	}()
	g.onEnd(func() error {
		cancel()
		<-done
		g.notef("a process of Postgres took up to %d MiB for itself", most>>20)
		if most > backendMemory {
			g.failf("a process of Postgres took %d MiB for itself, and %d are allowed", most>>20, backendMemory>>20)
		}
		return nil
	})
}

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
				pause(ctx, gap)
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
	for end := time.Now().Add(patience); ; pause(ctx, gap) {
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

// restart kills the server and starts it again. Nobody can blame the server for the time in between.
func (g *siege) restart(ctx context.Context) error {
	from := time.Now()
	g.server.kill()
	err := g.server.start(context.WithoutCancel(ctx)) // it outlives the step
	g.outages = append(g.outages, span{from, time.Now()})
	return err
}

// storm sends hostile tickets, so many at once, and returns when all are answered.
func (g *siege) storm(ctx context.Context, atOnce int, bodies [][]byte) {
	due := make(chan []byte, len(bodies))
	for _, body := range bodies {
		due <- body
	}
	close(due)
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for body := range due {
				if ctx.Err() != nil {
					return
				}
				n := g.besides.begin(body, false)
				a, err := post(context.WithoutCancel(ctx), g.client, g.server.http, delivery{source: "mallory", body: body})
				if err != nil {
					a = answer{}
				}
				g.besides.end(n, a)
			}
		})
	}
	group.Wait()
}

// wides makes wide tickets of several kinds.
func (g *siege) wides(each int) [][]byte {
	var bodies [][]byte
	for range each {
		bodies = append(bodies, g.maker.wide("n"), g.maker.wide("\x01"), g.maker.wide("😀"), g.maker.wide("é"))
	}
	return bodies
}

func wideTickets(ctx context.Context, g *siege) error {
	g.storm(ctx, 1, g.wides(1))
	g.storm(ctx, 8, g.wides(g.times(4, 2)))
	return nil
}

// wideSpooled lets wide tickets lie in the spool when the server starts.
func wideSpooled(ctx context.Context, g *siege) error {
	if err := g.database.Kill(); err != nil {
		return err
	}
	if err := g.awaitLoad(ctx, time.Now(), http.StatusAccepted, 1); err != nil {
		return err
	}
	g.storm(ctx, 4, g.wides(g.times(4, 2)))
	if err := errors.Join(g.restart(ctx), g.database.Restart(ctx)); err != nil {
		return err
	}
	return g.awaitLoad(ctx, time.Now(), http.StatusOK, 1)
}

// widePaused lets wide tickets wait for a Postgres that does not answer.
func widePaused(ctx context.Context, g *siege) error {
	if err := g.database.Pause(); err != nil {
		return err
	}
	g.storm(ctx, 16, g.wides(g.times(8, 4)))
	if err := g.database.Resume(); err != nil {
		return err
	}
	return g.awaitLoad(ctx, time.Now(), http.StatusOK, 1)
}

// manyLines sends tickets that name one product very often, and tickets that name very many.
func manyLines(ctx context.Context, g *siege) error {
	var same, distinct [][]byte
	for range g.times(48, 24) {
		same = append(same, g.maker.same())
	}
	for range 40 {
		distinct = append(distinct, g.maker.distinct(hostileSize))
	}
	for i := range g.times(40, 20) { // not all of them may be taken for too long
		distinct = append(distinct, g.maker.distinct(1000+i*250))
	}
	g.storm(ctx, len(same), same)
	g.storm(ctx, len(distinct), distinct)
	return nil
}

// newProducts floods the product base: 20 MiB in tickets that are as long as may be, and as much in short ones.
func newProducts(ctx context.Context, g *siege) error {
	var long, short [][]byte
	for range g.times(20, 5) {
		long = append(long, g.maker.flood(hostileSize))
	}
	for range g.times(400, 50) {
		short = append(short, g.maker.flood(2000))
	}
	g.storm(ctx, 8, long)
	g.storm(ctx, 8, short)
	return nil
}

// markers of tickets that Postgres is slow with.
const (
	slowAlways = "slow-always"
	slowRead   = "slow-when-read"
)

// slowInserts is made before anything is sent, because a trigger that is made under load deadlocks with it.
const slowInserts = `
CREATE TABLE slowness AS SELECT true AS still;
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT still FROM slowness) AND (NEW.status <> 'TO_TREAT' OR position('` + slowAlways + `'::bytea IN NEW.body) > 0) THEN
		PERFORM pg_sleep(300);
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER slow BEFORE INSERT ON tickets FOR EACH ROW
	WHEN (length(NEW.body) < 200 AND position('slow-'::bytea IN NEW.body) > 0) EXECUTE FUNCTION slow()`

// slowHead sends a ticket whose INSERT takes longer than anybody waits, and one whose INSERT does unless it is stored
// unread. Others are sent all the time, and must be stored.
func slowHead(ctx context.Context, g *siege) error {
	from := time.Now()
	for _, marker := range []string{slowAlways, slowRead} {
		body := []byte(g.maker.head() + "Note: " + marker + "\n\nproduct,product_id,price\nx," + hostileProduct + ",1")
		n := g.besides.begin(body, false)
		a, err := post(context.WithoutCancel(ctx), g.client, g.server.http, delivery{source: "mallory", body: body})
		if err != nil {
			a = answer{}
		}
		g.besides.end(n, a)
	}
	g.slow = 1
	// Tickets that came after the slow ones must be stored, and be stored at once again: Postgres is well.
	if err := g.awaitLoad(ctx, from, http.StatusAccepted, 1); err != nil {
		return err
	}
	return g.awaitLoad(ctx, time.Now(), http.StatusOK, 100)
}

func (t *trial) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, t.url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// hold opens so many connections and keeps them open for a time; a connection that is refused or closed is left alone.
func (g *siege) hold(ctx context.Context, connections int, d time.Duration, start func(i int, conn net.Conn)) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	for i := range connections {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", g.server.http)
		if err != nil {
			pause(ctx, time.Millisecond)
			continue
		}
		group.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
			start(i, conn)
			<-ctx.Done()
		})
	}
	<-ctx.Done()
}

// stalledConnections announces tickets of 1 MiB and sends 100 bytes of each, with the wrong credentials, without, and
// where none are needed.
func stalledConnections(ctx context.Context, g *siege) error {
	const connections = 700
	heads := []string{
		"POST /ticket/" + honestSource + " HTTP/1.1\r\n",
		"POST /ticket/" + honestSource + " HTTP/1.1\r\nAuthorization: Bearer wrong-but-long-enough-to-be-one\r\n",
		"POST /ticket/mallory HTTP/1.1\r\n",
	}
	rest := fmt.Sprintf("Host: test\r\nContent-Length: %d\r\n\r\n%s", hostileSize, strings.Repeat("x", 100))
	for _, head := range heads {
		g.hold(ctx, connections, g.span(2*time.Second, time.Second), func(_ int, conn net.Conn) {
			_, _ = io.WriteString(conn, head+rest)
		})
	}
	// And all but the last byte, which is memory that the server must really have.
	almost := fmt.Appendf(nil, "POST /ticket/mallory HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n", hostileSize)
	almost = append(almost, make([]byte, hostileSize-1)...)
	g.hold(ctx, connections, g.span(3*time.Second, 2*time.Second), func(_ int, conn net.Conn) { _, _ = conn.Write(almost) })
	return nil
}

// idleConnections opens as many connections as a server takes by default, and says nothing, or half of a line.
func idleConnections(ctx context.Context, g *siege) error {
	const connections = 4096
	g.hold(ctx, connections, g.span(4*time.Second, 2*time.Second), func(i int, conn net.Conn) {
		if i%2 == 0 {
			_, _ = io.WriteString(conn, "POST /tick")
		}
	})
	return nil
}

// Sources of requests that a server may understand or refuse as it likes, and of those that only a server sees that takes
// the body of one request for another: none of these may be stored.
const (
	oddSource      = "odd"
	smuggledSource = "smuggled"
)

// oddFraming sends what may be read in two ways, and chunks that bring more framing than content.
func oddFraming(ctx context.Context, g *siege) error {
	const hidden = "POST /ticket/" + smuggledSource + " HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nsmuggled!"
	post := func(headers, body string) string {
		return "POST /ticket/" + oddSource + " HTTP/1.1\r\nHost: test\r\n" + headers + "\r\n" + body
	}
	requests := []string{
		post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden),
		post("Content-Length: 0\r\nContent-Length: "+fmt.Sprint(len(hidden))+"\r\n", hidden),
		post("Content-Length: +5\r\n", "hello"),
		post("Content-Length: -1\r\n", "hello"),
		post("Content-Length: 99999999999999999999\r\n", "hello"),
		post("Content-Length: 5\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		post("Transfer-Encoding: chunked, identity\r\n", "5\r\nhello\r\n0\r\n\r\n"),
		post("Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n"),
		post("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\nhello"),
		post("Transfer-Encoding: chunked\r\n", "7fffffff\r\nhello"),
		// An extension of a chunk that does not end, many of them, and many trailers.
		post("Transfer-Encoding: chunked\r\n", "1;"+strings.Repeat("x", 4<<20)),
		post("Transfer-Encoding: chunked\r\n", strings.Repeat("1;"+strings.Repeat("x", 4096)+"\r\na\r\n", 2000)),
		post("Transfer-Encoding: chunked\r\n", "0\r\n"+strings.Repeat("X-Trailer: "+strings.Repeat("x", 4096)+"\r\n", 2000)),
		post(strings.Repeat("X-Header: x\r\n", 100_000), ""),
		"POST /ticket/" + oddSource + " HTTP/1.1\nHost: test\nContent-Length: 3\n\n" + "odd",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		strings.Repeat("\r\n", 1<<20),
		strings.Repeat("x", 4<<20),
	}
	var group sync.WaitGroup
	for _, request := range requests {
		for range 4 {
			group.Go(func() {
				short, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				withConn(short, g.server.http, func(conn net.Conn) {
					_, _ = io.WriteString(conn, request)
					_, _ = io.Copy(io.Discard, conn)
				})
			})
		}
	}
	group.Wait()
	g.storm(ctx, 4, g.maker.odd())
	return nil
}

// finish demands what honest senders may expect.
func (g *siege) finish(ctx context.Context) error {
	g.ended = time.Now()
	const what = "the spool to become empty, but for what Postgres is slow with"
	err := await(ctx, 2*drainedWithin, what, func(ctx context.Context) error {
		m, err := g.server.metrics(ctx, "myticket_spool_tickets")
		if err == nil && m[0] > g.slow {
			err = fmt.Errorf("%.0f tickets are in it", m[0])
		}
		return err
	})
	if err != nil {
		g.failf("%s", errors.Join(err, g.server.why()))
	}
	if err := g.awaitRead(ctx); err != nil {
		return err
	}
	took := time.Since(g.ended)
	g.result.drained = took
	if took > drainedWithin {
		g.failf("everything was stored and read %s after the end, and %s are allowed", took.Round(time.Second), drainedWithin)
	}
	var longest span
	refusals, late := 0, 0
	for _, sender := range g.senders {
		refused := longestRefusal(sender.attempts, g.outages)
		if refused.to.Sub(refused.from) > longest.to.Sub(longest.from) {
			longest = refused
		}
		for _, a := range sender.attempts {
			if !a.taken() && !a.excused(g.outages) {
				refusals++
			}
			if a.to.Sub(a.from) > deadline {
				late++
			}
		}
	}
	if late > 0 {
		g.failf("%d honest requests took longer than %s", late, deadline)
	}
	if took := longest.to.Sub(longest.from); took > mostRefused {
		g.failf("%s: an honest sender was refused for %s, and %s are allowed",
			g.during(longest.from), took.Round(10*time.Millisecond), mostRefused)
	}
	g.notef("honest senders were refused %d times while the server was there, the longest in a row for %.2f s",
		refusals, longest.to.Sub(longest.from).Seconds())
	statuses := map[int16]int{}
	for i := range g.besides.tickets {
		statuses[g.besides.tickets[i].status]++
	}
	g.notef("hostile tickets: %d, answered with %s", len(g.besides.tickets), counts(statuses))
	g.notef("the server took up to %d MiB of memory, of %d", g.server.memory.peak.Load()>>20, g.server.memory.bytes>>20)
	return g.mend(ctx)
}

// mend lets Postgres be as quick with every ticket. What was stepped over meanwhile is tried again at the latest at the next
// start, and is stored then.
func (g *siege) mend(ctx context.Context) error {
	if g.slow > 0 {
		m, err := g.server.metrics(ctx, "myticket_spool_stepped_over_total")
		if err != nil {
			return err
		}
		if m[0] == 0 {
			g.failf("nobody is told of the ticket that Postgres is slow with: myticket_spool_stepped_over_total is 0")
		}
	}
	if err := errors.Join(g.exec(ctx, `UPDATE slowness SET still = false`), g.restart(ctx)); err != nil {
		return err
	}
	return g.server.awaitReady(ctx)
}

// counts writes how often there was each answer.
func counts(statuses map[int16]int) string {
	var parts []string
	for status, n := range statuses {
		parts = append(parts, fmt.Sprintf("%d (%d times)", status, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// awaitRead waits until all tickets of honest senders have been read.
func (g *siege) awaitRead(ctx context.Context) error {
	return await(ctx, 2*drainedWithin, "every honest ticket to be read", func(ctx context.Context) error {
		unread, err := g.countRows(ctx, `SELECT count(*) FROM tickets WHERE source = $1 AND status = 'TO_TREAT'`, honestSource)
		if err == nil && unread > 0 {
			err = fmt.Errorf("%d are not", unread)
		}
		return err
	})
}
