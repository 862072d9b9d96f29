package main

import (
	"context"
	"errors"
)

// interrupted returns an error if ctx was cancelled, for commands that change something. For a server, an interrupt is no
// failure.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted: what was done before stays done")
	}
	return err
}
