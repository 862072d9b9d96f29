package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"myticket/internal/ticket"
)

// validateReadWrite refuses a server that cannot take writes, as libpq's target_session_attrs=read-write does.
var validateReadWrite = pgconn.ValidateConnectTargetSessionAttrsReadWrite

// explain wraps an error of the driver in the store's own terms: ticket.ErrRefused when Postgres refuses the content,
// ticket.ErrUnavailable for everything else. An unknown error counts as unavailable: refusing a sender, who sends
// again, is better than marking tickets that are well. The SQLSTATE classes are those of
// https://www.postgresql.org/docs/current/errcodes-appendix.html.
func explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	if refused(err) {
		return fmt.Errorf("%s: %w: %w", doing, ticket.ErrRefused, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, ticket.ErrUnavailable, err)
}

// refused reports whether Postgres refuses what it was given: the same values will be refused again.
func refused(err error) bool {
	var pgErr *pgconn.PgError
	if transient(err) || !errors.As(err, &pgErr) {
		return false
	}
	switch {
	case strings.HasPrefix(pgErr.Code, "22"), // data exception
		strings.HasPrefix(pgErr.Code, "23"), // integrity constraint violation
		strings.HasPrefix(pgErr.Code, "44"), // WITH CHECK OPTION violation
		strings.HasPrefix(pgErr.Code, "54"), // program limit exceeded: an index row too large
		strings.HasPrefix(pgErr.Code, "P0"), // raised by a trigger
		strings.HasPrefix(pgErr.Code, "21"): // cardinality violation
		return true
	}
	return false
}

// unwelcome tells that the server answers and does not let us in: a wrong user or password (class 28), no such database
// (3D000), or no right to it (42501).
func unwelcome(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (strings.HasPrefix(pgErr.Code, "28") || pgErr.Code == "3D000" || pgErr.Code == "42501")
}

// transient tells that the transaction lost against another one and may win when it is run again:
//   - a serialization failure (40001), a deadlock (40P01), a lock that was not to be had in time (55P03);
//   - a violated partition constraint, which has no name (23514): the ticket was on its way into the default partition
//     when its own one was made. The next attempt finds it.
func transient(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch pgErr.Code {
	case "40001", "40P01", "55P03":
		return true
	case "23514":
		return pgErr.ConstraintName == ""
	}
	return false
}

// broken tells that the connection, or the server behind it, is not the one to ask: the server is shutting down or
// starting (57P01 to 57P03), has become a standby (25006), or does not answer at all. Every connection of the pool has
// the same fate, so the pool is reset.
func broken(err error) bool {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(pgErr.Code, "57P0") || pgErr.Code == "25006" || strings.HasPrefix(pgErr.Code, "08")
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, errUnreplicated)
}
