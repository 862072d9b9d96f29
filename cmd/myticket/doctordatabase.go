package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"myticket/internal/httpapi"
	"myticket/internal/postgres"
)

// ofDatabase are the checks of the database. Without a connection all but the first are skipped.
func (e *examination) ofDatabase() []check {
	checks := []check{
		{"database", e.checkDatabase},
		{"encryption", e.checkEncryption},
		{"clock", e.checkClock},
		{"schema", e.checkSchema},
		{"rights", e.checkRights},
		{"partitions", e.checkPartitions},
		{"durability", e.checkDurability},
		{"standbys", e.checkStandbys},
		{"connections", e.checkConnections},
		{"timeouts", e.checkTimeouts},
		{"size", e.checkSize},
		{"backlog", e.checkBacklog},
		{"errors", e.checkErrors},
		{"order_lines", e.checkOrderLines},
		{"dialects", e.checkDialects},
		{"subscriptions", e.checkSubscriptions},
	}
	for i, c := range checks[1:] {
		checks[i+1].do = func(ctx context.Context) finding {
			if e.database == nil {
				return skipped("there is no connection to the database")
			}
			return c.do(ctx)
		}
	}
	return checks
}

// onSchema makes a check that needs a schema, and the one of this program if it asks for more than partitions.
func (e *examination) onSchema(whole bool, check func() finding) finding {
	if e.schema != nil && (e.schema.Version == 0 || whole && !e.schema.Ready()) {
		return skipped("the schema is not the one that this program needs")
	}
	return check()
}

const storesNothing = "No ticket can be stored in Postgres: tickets go to the spool and are answered 202, or without a spool 503."

// remedies are what to do about an obstacle.
var remedies = map[postgres.Obstacle]string{
	postgres.NoSuchHost:       "Correct the host of the database URL, or the DNS that this machine asks.",
	postgres.NoAnswer:         "Start Postgres, or let this machine through to it (address, firewall, NetworkPolicy).",
	postgres.BadEncryption:    "Give PGSSLMODE and PGSSLROOTCERT what fits the certificate of the server.",
	postgres.LoginRefused:     "Correct user and password, or pg_hba.conf and the role's rights in Postgres.",
	postgres.NoSuchDatabase:   "Create the database, or correct its name in the database URL.",
	postgres.NoConnectionLeft: "End sessions that nobody needs, raise max_connections, or lower --database-max-conns.",
	postgres.Starting:         "Wait until Postgres has started; its log says how far it is.",
	postgres.WrongURL:         "Correct the database URL: postgresql://user:password@host:5432/name.",
	postgres.UnknownObstacle:  "Do what it says, or remove the reason.",
}

// oldestPostgres is the first version with everything that the schema needs.
const oldestPostgres = 14

func (e *examination) checkDatabase(ctx context.Context) finding {
	found, err := postgres.OpenCheckUp(ctx, postgres.Config{URLFrom: e.url, ApplicationName: "myticket doctor", Logger: silent()},
		databasePatience, e.waiting)
	if err != nil {
		f := finding{Status: isProblem, Found: oneLine(err), Means: storesNothing, Do: remedies[postgres.ObstacleOf(err)]}
		if _, err := e.url(); err != nil {
			f.Do = "Give this command the database URL as a server gets it."
		}
		return f.see("MyticketDatabaseAway")
	}
	e.database = found
	server := found.Server
	f := well("PostgreSQL %s, %s", server.Version, server.Address)
	switch {
	case server.Standby:
		f.Found += ": it is a standby, which takes no writes"
		f.Status, f.Means = isProblem, storesNothing
		f.Do = "Name the primary in the database URL (on Kubernetes the service that ends in -rw), or promote this standby."
	case server.ReadOnlyByDefault:
		f.Found += ": default_transaction_read_only is on"
		f.Status, f.Means = isProblem, storesNothing
		f.Do = "Find out who has set it for the server, the database or the role, often because a disk is full; then reset it."
	case server.VersionNumber < oldestPostgres*10000:
		f.Status, f.Means = isProblem, fmt.Sprintf("The schema needs PostgreSQL %d or newer.", oldestPostgres)
		f.Do = "Upgrade Postgres."
		return f
	default:
		return f
	}
	return f.see("MyticketDatabaseAway")
}

