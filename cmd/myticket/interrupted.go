package main

import (
	"context"
	"errors"
)

// interrupted replaces an error after an interrupt, for commands that change something: they fail then. For a server, which ends
// with context.Canceled, an interrupt is no failure.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted: what was done before stays done")
	}
	return err
}
