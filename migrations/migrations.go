// Package migrations holds the SQL files that make the database's schema, embedded for `myticket migrate`.
//
// They are forward-only and follow expand/contract: the version of the program before a migration keeps working on the
// schema after it. Every file sets lock_timeout, so that a migration never queues in front of live traffic for long.
package migrations

import "embed"

// FS holds the migration files, NNNN_name.up.sql, in its root.
//
//go:embed *.sql
var FS embed.FS
