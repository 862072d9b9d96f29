-- Marks products whose name and price came from an authenticated source. Columns that MyTicket does not know are no longer
-- stored in lines. The previous version works on this schema: it writes products without the new column, and lines with
-- "extra", which are shown as they are.
BEGIN;
SET LOCAL lock_timeout = '2s';

-- A new column with a constant default rewrites no row (https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-NOTES).
ALTER TABLE products ADD COLUMN authenticated boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN products.authenticated IS 'With --authenticated-products: the ticket that gave it the name and price it has came from a source that asks for credentials';
COMMENT ON COLUMN products.last_seen_at IS 'Time of a ticket that names it: the newest, or one at most a minute older, so that hot rows are seldom written. Of an authenticated one, only tickets of authenticated sources count';
COMMENT ON COLUMN tickets.lines IS 'Product lines in order: array of {product, product_id, price}. Columns that MyTicket does not know are in the body alone; rows of an older version have them here, as extra: array of {name, value}';

COMMIT;
