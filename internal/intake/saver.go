package intake

import (
	"context"
	"errors"
	"fmt"

	"myticket/internal/ticket"
)

// saver is what deliveries and the drain share: it reads tickets, and stores a batch even if one of its tickets is refused.
type saver struct {
	config Config
	store  Store
}

// read parses the body of a ticket, and sets its status. It returns what the ticket costs then.
func (s *saver) read(t *ticket.Ticket) (cost int) {
	t.Order, t.Problems, t.Dialect = s.config.Parse(t.Source, t.Body)
	t.Status = ticket.Treated
	if len(t.Problems) > 0 {
		t.Status = ticket.Error
	}
	return t.Cost()
}

// saveUnread stores a batch unread. If the store refuses even that, each entry is stored in a transaction of its own, and
// the result has the refusals.
func (s *saver) saveUnread(ctx context.Context, b Batch) (result, error) {
	b.Unread = true
	saved, err := s.store.Save(ctx, b)
	if !errors.Is(err, ticket.ErrRefused) {
		return result{Saved: saved}, err
	}
	if len(b.Entries) == 1 {
		e := b.Entries[0]
		s.config.Logger.With(e.Ticket.LogAttr()).
			Error("the database refuses to store a ticket, even unread; if its sender waits, the answer is that it is not stored; "+
				"if it came from the spool, it stays there", "bytes", len(e.Ticket.Body), "error", err)
		saved.Outcomes = make([]Outcome, 1)
		return result{saved, []error{fmt.Errorf("%w: %w", ticket.ErrUnavailable, err)}}, nil
	}
	var all result
	for i := range b.Entries {
		one := b
		one.Entries = b.Entries[i : i+1]
		r, err := s.saveUnread(ctx, one)
		if err != nil {
			return result{}, err
		}
		all.Outcomes = append(all.Outcomes, r.Outcomes[0])
		all.refused = append(all.refused, r.refusal(0))
		all.StoredBy = r.StoredBy
	}
	return all, nil
}

func (s *saver) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.StoreTimeout)
	defer cancel()
	return s.store.Ping(ctx)
}
