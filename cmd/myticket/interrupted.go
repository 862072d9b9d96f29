package main

import (
	"context"
	"errors"
)

// errInterrupted is what a command fails with that an interrupt ended before it was done.
var errInterrupted = errors.New("interrupted before it was done")

// endless reports whether only an interrupt ends a command, so that one is no failure.
func endless(command string) bool {
	return command == "serve" || command == "events" || command == "tickets follow"
}

// interrupted replaces an error after an interrupt, for commands that change something.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted: what was done before stays done")
	}
	return err
}
