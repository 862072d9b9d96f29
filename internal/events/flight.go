package events

// flightBytes is how many bytes of events are on their way at the same time, if there is more than one.
const flightBytes = 8 << 20

// Flight is the state of the events of one Send of a target that sends several before the first is acknowledged. It bounds how
// many are on their way, and keeps the order that Target demands: once an event is known to have failed, Next gives no later
// one of its key.
//
// Events that were on their way already can still be taken by the target after an earlier one of their key was refused, unless
// only one of a key is on its way at a time. That is slower, and so an option of targets: order=strict.
type Flight struct {
	events  []Event
	window  int
	strict  bool
	states  []state
	errors  []error
	failed  map[string]struct{} // keys of which an event failed
	ready   []int               // what Next gives, in this order
	after   []int               // the next event of the same key; 0 for none. Nil if not strict
	waiting int                 // events on their way
	bytes   int                 // of those
}

type state uint8

const (
	unsent state = iota
	underway
	done
)

// NewFlight returns the state of events of which none was sent yet. At most window of them are on their way at the same time,
// and at most 8 MiB if there are several. If strict is true, it is one of each key.
func NewFlight(events []Event, window int, strict bool) *Flight {
	f := &Flight{
		events: events, window: window, strict: strict,
		states: make([]state, len(events)),
		errors: make([]error, len(events)),
		failed: make(map[string]struct{}),
		ready:  make([]int, 0, len(events)),
	}
	if !strict {
		for i := range events {
			f.ready = append(f.ready, i)
		}
		return f
	}
	f.after = make([]int, len(events))
	last := make(map[string]int)
	for i := range events {
		if before, ok := last[events[i].Key]; ok {
			f.after[before] = i
		} else {
			f.ready = append(f.ready, i)
		}
		last[events[i].Key] = i
	}
	return f
}

// Next returns the event to send next, which then is on its way. ok is false if none may be sent before another one is done.
func (f *Flight) Next() (event int, ok bool) {
	for len(f.ready) > 0 && f.waiting < f.window {
		i := f.ready[0]
		if _, failed := f.failed[f.events[i].Key]; failed {
			f.states[i], f.errors[i] = done, ErrNotSent
			f.ready = f.ready[1:]
			continue
		}
		if f.waiting > 0 && f.bytes+len(f.events[i].JSON) > flightBytes {
			return 0, false
		}
		f.ready = f.ready[1:]
		f.states[i] = underway
		f.waiting++
		f.bytes += len(f.events[i].JSON)
		return i, true
	}
	return 0, false
}

// Waiting returns how many events are on their way.
func (f *Flight) Waiting() int { return f.waiting }

// IsWaiting reports whether an event is on its way.
func (f *Flight) IsWaiting(event int) bool {
	return event >= 0 && event < len(f.states) && f.states[event] == underway
}

// Delivered ends the way of an event that the target has.
func (f *Flight) Delivered(event int) {
	f.end(event)
	if f.strict && f.after[event] > 0 {
		f.ready = append(f.ready, f.after[event])
	}
}

// Failed ends the way of an event that the target refused, or may not have.
func (f *Flight) Failed(event int, err error) {
	f.end(event)
	f.errors[event] = err
	f.failed[f.events[event].Key] = struct{}{}
}

func (f *Flight) end(event int) {
	f.states[event] = done
	f.waiting--
	f.bytes -= len(f.events[event].JSON)
}

// Errors returns the outcomes, as Target.Send does. Events on their way failed because of rest, and so did the first of each
// key that was not sent.
func (f *Flight) Errors(rest error) []error {
	for i := range f.events {
		if f.states[i] == underway {
			f.Failed(i, rest)
		}
	}
	for i := range f.events {
		if f.states[i] != unsent {
			continue
		}
		f.states[i] = done
		key := f.events[i].Key
		if _, failed := f.failed[key]; failed || rest == nil {
			f.errors[i] = ErrNotSent
			continue
		}
		f.errors[i] = rest
		f.failed[key] = struct{}{}
	}
	return f.errors
}
