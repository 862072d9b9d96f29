package postgres

import (
	"encoding/binary"
	"hash/maphash"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"myticket/internal/ticket"
)

// knownFor is how long a server relies on what it has seen committed about a product. SettleProducts looks later than that, by
// more than any transaction takes: docs/design.md ("Products that are known") has the argument.
//
// Postgres checks this time at the end of the transaction (insertOutbox). A server gives up knownMargin of it for the way there,
// and up to knownSpread more, by product, so that products that were seen together are not all asked about together again.
const (
	knownFor    = 30 * time.Second
	knownMargin = 5 * time.Second
	knownSpread = 10 * time.Second
)

// knownRest is the age of last_seen_at from which on a product is not remembered, because PruneProducts may remove it soon. The
// difference to pruneRest is longer than knownFor and a transaction.
const knownRest = pruneRest - time.Minute

// A remembered product has its place in one of knownSets sets. In a full set, the product that was asked about longest ago gives
// way.
const (
	knownSets = 1 << 15
	knownWays = 8
)

// KnownProductsBytes is the memory of the products that a Store remembers. It is taken when the first ticket is stored. Where the
// operating system can, it is outside of the Go heap, which would otherwise grow by a multiple of it before garbage is collected.
const KnownProductsBytes = knownSets * knownWays * 32

// knownProduct is what is remembered of a product. Its times are in seconds since Postgres' epoch, rounded so that less is known.
type knownProduct struct {
	words       uint64 // hash of its id, rank, name and price
	from, until uint32 // the times of the tickets that move neither first_seen_at nor last_seen_at; until is not one of them
	asOf        uint32 // when the transaction that saw it began
}

// known remembers products as committed transactions have seen them. Nothing is asked about tickets that only confirm them. The
// seeds of its hashes are random, so a sender cannot construct products that are taken for each other.
type known struct {
	idSeed, wordsSeed maphash.Seed
	ranks             bool      // sources differ in rank
	start             time.Time // of this server's monotonic clock
	lines             *prometheus.CounterVec
	confirmed, asked  prometheus.Counter

	mu     sync.RWMutex  // guards the fields below
	sets   []knownSet    // nil until something is remembered
	server int64         // of seenProducts: all that is remembered is from this server; 0 if nothing is
	ahead  time.Duration // Postgres' clock minus the time since start, or a little more
}

// knownSet is the places of a set. The ids are together, so that a processor reads one line of memory to find one.
type knownSet struct {
	ids      [knownWays]uint64 // hashes; 0 for a free place
	products [knownWays]knownProduct
}

func newKnown(ranks bool) *known {
	k := &known{
		idSeed: maphash.MakeSeed(), wordsSeed: maphash.MakeSeed(), ranks: ranks, start: time.Now(),
		lines: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_product_lines_total",
			Help: "Lines of tickets that were to be stored as TREATED, without those of --test-sources, by what this server did " +
				"about their products: known (it had seen in the last half minute that the product base says the same) or " +
				"asked (it asked Postgres).",
		}, []string{"products"}),
	}
	k.confirmed, k.asked = k.lines.WithLabelValues("known"), k.lines.WithLabelValues("asked")
	return k
}

// reliance is what a transaction relies on if it does not ask about known products. Postgres refuses a transaction that comes
// later or to another server: see queueOutbox. The zero value relies on nothing.
type reliance struct {
	until  int64 // by Postgres' clock, in microseconds of its epoch
	server int64 // of seenProducts
}

// params returns $3 and $4 of insertOutbox.
func (r reliance) params() (until, server []byte) {
	if r == (reliance{}) {
		return nil, nil
	}
	return binary.BigEndian.AppendUint64(nil, uint64(r.until)), binary.BigEndian.AppendUint64(nil, uint64(r.server))
}

// news looks at the lines of TREATED rows. It returns the ids of the products about which any line may say something new, each
// with the value -1, and what a transaction relies on that asks about no others. If nothing is known, ids is nil.
func (k *known) news(rows []row, authenticated func(source string) bool) (ids map[string]int, relies reliance) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	ids = map[string]int{}
	now := k.now()
	oldest, confirmed, asked := now, 0, 0
	var words []byte
	var places [knownChunk]*knownProduct
	for r := range rows {
		if rows[r].status != ticket.Treated {
			continue
		}
		t := rows[r].ticket
		at := (ticket.IDTime(t.ID).UnixMicro() - postgresEpoch) / second
		ranked := authenticated != nil && authenticated(t.Source)
		for i := range t.Order.Lines {
			line := &t.Order.Lines[i]
			if i%knownChunk == 0 {
				k.findAll(t.Order.Lines[i:], &places)
			}
			if p := places[i%knownChunk]; p != nil && p.covers(at, now) {
				words = appendWords(words[:0], line.ProductID, line.Name, ranked)
				words = trimZeros(line.Price.AppendText(words), len(words))
				if maphash.Bytes(k.wordsSeed, words) == p.words {
					oldest = min(oldest, int64(p.asOf))
					confirmed++
					continue
				}
			}
			asked++
			if k.server != 0 {
				ids[line.ProductID] = -1
			}
		}
	}
	k.confirmed.Add(float64(confirmed))
	k.asked.Add(float64(asked))
	if confirmed == 0 {
		return nil, reliance{}
	}
	return ids, reliance{until: oldest*second + knownFor.Microseconds(), server: k.server}
}

