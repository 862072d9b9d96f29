package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/lab"
)

func TestMain(m *testing.M) {
	if isBroker() {
		exit(serveBroker(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// The scenarios follow each other on one Postgres, which they break.
func TestChaos_Short(t *testing.T) { //nolint:paralleltest // it needs the machine for itself
	if testing.Short() {
		t.Skip("it takes minutes")
	}
	h, err := newHarness(t.Context(), config{short: true}, t.Output())
	require.NoError(t, err)
	defer func() { assert.NoError(t, h.close(t.Context())) }()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			r := h.play(t.Context(), s)
			require.NoError(t, printResults(t.Output(), []result{r}, false))
			if r.skipped != "" {
				t.Skip(r.skipped)
			}
			assert.NoError(t, r.err())
		})
	}
}

func TestChaos_FindsLoss(t *testing.T) { //nolint:paralleltest // it needs the machine for itself
	if testing.Short() {
		t.Skip("it takes most of a minute")
	}
	var table bytes.Buffer
	err := run(t.Context(), config{short: true, selfCheck: true}, &table)
	t.Log(table.String())
	assert.NoError(t, err)
}

func TestChoose_NamesWhatThereIs(t *testing.T) {
	t.Parallel()

	all, err := choose("")
	require.NoError(t, err)
	assert.Len(t, all, len(scenarios))
	some, err := choose("steady, burst")
	require.NoError(t, err)
	assert.Equal(t, "steady", some[0].name)
	assert.Equal(t, "burst", some[1].name)
	_, err = choose("earthquake")
	assert.ErrorContains(t, err, "server-killed")
}

// The page's table is a printout of this program, so both say the same of each fault.
func TestScenarios_AreDescribedInTheDocs(t *testing.T) {
	t.Parallel()

	page, err := os.ReadFile("../../docs/durability.md")
	require.NoError(t, err)
	for _, s := range scenarios {
		assert.Contains(t, string(page), "| `"+s.name+"`: "+s.fault+" ")
	}
}

const coffee = "Order: 1\n\nproduct,product_id,price\nCoffee,p1,2.50"

func TestAudit(t *testing.T) {
	t.Parallel()

	one, two := uuid.MustParse("01890a5d-0000-7000-8000-000000000001"), uuid.MustParse("01890a5d-0000-7000-8000-000000000002")
	ticket := func(body string, status int16, id uuid.UUID) sent {
		return sent{body: sha256.Sum256([]byte(body)), status: status, id: id}
	}
	known := map[string]product{"p1": {name: "Coffee", price: "2.5"}}
	type stored struct {
		id   uuid.UUID
		body string
	}
	for name, c := range map[string]struct {
		sent     []sent
		stored   []stored
		products map[string]product
		lost     int
		doubled  int
		failures int
	}{
		"as it was acknowledged":     {sent: []sent{ticket(coffee, 200, one)}, stored: []stored{{one, coffee}}, products: known},
		"refused and not there":      {sent: []sent{ticket(coffee, 503, uuid.Nil)}},
		"no answer and there":        {sent: []sent{ticket(coffee, 0, uuid.Nil)}, stored: []stored{{one, coffee}}, products: known},
		"no answer and there twice":  {sent: []sent{ticket(coffee, 0, uuid.Nil)}, stored: []stored{{one, coffee}, {two, coffee}}, products: known, doubled: 1, failures: 1},
		"acknowledged and not there": {sent: []sent{ticket(coffee, 200, one)}, lost: 1, failures: 1},
		"promised and not there":     {sent: []sent{ticket(coffee, 202, one)}, lost: 1, failures: 1},
		"under another id":           {sent: []sent{ticket(coffee, 200, one)}, stored: []stored{{two, coffee}}, products: known, lost: 1, failures: 1},
		"an id of two tickets":       {sent: []sent{ticket(coffee, 200, one), ticket("hello", 200, one)}, stored: []stored{{one, coffee}}, products: known, lost: 1, failures: 1},
		"other bytes":                {sent: []sent{ticket("hello", 200, one)}, stored: []stored{{one, "hell"}}, lost: 1, failures: 2},
		"never sent":                 {stored: []stored{{one, "hello"}}, failures: 1},
		"answered without an id":     {sent: []sent{ticket(coffee, 200, uuid.Nil)}, stored: []stored{{one, coffee}}, products: known, lost: 1, failures: 1},
		"a product that is not known": {
			sent: []sent{ticket(coffee, 200, one)}, stored: []stored{{one, coffee}}, failures: 1,
		},
		"an old price": {
			sent: []sent{ticket(coffee, 200, two), ticket("x\nCoffee,p1,2.40", 200, one)}, stored: []stored{{two, coffee}, {one, "x\nCoffee,p1,2.40"}},
			products: map[string]product{"p1": {name: "Coffee", price: "2.40"}}, failures: 1,
		},
		"a product of no ticket": {products: known, failures: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAudit(c.sent)
			for _, s := range c.stored {
				a.see(s.id, []byte(s.body), "TREATED")
			}
			a.finish(c.products)
			assert.Equal(t, c.lost, a.lost, "lost")
			assert.Equal(t, c.doubled, a.doubled, "doubled")
			assert.Len(t, a.failures, c.failures, a.failures)
		})
	}
}

