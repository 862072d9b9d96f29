package postgres_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// problems lists all groups.
func problems(t *testing.T, b *testBundle, filter postgres.ProblemFilter, order postgres.ProblemOrder) []postgres.ProblemGroup {
	t.Helper()
	found, err := b.store.Problems(t.Context(), filter, order, 100)
	require.NoError(t, err)
	require.Len(t, found.Groups, found.Total)
	return found.Groups
}

// describeGroups returns groups as text: source, tickets, codes.
func describeGroups(groups []postgres.ProblemGroup) (all []string) {
	for _, g := range groups {
		parts := []string{g.Source, strconv.Itoa(g.Tickets)}
		for _, k := range g.Kinds {
			parts = append(parts, k.Code)
		}
		all = append(all, strings.Join(parts, " "))
	}
	return all
}

// received gives a ticket another time.
func received(e *intake.Entry, at time.Time) *intake.Entry {
	ms := at.UnixMilli()
	for i := range 6 {
		e.Ticket.ID[i] = byte(ms >> (8 * (5 - i)))
	}
	e.Ticket.ReceivedAt = ticket.IDTime(e.Ticket.ID)
	return e
}

func TestProblems_AreGroupedAsTheyGoWrong(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := time.Now().Add(-time.Hour).Truncate(time.Second).UTC()
	minute := func(n int) time.Time { return start.Add(time.Duration(n) * time.Minute) }
	last := received(from(t, "shop-1", body("9", "Café,a,3 €", "Thé,b,4 €")), minute(3))
	save(t, b,
		received(from(t, "shop-1", body("1", "Café,a,2 €")), minute(1)),
		received(from(t, "shop-1", body("2", "Café,a,2")), minute(2)), // TREATED
		last,
		received(from(t, "shop-2", body("3", "Thé,b,1 $")), minute(0)),
		received(from(t, "shop-1", "Commande: 4\n"+body("", "Café,a,2 €", "Thé,b")), minute(4)),
		received(from(t, "shop-1", body("5", "Café,a,5 €")), minute(2)),
	)
	all := problems(t, b, postgres.ProblemFilter{}, postgres.ByTickets)
	require.Equal(t, []string{
		"shop-1 3 amount_invalid", "shop-1 1 amount_invalid fields_count order_missing", "shop-2 1 amount_invalid",
	}, describeGroups(all))
	assert.Equal(t, postgres.ProblemGroup{
		Group: ticket.GroupOf(last.Ticket.Problems), Source: "shop-1", Tickets: 3, First: minute(1), Last: minute(3),
		Example: last.Ticket.ID, Kinds: []ticket.Kind{{Code: "amount_invalid", Shape: "price …: not an amount"}},
	}, all[0])
	assert.Equal(t, all[0].Group, all[2].Group, "a group is the same at all sources")

	assert.Equal(t, []string{"shop-2 1 amount_invalid"},
		describeGroups(problems(t, b, postgres.ProblemFilter{Sources: []string{"shop-2"}}, postgres.ByTickets)))
	assert.Equal(t, []string{"shop-1 2 amount_invalid"},
		describeGroups(problems(t, b, postgres.ProblemFilter{Since: minute(2), Until: minute(4)}, postgres.ByTickets)))
	assert.Equal(t, []string{
		"shop-1 1 amount_invalid fields_count order_missing", "shop-1 3 amount_invalid", "shop-2 1 amount_invalid",
	}, describeGroups(problems(t, b, postgres.ProblemFilter{}, postgres.ByFirst)))
	few, err := b.store.Problems(t.Context(), postgres.ProblemFilter{}, postgres.ByLast, 1)
	require.NoError(t, err)
	assert.Equal(t, []string{"shop-1 1 amount_invalid fields_count order_missing"}, describeGroups(few.Groups))
	assert.Equal(t, []int{3, 5}, []int{few.Total, few.Tickets}, "what is not listed is counted")

	tickets, err := b.store.Tickets(t.Context(), postgres.TicketFilter{Group: all[0].Group, Sources: []string{"shop-1"}}, uuid.Nil, 10)
	require.NoError(t, err)
	assert.Len(t, tickets, 3)
}

