-- Tickets that failed in the same way can be counted from an index, without reading them.
-- The version before works on this schema. It stores NULL, and a server of this version fills that in behind.
-- Adding a column without a default changes no row and takes no time (https://www.postgresql.org/docs/current/ddl-alter.html).
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE tickets ADD COLUMN problem_group bigint;
COMMENT ON COLUMN tickets.problem_group IS 'The same for all tickets that failed in the same way; NULL if it is not ERROR or DISMISSED, or if the version before stored it';

-- An index of a partitioned table cannot be made concurrently, and would stop all tickets while they are read. So the table gets
-- it without the partitions that it has. A server makes theirs, one by one, while tickets come in
-- (https://www.postgresql.org/docs/current/ddl-partitioning.html#DDL-PARTITIONING-DECLARATIVE-MAINTENANCE). A table without tickets
-- gets it as a whole.
--
-- That the group is not 0 is always true. Only statements that say so use the index, so no other one takes it instead of
-- tickets_error, which has the order of time.
DO $$
BEGIN
    IF EXISTS (SELECT FROM tickets) THEN
        CREATE INDEX tickets_problem_group ON ONLY tickets (problem_group, source, received_at)
            WHERE status = 'ERROR' AND (problem_group IS NULL OR problem_group <> 0);
    ELSE
        CREATE INDEX tickets_problem_group ON tickets (problem_group, source, received_at)
            WHERE status = 'ERROR' AND (problem_group IS NULL OR problem_group <> 0);
    END IF;
END
$$;

COMMIT;
