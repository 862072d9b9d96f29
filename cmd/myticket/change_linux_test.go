package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// process is the program as a process of its own, to be interrupted or killed.
type process struct {
	*exec.Cmd
	out, err bytes.Buffer // once Wait has returned
}

// start starts the program.
func (b *operatorBundle) start(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	p := &process{Cmd: exec.CommandContext(t.Context(), self, args...)} // ends with the test
	p.Env = append(os.Environ(), runMain+"=1", "DATABASE_URL="+b.url)
	p.Stdout, p.Stderr = &p.out, &p.err
	require.NoError(t, p.Start())
	return p
}

// end kills the program, and returns when it has ended.
func (p *process) end() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// insertFailed puts tickets that could not be read into the database.
func (b *operatorBundle) insertFailed(t *testing.T, n int) {
	t.Helper()
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, problems)
		SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(i::text), 1, 3) || '8' ||
			substr(md5(i::text), 4, 15))::uuid, at, 'shop-' || i % 2, 'x', 'ERROR', '[{"line": 2, "code": "fields_count", "message": "m"}]'
		FROM generate_series(1, $1::int) i, LATERAL (SELECT date_trunc('second', now()) - i * interval '1 ms' AS at) a`, n)
}

// makeReadable makes all tickets such that they are understood when they are read again.
func (b *operatorBundle) makeReadable(t *testing.T) {
	t.Helper()
	b.exec(t, `UPDATE tickets SET body = convert_to(E'Order: 7\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nCafé,a,2', 'UTF8')`)
}

func (b *operatorBundle) count(t *testing.T, sql string) (n int) {
	t.Helper()
	require.NoError(t, b.pool.QueryRow(t.Context(), sql).Scan(&n), sql)
	return n
}

const (
	sentBack = `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`
	audited  = `SELECT coalesce(sum(tickets), 0)::int FROM audit`
)

func TestTicketsRetry_Interrupted_EndsAfterTheBatch_AndSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insertFailed(t, 20_000)
	p := b.start(t, "tickets", "retry", "--status=ERROR", "--yes", "--share=5", "--by=Anna", "--reason=new parser")
	await(t, "some tickets are sent back", func() bool { return b.count(t, sentBack) >= 2000 })
	require.NoError(t, p.Process.Signal(syscall.SIGINT))
	require.Error(t, p.Wait())
	assert.Equal(t, 1, p.ProcessState.ExitCode())
	done := b.count(t, sentBack)
	require.Less(t, done, 20_000)
	assert.Equal(t, fmt.Sprintf("%d tickets sent back\n", done), p.out.String())
	assert.Equal(t, done, b.count(t, audited), "the audit has what was done")
	assert.Contains(t, p.err.String(), "interrupted: what was done before stays done")
	assert.NotContains(t, p.err.String(), "\r", "there is no terminal to show progress on")

	b.exec(t, `UPDATE tickets SET status = 'ERROR' WHERE status = 'TO_TREAT'`) // read in vain meanwhile
	_, command, found := strings.Cut(p.err.String(), "To go on: myticket ")
	require.True(t, found, p.err.String())
	command, _, _ = strings.Cut(command, "\n")
	assert.Contains(t, command, " --share 5 ")
	command = strings.Replace(command, "--share 5", "--share 100", 1) // a flag that is given twice is an error
	shell := exec.CommandContext(t.Context(), "sh", "-c", `exec "$0" `+command+` --yes`, p.Path)
	shell.Env = p.Env
	out, err := shell.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), fmt.Sprintf("%d tickets sent back", 20_000-done), "not those of the first run again")
	assert.Equal(t, 20_000, b.count(t, audited))
	var records []postgres.AuditRecord
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "audit", "-o", "json")), &records))
	require.Len(t, records, 2)
	assert.Equal(t, []string{"Anna", "new parser", "tickets.retry"}, []string{records[1].Who, records[1].Why, records[1].Action})
	assert.Equal(t, "new parser", records[0].Why)
	assert.Contains(t, records[0].Who, "@")
}

func TestTicketsDismiss_Killed_TheAuditHasWhatWasDone_AndTheSameCommandDoesTheRest(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insertFailed(t, 20_000)
	for i := range 3 { // wherever it is just then
		before := b.count(t, audited)
		p := b.start(t, "tickets", "dismiss", "--status=ERROR", "--yes", "--share=50", "--reason=test till")
		await(t, "some tickets are dismissed", func() bool { return b.count(t, audited) > before })
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		require.NoError(t, p.Process.Kill())
		require.Error(t, p.Wait())
		await(t, "its last transaction is over", func() bool {
			return b.count(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'myticket tickets'
				AND datname = current_database()`) == 0
		})
		assert.Equal(t, b.count(t, audited), b.count(t, `SELECT count(*) FROM tickets WHERE status = 'DISMISSED'`))
	}
	done := b.count(t, audited)
	require.Less(t, done, 20_000)
	assert.Contains(t, b.ok(t, "tickets", "dismiss", "--status=ERROR", "--yes", "--share=100", "--reason=test till"),
		fmt.Sprintf("%d tickets dismissed", 20_000-done))
	assert.Equal(t, 20_000, b.count(t, `SELECT count(*) FROM tickets WHERE status = 'DISMISSED' AND jsonb_array_length(problems) = 2`))
	assert.Contains(t, b.ok(t, "tickets", "reopen", "--problem=dismissed", "--yes", "--share=100"), "20000 tickets reopened")
	assert.Equal(t, 20_000, b.count(t, `SELECT count(*) FROM tickets WHERE status = 'ERROR' AND jsonb_array_length(problems) = 1`))
}