func TestProblems_FollowTheStatus(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, body("1", "Café,a,2 €"))
	save(t, b, e)
	change := func(ch postgres.Change) {
		t.Helper()
		require.NoError(t, b.store.ChangeTicket(t.Context(), postgres.Person{Who: "tester", Why: "test"}, ch, e.Ticket.ID))
	}
	list := func() []string { return describeGroups(problems(t, b, postgres.ProblemFilter{}, postgres.ByTickets)) }
	require.Equal(t, []string{"default 1 amount_invalid"}, list())
	change(postgres.Dismiss)
	require.Empty(t, list())
	change(postgres.Reopen)
	require.Equal(t, []string{"default 1 amount_invalid"}, list())
	change(postgres.Retry)
	require.Empty(t, list())

	treat := func(problems ...ticket.Problem) {
		t.Helper()
		claims, err := b.store.Claim(t.Context(), 1, time.Minute)
		require.NoError(t, err)
		require.Len(t, claims, 1)
		claims[0].Ticket.Status, claims[0].Ticket.Problems = ticket.Treated, problems
		if len(problems) > 0 {
			claims[0].Ticket.Status = ticket.Error
		}
		_, _, err = b.store.Finish(t.Context(), claims[0])
		require.NoError(t, err)
	}
	treat(ticket.Problem{Code: treatment.ProblemRefused, Message: "not kept after 3 attempt(s): x"})
	require.Equal(t, []string{"default 1 database_refused"}, list())
	change(postgres.Retry)
	treat()
	require.Empty(t, list())
	assert.True(t, one[bool](t, b, `SELECT problem_group IS NULL FROM tickets`))
}

// The migration made the index without the partitions that were there; the version before goes on storing tickets; and a server
// was killed while it made an index.
func TestProblems_OfTheVersionBefore_AreGroupedBehind(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 1, time.Now())
	require.NoError(t, err)
	for i := range 600 {
		save(t, b, entry(t, body(fmt.Sprint(i), []string{"Café,a,2 €", "Café,a"}[i%2])), entry(t, body("0", "Café,a,2")))
	}
	exec(t, b, `UPDATE tickets SET problem_group = NULL; DROP INDEX tickets_problem_group;
		CREATE INDEX tickets_problem_group ON ONLY tickets (problem_group, source, received_at)
		WHERE status = 'ERROR' AND (problem_group IS NULL OR problem_group <> 0)`)
	today := one[string](t, b, `SELECT tableoid::regclass FROM tickets LIMIT 1`)
	exec(t, b, `CREATE INDEX `+today+`_problem_group ON `+today+` (problem_group, source, received_at) WHERE status = 'ERROR';
		UPDATE pg_index SET indisvalid = false WHERE indexrelid = '`+today+`_problem_group'::regclass`)
	assert.Equal(t, []string{"default 600"}, describeGroups(problems(t, b, postgres.ProblemFilter{}, postgres.ByTickets)))
	made, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 3, time.Now())
	require.NoError(t, err, "a partition is made before all have the index")
	require.NotEmpty(t, made)

	maintainer := postgres.NewMaintainer(postgres.MaintainConfig{}, b.store)
	require.NoError(t, maintainer.Job(t.Context(), "problem_groups", time.Minute))
	assert.ElementsMatch(t, []string{"default 300 amount_invalid", "default 300 fields_count"},
		describeGroups(problems(t, b, postgres.ProblemFilter{}, postgres.ByTickets)))
	assert.True(t, one[bool](t, b, `SELECT indisvalid FROM pg_index WHERE indexrelid = 'tickets_problem_group'::regclass`),
		"every partition has the index")
	sql, args := postgres.ProblemsSQL(postgres.ProblemFilter{}, postgres.ByTickets, 10)
	assert.NotRegexp(t, `Heap Fetches: [1-9]`, plan(t, b, false, sql, args...), "what was changed has seen a VACUUM")
}

