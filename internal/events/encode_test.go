package events_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/ticket"
)

var receivedAt = time.Date(2026, 11, 29, 12, 30, 15, 123_000_000, time.FixedZone("CET", 3600))

func amount(tb testing.TB, text string) ticket.Amount {
	tb.Helper()
	a, err := ticket.ParseAmount(text)
	require.NoError(tb, err)
	return a
}

func treated(tb testing.TB) *events.Ticket {
	tb.Helper()
	return &events.Ticket{
		ID: uuid.MustParse("019acf3a-0b1d-7c3e-8f00-0123456789ab"), Version: 2, Status: ticket.Treated, Source: "shop-1",
		ReceivedAt: receivedAt, OrderNumber: "123456", VAT: "3.10", Total: "16.90", ContentType: "text/plain",
		Lines: []ticket.Line{
			{Name: "Formule(s) midi", ProductID: "aZde", Price: amount(tb, "14.90")},
			{Name: "Café", ProductID: "IZ8z", Price: amount(tb, "2")},
		},
	}
}

func product() *events.Product {
	return &events.Product{
		ID: "IZ8z", Name: "Café", Price: "2.00", Ticket: uuid.MustParse("019acf3a-0b1d-7c3e-8f00-0123456789ab"), Source: "shop-1",
		ChangedAt: receivedAt, FirstSeenAt: receivedAt.Add(-time.Hour),
	}
}

// schemas are the published ones.
func schemas(tb testing.TB) map[string]*jsonschema.Schema {
	tb.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	compiler.AssertContent()
	found := map[string]*jsonschema.Schema{}
	for id, file := range map[string]string{
		events.TicketSchema: "ticket.v1.schema.json", events.ProductSchema: "product.v1.schema.json",
	} {
		schema, err := compiler.Compile(filepath.Join("..", "..", "docs", "events", file))
		require.NoError(tb, err)
		require.Equal(tb, id, strings.TrimSuffix(schema.ID, "#"), "the id of the schema is what events name")
		found[id] = schema
	}
	return found
}

// readBack reads an event as a receiver does, and checks all that holds for every event.
func readBack(tb testing.TB, schemas map[string]*jsonschema.Schema, e events.Event) (cloudevents.Event, map[string]any) {
	tb.Helper()
	require.True(tb, utf8.Valid(e.JSON), "%q", e.JSON)
	var read cloudevents.Event
	require.NoError(tb, json.Unmarshal(e.JSON, &read), "%s", e.JSON)
	require.NoError(tb, read.Validate(), "%s", e.JSON)
	require.Equal(tb, e.ID, read.ID())
	require.Equal(tb, e.Type, read.Type())
	require.True(tb, e.Time.Equal(read.Time()))
	require.NotEmpty(tb, read.Subject())
	require.Less(tb, len(read.ID()), 256, "it is a header, and in an index")
	for _, c := range []byte(read.ID()) {
		require.True(tb, c > ' ' && c < 0x7f, "%q", read.ID())
	}
	schema := schemas[read.DataSchema()]
	require.NotNil(tb, schema, read.DataSchema())
	data, err := jsonschema.UnmarshalJSON(bytes.NewReader(read.Data()))
	require.NoError(tb, err)
	require.NoError(tb, schema.Validate(data), "%s", e.JSON)
	return read, data.(map[string]any)
}

func TestEncodeTicket_IsACloudEventOfItsSchema(t *testing.T) {
	t.Parallel()
	schemas := schemas(t)
	at := receivedAt.Add(time.Second)
	e, err := events.EncodeTicket(treated(t), at)
	require.NoError(t, err)
	require.Equal(t, "019acf3a-0b1d-7c3e-8f00-0123456789ab.2", e.ID)
	require.Equal(t, "shop-1", e.Key)
	read, _ := readBack(t, schemas, e)
	require.Equal(t, "/myticket/shop-1", read.Source())
	require.Equal(t, "019acf3a-0b1d-7c3e-8f00-0123456789ab", read.Subject())
	require.Equal(t, "shop-1", read.Extensions()["partitionkey"])
	require.JSONEq(t, `{
		"id": "019acf3a-0b1d-7c3e-8f00-0123456789ab", "version": 2, "status": "TREATED", "source": "shop-1",
		"received_at": "2026-11-29T11:30:15.123Z", "order_number": "123456", "vat": "3.10", "total": "16.90",
		"lines": [{"product": "Formule(s) midi", "product_id": "aZde", "price": "14.90"},
			{"product": "Café", "product_id": "IZ8z", "price": "2"}],
		"problems": [], "content_type": "text/plain", "corrected": false}`, string(read.Data()))
}

