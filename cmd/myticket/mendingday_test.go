package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// sale is what a ticket says.
type sale struct {
	order, vat, total string      // vat is empty if the ticket does not say it
	lines             [][3]string // name, id, price
}

// The formats of shop-2: that of the morning, and what its tills make of it in the afternoon, one change after the other.
const (
	asEveryone = iota
	otherNames
	otherLines
	withoutVAT
	decimalComma
	otherSeparator
	asJSON
	formats
)

// dayDialects are what the operator makes of the changes. Each has those before it in it, except for JSON.
var dayDialects = [formats]string{
	otherNames:     "records: {order: [Commande]}\n",
	otherLines:     "pass_over: [Merci de votre visite, {begins: \"***\"}]\n",
	withoutVAT:     "optional: [vat]\n",
	decimalComma:   "decimal: \",\"\n",
	otherSeparator: "separator: \"|\"\n",
	asJSON: `{format: json, optional: [vat],
		pointers: {order: /no, total: /sum, lines: /items, product: /name, product_id: /id, price: /price}}`,
}

func dayDialect(format int) string {
	if format == asJSON {
		return dayDialects[asJSON]
	}
	return strings.Join(dayDialects[:format+1], "")
}

// write returns the sale as a till writes it.
func (s sale) write(t *testing.T, format int) string {
	t.Helper()
	if format == asJSON {
		items := make([]string, len(s.lines))
		for i, l := range s.lines {
			name, err := json.Marshal(l[0])
			require.NoError(t, err)
			items[i] = fmt.Sprintf(`{"name": %s, "id": %q, "price": %s}`, name, l[1], l[2])
		}
		return fmt.Sprintf(`{"no": %q, "sum": %s, "items": [%s]}`, s.order, s.total, strings.Join(items, ", "))
	}
	var b strings.Builder
	order, separator, amount := "Order", ",", func(a string) string { return a }
	if format >= otherNames {
		order = "Commande"
	}
	if format >= otherLines {
		b.WriteString("*** DUPLICATA ***\n")
	}
	if format >= decimalComma {
		amount = func(a string) string { return strings.Replace(a, ".", ",", 1) }
	}
	if format >= otherSeparator {
		separator = "|"
	}
	fmt.Fprintf(&b, "%s: %s\n", order, s.order)
	if format < withoutVAT {
		fmt.Fprintf(&b, "VAT: %s\n", s.vat)
	}
	fmt.Fprintf(&b, "Total: %s\n\n%s\n", amount(s.total), strings.Join([]string{"product", "product_id", "price"}, separator))
	for _, l := range s.lines {
		price := amount(l[2])
		if strings.Contains(price, separator) {
			price = `"` + price + `"`
		}
		b.WriteString(strings.Join([]string{l[0], l[1], price}, separator) + "\n")
	}
	if format >= otherLines {
		b.WriteString("Merci de votre visite\n")
	}
	return b.String()
}

// dayTicket is a ticket of the day, with what has to become of it.
type dayTicket struct {
	source, body string
	sale         *sale         // nil if nobody can read it
	late         bool          // it is not understood when it comes
	dialect      int           // the version that reads it in the end
	status       ticket.Status // in the end

	id uuid.UUID // once it was sent
}

// shopDay is a day of three shops, whose tickets two servers take.
type shopDay struct {
	*testBundle
	servers []*testBundle
	o       *operatorBundle
	sent    []*dayTicket
	retried []int // how many tickets each retry sent back
}

// sale returns the n-th sale. Its products are sold by all shops. The menu costs more each hour. Only the special's price tells
// which ticket named it last. The fuel's price has three decimals, so a decimal comma is not understood without a dialect.
func (*shopDay) sale(n, hour int) *sale {
	return &sale{order: fmt.Sprint(n), vat: "3.10", total: "16.90", lines: [][3]string{
		{"Gazole", "fuel", "1.789"},
		{fmt.Sprintf("Menu %d", n%500), fmt.Sprintf("menu-%d", n%500), fmt.Sprintf("%d.90", 9+hour)},
		{"Café spécial", fmt.Sprintf("special-%d", n%10), fmt.Sprintf("%d.25", n)},
	}}
}