func (e *examination) checkEncryption(context.Context) finding {
	switch s := e.database.Server; {
	case s.TLS != "" && s.Verified:
		return well("%s, and the certificate of the server is verified", s.TLS)
	case s.TLS != "":
		return well("%s; that it is the right server is not verified (PGSSLMODE=verify-full)", s.TLS)
	case s.Local:
		return well("none, and none is needed: the server is on this machine")
	}
	return finding{
		Status: isWarning, Found: "the connection is not encrypted", Means: "Whoever is on the way can read tickets and change them.",
		Do: "Let Postgres have a certificate, and set PGSSLMODE=verify-full and PGSSLROOTCERT.",
	}
}

// clockTolerance is how far the clocks of servers and database may differ: ids follow a clock that goes back by more.
const clockTolerance = time.Second

func (e *examination) checkClock(ctx context.Context) finding {
	offset, uncertain, err := e.database.ClockOffset(ctx, e.now)
	if err != nil {
		return cannotSay(err)
	}
	by := offset.Abs() - uncertain
	f := well("this machine's clock and the database's differ by %s, give or take %s", offset.Abs().Round(time.Millisecond),
		uncertain.Round(10*time.Microsecond))
	if by <= clockTolerance {
		return f
	}
	which := "behind"
	if offset < 0 {
		which = "ahead of"
	}
	f.Status = isWarning
	f.Found = fmt.Sprintf("this machine's clock is %s %s the database's", offset.Abs().Round(time.Millisecond), which)
	f.Means = "No ticket is lost. Ids, partitions and the newest price of a product go by the clocks of servers, and may be wrong."
	f.Do = "Find out which clock is wrong, and have it set by NTP (timedatectl, chronyc tracking)."
	if by > httpapi.SignatureTolerance {
		f.Status = isProblem
		f.Means += " If the server's is the wrong one, tickets that are signed are refused with 401."
	}
	return f
}

func (e *examination) checkSchema(ctx context.Context) finding {
	status, err := e.database.Schema(ctx)
	if err != nil {
		return cannotSay(err)
	}
	e.schema = &status
	f := well("%s", status)
	switch {
	case !status.Ready():
		f.Status = isProblem
		f.Means = "A server that starts does not become ready. Tickets that reach it go to its spool, or are answered 503."
		f.Do = `Run "myticket migrate up".`
		if status.Dirty {
			f.Do = `Repair it as "The schema" in docs/server.md says.`
		}
	case status.Dirty:
		f.Status = isWarning
		f.Means = "Tickets are stored. Servers of a newer version do not become ready."
		f.Do = `If no migration runs, repair the schema as "The schema" in docs/server.md says.`
	default:
		return f
	}
	return f.see("MyticketSchemaBehind")
}

func (e *examination) checkRights(ctx context.Context) finding {
	return e.onSchema(false, func() finding {
		r, err := e.database.Rights(ctx)
		if err != nil {
			return cannotSay(err)
		}
		switch {
		case len(r.Missing) > 0:
			return finding{
				Status: isProblem, Found: "this role lacks " + some(r.Missing),
				Means: "Servers with this role cannot store tickets, or cannot treat them.",
				Do:    "Grant it to the role, or let the role own the tables.",
			}.see("MyticketDatabaseAway")
		case !r.Owner || !r.Create:
			found := "this role does not own tickets, outbox and ticket_lines"
			if r.Owner {
				found = "this role may not create tables in the schema of tickets"
			}
			return finding{
				Status: isWarning, Found: found,
				Means: "Tickets are stored, but servers cannot make partitions: all tickets go to the default partition.",
				Do:    "Let the role own the tables, with the right to create tables in their schema.",
			}.see("MyticketMaintenanceFailing")
		case e.database.Server.Superuser:
			return finding{
				Status: isWarning, Found: "this role is a superuser", Means: "Whoever gets its password can read and delete everything.",
				Do: "Give the servers a role of their own that owns the tables, and is no superuser.",
			}
		}
		return well("this role owns the tables, has what servers need, and is no superuser")
	})
}

