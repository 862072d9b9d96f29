-- The body is the one copy of a ticket's lines: tickets are stored without them. The lines are read behind from the bodies, for
-- SQL, into ticket_lines. The outbox says which tickets were stored, in the order of the transactions.
--
-- The version before works on this schema. It stores lines in tickets, and the view shows both. It stores no row in the outbox,
-- so nothing reads its tickets behind, and nothing needs to.
BEGIN;
SET LOCAL lock_timeout = '2s';

-- One row for each batch of tickets, made in the batch's transaction. A reader goes up to pg_snapshot_xmin: every transaction
-- below it has ended, so no row can appear there any more
-- (https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT). Ids or times of tickets would not do,
-- because a ticket that was spooled is stored long after later ones. Old rows go with their partition.
CREATE TABLE outbox (
    xid     xid8        NOT NULL DEFAULT pg_current_xact_id(),
    at      timestamptz NOT NULL DEFAULT now(),
    kind    text        NOT NULL COLLATE "C" CHECK (kind IN ('stored', 'treated', 'moved')),
    tickets bytea       NOT NULL
) PARTITION BY RANGE (at);

COMMENT ON TABLE  outbox IS 'Which tickets were stored or treated, one row for a batch, in the order of the transactions';
COMMENT ON COLUMN outbox.xid IS 'The transaction; complete below pg_snapshot_xmin(pg_current_snapshot())';
COMMENT ON COLUMN outbox.kind IS 'stored: with the status it has; treated: later, from TO_TREAT; moved: it was set aside with a full default partition, and is in tickets again';
COMMENT ON COLUMN outbox.tickets IS 'Their ids, 16 bytes each';

-- Ids do not compress.
ALTER TABLE outbox ALTER COLUMN tickets SET STORAGE EXTERNAL;
CREATE INDEX outbox_xid ON outbox (xid);

-- Takes rows that have no partition of their own, so that a missing partition stops no ticket.
CREATE TABLE outbox_default PARTITION OF outbox DEFAULT;

-- How far each reader of the outbox has come, and which process reads for it. A process takes the place for some seconds with
-- each step, so another one follows soon after it was killed, and no session has to hold a lock.
CREATE TABLE outbox_readers (
    name              text        NOT NULL COLLATE "C" PRIMARY KEY,
    system_identifier bigint      NOT NULL,
    xid               xid8        NOT NULL,
    at                timestamptz NOT NULL,
    holder            uuid,
    held_until        timestamptz NOT NULL DEFAULT '-infinity'
);

COMMENT ON TABLE  outbox_readers IS 'How far each reader of the outbox has come';
COMMENT ON COLUMN outbox_readers.system_identifier IS 'The database cluster that xid belongs to (pg_control_system): after a dump and a restore, transactions count from anew';
COMMENT ON COLUMN outbox_readers.xid IS 'All rows up to this transaction were read';
COMMENT ON COLUMN outbox_readers.at IS 'The time of the newest row that was read';
COMMENT ON COLUMN outbox_readers.holder IS 'The process that reads; another one only after held_until';

-- One row a ticket: a row a line would cost more than the ticket itself.
CREATE TABLE ticket_lines (
    received_at  timestamptz NOT NULL,
    ticket_id    uuid        NOT NULL,
    source       text        NOT NULL COLLATE "C",
    order_number text        COLLATE "C",
    lines        text        NOT NULL,
    PRIMARY KEY (received_at, ticket_id)
) PARTITION BY RANGE (received_at);

COMMENT ON TABLE  ticket_lines IS 'The lines of treated tickets, read from their bodies a moment after they were stored. Query the view order_lines';
COMMENT ON COLUMN ticket_lines.lines IS 'One line each, separated by LF: product_id, price, product, separated by tabs. In them \t is a tab, \n an LF, \s a backslash';

DO $$
BEGIN
    ALTER TABLE ticket_lines ALTER COLUMN lines SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    RAISE NOTICE 'this server has no lz4: lines are compressed by pglz';
END
$$;

-- \s comes last: after it, a backslash is only itself.
CREATE FUNCTION order_line_text(escaped text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN strpos(escaped, '\') = 0 THEN escaped
                ELSE replace(replace(replace(escaped, '\t', E'\t'), '\n', E'\n'), '\s', '\') END
$$;

-- Unlike the tables of a view, its functions are used with the rights of whoever reads it.
GRANT EXECUTE ON FUNCTION order_line_text(text) TO PUBLIC;

CREATE OR REPLACE VIEW order_lines AS
SELECT t.ticket_id,
       t.received_at,
       t.source,
       t.order_number,
       l.line,
       order_line_text(split_part(l.value, E'\t', 1)) AS product_id,
       order_line_text(split_part(l.value, E'\t', 3)) AS product,
       split_part(l.value, E'\t', 2)::numeric         AS price
FROM ticket_lines t
CROSS JOIN LATERAL string_to_table(t.lines, E'\n') WITH ORDINALITY AS l (value, line)
UNION ALL
SELECT t.id,
       t.received_at,
       t.source,
       t.order_number,
       l.line,
       l.value ->> 'product_id',
       l.value ->> 'product',
       (l.value ->> 'price')::numeric
FROM tickets t
CROSS JOIN LATERAL jsonb_array_elements(t.lines) WITH ORDINALITY AS l (value, line)
WHERE t.status = 'TREATED';

COMMENT ON VIEW order_lines IS 'The lines of treated tickets: of those that this version stored from ticket_lines, a moment later; of those that an older version stored from tickets';
COMMENT ON COLUMN tickets.lines IS 'NULL: the body has them. Rows of an older version have an array of {product, product_id, price, extra?} here';

COMMIT;
