-- The tables of MyTicket. Forward-only: there is no down file, because a rollback of the program runs on this schema too.
-- Text that is compared or indexed is COLLATE "C": byte order is cheap, and an update of the system's collations
-- (https://www.postgresql.org/docs/current/collation.html) cannot corrupt these indexes.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- Every ticket, once. In the normal case rows are only inserted: an UPDATE happens only when a ticket is treated
-- later or corrected. The table is partitioned by time, so that retention drops tables and never deletes rows. The time is the
-- one inside the UUIDv7, so the id alone determines the partition, and the primary key also serves reads by time.
CREATE TABLE tickets (
    id              uuid        NOT NULL,
    received_at     timestamptz NOT NULL,
    source          text        NOT NULL COLLATE "C",
    body            bytea       NOT NULL,
    content_type    text        NOT NULL DEFAULT '',
    traceparent     text,
    status          text        NOT NULL COLLATE "C" CHECK (status IN ('TO_TREAT', 'TREATED', 'ERROR', 'DISMISSED')),
    problems        jsonb,
    order_number    text        COLLATE "C",
    vat             numeric,
    total           numeric,
    extra           jsonb,
    lines           jsonb,
    parser_version  smallint    NOT NULL DEFAULT 0,
    attempts        smallint    NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    PRIMARY KEY (received_at, id)
) PARTITION BY RANGE (received_at);

COMMENT ON TABLE  tickets IS 'Every ticket that was posted, byte for byte, and what was read from it';
COMMENT ON COLUMN tickets.id IS 'UUIDv7; its time is received_at';
COMMENT ON COLUMN tickets.body IS 'Exactly the bytes that were sent';
COMMENT ON COLUMN tickets.problems IS 'Why status is ERROR or DISMISSED: array of {line, code, message}';
COMMENT ON COLUMN tickets.extra IS 'Header records that MyTicket does not know: array of {name, value}';
COMMENT ON COLUMN tickets.lines IS 'Product lines in order: array of {product, product_id, price, extra?}';
COMMENT ON COLUMN tickets.parser_version IS 'The version of the parser that read it; 0 when it was not read yet';
COMMENT ON COLUMN tickets.attempts IS 'How often treatment has claimed it; also the fence against a claim whose lease ran out';
COMMENT ON COLUMN tickets.next_attempt_at IS 'While TO_TREAT: when it may be claimed (again)';

-- Values that are long enough for compression use lz4, which takes a fraction of the time of pglz. A Postgres that was built
-- without lz4 keeps pglz.
DO $$
BEGIN
    ALTER TABLE tickets ALTER COLUMN body SET COMPRESSION lz4, ALTER COLUMN lines SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    RAISE NOTICE 'this server has no lz4: tickets are compressed by pglz';
END
$$;

-- Each index makes every insert slower. These two hold only rows that wait for treatment or for a person.
CREATE INDEX tickets_to_treat ON tickets (next_attempt_at) WHERE status = 'TO_TREAT';
CREATE INDEX tickets_error ON tickets (received_at, id) WHERE status = 'ERROR';
-- A customer on the phone has an order number to search for. docs/benchmarks.md says what this index costs.
CREATE INDEX tickets_order_number ON tickets (order_number) WHERE order_number IS NOT NULL;

-- Takes rows that have no partition of their own, so that a missing partition loses nothing. The server moves the rows later.
CREATE TABLE tickets_default PARTITION OF tickets DEFAULT;

-- The product base: for each product, what the newest ticket with this product says.
CREATE TABLE products (
    product_id      text        NOT NULL COLLATE "C" PRIMARY KEY,
    name            text        NOT NULL,
    price           numeric     NOT NULL,
    first_seen_at   timestamptz NOT NULL,
    last_seen_at    timestamptz NOT NULL,
    changed_at      timestamptz NOT NULL,
    ticket_id       uuid        NOT NULL,
    unsettled_since timestamptz
) WITH (fillfactor = 80);

COMMENT ON TABLE  products IS 'What the newest ticket that names a product says about it';
COMMENT ON COLUMN products.first_seen_at IS 'Time of the oldest ticket that names it';
COMMENT ON COLUMN products.last_seen_at IS 'Time of a ticket that names it: the newest, or one at most a minute older, so that hot rows are seldom written';
COMMENT ON COLUMN products.changed_at IS 'Time of the ticket that gave it the name and price it has';
COMMENT ON COLUMN products.ticket_id IS 'The ticket that gave it the name and price it has';
COMMENT ON COLUMN products.unsettled_since IS 'Set by a change of name or price, until the server has made sure that no newer ticket says otherwise';

CREATE INDEX products_unsettled ON products (unsettled_since) WHERE unsettled_since IS NOT NULL;

-- Idempotency keys. A unique index on tickets would have to include the partition key, so the keys have their own table and their
-- own time to live.
CREATE TABLE deliveries (
    source             text        NOT NULL COLLATE "C",
    key                text        NOT NULL COLLATE "C",
    body_sha256        bytea       NOT NULL,
    ticket_id          uuid        NOT NULL,
    ticket_received_at timestamptz NOT NULL,
    expires_at         timestamptz NOT NULL,
    PRIMARY KEY (source, key)
);

COMMENT ON TABLE deliveries IS 'Idempotency keys, and the ticket that was stored for each';

CREATE INDEX deliveries_expires_at ON deliveries (expires_at);

-- The lines of all treated tickets, for SQL and for Grafana.
CREATE VIEW order_lines AS
SELECT t.id AS ticket_id,
       t.received_at,
       t.source,
       t.order_number,
       l.line,
       l.value ->> 'product_id'         AS product_id,
       l.value ->> 'product'            AS product,
       (l.value ->> 'price')::numeric   AS price
FROM tickets t
CROSS JOIN LATERAL jsonb_array_elements(t.lines) WITH ORDINALITY AS l (value, line)
WHERE t.status = 'TREATED';

COMMIT;