func TestEncodeTicket_WhatWasNotReadIsAbsent(t *testing.T) {
	t.Parallel()
	schemas := schemas(t)
	bad := &events.Ticket{
		ID: uuid.New(), Version: 1, Status: ticket.Error, Source: "default", ReceivedAt: receivedAt, Corrected: true,
		Lines: []ticket.Line{{Name: "Café"}}, Problems: []ticket.Problem{{Line: 3, Code: "bad_price", Message: `"x" is no price`}},
		Body: []byte{0, 0xff, 'a'},
	}
	for status, kind := range map[ticket.Status]string{
		ticket.ToTreat: events.TicketToTreat, ticket.Error: events.TicketError, ticket.Dismissed: events.TicketDismissed,
	} {
		bad.Status = status
		e, err := events.EncodeTicket(bad, receivedAt)
		require.NoError(t, err)
		require.Equal(t, kind, e.Type)
		_, data := readBack(t, schemas, e)
		for _, name := range []string{"order_number", "vat", "total", "content_type"} {
			require.NotContains(t, data, name)
		}
		require.NotContains(t, data["lines"].([]any)[0], "price")
		require.Equal(t, base64.StdEncoding.EncodeToString(bad.Body), data["body_base64"])
	}
	bad.Body = []byte{}
	e, err := events.EncodeTicket(bad, receivedAt)
	require.NoError(t, err)
	require.Contains(t, string(e.JSON), `"body_base64":""`)
	bad.Status = "SPOOLED"
	_, err = events.EncodeTicket(bad, receivedAt)
	require.ErrorContains(t, err, "SPOOLED")
}

func TestEncodeProduct_HasAnIDForEachNameAndPrice(t *testing.T) {
	t.Parallel()
	schemas := schemas(t)
	first, err := events.EncodeProduct(product(), receivedAt)
	require.NoError(t, err)
	read, _ := readBack(t, schemas, first)
	require.Equal(t, "IZ8z", read.Subject())
	require.Regexp(t, `^019acf3a-0b1d-7c3e-8f00-0123456789ab\.IZ8z\.[0-9a-f]{12}$`, first.ID)
	require.JSONEq(t, `{"product_id": "IZ8z", "name": "Café", "price": "2.00", "source": "shop-1",
		"ticket_id": "019acf3a-0b1d-7c3e-8f00-0123456789ab", "first_seen_at": "2026-11-29T10:30:15.123Z",
		"changed_at": "2026-11-29T11:30:15.123Z"}`, string(read.Data()))

	again, err := events.EncodeProduct(product(), receivedAt.Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, first.ID, again.ID, "a repeat has the same id")

	ids := map[string]bool{first.ID: true}
	for _, change := range []func(*events.Product){
		func(p *events.Product) { p.Name = "Cafe" },
		func(p *events.Product) { p.Price = "2" },
		func(p *events.Product) { p.ID = "é/ %\n" },
		func(p *events.Product) { p.ID = strings.Repeat("é", 128) },
		func(p *events.Product) { p.ID = strings.Repeat("é", 127) + "e" },
		func(p *events.Product) { p.ID = strings.Repeat("a", 158) + "é" },
		func(p *events.Product) { p.ID = strings.Repeat("a", 128) },
	} {
		other := product()
		change(other)
		e, err := events.EncodeProduct(other, receivedAt)
		require.NoError(t, err)
		require.False(t, ids[e.ID], e.ID)
		ids[e.ID] = true
		_, data := readBack(t, schemas, e)
		require.Equal(t, other.ID, data["product_id"])
	}
}

