-- A ticket counts its changes, so that an event about it has an id of its own, and whoever gets two of them knows which is newer.
-- The version before works on this schema: a trigger counts its changes, too. Tickets that are stored pay nothing for it.
-- Adding a column with a constant default changes no row and takes no time (https://www.postgresql.org/docs/current/ddl-alter.html).
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE tickets ADD COLUMN version integer NOT NULL DEFAULT 1;
COMMENT ON COLUMN tickets.version IS 'From 1 on; more with each change of what it is: treated, corrected, retried, dismissed, reopened';

CREATE FUNCTION tickets_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    RETURN NEW;
END
$$;

-- A claim names no status, so it is no change.
CREATE TRIGGER tickets_version BEFORE UPDATE OF status ON tickets FOR EACH ROW EXECUTE FUNCTION tickets_version();

COMMIT;