// send sends tickets, many at a time, to all servers, as tills do: again if there is no 200, with the same key. Each must be stored
// with the status that it has to have then.
func (d *shopDay) send(t *testing.T, tickets []*dayTicket) {
	t.Helper()
	const concurrency = 32
	sent := len(d.sent)
	var next atomic.Int32
	var group sync.WaitGroup
	for range concurrency {
		group.Go(func() {
			for n := int(next.Add(1)) - 1; n < len(tickets) && !t.Failed(); n = int(next.Add(1)) - 1 {
				one, want := tickets[n], ticket.Treated
				if one.late || one.sale == nil {
					want = ticket.Error
				}
				r, err := d.servers[n%len(d.servers)].insist("/ticket/"+one.source, one.body, fmt.Sprint(sent+n))
				if err != nil || r.Status != want {
					t.Errorf("a ticket should be %s: %v, %v\n%s", want, r, err, one.body)
					return
				}
				one.id = r.ID
			}
		})
	}
	group.Wait()
	d.sent = append(d.sent, tickets...)
}

// insist posts a ticket until it is stored. A server on a machine that is very busy may answer 503 for a moment.
func (s *server) insist(path, body, key string) (r receipt, err error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		var a answer
		if a, err = s.send(path, body, "Idempotency-Key", key); err == nil {
			if r, err = readReceipt(a); err == nil {
				return r, nil
			}
		}
	}
	return r, err
}

// mend does what an operator does about all that went wrong at a source since some time: it sends back group after group.
func (d *shopDay) mend(t *testing.T, since time.Time, tickets int) {
	t.Helper()
	filter := []string{"--source", "shop-2", "--since", since.UTC().Format(time.RFC3339Nano)}
	var found postgres.Problems
	require.NoError(t, json.Unmarshal([]byte(d.o.ok(t, append([]string{"problems", "-o", "json"}, filter...)...)), &found))
	sum := 0
	for _, g := range found.Groups {
		out := d.o.ok(t, append([]string{"tickets", "retry", "--problem-group", g.Group.String(), "--share=100", "--yes",
			"--by", "anna", "--reason", "their update", "-o", "json"}, filter...)...)
		var result changed
		require.NoError(t, json.Unmarshal([]byte(out), &result))
		assert.Equal(t, g.Tickets, result.Tickets, "group %s: %s", g.Group, describeKinds(g))
		d.retried = append(d.retried, result.Tickets)
		sum += result.Tickets
	}
	assert.Equal(t, tickets, sum, "all that is not understood is in a group: %+v", found.Groups)
}

// runPage runs the commands of docs/mending.md for a till that was not updated. Ben does what it says.
func (d *shopDay) runPage(t *testing.T, tickets int) {
	t.Helper()
	_, commands, _ := strings.Cut(mendingSection(t, "A source that changes again"), "```sh\n")
	commands, _, _ = strings.Cut(commands, "```")
	ran := 0
	for line := range strings.Lines(commands) {
		line, _, _ = strings.Cut(line, "  #")
		var args []string
		for _, arg := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1) {
			args = append(args, strings.Trim(arg, `"`))
		}
		switch ran++; args[2] {
		case "list":
			await(t, line, func() bool { return !strings.Contains(d.o.ok(t, args[1:]...), "TO_TREAT") })
		case "retry":
			assert.Equal(t, fmt.Sprintf("%d tickets sent back\n", tickets), d.o.ok(t, append(args[1:], "--yes", "--by", "ben")...))
			d.retried = append(d.retried, tickets)
		default:
			d.o.ok(t, append(args[1:], "--yes", "--by", "ben")...)
		}
	}
	require.Equal(t, 4, ran)
}

