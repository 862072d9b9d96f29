package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
)

// awaitInterval is the time between two attempts to connect.
const awaitInterval = time.Second

// await returns as soon as the database lets us in, or with the last reason when it did not for so long. Every failure to
// connect is worth another attempt: what makes a database makes its role, its password and its certificate, too, and not
// always in the order in which we come to need them.
func await(ctx context.Context, in *login, wait time.Duration) error {
	began := time.Now()
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var last error
	connect := func() (struct{}, error) {
		var config pgx.ConnConfig
		_ = in.refresh(waiting, &config)
		conn, err := pgx.ConnectConfig(waiting, &config)
		if err == nil {
			_ = conn.Close(waiting)
			return struct{}{}, nil
		}
		if last == nil || waiting.Err() == nil { // that the time is over is no reason
			last = err
		}
		return struct{}{}, err
	}
	said := ""
	_, err := backoff.Retry(waiting, connect,
		backoff.WithBackOff(backoff.NewConstantBackOff(awaitInterval)),
		backoff.WithMaxElapsedTime(0), // waiting ends in time
		backoff.WithNotify(func(err error, _ time.Duration) {
			if why := reason(err); why != said {
				said = why
				in.logger.Info("waiting for the database", "reason", why, "until", began.Add(wait).Format(time.RFC3339))
			}
		}))
	switch {
	case err == nil && said != "":
		in.logger.Info("the database answers", "waited", time.Since(began).Round(time.Millisecond).String())
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted while it waited for the database; nothing was changed")
	case err != nil:
		return fmt.Errorf("the database let nobody in for %s, so nothing was changed; "+
			"see to the reason, or wait longer, and run it again: %s", wait, reason(last))
	}
	return nil
}

// localPort is what differs in the errors of two attempts that fail for the same reason.
var localPort = regexp.MustCompile(`:\d+->`)

// reason is an error in a line, the same for the same reason.
func reason(err error) string {
	return localPort.ReplaceAllString(strings.Join(strings.Fields(err.Error()), " "), "->")
}
