package intake

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

// What is read of a body takes at most so many bytes for each of the body's, and so many besides: the shortest product
// line, "a,b,1\n", costs most for its length (Ticket.Cost).
const (
	readFactor = 32
	readBase   = 4 << 10
)

// largeBody is what makes a body a large one: those take turns among themselves.
const largeBody = 64 << 10

// readers bounds the memory of what is being read, by what it may become at worst: what it does become is known only when
// the memory is taken. Large bodies wait for each other and never keep out small ones, which have a budget of their own.
type readers struct {
	small, large *semaphore.Weighted
	budget       int64 // of each
}

// newReaders returns readers of two budgets, which are waitingBytes together.
func newReaders(waitingBytes int) readers {
	budget := max(int64(waitingBytes)/2, 1)
	return readers{semaphore.NewWeighted(budget), semaphore.NewWeighted(budget), budget}
}

// turn is the right to read one body. It must be ended.
type turn struct {
	class  *semaphore.Weighted
	weight int64
}

func (t turn) end() { t.class.Release(t.weight) }

// take waits until a body of so many bytes may be read, and reports whether it had to wait. It is not ok when patience
// ended before. A body that may become more than the budget is read alone in its class.
func (r *readers) take(body int, patience time.Duration) (t turn, waited, ok bool) {
	t = turn{r.small, min(readBase+readFactor*int64(body), r.budget)}
	if body > largeBody {
		t.class = r.large
	}
	if t.class.TryAcquire(t.weight) {
		return t, false, true
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return t, true, t.class.Acquire(ctx, t.weight) == nil
}