// awaitTreated waits until nothing waits for treatment.
func (d *shopDay) awaitTreated(t *testing.T) {
	t.Helper()
	await(t, "nothing is TO_TREAT", func() bool { return d.count(t, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`) == 0 })
}

func (d *shopDay) awaitVersions(t *testing.T, version int) {
	t.Helper()
	for _, s := range d.servers {
		s.awaitVersion(t, "shop-2", version)
	}
}

// TestMending_ADayOfAShop is what docs/mending.md is about: 50,000 tickets of three sources. The tills of one of them change their
// format six times from noon on. Each time an operator finds that, tries a dialect, applies it, and sends the tickets back, while
// more come. In the end each ticket is understood, or it is known why not.
func TestMending_ADayOfAShop(t *testing.T) {
	t.Parallel()
	const hourly, stragglers = 1000, 50 // of shop-2
	b := setup(t)
	d := &shopDay{testBundle: b, o: b.operator()}
	d.servers = append(d.servers, b, &testBundle{serve(t, b.databaseURL), b.databaseURL, b.pool})
	for _, s := range d.servers {
		s.awaitReady(t)
		s.awaitStoring(t)
	}
	n := 0
	sell := func(tickets, hour int, source string, format int, late bool) []*dayTicket {
		made := make([]*dayTicket, tickets)
		for i := range made {
			n++
			s := d.sale(n, hour)
			if format >= withoutVAT {
				s.vat = ""
			}
			made[i] = &dayTicket{source: source, body: s.write(t, format), sale: s, late: late, dialect: format, status: ticket.Treated}
		}
		return made
	}
	bad := func(source, body string, dialect int, status ticket.Status) *dayTicket {
		return &dayTicket{source: source, body: body, dialect: dialect, status: status}
	}
	together := func(lists ...[]*dayTicket) []*dayTicket { // as they come: each source's from its beginning to its end
		var all []*dayTicket
		for i := 0; len(lists) > 0; i++ {
			lists = slices.DeleteFunc(lists, func(l []*dayTicket) bool { return i >= len(l) })
			for _, l := range lists {
				all = append(all, l[i])
			}
		}
		return all
	}

	d.send(t, together(sell(9000, 0, "shop-1", asEveryone, false), sell(7000, 0, "shop-2", asEveryone, false),
		sell(9000, 0, "shop-3", asEveryone, false)))
	for hour := otherNames; hour < formats; hour++ {
		since := time.Now().Truncate(time.Millisecond) // as the times of tickets are
		changed := append(sell(hourly/2, hour, "shop-2", hour, true),
			bad("shop-2", fmt.Sprintf("PAPER JAM %d", hour), hour, ticket.Error), bad("shop-2", "\n", hour, ticket.Error))
		d.send(t, together(sell(700, hour, "shop-1", asEveryone, false), changed, sell(700, hour, "shop-3", asEveryone, false),
			[]*dayTicket{bad("shop-3", "TRAINING", 0, ticket.Dismissed)}))

		file := dialectFile(t, dayDialect(hour))
		var tried postgres.DialectTrial
		require.NoError(t, json.Unmarshal([]byte(d.o.ok(t, "dialects", "try", "shop-2", "--file", file, "-o", "json")), &tried))
		assert.Equal(t, hourly/2, tried.Errors.Treated, "hour %d: %+v", hour, tried.Errors.Left)
		assert.Equal(t, hourly/2+2*hour, tried.Errors.Read, "hour %d", hour)
		assert.Equal(t, 1000, tried.Treated.Read)
		if hour < decimalComma {
			assert.Zero(t, tried.Treated.Changed, "hour %d: %+v", hour, tried.Treated.Changes)
		} else {
			assert.Equal(t, 1000, tried.Treated.Errors, "from now on, what was written before is not understood; hour %d", hour)
		}
		d.o.ok(t, "dialects", "apply", "shop-2", "--file", file, "--yes", "--by", "anna", "--reason", fmt.Sprint("update ", hour))

		others := together(sell(700, hour, "shop-1", asEveryone, false), sell(700, hour, "shop-3", asEveryone, false))
		var load sync.WaitGroup
		load.Go(func() { d.send(t, others) }) // they do not wait for the operator
		d.mend(t, since, len(changed))
		load.Wait()
		require.False(t, t.Failed(), "see above")
		d.awaitTreated(t)
		d.awaitVersions(t, hour)
		d.send(t, sell(hourly/2, hour, "shop-2", hour, false))
	}

	// One till was not updated. Its tickets are read in the version before JSON, which is made to count for a moment.
	late := sell(stragglers, asJSON, "shop-2", otherSeparator, true)
	for _, one := range late {
		one.dialect = asJSON + 1
	}
	d.send(t, late)
	d.runPage(t, stragglers+1) // with the one of the last hour that is no JSON
	d.awaitVersions(t, asJSON+2)
	d.send(t, sell(10, asJSON, "shop-2", asJSON, false))
	for _, one := range d.sent[len(d.sent)-10:] {
		one.dialect = asJSON + 2
	}
	d.o.ok(t, "tickets", "dismiss", "--source", "shop-3", "--status", "ERROR", "--share=100", "--yes",
		"--by", "anna", "--reason", "a training")
	d.send(t, together(sell(50_000-len(d.sent), asJSON, "shop-1", asEveryone, false)))

	d.requireStored(t)
	d.requireProducts(t)
	d.requireOrderLines(t)
	d.requireShown(t)
	d.requireAudited(t, stragglers)
}

// requireStored requires that each ticket is stored once, with the bytes that were sent, and that it was read as it was meant.
func (d *shopDay) requireStored(t *testing.T) {
	t.Helper()
	require.Len(t, d.sent, 50_000)
	byID := make(map[uuid.UUID]*dayTicket, len(d.sent))
	for _, one := range d.sent {
		byID[one.id] = one
	}
	require.Len(t, byID, len(d.sent), "no two tickets have the same id")
	rows, err := d.pool.Query(t.Context(), `SELECT id, source, body, status, dialect, coalesce(order_number, ''), coalesce(vat::text, ''),
		coalesce(total::text, ''), coalesce(problems, '[]') FROM tickets`)
	require.NoError(t, err)
	var id uuid.UUID
	var source, order, vat, total string // vat is empty if the ticket does not say it
	var body []byte
	var status ticket.Status
	var dialect, stored int
	var problems []ticket.Problem
	_, err = pgx.ForEachRow(rows, []any{&id, &source, &body, &status, &dialect, &order, &vat, &total, &problems}, func() error {
		stored++
		one := byID[id]
		delete(byID, id)
		switch {
		case one == nil:
			return fmt.Errorf("the ticket %s was not sent, or is stored twice", id)
		case source != one.source || string(body) != one.body:
			return fmt.Errorf("the ticket %s is not what was sent: %q", id, body)
		case status != one.status:
			return fmt.Errorf("the ticket %s is %s and not %s: %v\n%s", id, status, one.status, problems, body)
		case one.sale == nil && (len(problems) == 0 || problems[len(problems)-1].Message == ""):
			return fmt.Errorf("it is not known why the ticket %s is not understood:\n%s", id, body)
		case one.sale == nil && status == ticket.Dismissed && problems[len(problems)-1].Message != "a training":
			return fmt.Errorf("the ticket %s has no reason: %v", id, problems)
		case one.sale == nil:
			return nil
		case order != one.sale.order || total != one.sale.total || vat != one.sale.vat || len(problems) > 0:
			return fmt.Errorf("the ticket %s was read as %s, %s, %s, %v:\n%s", id, order, vat, total, problems, body)
		case dialect != one.dialect:
			return fmt.Errorf("the ticket %s was read in version %d and not in %d:\n%s", id, dialect, one.dialect, body)
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, len(d.sent), stored)
	require.Empty(t, byID, "these were acknowledged, and are not stored")
}

// requireProducts requires that the product base is what the newest ticket says that names each product.
func (d *shopDay) requireProducts(t *testing.T) {
	t.Helper()
	byTime := slices.SortedFunc(slices.Values(d.sent), func(a, b *dayTicket) int { return bytes.Compare(a.id[:], b.id[:]) })
	replayed := map[string]string{}
	for _, one := range byTime {
		if one.sale == nil {
			continue
		}
		for _, l := range one.sale.lines {
			replayed[l[1]] = l[0] + " " + l[2]
		}
	}
	// Servers look again a minute after a change, when all that ran beside it has ended. Nothing runs any more.
	await(t, "all products are settled", func() bool {
		d.exec(t, `UPDATE products SET unsettled_from = unsettled_from - interval '1 minute'
			WHERE unsettled_from > now() - interval '1 minute'`)
		return d.count(t, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`) == 0
	})
	require.Equal(t, replayed, d.products(t))
}

