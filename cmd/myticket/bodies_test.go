package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

const mebibyte = 1 << 20

// TestTicket_IsReadAsItsSenderMeantIt has the bodies that MyTicket's predecessor lost, changed or misread.
func TestTicket_IsReadAsItsSenderMeantIt(t *testing.T) {
	t.Parallel()
	asWritten := []storedLine{{"Formule(s) midi", "aZde", "14.90"}, {"Café", "IZ8z", "2"}}
	var manyNames []string
	var manyLines []storedLine
	manyProducts := map[string]string{}
	for i := range 10_000 {
		id := "p" + strconv.Itoa(i)
		manyNames = append(manyNames, "Product,"+id+",1.50")
		manyLines = append(manyLines, storedLine{"Product", id, "1.50"})
		manyProducts[id] = "Product 1.50"
	}
	for _, test := range []struct {
		name, body string
		lines      []storedLine
		products   map[string]string
	}{
		{
			"a product twice", body("123456", "Coffee,c,2", "Tea,t,3", "Coffee,c,2"),
			[]storedLine{{"Coffee", "c", "2"}, {"Tea", "t", "3"}, {"Coffee", "c", "2"}},
			map[string]string{"c": "Coffee 2", "t": "Tea 3"},
		},
		{
			"a product twice with two prices: the last counts", body("123456", "Coffee,c,2", "Coffee,c,1.80"),
			[]storedLine{{"Coffee", "c", "2"}, {"Coffee", "c", "1.80"}},
			map[string]string{"c": "Coffee 1.80"},
		},
		{
			"a comma in a quoted name", body("123456", `"Cheese, blue",c,4.20`),
			[]storedLine{{"Cheese, blue", "c", "4.20"}},
			map[string]string{"c": "Cheese, blue 4.20"},
		},
		{
			"Latin-1", body("123456", "Caf\xe9,c,2"),
			[]storedLine{{"Café", "c", "2"}},
			map[string]string{"c": "Café 2"},
		},
		{"10,000 product lines", body("123456", manyNames...), manyLines, manyProducts},
		{"the sample", sample(t), asWritten, nil},
		{"CRLF", strings.ReplaceAll(sample(t), "\n", "\r\n"), asWritten, nil},
		{"byte order mark", "\ufeff" + sample(t), asWritten, nil},
		{
			"columns and records in another order",
			"total: 16.90\nORDER: 123456\nvat: 3.10\n\nPrice,Product_ID,Product\n14.90,aZde,Formule(s) midi\n2,IZ8z,Café\n",
			asWritten, nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			r := b.submit(t, "/ticket", test.body)
			require.Equal(t, ticket.Treated, r.Status, "problems: %v", r.Problems)
			b.awaitOrderLines(t)
			stored := b.ticket(t, r.ID)
			require.Equal(t, test.body, stored.Body, "the bytes that were sent, unchanged")
			order, vat, total := "123456", "3.10", "16.90"
			require.Equal(t, storedTicket{
				Source: "default", Body: stored.Body, Status: ticket.Treated, Problems: []ticket.Problem{},
				Order: &order, VAT: &vat, Total: &total, Lines: test.lines,
			}, stored)
			if test.products == nil {
				test.products = map[string]string{"aZde": "Formule(s) midi 14.90", "IZ8z": "Café 2"}
			}
			require.Equal(t, test.products, b.products(t))
		})
	}
}