func TestProblems_CountsFromTheIndexAlone(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 4, 2000)
	require.NoError(t, postgres.NewMaintainer(postgres.MaintainConfig{}, b.store).Job(t.Context(), "problem_groups", time.Minute))
	exec(t, b, `VACUUM ANALYZE tickets`)
	for _, filter := range []postgres.ProblemFilter{{}, {Sources: []string{"shop-1"}}, {Since: dayOf(1), Until: dayOf(2)}} {
		sql, args := postgres.ProblemsSQL(filter, postgres.ByTickets, 10)
		p := plan(t, b, false, sql, args...)
		assert.Contains(t, p, "Index Only Scan using tickets_20261103_20261104_problem_group_source_received_at_idx", p)
		assert.Contains(t, p, "Heap Fetches: 0", p)
		assert.NotContains(t, p, "Seq Scan", p)
	}
	for _, generic := range []bool{false, true} {
		p := plan(t, b, generic, postgres.UnprecedentedSQL, []int64{1}, []string{"shop-1"}, []time.Time{dayOf(2)})
		assert.Contains(t, p, "tickets_20261103_20261104_problem_group_source_received_at_idx", p)
		assert.NotContains(t, p, "Seq Scan", p)
		sql, args := postgres.PageSQL(postgres.TicketFilter{Group: 1, Sources: []string{"shop-1"}, Statuses: []ticket.Status{ticket.Error}}, uuid.Nil, 50)
		p = plan(t, b, generic, sql, args...)
		assert.Contains(t, p, "tickets_20261103_20261104_problem_group_source_received_at_idx", p)
	}
}

func TestProblems_OfTheVersionBefore_AreFoundByTheIndex(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 4, 2000) // without ANALYZE
	exec(t, b, `ALTER ROLE CURRENT_USER IN DATABASE `+one[string](t, b, `SELECT quote_ident(current_database())`)+
		` SET enable_sort = off`)
	exec(t, b, `ALTER ROLE CURRENT_USER IN DATABASE `+one[string](t, b, `SELECT quote_ident(current_database())`)+
		` SET enable_bitmapscan = off`)
	require.Equal(t, `SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off`, postgres.InOrderOfIndex)
	b.pool = openPool(t, b.url)
	for _, sql := range []string{strings.ReplaceAll(postgres.UngroupedSQL, "$1", "500"), postgres.AnyUngroupedSQL} {
		p := plan(t, b, false, sql)
		assert.Contains(t, p, "tickets_20261103_20261104_problem_group_source_received_at_idx", p)
		assert.NotContains(t, p, "Sort (", p)
	}
}

func TestNewGroups_AreCountedOnceByAllServers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := func() (*testBundle, *postgres.Maintainer) {
		store := openWith(t, b, false, map[string]postgres.SourcePolicy{"named": {}})
		return store, postgres.NewMaintainer(postgres.MaintainConfig{}, store.store)
	}
	one, oneJobs := server()
	two, twoJobs := server()
	report := func() {
		t.Helper()
		require.NoError(t, oneJobs.Job(t.Context(), "new_groups", time.Minute))
		require.NoError(t, twoJobs.Job(t.Context(), "new_groups", time.Minute))
	}
	counted := func(server *testBundle) float64 {
		t.Helper()
		return counter(t, server, "myticket_problem_groups_new_total", "named")
	}
	at := time.Now().Add(-time.Minute)
	wrong := func(seconds int, line string) *intake.Entry {
		return received(from(t, "named", body("1", line)), at.Add(time.Duration(seconds)*time.Second))
	}
	save(t, one, wrong(2, "Café,a,2 €"), wrong(1, "Café,a,3 €"), wrong(3, "Café,a,2"))
	save(t, two, wrong(4, "Café,a,2 €"))
	report()
	assert.Equal(t, []float64{1, 0}, []float64{counted(one), counted(two)}, "one server had the first ticket")
	save(t, one, wrong(5, "Café,a,2 €"))
	save(t, two, wrong(6, "Café,a"), wrong(7, "Thé,b,7 €"))
	report()
	assert.Equal(t, []float64{1, 1}, []float64{counted(one), counted(two)})

	again, jobs := server()
	save(t, again, wrong(8, "Café,a,2 €"))
	require.NoError(t, jobs.Job(t.Context(), "new_groups", time.Minute))
	assert.Zero(t, counted(again), "a server that was started again finds it in the database")
}