func TestTicketsRetry_TwoOperatorsAtOnce_EachTicketOnce(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insertFailed(t, 20_000)
	var operators []*process
	for _, who := range []string{"Anna", "Ben"} {
		command := map[string]string{"Anna": "retry", "Ben": "dismiss"}[who]
		operators = append(operators,
			b.start(t, "tickets", command, "--status=ERROR", "--yes", "--share=90", "--by", who, "--reason=x", "-o", "json"))
	}
	sum := 0
	for i, p := range operators {
		require.NoError(t, p.Wait(), p.err.String())
		var result changed
		require.NoError(t, json.Unmarshal(p.out.Bytes(), &result))
		assert.True(t, result.Applied)
		sum += result.Tickets
		who, status := []string{"Anna", "Ben"}[i], []string{"TO_TREAT", "DISMISSED"}[i]
		assert.Equal(t, result.Tickets, b.count(t, `SELECT coalesce(sum(tickets), 0)::int FROM audit WHERE who = '`+who+`'`))
		assert.Equal(t, result.Tickets, b.count(t, `SELECT count(*) FROM tickets WHERE status = '`+status+`'`))
	}
	assert.Equal(t, 20_000, sum)
}

// Operators whose filters overlap, while a server treats what they send back. Once it is sent back, a ticket becomes TREATED, so
// none may be sent back twice.
func TestTickets_FiveOperatorsAtOnce_DoubleNothing(t *testing.T) {
	t.Parallel()
	const tickets = 2400
	s := setup(t)
	b := s.operator()
	b.insertFailed(t, tickets)
	b.makeReadable(t)
	b.ok(t, "tickets", "dismiss", "--source=shop-0", "--yes", "--share=100", "--reason=x")
	commands := [][]string{
		{"retry", "--status=ERROR"}, {"retry", "--source=shop-0"}, {"retry", "--source=shop-1", "--status=ERROR,DISMISSED"},
		{"dismiss", "--source=shop-1"}, {"reopen", "--source=shop-0"},
	}
	var operators []*process
	for i, command := range commands {
		args := append([]string{"tickets"}, command...)
		operators = append(operators, b.start(t, append(args, "--yes", "--share=50", "--reason=y", "--output=json", fmt.Sprint("--by=", i))...))
	}
	for i, p := range operators {
		require.NoError(t, p.Wait(), "%s", &p.err)
		var result changed
		require.NoError(t, json.Unmarshal(p.out.Bytes(), &result))
		assert.True(t, result.Ended)
		assert.Equal(t, result.Tickets, b.count(t, fmt.Sprintf(`SELECT coalesce(sum(tickets), 0)::int FROM audit WHERE who = '%d'`, i)))
	}
	await(t, "nothing is TO_TREAT", func() bool { return b.count(t, sentBack) == 0 })
	treated := b.count(t, `SELECT count(*) FROM tickets WHERE status = 'TREATED' AND problems IS NULL`)
	assert.Positive(t, treated)
	assert.Equal(t, treated, b.count(t, `SELECT sum(tickets)::int FROM audit WHERE action = 'tickets.retry'`), "none was sent back twice")
	assert.Equal(t, tickets-treated, b.count(t, `SELECT count(*) FROM tickets WHERE status = 'DISMISSED' AND jsonb_array_length(problems) = 2
		OR status = 'ERROR' AND jsonb_array_length(problems) = 1`), "a dismissal is noted once, and gone after it was undone")
	s.awaitOrderLines(t)
	assert.Equal(t, treated, b.count(t, `SELECT count(DISTINCT ticket_id) FROM order_lines`))
	assert.Equal(t, treated, b.count(t, `SELECT count(*) FROM order_lines`))
	assert.Equal(t, map[string]string{"a": "Café 2"}, s.products(t))
}

