package intake

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"myticket/internal/ticket"
)

// What is read of a body takes at most so many bytes for each of the body's, and so many besides: the shortest product
// line, "a,b,1\n", costs most for its length (Ticket.Cost).
const (
	readFactor = 32
	readBase   = 4 << 10
)

// largeBody is what makes a body a large one: those take turns among themselves. It is httpapi.SmallBody, up to which no
// number of larger ones has a ticket refused.
const largeBody = 8 << 10

// readers bounds the memory of what is being read, by what it may become at worst: what it does become is known only when
// the memory is taken. Large bodies wait for each other and never keep out small ones, which have a budget of their own.
// So have large bodies that go to the spool unread.
type readers struct {
	small, large *semaphore.Weighted
	budget       int64 // of each
	unread       *semaphore.Weighted
	unreadBudget int64
}

// newReaders returns readers of two budgets, which are waitingBytes together. What goes to the spool unread waits as other
// tickets do, so it has a quarter of waitingBytes, and large tickets together have three.
func newReaders(waitingBytes int) readers {
	budget, quarter := max(int64(waitingBytes)/2, 1), max(int64(waitingBytes)/4, 1)
	return readers{
		small: semaphore.NewWeighted(budget), large: semaphore.NewWeighted(budget), budget: budget,
		unread: semaphore.NewWeighted(quarter), unreadBudget: quarter,
	}
}

// turn is the right to read one body, or to have it wait unread. It must be ended. The zero value is none.
type turn struct {
	class  *semaphore.Weighted
	weight int64
}

func (t turn) end() {
	if t.class != nil {
		t.class.Release(t.weight)
	}
}

// take waits until a body of so many bytes may be read, and reports whether it had to wait. It is not ok when patience
// ended before. A body that may become more than the budget is read alone in its class.
func (r *readers) take(body int, patience time.Duration) (t turn, waited, ok bool) {
	t = turn{r.small, min(readBase+readFactor*int64(body), r.budget)}
	if body > largeBody {
		t.class = r.large
	}
	waited, ok = t.wait(patience)
	return t, waited, ok
}

// takeUnread waits until a body may wait for the spool unread. A small one always may, and has no turn.
func (r *readers) takeUnread(ticket *ticket.Ticket, patience time.Duration) (t turn, waited, ok bool) {
	if len(ticket.Body) <= largeBody {
		return turn{}, false, true
	}
	t = turn{r.unread, min(int64(ticket.Cost()), r.unreadBudget)}
	waited, ok = t.wait(patience)
	return t, waited, ok
}

func (t turn) wait(patience time.Duration) (waited, ok bool) {
	if t.class.TryAcquire(t.weight) {
		return false, true
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return true, t.class.Acquire(ctx, t.weight) == nil
}