func (e *examination) checkPartitions(ctx context.Context) finding {
	return e.onSchema(false, func() finding {
		p, err := e.database.PartitionsAhead(ctx, postgres.Period(e.PartitionPeriod), e.PartitionsAhead, e.now())
		if err != nil {
			return cannotSay(err)
		}
		f := well("tickets have partitions until %s", stamp(p.Until))
		f.Do = "If a server runs, its log says why it does not make them; otherwise start one. It looks every minute."
		switch {
		case p.Until.IsZero() || !p.Next:
			f.Status, f.Found = isProblem, "tickets have no partition for "+some(p.Missing)
			f.Means = "No ticket is lost: tickets go to the default partition. If those are many, no query finds them for a while."
		case len(p.Missing) > 0:
			f.Status, f.Found = isWarning, f.Found+", and none for "+some(p.Missing)
			f.Means = "No ticket is lost. Fewer partitions are there than --partitions-ahead says, so servers have little time left."
		case len(p.Outbox) > 0:
			f.Status, f.Found = isWarning, "the outbox has no partition for "+some(p.Outbox)
			f.Means = "No ticket is lost: the default partition of the outbox takes its rows, which are then deleted one by one."
		case p.Strays > 0:
			f.Status, f.Found = isWarning, fmt.Sprintf("%d tickets of a full default partition are still to be moved", p.Strays)
			f.Means = "They are safe, but until they are moved no query finds them, and they are not treated."
		case p.InDefault > 0:
			f.Status, f.Found = isWarning, fmt.Sprintf("the default partition holds %d tickets", p.InDefault)
			f.Means = "They are stored and found. Servers move them within a minute."
		default:
			f.Do = ""
			return f
		}
		return f.see("MyticketMaintenanceFailing")
	})
}

func (e *examination) checkDurability(context.Context) finding {
	s := e.database.Server.Settings
	var bad []string
	for _, name := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		if s[name] == "off" {
			bad = append(bad, name)
		}
	}
	f := well("fsync, full_page_writes and synchronous_commit are %s, %s and %s",
		s["fsync"], s["full_page_writes"], s["synchronous_commit"])
	switch {
	case len(bad) > 0:
		f.Status, f.Found = isProblem, "off: "+strings.Join(bad, ", ")
		f.Means = "Tickets that were answered 200 are lost if Postgres or its machine stops suddenly."
		f.Do = "Turn it on again, for the server, the database and the role (docs/durability.md)."
	case s["synchronous_commit"] == "local" && s["synchronous_standby_names"] != "":
		f.Status, f.Found = isProblem, "synchronous_commit is local, so commits do not wait for the synchronous standbys"
		f.Means = "Tickets that were answered 200 are lost if the primary's disk is lost, or after a failover."
		f.Do = "Set synchronous_commit to on for the server, the database and the role."
	}
	return f
}

func (e *examination) checkStandbys(ctx context.Context) finding {
	s, err := e.database.Standbys(ctx)
	if err != nil {
		return cannotSay(err)
	}
	f := well("a commit waits for %d standbys, and %d can confirm it", s.Needed, s.Synchronous)
	if !s.Visible {
		f.Found = fmt.Sprintf("a commit waits for %d standbys, and %d are attached; this role may not see which confirm it "+
			"(pg_monitor)", s.Needed, s.Attached)
	}
	stuck := "Commits wait, so tickets go to the spool and are answered 202, or without a spool 503. None is lost."
	back := "Bring the standby back; pg_stat_replication on the primary shows which are there."
	switch {
	case s.Waiting > 0 && s.Longest > 2*time.Second:
		f.Status = isProblem
		f.Found = fmt.Sprintf("%d commits wait for a standby, for up to %s", s.Waiting, s.Longest.Round(time.Second))
		f.Means, f.Do = stuck, back
	case s.Attached < s.Needed || s.Visible && s.Synchronous < s.Needed:
		f.Status = isProblem
		f.Means, f.Do = stuck, back
	case s.Needed == 0:
		f.Status = isWarning
		f.Found = fmt.Sprintf("commits wait for no standby (synchronous_standby_names is empty); %d are attached", s.Attached)
		f.Means = "Tickets that were answered 200 are lost if the primary's disk is lost."
		f.Do = "Have commits wait for a standby, or accept the risk (--skip standbys, or --fail-on problem)."
	default:
		return f
	}
	return f.see("MyticketStandbyMissing")
}

