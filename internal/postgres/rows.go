package postgres

import (
	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// standing is what a ticket is stored as.
type standing struct {
	status    ticket.Status
	problems  []ticket.Problem
	corrected bool // a person has corrected its text
}

// group returns the group of a ticket that could not be read; 0 for another one.
func (s standing) group() ticket.Group {
	if s.status != ticket.Error {
		return 0
	}
	return ticket.GroupOf(s.problems)
}

// row is a ticket that is to be stored: the ticket, what was read from it and in which dialect, and its status and problems.
type row struct {
	ticket  *ticket.Ticket
	order   *ticket.Order
	dialect int
	standing
}

// nothingRead is what is stored of a ticket that was not read.
var nothingRead ticket.Order

// rowOf returns the row of a ticket that was read.
func rowOf(t *ticket.Ticket) row {
	return row{t, &t.Order, t.Dialect, standing{status: t.Status, problems: t.Problems}}
}

// rowsOf returns the rows of a batch, without those of the entries that are repeats.
func rowsOf(b intake.Batch, repeats map[int]repeat) []row {
	rows := make([]row, 0, len(b.Entries)-len(repeats))
	for i, e := range b.Entries {
		if _, ok := repeats[i]; ok {
			continue
		}
		if b.Unread {
			rows = append(rows, row{&e.Ticket, &nothingRead, 0, standing{status: ticket.ToTreat}})
			continue
		}
		rows = append(rows, rowOf(&e.Ticket))
	}
	return rows
}