// FuzzEncode looks for texts that make events which a receiver cannot read, or that change on the way.
func FuzzEncode(f *testing.F) {
	schemas := schemas(f)
	f.Add("Café", "IZ8z", "shop-1", "123456", []byte("Order: 1"))
	f.Add("\x00\"\\\u2028</script>\x7f\u009f", "\xff\xfe a%2F?#", "é /", "\ud7ff\ufffe", []byte{})
	f.Add("\xed\xa0\x80", "%", "..", strings.Repeat("\x01", 200), []byte(nil))
	f.Fuzz(func(t *testing.T, name, id, source, number string, body []byte) {
		if id == "" || source == "" {
			t.Skip("neither is stored")
		}
		clean := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
		tick := &events.Ticket{
			ID: uuid.New(), Version: 1, Status: ticket.Error, Source: source, ReceivedAt: receivedAt, OrderNumber: number,
			Lines: []ticket.Line{{Name: name, ProductID: id}}, Problems: []ticket.Problem{{Code: id, Message: name}}, Body: body,
		}
		// A source has no such characters; in an attribute they would be no CloudEvent.
		if strings.ContainsFunc(clean(source), func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			tick.Source = "shop"
		}
		e, err := events.EncodeTicket(tick, receivedAt)
		require.NoError(t, err)
		_, data := readBack(t, schemas, e)
		line := data["lines"].([]any)[0].(map[string]any)
		require.Equal(t, clean1(name), line["product"])
		require.Equal(t, clean1(id), line["product_id"])
		if number != "" {
			require.Equal(t, clean1(number), data["order_number"])
		}
		e, err = events.EncodeProduct(&events.Product{
			ID: id, Name: name, Price: "1", Ticket: uuid.New(), Source: tick.Source, ChangedAt: receivedAt, FirstSeenAt: receivedAt,
		}, receivedAt)
		require.NoError(t, err)
		_, data = readBack(t, schemas, e)
		require.Equal(t, clean1(id), data["product_id"])
		require.Equal(t, clean1(name), data["name"])
	})
}

// clean1 replaces each byte that is no UTF-8, as encoding/json does.
func clean1(s string) string { return string([]rune(s)) }

func BenchmarkEncodeTicket(b *testing.B) {
	t := treated(b)
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := events.EncodeTicket(t, receivedAt); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sdk", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			e := cloudevents.NewEvent()
			e.SetID(t.ID.String() + ".2")
			e.SetSource("/myticket/shop-1")
			e.SetType(events.TicketTreated)
			e.SetSubject(t.ID.String())
			e.SetTime(receivedAt)
			e.SetDataSchema(events.TicketSchema)
			e.SetExtension("partitionkey", t.Source)
			lines := make([]map[string]string, len(t.Lines))
			for i, line := range t.Lines {
				lines[i] = map[string]string{"product": line.Name, "product_id": line.ProductID, "price": line.Price.String()}
			}
			err := e.SetData(cloudevents.ApplicationJSON, struct {
				ID          uuid.UUID           `json:"id"`
				Version     int                 `json:"version"`
				Status      ticket.Status       `json:"status"`
				Source      string              `json:"source"`
				ReceivedAt  time.Time           `json:"received_at"`
				OrderNumber string              `json:"order_number"`
				VAT         string              `json:"vat"`
				Total       string              `json:"total"`
				Lines       []map[string]string `json:"lines"`
				Problems    []ticket.Problem    `json:"problems"`
				ContentType string              `json:"content_type"`
				Corrected   bool                `json:"corrected"`
			}{t.ID, t.Version, t.Status, t.Source, t.ReceivedAt, t.OrderNumber, t.VAT, t.Total, lines, t.Problems, t.ContentType, false})
			if err != nil {
				b.Fatal(err)
			}
			text, err := json.Marshal(e)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Discard.Write(text)
		}
	})
}
