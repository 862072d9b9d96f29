package main

import (
	"context"
	"errors"
)

// interrupted makes an interrupt of a command that changes something a failure, which it is not for a server.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted; what was done until then stays done")
	}
	return err
}
