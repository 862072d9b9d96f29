package intake

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

// Reading a body takes at most readFactor bytes for each byte of the body, and readBase bytes more. The shortest product line,
// "a,b,1\n", costs most for its length (Ticket.Cost).
const (
	readFactor = 32
	readBase   = 4 << 10
)

// largeBody is the longest body that is not large. Large bodies wait for each other. It is httpapi.SmallBody: a ticket up to
// that size is not refused because of larger ones, however many there are.
const largeBody = 8 << 10

// readers bounds the memory of tickets that are being read. It counts what a body may become at worst, because the real size is
// known only after the memory is taken. Large and small bodies have a budget each, so large ones wait for each other and never
// keep out small ones. Large bodies that go to the spool unread have a third budget.
type readers struct {
	small, large *semaphore.Weighted
	budget       int64 // of each
	unread       *semaphore.Weighted
	unreadBudget int64
}

// newReaders returns readers with two budgets for reading, which are waitingBytes together. Unread bodies wait in the queue as
// other tickets do, so they get a quarter of waitingBytes, and large tickets together get three quarters.
func newReaders(waitingBytes int) readers {
	budget, quarter := max(int64(waitingBytes)/2, 1), max(int64(waitingBytes)/4, 1)
	return readers{
		small: semaphore.NewWeighted(budget), large: semaphore.NewWeighted(budget), budget: budget,
		unread: semaphore.NewWeighted(quarter), unreadBudget: quarter,
	}
}

// turn is the right to read one body, or to keep it unread in the queue. It must be ended. The zero value is no turn.
type turn struct {
	class  *semaphore.Weighted
	weight int64
}

func (t turn) end() {
	if t.class != nil {
		t.class.Release(t.weight)
	}
}

// take waits until a body of n bytes may be read, and reports whether it had to wait. It is not ok if patience ended first. A
// body that may become more than the budget is read alone in its class.
func (r *readers) take(n int, patience time.Duration) (t turn, waited, ok bool) {
	t = turn{r.small, min(readBase+readFactor*int64(n), r.budget)}
	if n > largeBody {
		t.class = r.large
	}
	waited, ok = t.wait(patience)
	return t, waited, ok
}

// takeUnread waits until a ticket with a body of n bytes, which costs that much (Ticket.Cost), may wait for the spool unread. A
// small one always may, and needs no turn.
func (r *readers) takeUnread(n, cost int, patience time.Duration) (t turn, waited, ok bool) {
	if n <= largeBody {
		return turn{}, false, true
	}
	t = turn{r.unread, min(int64(cost), r.unreadBudget)}
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
