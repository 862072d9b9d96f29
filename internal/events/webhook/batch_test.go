package webhook_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/signature"
)

func batches(n int, more ...string) func(*events.Address) {
	return func(a *events.Address) {
		a.Options["batch"] = fmt.Sprint(n)
		for i := 0; i < len(more); i += 2 {
			a.Options[more[i]] = more[i+1]
		}
	}
}

// batchReceiver takes batches, and refuses those that have an event of which it does not like the id.
type batchReceiver struct {
	*receiver

	mu      sync.Mutex
	ids     []string            // of messages
	lengths []int               // of batches
	took    map[string][]string // ids of events, by source
}

func receiveBatches(t *testing.T, refuse map[string]int) *batchReceiver {
	t.Helper()
	b := &batchReceiver{took: map[string][]string{}}
	key, err := signature.Key(secret)
	require.NoError(t, err)
	b.receiver = receive(t, nil)
	b.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		id, at := request.Header.Get("Webhook-Id"), request.Header.Get("Webhook-Timestamp")
		assert.Equal(t, signature.Header([][]byte{key}, id, at, body), request.Header.Get("Webhook-Signature"))
		assert.Equal(t, "application/cloudevents-batch+json; charset=UTF-8", request.Header.Get("Content-Type"))
		var all []cloudevents.Event
		if !assert.NoError(t, json.Unmarshal(body, &all)) {
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.ids, b.lengths = append(b.ids, id), append(b.lengths, len(all))
		for _, e := range all {
			assert.NoError(t, e.Validate())
			if status, ok := refuse[e.ID()]; ok {
				w.WriteHeader(status)
				return
			}
		}
		for _, e := range all {
			b.took[e.Source()] = append(b.took[e.Source()], e.ID())
		}
	})
	return b
}

func TestSend_InBatches_KeepsTheOrderOfEachKey(t *testing.T) {
	t.Parallel()
	var keys []string
	for i := range 430 {
		keys = append(keys, fmt.Sprintf("shop-%d", i%7))
	}
	all, want := made(t, keys...), map[string][]string{}
	for i := range all {
		source := "/myticket/" + all[i].Key
		want[source] = append(want[source], all[i].ID)
	}
	r := receiveBatches(t, nil)
	target := open(t, r.URL, batches(100))
	for _, err := range target.Send(t.Context(), all) {
		require.NoError(t, err)
	}
	require.Equal(t, want, r.took)
	require.LessOrEqual(t, slices.Max(r.lengths), 100)
	require.LessOrEqual(t, len(r.lengths), 8)

	// The same batch has the same id, and another one has another.
	first := slices.Sorted(slices.Values(r.ids))
	require.Len(t, slices.Compact(slices.Clone(first)), len(first))
	r.ids = nil
	target.Send(t.Context(), all)
	require.Equal(t, first, slices.Sorted(slices.Values(r.ids)))

	r.lengths = nil
	target.Send(t.Context(), all[:1])
	require.Equal(t, []int{1}, r.lengths, "a single event is a batch, too")
}

func TestSend_InBatches_HasABoundInBytes(t *testing.T) {
	t.Parallel()
	all := made(t, slices.Repeat([]string{"shop"}, 20)...)
	size := len(all[0].JSON)
	r := receiveBatches(t, nil)
	for _, err := range open(t, r.URL, batches(100, "batch-bytes", fmt.Sprint(5*size))).Send(t.Context(), all) {
		require.NoError(t, err)
	}
	require.Equal(t, slices.Repeat([]int{4}, 5), r.lengths)

	long := all[0]
	long.JSON = []byte(strings.Replace(string(long.JSON), `"lines"`, `"more":"`+strings.Repeat("x", 5*size)+`","lines"`, 1))
	r.lengths = nil
	outcomes := open(t, r.URL, batches(100, "batch-bytes", fmt.Sprint(5*size))).Send(t.Context(), []events.Event{long, all[1], all[2]})
	require.Equal(t, make([]error, 3), outcomes)
	require.Equal(t, []int{1, 2}, r.lengths, "an event that is larger is sent by itself")
}

func TestSend_InBatches_FindsTheEventThatIsRefused(t *testing.T) {
	t.Parallel()
	all := made(t, "a", "b", "a", "a", "b", "a", "b")
	for name, c := range map[string]struct {
		status  int
		want    string // y: delivered, r: refused, n: not sent, e: another error
		lengths []int
	}{
		"refused":            {http.StatusUnprocessableEntity, "yyryyyy", []int{4, 1, 1, 1, 1, 3}},
		"perhaps one event":  {http.StatusInternalServerError, "yyennnn", []int{4, 1, 1, 1}},
		"the target fails":   {http.StatusBadGateway, "ennnnnn", []int{4}},
		"takes no batches":   {http.StatusUnsupportedMediaType, "ennnnnn", []int{4}},
		"wants no more ever": {http.StatusGone, "gnnnnnn", []int{4}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := receiveBatches(t, map[string]int{all[2].ID: c.status})
			var got []string
			for _, err := range open(t, r.URL, batches(4, "parallel", "1")).Send(t.Context(), all) {
				got = append(got, outcomeOf(err))
			}
			require.Equal(t, c.want, strings.Join(got, ""))
			require.Equal(t, c.lengths, r.lengths)
			require.Len(t, slices.Concat(slices.Collect(maps.Values(r.took))...), strings.Count(c.want, "y"), "each is delivered once")
		})
	}
}

// TestSend_InBatches_FindsOutHowManyAreTaken: a gateway refuses long requests, or the receiver is too slow for so many events.
func TestSend_InBatches_FindsOutHowManyAreTaken(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusRequestEntityTooLarge, http.StatusGatewayTimeout, http.StatusInternalServerError} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			var took, requests int
			r := receive(t, nil)
			r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
				var all []json.RawMessage
				assert.NoError(t, json.NewDecoder(request.Body).Decode(&all))
				requests++
				if len(all) > 20 {
					w.WriteHeader(status)
					return
				}
				took += len(all)
			})
			waiting := made(t, slices.Repeat([]string{"shop"}, 1000)...)
			target := open(t, r.URL, batches(100, "parallel", "1"))
			for some := waiting; len(waiting) > 0; {
				var left []events.Event
				all := true
				for i, err := range target.Send(t.Context(), some) {
					if err != nil {
						left, all = append(left, some[i]), false
					}
				}
				waiting = append(left, waiting[len(some):]...)
				if some = waiting; !all {
					some = waiting[:1] // as a sender does
				}
				require.Less(t, requests, 300, "%d of 1000 events were taken", took)
			}
			require.Equal(t, 1000, took, "each once")
		})
	}
}

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return "y"
	case errors.Is(err, events.ErrRejected):
		return "r"
	case errors.Is(err, events.ErrNotSent):
		return "n"
	case errors.Is(err, events.ErrGone):
		return "g"
	}
	return "e"
}
