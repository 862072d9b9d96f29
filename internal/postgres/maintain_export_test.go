package postgres

import (
	"context"
	"time"
)

// Job does a job of maintenance once, in at most this time.
func (m *Maintainer) Job(ctx context.Context, name string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for _, j := range m.jobs() {
		if j.name == name {
			_, err := j.do(ctx)
			return err
		}
	}
	panic("no job " + name)
}

// Age makes the last count older.
func (m *Maintainer) Age(by time.Duration) {
	have := *m.backlog.Load()
	have.at = have.at.Add(-by)
	m.backlog.Store(&have)
}
