package ticket

import "errors"

// Errors that a store of tickets answers with, whatever it is made of. A store wraps them, so use errors.Is.
var (
	// ErrUnavailable means that the store could not be asked, or did not answer in time: nothing is known to be stored,
	// and the same call may be made again later. Calls are safe to repeat.
	ErrUnavailable = errors.New("the store is unavailable")

	// ErrRefused means that the store is well and refuses what it was given because of its content: nothing was stored,
	// and the same call will fail again.
	ErrRefused = errors.New("the store refuses the content")

	// ErrNotFound means that there is no such ticket.
	ErrNotFound = errors.New("no such ticket")
)
