-- The outbox also tells of tickets that a person changed, and of products that were looked at again. The version before works on
-- this schema: it takes these rows for stored tickets, and fills the same lines again. What it changes is not told.
-- A constraint that is NOT VALID holds for new rows, and reads none of the others while everything waits
-- (https://www.postgresql.org/docs/current/sql-altertable.html).
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE outbox DROP CONSTRAINT outbox_kind_check;
ALTER TABLE outbox ADD CONSTRAINT outbox_kind_check
    CHECK (kind IN ('stored', 'treated', 'moved', 'changed', 'products')) NOT VALID;
COMMENT ON COLUMN outbox.kind IS 'stored: with the status it has; treated: later, from TO_TREAT; moved: it was set aside with a full default partition, and is in tickets again; changed: by a person; products: nothing of it changed, but it says now what a product is';

COMMIT;