// second is in microseconds.
const second = 1_000_000

// now returns Postgres' time in seconds of its epoch, or a little more. The caller must hold k.mu.
func (k *known) now() int64 { return int64((time.Since(k.start) + k.ahead) / time.Second) }

// knownChunk is how many lines of a ticket are looked up together.
const knownChunk = 64

// findAll looks up the products of the first lines. Those that are not remembered become nil. The caller must hold k.mu.
//
// The table is larger than a processor's caches. Each step is a loop of its own, so the processor waits for the memory of many
// lines at the same time.
func (k *known) findAll(lines []ticket.Line, places *[knownChunk]*knownProduct) {
	clear(places[:])
	if k.server == 0 {
		return
	}
	lines = lines[:min(len(lines), knownChunk)]
	var ids [knownChunk]uint64
	for i := range lines {
		ids[i] = maphash.String(k.idSeed, lines[i].ProductID)
	}
	seen := uint64(0)
	for i := range lines {
		seen |= k.sets[ids[i]%knownSets].ids[0]
	}
	for i := range lines {
		set := &k.sets[ids[i]%knownSets]
		for way := range set.ids {
			if set.ids[way] == ids[i] {
				places[i] = &set.products[way]
				seen |= places[i].words
				break
			}
		}
	}
	runtime.KeepAlive(seen) // or else the compiler would leave out what only fetches memory
}

// covers reports whether a ticket of a time moves nothing on, and may rely on this now.
func (p *knownProduct) covers(at, now int64) bool {
	age := now - int64(p.asOf) // negative if Postgres' clock was set back
	most := int64((knownFor-knownMargin)/time.Second) - int64(p.words%uint64(knownSpread/time.Second))
	return at >= int64(p.from) && at < int64(p.until) && age >= 0 && age < most
}

// appendWords appends what is hashed of a product, except for its price.
func appendWords[S string | []byte](b []byte, id, name S, ranked bool) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(id)))
	b = append(b, id...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	if ranked {
		return append(b, 1)
	}
	return append(b, 0)
}

// trimZeros removes the zeros at the end of a decimal that begins at an index. For Postgres 2.50 and 2.5 are the same price.
func trimZeros(b []byte, from int) []byte {
	point := false
	for _, c := range b[from:] {
		point = point || c == '.'
	}
	for point && (b[len(b)-1] == '0' || b[len(b)-1] == '.') {
		point = b[len(b)-1] == '0'
		b = b[:len(b)-1]
	}
	return b
}

// selectSeen returns products as upsertProducts has left them, in the same transaction. A server is identified by the time of
// its start.
const selectSeen = `
SELECT product_id, name, price::text, authenticated, last_seen_at, first_seen_at, now(), pg_postmaster_start_time()
FROM products WHERE product_id = ANY ($1::text[])`

const seenColumns = 8

// seenProducts is what a transaction has seen of products. It may be remembered once the transaction is known to be committed.
type seenProducts struct {
	sent     time.Duration // this server's time since known.start, before the transaction began
	began    int64         // when the transaction began, in microseconds of Postgres' epoch
	server   int64         // when the Postgres server started, in the same unit
	products []seenProduct
}

type seenProduct struct {
	id uint64 // hash
	knownProduct
}

// read reads the result of selectSeen. It leaves out what must not be remembered.
func (k *known) read(rows *pgconn.ResultReader) (seen seenProducts) {
	var words []byte
	for rows.NextRow() {
		v := rows.Values()
		lastSeen, firstSeen := readTime(v[4]), readTime(v[5])
		seen.began, seen.server = readTime(v[6]), readTime(v[7])
		if lastSeen <= seen.began-knownRest.Microseconds() || firstSeen < 0 || firstSeen > lastSeen || lastSeen > maxSeen {
			continue
		}
		words = appendWords(words[:0], v[0], v[1], k.ranks && v[3][0] == 1)
		words = trimZeros(append(words, v[2]...), len(words))
		seen.products = append(seen.products, seenProduct{maphash.Bytes(k.idSeed, v[0]), knownProduct{
			words: maphash.Bytes(k.wordsSeed, words),
			from:  uint32((firstSeen + second - 1) / second),
			until: uint32((lastSeen + lastSeenStep.Microseconds()) / second),
			asOf:  uint32(seen.began / second),
		}})
	}
	return seen
}

// readTime reads a time in the binary format: in microseconds of Postgres' epoch.
func readTime(b []byte) int64 { return int64(binary.BigEndian.Uint64(b)) }

// maxSeen is a time of the year 2100, in microseconds of Postgres' epoch. Only a clock that is wrong names a later one.
const maxSeen = 100 * 365 * 24 * 3600 * second

// remember keeps what a committed transaction has seen.
func (k *known) remember(seen seenProducts) {
	if len(seen.products) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sets == nil {
		k.sets = makeKnownSets(k)
	}
	if k.server != seen.server {
		clear(k.sets)
		k.server = seen.server
	}
	k.ahead = time.Duration(seen.began)*time.Microsecond - seen.sent
	for _, p := range seen.products {
		set := &k.sets[p.id%knownSets]
		place := 0
		for way := range set.ids {
			if set.ids[way] == p.id {
				place = way
				break
			}
			if set.products[way].asOf < set.products[place].asOf {
				place = way
			}
		}
		set.ids[place], set.products[place] = p.id, p.knownProduct
	}
}

// forget forgets all products.
func (k *known) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.server = 0
}