func (e *examination) checkConnections(ctx context.Context) finding {
	n, err := e.database.Connections(ctx)
	if err != nil {
		return cannotSay(err)
	}
	servers := max(e.servers, n.Servers, 1)
	theirs := servers * (e.DatabaseMaxConns + 1) // with the one for what takes hours
	f := well("%d of %d are in use; %d servers may have %d", n.Used, n.Most, servers, theirs)
	f.Means = "A server that gets no connection stores no tickets in Postgres: they go to the spool, or are answered 503."
	f.Do = "Raise max_connections, lower --database-max-conns, or end sessions that nobody needs."
	f.Status = isWarning
	switch others := n.Used - n.Theirs; {
	case n.OfRole >= 0 && theirs > n.OfRole:
		f.Found += fmt.Sprintf(", but the role or the database is limited to %d", n.OfRole)
		f.Do = "Raise the limit (ALTER ROLE or ALTER DATABASE … CONNECTION LIMIT), or lower --database-max-conns."
	case theirs+others > n.Most:
		f.Found += fmt.Sprintf(", and others have %d: together more than there are", others)
	default:
		f.Status, f.Means, f.Do = isOK, "", ""
		return f
	}
	return f.see("MyticketPoolSaturated")
}

// leastTimeout is the longest time that maintenance may take for one statement.
const leastTimeout = 30 * time.Second

func (e *examination) checkTimeouts(context.Context) finding {
	for _, name := range []string{"statement_timeout", "transaction_timeout"} {
		ms, _ := strconv.Atoi(e.database.Server.Settings[name]) // an older version does not have all of them
		if limit := time.Duration(ms) * time.Millisecond; limit > 0 && limit < leastTimeout {
			return finding{
				Status: isWarning, Found: fmt.Sprintf("%s is %s for this role", name, limit),
				Means: "Tickets are stored, but upkeep that takes longer never ends: partitions, order lines, retention, migrations.",
				Do: fmt.Sprintf("Set it to 0, or to at least %s, for this role: ALTER ROLE … SET %s = 0. Servers have limits of their own.",
					leastTimeout, name),
			}
		}
	}
	return well("Postgres ends no statement of a server too early")
}

// Ages of the oldest transaction number. Postgres takes no more writes at about 2.1 billion.
const oldAge, tooOldAge = 1_000_000_000, 1_600_000_000

func (e *examination) checkSize(ctx context.Context) finding {
	s, err := e.database.Size(ctx)
	if err != nil {
		return cannotSay(err)
	}
	return sizeFinding(s, e.database.Server.Settings["autovacuum"])
}

func sizeFinding(s postgres.DatabaseSize, autovacuum string) finding {
	f := well("the database has %s; autovacuum is %s, and ran last %s",
		humanize.IBytes(uint64(s.Bytes)), autovacuum, ago(s.LastVacuumed))
	switch {
	case s.Age > oldAge:
		f.Status = isWarning
		if s.Age > tooOldAge {
			f.Status = isProblem
		}
		f.Found = fmt.Sprintf("the oldest transaction number in use is %d million transactions old", s.Age/1_000_000)
		f.Means = "At about 2100 million Postgres takes no more writes: tickets then go to the spool, or are answered 503."
		f.Do = "Find out what holds VACUUM up (old transactions, prepared ones, replication slots), end it, and run VACUUM."
	case autovacuum == "off":
		f.Status, f.Found = isWarning, "autovacuum is off"
		f.Means = "The database grows, queries become slow, and in the end Postgres takes no more writes."
		f.Do = "Turn it on."
	}
	return f
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return humanize.Time(t)
}

// How much may wait before it is a warning, as in the alerts (charts/alerts).
const (
	mostOverdue   = 5 * time.Minute
	mostToTreat   = 10_000
	mostLinesLag  = 10 * time.Minute
	fewestToCount = 10 // ERROR tickets
)

func (e *examination) checkBacklog(ctx context.Context) finding {
	return e.onSchema(true, func() finding {
		b, err := e.database.Backlog(ctx)
		if err != nil {
			return cannotSay(err)
		}
		f := well("%d tickets are TO_TREAT, the oldest for %s; %d are ERROR", b.ToTreat, b.Oldest.Round(time.Second), b.Error)
		if b.Overdue <= mostOverdue && b.ToTreat <= mostToTreat {
			return f
		}
		f.Status, f.Found = isWarning, f.Found+fmt.Sprintf("; the first is overdue by %s", b.Overdue.Round(time.Second))
		f.Means = "They are stored, but their products and order lines are missing."
		f.Do = "If no server runs, start one; otherwise its log says why it does not treat them."
		return f.see("MyticketBacklog")
	})
}