func TestTicketsRetry_ServerAndOperatorKilledInTheMiddle_EachTicketIsTreatedOnce(t *testing.T) {
	t.Parallel()
	const tickets = 3000
	b := setupOperator(t)
	b.insertFailed(t, tickets)
	b.makeReadable(t)
	server := []string{"serve", "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--treat-lease=3s", "--treat-interval=50ms"}
	retry := []string{"tickets", "retry", "--status=ERROR", "--yes", "--reason=new parser"}

	operator := b.start(t, append(retry, "--share=1", "--by=Anna")...)
	claimed := 0
	for claimed == 0 { // until one is killed in the middle of what it has claimed
		const inWork = `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT' AND attempts > 0`
		victim := b.start(t, server...)
		await(t, "the server has claimed tickets", func() bool { return b.count(t, inWork) > 0 })
		victim.end()
		claimed = b.count(t, inWork)
	}
	operator.end()
	await(t, "its last transaction is over", func() bool {
		return b.count(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'myticket%' AND datname = current_database()`) == 0
	})
	done := b.count(t, audited)
	require.Less(t, done, tickets)
	require.Equal(t, done, b.count(t, `SELECT count(*) FROM tickets WHERE status <> 'ERROR'`), "the audit has what was sent back")

	survivor := b.start(t, server...)
	defer survivor.end()
	assert.Contains(t, b.ok(t, append(retry, "--share=100", "--by=Anna")...), fmt.Sprintf("%d tickets sent back", tickets-done))
	await(t, "all are treated", func() bool { return b.count(t, `SELECT count(*) FROM tickets WHERE status <> 'TREATED'`) == 0 })
	assert.Equal(t, tickets, b.count(t, audited))
	assert.GreaterOrEqual(t, b.count(t, `SELECT count(*) FROM tickets WHERE attempts > 1`), claimed, "the survivor took over what was claimed")
	s := testBundle{pool: b.pool}
	s.awaitOrderLines(t)
	assert.Equal(t, tickets, b.count(t, `SELECT count(*) FROM order_lines`))
	assert.Equal(t, tickets, b.count(t, `SELECT count(DISTINCT ticket_id) FROM order_lines`))
}

func TestDialectsApply_TwoOperatorsAtOnce_OneIsTold(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	lock, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = lock.Rollback(t.Context()) }()
	_, err = lock.Exec(t.Context(), `SELECT pg_advisory_xact_lock(hashtext('myticket_dialects'))`)
	require.NoError(t, err)
	var operators []*process
	for i, text := range []string{french, "decimal: \",\"\n"} {
		operators = append(operators,
			b.start(t, "dialects", "apply", "shop-1", "--file", dialectFile(t, text), "--yes", fmt.Sprint("--by=", i)))
	}
	await(t, "both have seen that there is none, and apply theirs", func() bool {
		return b.count(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
			AND query LIKE '%pg_advisory_xact_lock%'`) == 2
	})
	require.NoError(t, lock.Rollback(t.Context()))
	var failed []*process
	for _, p := range operators {
		if p.Wait() != nil {
			failed = append(failed, p)
		}
	}
	require.Len(t, failed, 1)
	assert.Contains(t, failed[0].err.String(), "version 1 of the source shop-1")
	assert.Equal(t, 1, b.count(t, `SELECT count(*) FROM dialects`))
	assert.Equal(t, 1, b.count(t, `SELECT count(*) FROM audit a JOIN dialects d ON a.who = d.who AND a.action = 'dialects.apply'`))
}

