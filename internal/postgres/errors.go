package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"myticket/internal/ticket"
)

// validateReadWrite rejects a server that takes no writes, as libpq's target_session_attrs=read-write does.
var validateReadWrite = pgconn.ValidateConnectTargetSessionAttrsReadWrite

// explain wraps an error of the driver as an error of package ticket: ErrRefused if Postgres refuses the content, and
// ErrUnavailable for everything else. An unknown error counts as unavailable: a sender who is refused sends again, which is
// better than to mark good tickets as bad.
func explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	if refused(err) {
		return fmt.Errorf("%s: %w: %w", doing, ticket.ErrRefused, err)
	}
	if isCode(err, undefinedTable, undefinedColumn) {
		return fmt.Errorf("%s: %w: this database does not have the schema that this program needs: run \"myticket migrate up\" (%w)",
			doing, ticket.ErrUnavailable, err)
	}
	if isCode(err, insufficientPrivilege) {
		return fmt.Errorf("%s: %w: this login for Postgres has too few rights (%w)", doing, ticket.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, ticket.ErrUnavailable, err)
}

// SQLSTATEs (https://www.postgresql.org/docs/current/errcodes-appendix.html).
const (
	notNullViolation      = "23502"
	uniqueViolation       = "23505"
	checkViolation        = "23514"
	dataCorrupted         = "XX001"
	indexCorrupted        = "XX002"
	readOnlyTransaction   = "25006"
	invalidCatalogName    = "3D000"
	serializationFailure  = "40001"
	deadlockDetected      = "40P01"
	insufficientPrivilege = "42501"
	undefinedTable        = "42P01"
	undefinedColumn       = "42703"
	lockNotAvailable      = "55P03"
	queryCanceled         = "57014"
	cannotConnectNow      = "57P03"
)

// sqlState returns the SQLSTATE of an error that Postgres answered with; empty for any other error.
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// isCode reports whether Postgres answered with one of the codes. A code may be the beginning of a SQLSTATE, and then means all
// that begin with it.
func isCode(err error, codes ...string) bool {
	state := sqlState(err)
	return state != "" && slices.ContainsFunc(codes, func(code string) bool { return strings.HasPrefix(state, code) })
}

// refused reports whether Postgres refuses the content: it will refuse the same values again.
func refused(err error) bool {
	return !transient(err) && isCode(err,
		"21", // cardinality violation
		"22", // data exception
		"23", // integrity constraint violation
		"44", // WITH CHECK OPTION violation
		"54", // program limit exceeded: an index row too large
		"P0", // raised by a trigger
	)
}

// unwelcome reports whether the server answers and rejects the login: a wrong user or password (class 28), no such
// database, or no right to it.
func unwelcome(err error) bool { return isCode(err, "28", invalidCatalogName, insufficientPrivilege) }

// transient reports whether the transaction lost against another one, and may succeed if it is run again:
//   - a serialization failure, a deadlock, or a lock that was not free in time;
//   - a violated partition constraint, which has no name: the ticket was on its way into the default partition while its own
//     partition was made. The next attempt finds that partition.
func transient(err error) bool {
	if isCode(err, serializationFailure, deadlockDetected, lockNotAvailable) {
		return true
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == checkViolation && pgErr.ConstraintName == ""
}

// broken reports whether the connection, or the server behind it, is of no use: the server is shutting down or starting (57P01
// to 57P03), has become a standby, or does not answer. The same is true for every connection of the pool, so the pool must be
// reset.
func broken(err error) bool {
	if sqlState(err) != "" {
		return isCode(err, "57P0", readOnlyTransaction, "08")
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, errUnreplicated)
}