// TestTicket_ThatCannotBeRead_IsStoredWithTheReason: a bad ticket is still a ticket.
func TestTicket_ThatCannotBeRead_IsStoredWithTheReason(t *testing.T) {
	t.Parallel()
	type problem struct {
		line int
		code string
	}
	b := setup(t)
	for _, test := range []struct {
		name, body string
		problem    problem // must be one of those that are named
	}{
		{"a comma in a name without quotes", body("1", "Coffee,c,2", "Cheese, blue,d,4.20"), problem{7, "fields_count"}},
		{"a text without a newline", "a till speaks", problem{1, "header_unreadable"}},
		{"empty lines only", "\n\r\n\n \n", problem{0, "empty"}},
		{"a NUL in a name", body("1", "Coffee,c,2", "Caf\x00,d,2"), problem{7, "nul_byte"}},
		{"NULs only", strings.Repeat("\x00", 100), problem{1, "nul_byte"}},
		{"a bad price", body("1", "Coffee,c,2", "Tea,t,cheap"), problem{7, "amount_invalid"}},
		{"no price", body("1", "Coffee,c,"), problem{6, "amount_invalid"}},
		{"a price that is not a number", body("1", "Coffee,c,NaN"), problem{6, "amount_invalid"}},
		{"a bad VAT", strings.Replace(body("1", "Coffee,c,2"), "3.10", "some", 1), problem{2, "amount_invalid"}},
		{"a bad total", strings.Replace(body("1", "Coffee,c,2"), "16.90", "1e3", 1), problem{3, "amount_invalid"}},
		{"no total", "Order: 1\nVAT: 1\n\nproduct,product_id,price\nCoffee,c,2", problem{0, "total_missing"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := b.submit(t, "/ticket", test.body)
			require.Equal(t, ticket.Error, r.Status)
			var named []problem
			for _, p := range r.Problems {
				named = append(named, problem{p.Line, p.Code})
				assert.NotEmpty(t, p.Message, "a person is to mend it")
			}
			require.Contains(t, named, test.problem)
			stored := b.ticket(t, r.ID)
			require.Equal(t, test.body, stored.Body)
			require.Equal(t, ticket.Error, stored.Status)
			require.Equal(t, r.Problems, stored.Problems, "the operator sees what the sender saw")
			for what, amount := range map[string]*string{"VAT": stored.VAT, "total": stored.Total} {
				if amount != nil {
					assert.Contains(t, []string{"3.10", "16.90", "1"}, *amount, "%s was not on the ticket: it is NULL", what)
				}
			}
			require.Empty(t, b.products(t), "a ticket that is not understood as a whole says nothing about products")
			b.awaitOrderLines(t)
			require.Zero(t, b.count(t, `SELECT count(*) FROM order_lines WHERE ticket_id = $1`, r.ID))
		})
	}
}

func TestTicket_OfExactlyTheLimit_IsStored_OneByteMoreIsNot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var lines strings.Builder
	for i := 0; lines.Len() < mebibyte-200; i++ {
		fmt.Fprintf(&lines, "Product %0200d,p%d,1.50\n", i, i%1000) // as long as that, there are not too many
	}
	text := body("1", lines.String())
	text += strings.Repeat("\n", mebibyte-len(text))
	r := b.submit(t, "/ticket", text)
	require.Equal(t, ticket.Treated, r.Status, "%v", r.Problems)
	stored := b.ticket(t, r.ID)
	requireSameBytes(t, text, stored.Body)
	require.Len(t, b.products(t), 1000)

	requireProblem(t, b.post(t, "/ticket", text+"\n"), http.StatusRequestEntityTooLarge, "body_too_large")
	chunked, err := b.do(http.MethodPost, b.webhook+"/ticket", &pieces{text: text + "\n"})
	require.NoError(t, err)
	requireProblem(t, chunked, http.StatusRequestEntityTooLarge, "body_too_large")
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestTicket_SentFourTimes_IsFourTickets_WithAKeyOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ids := map[uuid.UUID]bool{}
	for range 4 {
		r := b.submit(t, "/ticket", sample(t))
		require.False(t, r.Duplicate)
		ids[r.ID] = true
	}
	require.Len(t, ids, 4, "two equal coffees are two coffees")
	require.Equal(t, 4, b.count(t, `SELECT count(*) FROM tickets`))

	ids = map[uuid.UUID]bool{}
	for i := range 4 {
		r := b.submit(t, "/ticket", sample(t), "Idempotency-Key", "till-1-123456")
		require.Equal(t, i > 0, r.Duplicate)
		ids[r.ID] = true
	}
	require.Len(t, ids, 1)
	require.Equal(t, 5, b.count(t, `SELECT count(*) FROM tickets`))
}