func TestTicketsRetry_ShowsWhatItWouldTouch_AndAsks(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insertFailed(t, 3000)
	code, stdout, stderr := b.myticket(t, "tickets", "retry", "--source=shop-1")
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Regexp(t, `(?m)^shop-1 +ERROR +fields_count +1500$`, stderr)
	assert.Contains(t, stderr, "--yes")
	var dry changed
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "tickets", "retry", "--source=shop-1", "--dry-run", "-o", "json")), &dry))
	assert.Equal(t, []postgres.TicketGroup{{Source: "shop-1", Status: ticket.Error, Problem: "fields_count", Tickets: 1500}}, dry.Preview.Groups)
	assert.False(t, dry.Applied)
	assert.Zero(t, b.count(t, sentBack))
	assert.Zero(t, b.count(t, audited))

	for answer, want := range map[string]int{"\n": 0, "no\n": 0, "y\n": 1500} {
		code, shown := b.onTerminal(t, answer, "tickets", "retry", "--source=shop-1", "--share=100")
		assert.Equal(t, want == 0, code == 1, answer)
		assert.Contains(t, shown, "Shall these 1500 tickets be sent back? [y/N]")
		assert.Equal(t, want, b.count(t, sentBack), answer)
		assert.Equal(t, want, b.count(t, audited), answer)
		assert.Equal(t, want > 0, strings.Contains(shown, "1000 of 1500 tickets sent back"), shown)
		if want > 0 {
			b.exec(t, `UPDATE tickets SET status = 'ERROR' WHERE status = 'TO_TREAT'`)
			b.exec(t, `ALTER TABLE audit DISABLE TRIGGER only_added`)
			b.exec(t, `DELETE FROM audit`)
		}
	}
}

func TestTicketsFollow_ShowsTicketsAsTheyCome_UntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	s := setup(t)
	b := &operatorBundle{url: s.databaseURL, pool: s.pool}
	s.submit(t, "/ticket/shop-1", body("1", "Café,a,2"))
	p := &process{}
	out, in, err := os.Pipe()
	require.NoError(t, err)
	defer out.Close()
	self, err := os.Executable()
	require.NoError(t, err)
	p.Cmd = exec.CommandContext(t.Context(), self, "tickets", "follow", "--product=b", "--source=shop-1", "--interval=100ms", "-o", "json")
	p.Env = append(os.Environ(), runMain+"=1", "DATABASE_URL="+b.url)
	p.Stdout, p.Stderr = in, &p.err
	require.NoError(t, p.Start())
	require.NoError(t, in.Close())
	await(t, "it has looked once", func() bool {
		return b.count(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'myticket tickets follow'
			AND datname = current_database() AND state = 'idle' AND query ILIKE 'commit%'`) > 0
	})
	s.submit(t, "/ticket/shop-1", body("2", "Café,a,2"))
	s.submit(t, "/ticket/shop-2", body("3", "Thé,b,2"))
	id := s.submit(t, "/ticket/shop-1", body("4", "Thé,b,2")).ID
	var shown postgres.StoredTicket
	require.NoError(t, json.NewDecoder(out).Decode(&shown))
	assert.Equal(t, id, shown.ID, "the first that fits, without waiting for order_lines")
	require.NoError(t, p.Process.Signal(syscall.SIGINT))
	require.NoError(t, p.Wait(), p.err.String())
}

// A retry of many tickets beside live ones: all are treated, and the live ones are answered.
func TestTicketsRetry_UnderLoad_EachTicketIsTreated(t *testing.T) {
	t.Parallel()
	s := setup(t)
	b := &operatorBundle{url: s.databaseURL, pool: s.pool}
	b.insertFailed(t, 500)
	b.makeReadable(t)
	h := watchHiccups(t, s.server)
	l := startLoad(t, s.server, 4)
	b.ok(t, "tickets", "retry", "--all", "--yes")
	await(t, "some are treated, however much comes", func() bool {
		return b.count(t, `SELECT count(*) FROM tickets WHERE status = 'TREATED' AND order_number = '7'`) >= 100
	})
	exchanges := l.stop()
	await(t, "all are treated", func() bool {
		return b.count(t, `SELECT count(*) FROM tickets WHERE status <> 'TREATED'`) == 0
	})
	requireKept(t, s.databaseURL, exchanges, h)
	assert.Equal(t, 500, b.count(t, `SELECT count(*) FROM tickets WHERE order_number = '7'`))
}
