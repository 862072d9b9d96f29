package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"myticket/internal/ticket"
)

// SourcePolicy is the policy for the products that the tickets of a source name.
type SourcePolicy struct {
	// NewProductsRate is how many products per second its tickets may add through this server; 0 for no limit.
	NewProductsRate float64
	// NewProductsBurst is how many they may add at once. At least 1 if there is a rate.
	NewProductsBurst int
	// Authenticated means that senders of the source need credentials.
	Authenticated bool
	// Label is its name in metrics: one of few, and never one that a sender chooses.
	Label string
}

// Sources are the policies of all sources. The zero value is no limit, no authenticated source, and no test source.
type Sources struct {
	// Policies are by entry of the sources file. Sources that share an entry share its rate. An entry without a policy has no
	// limit.
	Policies map[string]SourcePolicy
	// Entry returns the entry of a source: one of few, so that a sender who invents names does not get a rate for each.
	// Required if there are Policies.
	Entry func(source string) string
	// Tests are sources whose tickets are stored and read as all others, but teach no products.
	Tests map[string]bool
}

func (s Sources) authenticated(source string) bool {
	return s.Entry != nil && s.Policies[s.Entry(source)].Authenticated
}

// tests returns Tests as a parameter of SQL. It is never NULL, because a comparison with NULL would leave out every ticket.
func (s Sources) tests() []string { return slices.AppendSeq([]string{}, maps.Keys(s.Tests)) }

// ProblemNewProducts is the problem code of a ticket that names products which its source may not add yet.
const ProblemNewProducts = "new_products_limited"

// newProducts limits how many products each source adds, with a token bucket for each. It learns only from Postgres which
// products a batch has added, so the batches that are under way may overdraw a bucket; then the bucket is empty until the debt
// is paid. While no bucket is empty, a batch only reads emptyUntil.
type newProducts struct {
	sources Sources
	buckets map[string]*rate.Limiter // by entry; the map never changes
	start   time.Time
	stopped *prometheus.CounterVec

	emptyUntil atomic.Int64 // until when any bucket is empty, as a time.Duration since start
}

func limitNewProducts(sources Sources) *newProducts {
	n := &newProducts{
		sources: sources, buckets: map[string]*rate.Limiter{}, start: time.Now(),
		stopped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_new_products_limited_total",
			Help: "Tickets that became ERROR because their source adds products faster than it may, by source (as in " +
				"myticket_http_requests_total).",
		}, []string{"source"}),
	}
	for entry, policy := range sources.Policies {
		if policy.NewProductsRate > 0 {
			n.buckets[entry] = rate.NewLimiter(rate.Limit(policy.NewProductsRate), max(policy.NewProductsBurst, 1))
			n.stopped.WithLabelValues(policy.Label) // a counter must be there before its first ticket, or rate() does not see that ticket
		}
	}
	return n
}

// charge takes a token for each added product from the bucket of its source.
func (n *newProducts) charge(added []saying, now time.Time) {
	count := map[string]int{}
	for i := range added {
		if len(n.buckets) > 0 {
			count[n.sources.Entry(added[i].source)]++
		}
	}
	for entry, products := range count {
		bucket := n.buckets[entry]
		if bucket == nil {
			continue
		}
		for burst := bucket.Burst(); products > 0; products -= burst {
			bucket.ReserveN(now, min(products, burst))
		}
		if missing := 1 - bucket.TokensAt(now); missing > 0 {
			// Plus 1 ns, so that the bucket surely has a token by then.
			n.emptyUpTo(now.Add(time.Duration(missing/float64(bucket.Limit())*float64(time.Second)) + 1))
		}
	}
}

func (n *newProducts) emptyUpTo(t time.Time) {
	until := int64(t.Sub(n.start))
	for {
		have := n.emptyUntil.Load()
		if have >= until || n.emptyUntil.CompareAndSwap(have, until) {
			return
		}
	}
}

// gate decides which tickets of one call may add products. It decides once: if the transaction is run again because the answer
// to its commit was lost, a ticket that was let through stays let through.
type gate struct {
	limits  *newProducts
	decided bool
	stopped map[uuid.UUID]*ticket.Problem // by ticket
	count   map[string]int                // of stopped tickets, by entry
}

