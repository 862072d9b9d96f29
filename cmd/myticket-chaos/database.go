package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// exec runs SQL on the database of the trial.
func (t *trial) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, t.url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// countRows returns the number that a query answers.
func (t *trial) countRows(ctx context.Context, sql string, args ...any) (n int, err error) {
	conn, err := pgx.Connect(ctx, t.url)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, sql, args...).Scan(&n)
	return n, err
}
