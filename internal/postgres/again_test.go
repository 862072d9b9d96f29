package postgres_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// Both senders are answered by one transaction, and must be told what it stored.
func TestNewProducts_SameDeliveryTwiceInOneBatch_BothAreToldThatItIsAnError(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), false, map[string]postgres.SourcePolicy{"named": {NewProductsRate: aDay, NewProductsBurst: 1}})
	save(t, b, from(t, "named", body("1", "Café,a,2")))
	first, second := from(t, "named", body("2", "Thé,b,3")), from(t, "named", body("2", "Thé,b,3"))
	first.Key, first.KeyExpiresAt = "k", time.Now().Add(time.Hour)
	second.Key, second.KeyExpiresAt = first.Key, first.KeyExpiresAt
	outcomes := save(t, b, first, second)
	require.Equal(t, ticket.Error, outcomes[0].Status)
	assert.Len(t, outcomes[0].Problems, 1)
	want := outcomes[0]
	want.Duplicate = true
	assert.Equal(t, want, outcomes[1], "it is stored as ERROR")
	assert.Equal(t, ticket.Treated, first.Ticket.Status, "the store only reads an entry")
}

// A file of the spool is drained once more after a crash: by then a ticket may be read in another way, or be let through.
func TestSave_TicketThatIsThereAlready_IsWhatWasStored_AndSaysNothingNewAboutProducts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	limited := openWith(t, b, false, map[string]postgres.SourcePolicy{"named": {NewProductsRate: aDay, NewProductsBurst: 1}})
	save(t, limited, from(t, "named", body("1", "Café,a,2")))
	stopped := from(t, "named", body("2", "Thé,b,3"))
	before := save(t, limited, stopped)[0]
	require.Equal(t, ticket.Error, before.Status)
	unread := from(t, "named", body("3", "Eau,c,1"))
	saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{unread}, Unread: true})

	stoppedAgain, unreadAgain := from(t, "named", body("2", "Thé,b,3")), from(t, "named", body("3", "Eau,c,1"))
	stoppedAgain.Ticket.ID, stoppedAgain.Ticket.ReceivedAt = stopped.Ticket.ID, stopped.Ticket.ReceivedAt
	unreadAgain.Ticket.ID, unreadAgain.Ticket.ReceivedAt = unread.Ticket.ID, unread.Ticket.ReceivedAt
	other := from(t, "named", body("4", "Lait,d,1"))
	outcomes := save(t, b, stoppedAgain, unreadAgain, other)
	assert.Equal(t, "a d", one[string](t, b, `SELECT string_agg(product_id, ' ' ORDER BY product_id) FROM products`),
		"a ticket that is not TREATED adds no product")
	assert.Equal(t, before, outcomes[0], "what is told is what is stored")
	assert.Equal(t, ticket.ToTreat, outcomes[1].Status)
	assert.Equal(t, ticket.Treated, outcomes[2].Status)
}

// A ticket that is there already as TREATED may be sent again unread, or be read as ERROR by another version of the parser.
// Then what was read from it now must not reach the products, whose constraints it may violate.
func TestSave_TicketThatIsThereAlreadyAsTreated_AndIsNotNow_SaysNothingAboutProducts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, body("1", "Café,a,2"))
	save(t, b, e)
	exec(t, b, `DELETE FROM products`)
	exec(t, b, `ALTER TABLE products ADD CONSTRAINT no_coffee CHECK (name <> 'Café')`)
	require.ErrorIs(t, trySave(t.Context(), b.store, e), ticket.ErrRefused)
	want := []intake.Outcome{{ID: e.Ticket.ID, Status: ticket.Treated}}
	assert.Equal(t, want, saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{e}, Unread: true, Drained: true}))
	e.Ticket.Status, e.Ticket.Problems = ticket.Error, []ticket.Problem{{Code: "stricter"}}
	assert.Equal(t, want, save(t, b, e))
}
