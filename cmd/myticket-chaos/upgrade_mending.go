package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/lab"
	"myticket/internal/ticket"
)

// foreignSource writes its tickets in words of its own (inForeignWords), which foreignDialect explains. Without it no line of
// them is understood.
const (
	foreignSource  = "shop-1"
	foreignDialect = `
records:
  order: [Commande]
columns:
  product: [libellé]
  product_id: [code]
  price: [prix]
pass_over: ["*** DUPLICATA ***"]
`
)

// inForeignWords is a ticket as foreignSource writes it. One that nobody can read stays as it is.
func inForeignWords(body []byte) []byte {
	body = bytes.Replace(body, []byte("Order: "), []byte("*** DUPLICATA ***\nCommande: "), 1)
	return bytes.Replace(body, []byte("product,product_id,price"), []byte("libellé,code,prix"), 1)
}

// mendable are the tickets of foreignSource that its dialect explains and that are not TREATED.
const mendable = `source = '` + foreignSource + `' AND body NOT LIKE 'hello%' AND status <> 'TREATED'`

// mend does what operators do once both servers run a program, while tickets come. With the new version they look at the
// problems, apply the dialect, and have the tickets read again. With the version before they cannot, and send all tickets back
// that it cannot read: it treats those that carry a dialect, too.
func (u *upgradeTrial) mend(ctx context.Context, program string) error {
	n, err := u.countRows(ctx, `SELECT count(*) FROM tickets WHERE status = 'ERROR' AND `+mendable)
	if err != nil {
		return err
	}
	u.notef("after %s %d tickets of %s needed its dialect", u.phases[len(u.phases)-1].name, n, foreignSource)
	if n == 0 {
		u.failf("no ticket needed a dialect, which proves nothing")
	}
	if program == u.config.before {
		return u.retry(ctx, program)
	}
	if err := errors.Join(u.awaitProblem(ctx), u.applyDialect(ctx)); err != nil {
		return err
	}
	start := time.Now()
	if err := u.run(ctx, program, "tickets", "retry", "--status", "ERROR", "--source", foreignSource, "--yes"); err != nil {
		return err
	}
	what := "the tickets of " + foreignSource + " to be read in its dialect"
	err = lab.Await(ctx, 3*time.Minute, what, func(ctx context.Context) error {
		left, err := u.countRows(ctx, `SELECT count(*) FROM tickets WHERE `+mendable)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d are not", left)
		}
		return err
	})
	u.notef("they were read in its dialect %.0f s after they were sent back", time.Since(start).Seconds())
	return err
}

// groupPatience is how long tickets that the version before stored are without a group. Servers look for them once a minute.
const groupPatience = 3 * time.Minute

// awaitProblem demands that the new version shows the tickets that need the dialect as a group. Those that the version before
// stored have none at first.
func (u *upgradeTrial) awaitProblem(ctx context.Context) error {
	return lab.Await(ctx, groupPatience, "the problem of "+foreignSource, func(ctx context.Context) error {
		printed, err := u.output(ctx, u.program, "problems", "--source", foreignSource, "--output", "json")
		if err != nil {
			return err
		}
		var found struct {
			Groups []struct {
				Group   ticket.Group `json:"group"`
				Example uuid.UUID    `json:"example"`
			} `json:"groups"`
		}
		if err := json.Unmarshal(printed, &found); err != nil {
			return err
		}
		for _, g := range found.Groups {
			n, err := u.countRows(ctx, `SELECT count(*) FROM tickets WHERE id = $1 AND `+mendable, g.Example)
			if err != nil || n > 0 && g.Group != 0 {
				return err
			}
		}
		return fmt.Errorf("no group has a ticket that needs its dialect: %s", printed)
	})
}

// applyDialect applies the dialect of foreignSource if it has none, and returns when tickets are read in it.
func (u *upgradeTrial) applyDialect(ctx context.Context) error {
	n, err := u.countRows(ctx, `SELECT count(*) FROM dialects`)
	if err != nil {
		return err
	}
	if n == 0 {
		file := filepath.Join(u.spool, "dialect.yaml")
		if err := os.WriteFile(file, []byte(foreignDialect), 0o600); err != nil {
			return err
		}
		if err := u.run(ctx, u.program, "dialects", "apply", foreignSource, "--file", file, "--yes"); err != nil {
			return err
		}
	}
	for _, s := range u.servers {
		err := lab.Await(ctx, 30*time.Second, "a server to use the dialect", func(ctx context.Context) error {
			newest, err := s.metrics(ctx, "myticket_dialects_newest_version")
			if err == nil && newest[0] == 0 {
				err = errors.New("it knows none")
			}
			return err
		})
		if err != nil {
			return errors.Join(err, s.why())
		}
	}
	return u.awaitLoad(ctx, time.Now(), http.StatusOK, 100)
}

// compareGroups demands that each ERROR ticket is in the group of its problems, whichever version read it last.
func (u *upgradeTrial) compareGroups(ctx context.Context) error {
	err := lab.Await(ctx, groupPatience, "the tickets of the version before to be grouped", func(ctx context.Context) error {
		n, err := u.countRows(ctx, `SELECT count(*) FROM tickets WHERE status = 'ERROR' AND problem_group IS NULL`)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d are not", n)
		}
		return err
	})
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, u.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT id, problem_group, problems FROM tickets WHERE status = 'ERROR'`)
	if err != nil {
		return fmt.Errorf("read the problems: %w", err)
	}
	var id uuid.UUID
	var group int64
	var problems []ticket.Problem
	wrong, example := 0, uuid.Nil
	if _, err := pgx.ForEachRow(rows, []any{&id, &group, &problems}, func() error {
		if group != int64(ticket.GroupOf(problems)) {
			wrong, example = wrong+1, id
		}
		problems = nil
		return nil
	}); err != nil {
		return fmt.Errorf("read the problems: %w", err)
	}
	if wrong > 0 {
		u.failf("%d ERROR tickets are not in the group of their problems, such as %s", wrong, example)
	}
	return nil
}