func TestAudit_AKeyMayBeKeptByTheOtherServer(t *testing.T) {
	t.Parallel()

	promised, stored := uuid.New(), uuid.New()
	a := newAudit([]sent{{body: sha256.Sum256([]byte(coffee)), id: promised, status: http.StatusAccepted, keyed: true}})
	a.see(stored, []byte(coffee), "ERROR")
	a.finish(nil)
	assert.Empty(t, a.failures)
}

func TestProxy_LosesOnlyTheAnswerToACommitOfTickets(t *testing.T) {
	t.Parallel()

	message := func(kind byte, content string) string {
		return string(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(content)))) + content
	}
	for name, c := range map[string]struct {
		says    string
		dropped int64
	}{
		"committed":        {message('C', "INSERT 0 3\x00") + message('Z', "I"), 1},
		"not yet":          {message('C', "INSERT 0 3\x00") + message('Z', "T"), 0},
		"nothing inserted": {message('C', "INSERT 0 0\x00") + message('Z', "I"), 0},
		"read":             {message('C', "SELECT 1\x00") + message('Z', "I"), 0},
		"cut off":          {message('E', "FATAL") + "C\x00", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &proxy{}
			p.armed.Store(true)
			before := message('R', "ok") + message('Z', "I")
			var heard bytes.Buffer
			p.answers(t.Context(), bufio.NewReader(bytes.NewBufferString(before+c.says)), bufio.NewWriter(&heard))
			assert.Equal(t, c.dropped, p.dropped.Load())
			if c.dropped > 0 {
				assert.Equal(t, before, heard.String())
			} else {
				assert.Contains(t, before+c.says, heard.String())
				assert.Greater(t, heard.Len(), len(before))
			}
		})
	}
}

func TestLedger_Between(t *testing.T) {
	t.Parallel()

	l := newLedger()
	l.end(l.begin([]byte("one"), false), answer{status: http.StatusOK})
	middle := time.Now()
	l.end(l.begin([]byte("two"), false), answer{status: http.StatusAccepted})
	l.begin([]byte("three"), false)
	assert.Len(t, l.between(middle, time.Now().Add(time.Second)), 1, "the first was sent before, the last is not answered")
	assert.Equal(t, 1, l.since(middle, http.StatusAccepted))
	assert.Zero(t, l.since(middle, http.StatusOK))
}

func TestPrintResults(t *testing.T) {
	t.Parallel()

	results := []result{
		{name: "one", fault: "it broke", checked: true, sent: 3, stored: 2, unanswered: 1, longest: time.Second, notes: []string{"well"}},
		{name: "two", fault: "it burnt", skipped: "no matches"},
		{name: "three", fault: "it sank", sent: 4},
	}
	var text, markdown bytes.Buffer
	require.NoError(t, printResults(&text, results, false))
	require.NoError(t, printResults(&markdown, results, true))
	assert.Contains(t, text.String(), "one: well")
	assert.Contains(t, text.String(), "skipped: no matches")
	assert.Contains(t, markdown.String(), "| `one`: it broke | 3 | 2 | 0 | 0 | 1 | 0 | 0 | 1.00 s | 0.00 s |")
	assert.Contains(t, markdown.String(), "| 4 | 0 | 0 | 0 | 0 | ? | ? | 0.00 s | ? |", "what was not looked at is not 0")
}