func (e *examination) checkErrors(ctx context.Context) finding {
	return e.onSchema(true, func() finding {
		n, many, err := e.database.ErrorsOfDay(ctx)
		if err != nil {
			return cannotSay(err)
		}
		f := well("%d tickets of the last day are ERROR", n)
		if n < fewestToCount || !many {
			return f
		}
		f.Status, f.Found = isWarning, f.Found+", which is more than one in a hundred"
		f.Means = "They are stored byte for byte, but were not understood: their products and order lines are missing."
		f.Do = `"myticket problems" groups them by what is wrong.`
		return f.see("MyticketErrorJump")
	})
}

func (e *examination) checkOrderLines(ctx context.Context) finding {
	if !e.OrderLines {
		return skipped("--no-order-lines")
	}
	return e.onSchema(true, func() finding {
		b, err := e.database.OrderLinesBacklog(ctx)
		if err != nil {
			return cannotSay(err)
		}
		f := well("%d tickets are not in order_lines yet, the oldest for %s", b.Tickets, b.Oldest.Round(time.Second))
		if b.Oldest <= mostLinesLag {
			return f
		}
		f.Status, f.Means = isWarning, "All tickets are stored. Reports that read order_lines lack the newest."
		f.Do = "If no server runs with order lines, start one; otherwise its log says why it does not fill them."
		return f.see("MyticketOrderLinesBehind")
	})
}

func (e *examination) checkDialects(ctx context.Context) finding {
	return e.onSchema(true, func() finding {
		all, foreign, err := e.database.ForeignDialects(ctx)
		switch {
		case err != nil:
			return cannotSay(err)
		case len(foreign) == 0:
			return well("%d sources have a dialect, and this version understands all", all)
		}
		return finding{
			Status: isWarning, Found: "this version does not understand the dialects of " + some(foreign),
			Means: "Servers of this version read tickets of these sources in the dialect before; some may become ERROR.",
			Do:    "Upgrade the servers, or revert the dialects (myticket dialects revert).",
		}.see("MyticketDialectsNotUnderstood")
	})
}

// behindTolerance is how far a subscription may be behind without a word: a target may be away for a moment.
const behindTolerance = 5 * time.Minute

func (e *examination) checkSubscriptions(ctx context.Context) finding {
	return e.onSchema(true, func() finding {
		subs, err := e.database.Subscriptions(ctx)
		if err != nil {
			return cannotSay(err)
		}
		var wrong []string
		for i := range subs {
			s := &subs[i]
			switch {
			case s.Paused != nil:
				wrong = append(wrong, s.Name+" is paused ("+oneLine(errors.New(s.PausedWhy))+")")
			case s.FailingSince != nil && e.now().Sub(*s.FailingSince) > behindTolerance:
				wrong = append(wrong, s.Name+" fails ("+oneLine(errors.New(s.Failure))+")")
			case s.Behind > behindTolerance:
				wrong = append(wrong, fmt.Sprintf("%s is %s behind", s.Name, s.Behind.Round(time.Second)))
			case s.DeadLetters > 0:
				wrong = append(wrong, fmt.Sprintf("%s has %d dead letters", s.Name, s.DeadLetters))
			}
		}
		if len(wrong) == 0 {
			return well("%d subscriptions get their events", len(subs))
		}
		return finding{
			Status: isWarning, Found: some(wrong),
			Means: "Tickets are stored. What is not delivered is kept in the database, takes space there, and keeps retention from dropping it.",
			Do: "Look at it (myticket subscriptions list), see that \"myticket events\" runs and the target answers, and resume what is paused; " +
				"delete a subscription that nobody needs.",
		}
	})
}

// mostNamed is how many of a list are named.
const mostNamed = 10

// some names the first of a list.
func some(list []string) string {
	if more := len(list) - mostNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:mostNamed], ", "), more)
	}
	return strings.Join(list, ", ")
}
