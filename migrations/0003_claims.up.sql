-- The fence against a claim whose lease ran out gets a number that never goes back. attempts begins anew when a person
-- sends a ticket back, so an old claim could pass for the newest one. The version of the program before counts attempts
-- alone, and the one after compares both: a claim by either makes an older one of the other void.
-- A constant default changes no row and takes no time (https://www.postgresql.org/docs/current/ddl-alter.html).
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE tickets ADD COLUMN claims integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN tickets.claims IS 'How often it was ever claimed for treatment or sent back to it: the fence against a claim whose lease ran out';
COMMENT ON COLUMN tickets.attempts IS 'How often treatment has claimed it since it was stored or sent back';

COMMIT;
