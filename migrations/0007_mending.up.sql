-- How people mend what could not be read: dialects, corrections, and who did what.
-- The version before works on this schema. It reads every ticket without a dialect, and stores 0 for it.
-- Adding a column with a constant default changes no row and takes no time (https://www.postgresql.org/docs/current/ddl-alter.html).
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE tickets ADD COLUMN dialect integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN tickets.dialect IS 'The version (dialects.version) that it was read with; 0 for the dialect of everyone';

-- Rows are only added. That of a source with the highest version counts.
CREATE TABLE dialects (
    version    integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source     text        NOT NULL COLLATE "C" CHECK (source = '*' OR source ~ '^[a-z0-9-]{1,63}$'),
    dialect    jsonb       CHECK (length(dialect::text) <= 65536),
    previous   integer     REFERENCES dialects,
    created_at timestamptz NOT NULL DEFAULT now(),
    who        text        NOT NULL COLLATE "C",
    why        text        NOT NULL
);
CREATE INDEX dialects_source ON dialects (source, version);

COMMENT ON TABLE  dialects IS 'How sources write their tickets, every version of it';
COMMENT ON COLUMN dialects.source IS 'The source; * for all that have no dialect of their own';
COMMENT ON COLUMN dialects.dialect IS 'The dialect (docs/dialect.schema.json); NULL if this version takes it away';
COMMENT ON COLUMN dialects.previous IS 'The version that counted before';

-- What people made of the text of a ticket. The body stays as it came. That of a ticket with the highest number counts.
CREATE TABLE corrections (
    ticket_id          uuid        NOT NULL,
    ticket_received_at timestamptz NOT NULL,
    number             integer     NOT NULL,
    text               bytea,
    created_at         timestamptz NOT NULL DEFAULT now(),
    who                text        NOT NULL COLLATE "C",
    why                text        NOT NULL,
    PRIMARY KEY (ticket_received_at, ticket_id, number)
);

COMMENT ON TABLE  corrections IS 'Texts that people put in the place of a ticket''s body, which stays as it came';
COMMENT ON COLUMN corrections.number IS 'From 1 on, for each ticket';
COMMENT ON COLUMN corrections.text IS 'What is read instead of the body; NULL if the body is read again';

CREATE TABLE audit (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    who     text        NOT NULL COLLATE "C",
    action  text        NOT NULL COLLATE "C",
    filter  jsonb       NOT NULL DEFAULT '{}',
    tickets bigint      NOT NULL DEFAULT 0,
    why     text        NOT NULL DEFAULT '',
    details jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_at ON audit (at);
-- The rows of one bulk change, which are shown as one.
CREATE INDEX audit_run ON audit ((details ->> 'run')) WHERE details ? 'run';

COMMENT ON TABLE  audit IS 'Every change that a person made, once it was made; a change of many tickets has a row for each of its batches';
COMMENT ON COLUMN audit.filter IS 'Which tickets the person selected';
COMMENT ON COLUMN audit.tickets IS 'How many tickets this changed';
COMMENT ON COLUMN audit.details IS 'What else there is to know. The later rows of a bulk change have the id of its first one as run';

CREATE FUNCTION rows_are_only_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are only added, never changed or deleted', TG_TABLE_NAME
        USING HINT = 'Say what is right now in a new row: myticket dialects apply, or revert.';
END
$$;
CREATE TRIGGER only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON dialects EXECUTE FUNCTION rows_are_only_added();
CREATE TRIGGER only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON audit EXECUTE FUNCTION rows_are_only_added();

COMMIT;
