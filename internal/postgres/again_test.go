package postgres_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
	save(t, b, first, second)
	require.Equal(t, ticket.Error, first.Ticket.Status)
	require.NotNil(t, second.Original)
	assert.Equal(t, first.Ticket.ID, second.Original.ID)
	assert.Equal(t, ticket.Error, second.Original.Status, "it is stored as ERROR")
	assert.Equal(t, first.Ticket.Problems, second.Original.Problems)
}

// A file of the spool is drained once more after a crash: by then a ticket may be read in another way, or be let through.
func TestSave_TicketThatIsThereAlready_IsWhatWasStored_AndSaysNothingNewAboutProducts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	limited := openWith(t, b, false, map[string]postgres.SourcePolicy{"named": {NewProductsRate: aDay, NewProductsBurst: 1}})
	save(t, limited, from(t, "named", body("1", "Café,a,2")))
	stopped := from(t, "named", body("2", "Thé,b,3"))
	save(t, limited, stopped)
	require.Equal(t, ticket.Error, stopped.Ticket.Status)
	unread := from(t, "named", body("3", "Eau,c,1"))
	unread.Ticket.Status, unread.Ticket.Order = ticket.ToTreat, ticket.Order{}
	save(t, b, unread)

	stoppedAgain, unreadAgain := from(t, "named", body("2", "Thé,b,3")), from(t, "named", body("3", "Eau,c,1"))
	stoppedAgain.Ticket.ID, stoppedAgain.Ticket.ReceivedAt = stopped.Ticket.ID, stopped.Ticket.ReceivedAt
	unreadAgain.Ticket.ID, unreadAgain.Ticket.ReceivedAt = unread.Ticket.ID, unread.Ticket.ReceivedAt
	other := from(t, "named", body("4", "Lait,d,1"))
	save(t, b, stoppedAgain, unreadAgain, other)
	assert.Equal(t, "a d", one[string](t, b, `SELECT string_agg(product_id, ' ' ORDER BY product_id) FROM products`),
		"a ticket that is not TREATED adds no product")
	assert.Equal(t, ticket.Error, stoppedAgain.Ticket.Status, "what is told is what is stored")
	assert.Equal(t, stopped.Ticket.Problems, stoppedAgain.Ticket.Problems)
	assert.Equal(t, ticket.ToTreat, unreadAgain.Ticket.Status)
	assert.Equal(t, ticket.Treated, other.Ticket.Status)
}