func (n *newProducts) gate() *gate { return &gate{limits: n} }

// stop changes each row to ERROR whose ticket names a new product while the bucket of its source is empty.
func (g *gate) stop(ctx context.Context, conn *pgx.Conn, rows []row) error {
	if !g.decided {
		if err := g.decide(ctx, conn, rows); err != nil {
			return err
		}
		g.decided = true
	}
	if len(g.stopped) == 0 {
		return nil
	}
	for i := range rows {
		if problem := g.stopped[rows[i].ticket.ID]; problem != nil {
			rows[i].standing = standing{status: ticket.Error, problems: []ticket.Problem{*problem}}
		}
	}
	return nil
}

// decide finds the tickets to stop. It looks only at those of sources whose bucket is empty. Tickets of test sources add nothing.
func (g *gate) decide(ctx context.Context, conn *pgx.Conn, rows []row) error {
	now := time.Now()
	if int64(now.Sub(g.limits.start)) >= g.limits.emptyUntil.Load() {
		return nil
	}
	empty := map[string]bool{} // by entry
	for entry, bucket := range g.limits.buckets {
		empty[entry] = bucket.TokensAt(now) < 1
	}
	var limited []*ticket.Ticket
	unknown := map[string]bool{} // the products of the limited tickets: whether it is not in the product base
	var ids []string
	for i := range rows {
		t := rows[i].ticket
		if rows[i].status != ticket.Treated || !empty[g.limits.sources.Entry(t.Source)] || g.limits.sources.Tests[t.Source] {
			continue
		}
		limited = append(limited, t)
		for j := range t.Order.Lines {
			if id := t.Order.Lines[j].ProductID; !unknown[id] {
				unknown[id] = true
				ids = append(ids, id)
			}
		}
	}
	if len(ids) > 0 {
		found, err := conn.Query(ctx, `SELECT product_id FROM products WHERE product_id = ANY ($1)`, ids)
		if err != nil {
			return err
		}
		var id string
		if _, err := pgx.ForEachRow(found, []any{&id}, func() error { unknown[id] = false; return nil }); err != nil {
			return err
		}
	}
	g.stopped, g.count = map[uuid.UUID]*ticket.Problem{}, map[string]int{}
	for _, t := range limited {
		if problem := g.problem(t, unknown); problem != nil {
			g.stopped[t.ID] = problem
			g.count[g.limits.sources.Entry(t.Source)]++
		}
	}
	return nil
}

// problem returns the problem of a ticket whose source may add no product now; nil if the ticket adds none.
func (g *gate) problem(t *ticket.Ticket, unknown map[string]bool) *ticket.Problem {
	first, count := "", 0
	for _, product := range t.Order.Products() {
		if unknown[product.ID] {
			if count++; count == 1 {
				first = product.ID
			}
		}
	}
	if count == 0 {
		return nil
	}
	policy := g.limits.sources.Policies[g.limits.sources.Entry(t.Source)]
	return &ticket.Problem{Code: ProblemNewProducts, Message: fmt.Sprintf(
		"the ticket names %d products that are not in the product base, first %s, and its source has added as many as it may "+
			"(%g per second, %d at once); the ticket is stored, but its products are not. If they are right, raise "+
			"new_products_rate or new_products_burst, then send it back: myticket tickets retry --problem %s",
		count, strconv.Quote(first), policy.NewProductsRate, max(policy.NewProductsBurst, 1), ProblemNewProducts)}
}

// committed counts the stopped tickets and charges the added products. It is called after the commit.
func (g *gate) committed(added []saying) {
	for entry, tickets := range g.count {
		g.limits.stopped.WithLabelValues(g.limits.sources.Policies[entry].Label).Add(float64(tickets))
	}
	if len(added) > 0 {
		g.limits.charge(added, time.Now())
	}
}

// Register registers the metrics of the limit of new products, of the products that are known, and of new groups of problems.
func (s *Store) Register(r prometheus.Registerer) {
	r.MustRegister(s.newProducts.stopped, s.known.lines, s.newGroups.counter)
}
