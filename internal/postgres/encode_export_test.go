package postgres

import "context"

// StoreNothing runs the statements of a batch with arrays that have no element.
func (s *Store) StoreNothing(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := s.upsert(ctx, conn.Conn(), nil); err != nil {
		return err
	}
	insert, err := conn.Conn().Prepare(ctx, insertTickets, insertTickets)
	if err != nil {
		return err
	}
	p := ticketParams(nil)
	return conn.Conn().PgConn().ExecPrepared(ctx, insert.Name, [][]byte{
		p.id, p.receivedAt, p.source, p.body, p.contentType, p.traceparent, p.status, p.problems, p.orderNumber,
		p.vat, p.total, p.extra, int2(1), int2(0), nil,
	}, insertFormats, nil).Read().Err
}
