package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// ticketsFollowCmd is `myticket tickets follow`.
type ticketsFollowCmd struct {
	listFlags
	Interval time.Duration `default:"1s" help:"How often to look. Default: ${default}."`
}

// Validate is called by kong.
func (c ticketsFollowCmd) Validate() error {
	if c.Interval < 100*time.Millisecond || c.Interval > time.Hour {
		return errors.New("--interval must be 100ms to 1h")
	}
	return c.check()
}

func (c ticketsFollowCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "tickets follow")
	if err != nil {
		return err
	}
	defer store.Close()
	out := newTicketWriter(c.listFlags, std.stdout)
	follower, away := store.Follow(c.filter()), false
	for {
		err := follower.Next(ctx, func(tickets []postgres.StoredTicket) error {
			if c.Product != "" { // order_lines does not have them yet
				tickets = slices.DeleteFunc(tickets, func(t postgres.StoredTicket) bool {
					return !slices.ContainsFunc(t.Lines, func(line postgres.StoredLine) bool { return line.ProductID == c.Product })
				})
			}
			return out.writeNow(tickets)
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ticket.ErrUnavailable) && follower.Began():
			if !away {
				fmt.Fprintln(std.stderr, "myticket: the database cannot be read; what is stored meanwhile is shown when it can:", err)
			}
			away = true
		case err != nil:
			return err
		default:
			away = false
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(c.Interval):
		}
	}
}
