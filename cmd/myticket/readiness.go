package main

import (
	"fmt"
	"time"

	"myticket/internal/admin"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/spool"
)

// checks reports whether the server is ready, and what each check says. A server is ready if a ticket can be stored durably
// right now, in the database or in the spool. If the database answers but does not fit this program, the server is not ready
// in any case: something is wrong with the rollout, and the old servers should stay.
func checks(maintainer *postgres.Maintainer, in *intake.Intake, queue *spool.Spool, draining bool) (bool, []admin.Check) {
	health := maintainer.Health()
	database := admin.Check{Name: "database", OK: true, Detail: "answers"}
	schema := admin.Check{Name: "schema", OK: health.Ready, Detail: health.Schema.String()}
	serving := admin.Check{Name: "serving", OK: !draining, Detail: "accepts tickets"}
	unknown := false // whether the schema is right
	switch {
	case health.Err != nil:
		database = admin.Check{Name: "database", Detail: "does not answer: " + health.Err.Error()}
		schema.Detail = "unknown, because the database does not answer"
		unknown = !health.Misconfigured
	case !in.Available():
		database = admin.Check{Name: "database", Detail: "does not take tickets; the server keeps trying"}
	case health.Schema.Latest == 0:
		database = admin.Check{Name: "database", Detail: "not asked yet"}
		schema.Detail = "not asked yet"
	}
	if draining {
		serving.Detail = "shutting down"
	}
	list := []admin.Check{database, schema, serving}
	if queue == nil {
		return database.OK && schema.OK && serving.OK, list
	}
	have := queue.Stats()
	kept := admin.Check{Name: "spool", OK: have.Failure == nil, Detail: "empty"}
	switch {
	case have.Failure != nil:
		kept.Detail = "takes no tickets: " + have.Failure.Error()
	case !database.OK:
		kept.Detail = fmt.Sprintf("takes the tickets while the database is away; it holds %d", have.Tickets)
	case have.Tickets > 0:
		kept.Detail = fmt.Sprintf("holds %d tickets, the oldest since %s", have.Tickets, have.Oldest.Format(time.RFC3339))
	case have.Unverified > 0:
		kept.Detail = "holds no tickets that are known"
	}
	if have.Unverified > 0 {
		kept.Detail += fmt.Sprintf("; %d files of an earlier process are not verified yet", have.Unverified)
	}
	return serving.OK && (database.OK && schema.OK || kept.OK && (schema.OK || unknown)), append(list, kept)
}
