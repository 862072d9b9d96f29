-- claims is a fencing token that never decreases: it voids a claim whose lease has expired. attempts starts again at 0 when a
-- person sends a ticket back, so an old claim could look like the newest one. The previous version of the program counts only
-- attempts. This version compares both. So a claim by one version voids an older claim by the other.
-- Adding a column with a constant default changes no row and takes no time (https://www.postgresql.org/docs/current/ddl-alter.html).
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE tickets ADD COLUMN claims integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN tickets.claims IS 'How often it was ever claimed for treatment or sent back to it: the fence against a claim whose lease ran out';
COMMENT ON COLUMN tickets.attempts IS 'How often treatment has claimed it since it was stored or sent back';

COMMIT;
