package ticket

import "errors"

// Errors of any store of tickets. A store wraps them, so use errors.Is.
var (
	// ErrUnavailable means that the store could not be reached, or did not answer in time. Nothing is known to be stored. The
	// same call may be made again later; that is safe.
	ErrUnavailable = errors.New("the store is unavailable")

	// ErrRefused means that the store works and refuses the content of the call. Nothing was stored, and the same call will
	// fail again.
	ErrRefused = errors.New("the store refuses the content")

	// ErrNotFound means that there is no such ticket.
	ErrNotFound = errors.New("no such ticket")
)