// TestTicket_IsStoredByteForByte: no part between the connection and the database changes a body.
func TestTicket_IsStoredByteForByte(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const boundary = "----MyTicketBoundary7MA4YWxk"
	multipart := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"a\"; filename=\"t.txt\"\r\n\r\n" +
		sample(t) + "\r\n--" + boundary + "\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--" + boundary +
		"--\r\nrest"
	random := rand.NewChaCha8([32]byte{1})
	binary := func(n int) string {
		p := make([]byte, n)
		_, _ = random.Read(p)
		return string(p)
	}
	tests := map[string]struct {
		body, contentType, stored string
	}{
		"multipart":                 {multipart, "multipart/form-data; boundary=" + boundary, ""},
		"broken multipart":          {"--" + boundary + "\r\nbroken", "multipart/form-data; boundary=" + boundary, ""},
		"multipart, no boundary":    {multipart, "multipart/form-data", ""},
		"form":                      {"b=2&a=1&a=%zz&&=&+", "application/x-www-form-urlencoded", ""},
		"JSON":                      {"{ \"a\" : 1.0,\r\n \"a\": 2 } ", "application/json", ""},
		"broken JSON":               {"{", "application/json; charset=utf-16", ""},
		"XML":                       {"<?xml version='1.0' encoding='latin1'?><a>\xe9</a>", "text/xml", ""},
		"no Content-Type":           {sample(t), "", ""},
		"strange Content-Type":      {sample(t), "Ticket;;=\";/", ""},
		"invalid UTF-8 in the type": {sample(t), "text/plain; charset=\xff\xfe", "text/plain; charset=\ufffd"},
		"long Content-Type":         {sample(t), "text/" + strings.Repeat("x", 400), "text/" + strings.Repeat("x", 250)},
		"a single NUL":              {"\x00", "application/octet-stream", ""},
		"looks like hexadecimal":    {`\x00ff`, "text/plain", ""},
		"a chunk's end":             {"0\r\n\r\n", "text/plain", ""},
	}
	for _, size := range []int{1, 255, 4096, 65_536, 300_000} {
		tests[fmt.Sprintf("%d random bytes", size)] = struct{ body, contentType, stored string }{
			binary(size), "application/octet-stream", "",
		}
	}
	for name, test := range tests {
		if test.stored == "" {
			test.stored = test.contentType
		}
		for way, reader := range map[string]func() io.Reader{
			"with a length": func() io.Reader { return strings.NewReader(test.body) },
			"chunked":       func() io.Reader { return &pieces{text: test.body} },
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				var headers []string
				if test.contentType != "" {
					headers = []string{"Content-Type", test.contentType}
				}
				a, err := b.do(http.MethodPost, b.webhook+"/ticket", reader(), headers...)
				require.NoError(t, err)
				stored := b.ticket(t, requireReceipt(t, a).ID)
				requireSameBytes(t, test.body, stored.Body)
				require.Equal(t, test.stored, stored.ContentType)
			})
		}
	}
	t.Run("after 100 Continue", func(t *testing.T) {
		t.Parallel()
		stored := b.ticket(t, b.submit(t, "/ticket", multipart, "Expect", "100-continue").ID)
		require.Equal(t, multipart, stored.Body)
	})
}

// pieces is a text of unknown length, so it is sent in chunks, of many sizes.
type pieces struct {
	text string
	next int
}

func (p *pieces) Read(into []byte) (int, error) {
	if p.text == "" {
		return 0, io.EOF
	}
	p.next = p.next%1500 + 1
	n := copy(into, p.text[:min(len(p.text), p.next)])
	p.text = p.text[n:]
	return n, nil
}

// TestTickets_20000InABurst_EachIsStoredOnceWithItsBytes also shows that products that tickets share are right.
func TestTickets_20000InABurst_EachIsStoredOnceWithItsBytes(t *testing.T) {
	t.Parallel()
	const tickets, concurrency, menus, specials = 20_000, 200, 500, 10
	b := setup(t)
	text := func(n int) string { // the special's price tells which ticket said it
		return body(strconv.Itoa(n), "Café,hot,2", fmt.Sprintf("Menu %d,menu-%d,9.90", n%menus, n%menus),
			fmt.Sprintf("Special,special-%d,%d.25", n%specials, n))
	}
	ids := make([]uuid.UUID, tickets)
	var next atomic.Int32
	var group sync.WaitGroup
	for range concurrency {
		group.Go(func() {
			for n := int(next.Add(1)) - 1; n < tickets && !t.Failed(); n = int(next.Add(1)) - 1 {
				r, err := b.trySubmit(text(n))
				if err != nil || r.Status != ticket.Treated {
					t.Errorf("ticket %d should be TREATED: %v, %v", n, r, err)
				}
				ids[n] = r.ID
			}
		})
	}
	group.Wait()
	require.False(t, t.Failed(), "not every ticket was taken: see above")

	stored := storedBodies(t, b.databaseURL)
	assert.Len(t, stored, tickets, "as many tickets as were sent, and none besides")
	for n, id := range ids {
		body, ok := stored[id]
		require.True(t, ok, "ticket %d was answered with %s, which is not stored", n, id)
		require.Equal(t, text(n), body, "ticket %s", id)
	}
	products := map[string]string{"hot": "Café 2"}
	for n := range menus {
		products[fmt.Sprintf("menu-%d", n)] = fmt.Sprintf("Menu %d 9.90", n)
	}
	for special := range specials {
		newest := special
		for n := special; n < tickets; n += specials {
			if slices.Compare(ids[n][:], ids[newest][:]) > 0 {
				newest = n
			}
		}
		products[fmt.Sprintf("special-%d", special)] = fmt.Sprintf("Special %d.25", newest)
	}
	require.Equal(t, products, b.products(t), "each product is what the newest ticket says that names it")
	b.awaitOrderLines(t)
	require.Equal(t, 3*tickets, b.count(t, `SELECT count(*) FROM order_lines`))
	require.Zero(t, b.count(t, `SELECT count(*) FROM tickets_default`),
		"their partition was there before the server was ready")
}