// requireOrderLines requires that the view has each line of each ticket that is understood, once.
func (d *shopDay) requireOrderLines(t *testing.T) {
	t.Helper()
	d.awaitOrderLines(t)
	type line struct {
		id   uuid.UUID
		line [3]string
	}
	want := map[line]bool{}
	for _, one := range d.sent {
		if one.sale == nil {
			continue
		}
		for _, l := range one.sale.lines {
			want[line{one.id, l}] = true
		}
	}
	rows, err := d.pool.Query(t.Context(), `SELECT ticket_id, product, product_id, price::text FROM order_lines`)
	require.NoError(t, err)
	var l line
	_, err = pgx.ForEachRow(rows, []any{&l.id, &l.line[0], &l.line[1], &l.line[2]}, func() error {
		if !want[l] {
			return fmt.Errorf("no ticket has this line, or it is there twice: %v", l)
		}
		delete(want, l)
		return nil
	})
	require.NoError(t, err)
	require.Empty(t, want)
}

// requireShown requires that a ticket of each format is shown as it was read, although another version counts now.
func (d *shopDay) requireShown(t *testing.T) {
	t.Helper()
	seen := map[int]bool{}
	for _, one := range d.sent {
		if one.source != "shop-2" || one.sale == nil || seen[one.dialect] {
			continue
		}
		seen[one.dialect] = true
		var shown postgres.StoredTicket
		require.NoError(t, json.Unmarshal([]byte(d.o.ok(t, "tickets", "show", one.id.String(), "-o", "json")), &shown))
		require.Equal(t, one.dialect, shown.Dialect)
		require.Len(t, shown.Lines, len(one.sale.lines))
		for i, l := range one.sale.lines {
			require.Equal(t, postgres.StoredLine{Product: l[0], ProductID: l[1], Price: json.Number(l[2])}, shown.Lines[i])
		}
	}
	require.Len(t, seen, asJSON+3)
}