func TestLongestRefusal_IsOfOneSenderInARow(t *testing.T) {
	t.Parallel()

	start := time.Now()
	try := func(from, to int, status int) attempt {
		at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
		return attempt{span{at(from), at(to)}, status}
	}
	for name, c := range map[string]struct {
		attempts []attempt
		outages  []span
		want     time.Duration
	}{
		"none":          {attempts: []attempt{try(0, 10, 200), try(20, 30, 202)}},
		"one":           {attempts: []attempt{try(0, 10, 200), try(20, 50, 503), try(60, 70, 200)}, want: 30 * time.Millisecond},
		"several":       {attempts: []attempt{try(0, 10, 503), try(500, 510, 429), try(1500, 1510, 0)}, want: 1510 * time.Millisecond},
		"not in a row":  {attempts: []attempt{try(0, 10, 503), try(500, 510, 200), try(1500, 1510, 503)}, want: 10 * time.Millisecond},
		"in our outage": {attempts: []attempt{try(0, 10, 0), try(20, 900, 0)}, outages: []span{{start, start.Add(100 * time.Millisecond)}}},
		"after our outage": {
			attempts: []attempt{try(0, 10, 0), try(20, 30, 503), try(40, 60, 503)},
			outages:  []span{{start, start.Add(15 * time.Millisecond)}}, want: 40 * time.Millisecond,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := longestRefusal(c.attempts, c.outages)
			assert.Equal(t, c.want, got.to.Sub(got.from))
		})
	}
}

func TestMemoryLimit_KillsWhoTakesMore(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		bytes int64
		dies  bool
	}{"less": {1 << 10, true}, "enough": {1 << 30, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			child, err := lab.Start(exec.CommandContext(t.Context(), "sleep", "60"), syscall.SIGKILL)
			require.NoError(t, err)
			m, watched := &memoryLimit{bytes: c.bytes}, make(chan struct{})
			go func() { defer close(watched); m.hold(child) }()
			require.Eventually(t, func() bool { return m.peak.Load() > 0 }, 30*time.Second, time.Millisecond)
			if !c.dies {
				require.Zero(t, m.killed.Load())
				child.Kill()
			}
			<-watched
			<-child.Exited()
			if c.dies {
				assert.Equal(t, int32(1), m.killed.Load())
			}
		})
	}
}

func TestCrashes_KeepsWhatWasKilled(t *testing.T) {
	t.Parallel()

	var c crashes
	for _, line := range []string{
		"LOG:  checkpoint starting: time\n", "LOG:  server process (PID 7) was terminated by signal 9: Killed\nDETAIL:  x\n",
	} {
		_, err := c.Write([]byte(line))
		require.NoError(t, err)
	}
	assert.Equal(t, []string{"LOG:  server process (PID 7) was terminated by signal 9: Killed"}, c.take())
	assert.Empty(t, c.take())
}

// A hostile ticket that is no longer one shows nothing.
func TestHostileMaker_MakesWhatItSays(t *testing.T) {
	t.Parallel()

	m := newHostileMaker()
	for name, body := range map[string][]byte{
		"wide": m.wide("n"), "wide, control characters": m.wide("\x01"), "wide, emoji": m.wide("😀"), "same": m.same(),
		"distinct": m.distinct(hostileSize), "flood": m.flood(hostileSize),
	} {
		assert.LessOrEqual(t, len(body), hostileSize, name)
		assert.Greater(t, len(body), hostileSize-1000, name)
	}
	assert.Greater(t, bytes.Count(m.distinct(hostileSize), []byte("\n")), 70_000, "products of a ticket")
	assert.Greater(t, bytes.Count(m.wide("n"), []byte("\n")), 9_900, "lines of a ticket")
	one, other := m.same(), m.same()
	assert.NotEqual(t, one, other)
	for _, body := range m.odd() {
		assert.LessOrEqual(t, len(body), hostileSize)
	}
}