// requireAudited requires that the audit says who did what, with how many tickets.
func (d *shopDay) requireAudited(t *testing.T, stragglers int) {
	t.Helper()
	var records []postgres.AuditRecord
	require.NoError(t, json.Unmarshal([]byte(d.o.ok(t, "audit", "-o", "json", "--limit=1000")), &records))
	slices.SortFunc(records, func(a, b postgres.AuditRecord) int { return cmp.Compare(a.ID, b.ID) })
	sums, runs := map[string]int{}, map[string]int{}
	var retried []int
	for _, r := range records {
		what := r.Who + " " + r.Action
		sums[what] += int(r.Tickets)
		runs[what]++
		if r.Action == postgres.ActionRetry {
			retried = append(retried, int(r.Tickets))
		}
	}
	late := 0
	for _, one := range d.sent {
		if one.source == "shop-2" && (one.late || one.sale == nil) {
			late++
		}
	}
	assert.Equal(t, map[string]int{
		"anna dialects.apply": 0, "ben dialects.revert": 0, "anna tickets.retry": late - stragglers, "ben tickets.retry": stragglers + 1,
		"anna tickets.dismiss": asJSON,
	}, sums)
	assert.Equal(t, d.retried, retried)
	assert.Equal(t, []int{asJSON, 2, 1}, []int{runs["anna dialects.apply"], runs["ben dialects.revert"], runs["anna tickets.dismiss"]})
}
