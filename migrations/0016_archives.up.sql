-- What was archived, and how far that has come: a row for each part, which is a partition of tickets that was detached. Nothing is
-- dropped before the archive has its manifest. The version before works on this schema. Its retention does not see that a detached
-- table is no partition any more, and drops none of them; it may delete their corrections, so run none of that version meanwhile.
BEGIN;
SET LOCAL lock_timeout = '2s';

CREATE TABLE archives (
    part        text        NOT NULL COLLATE "C" PRIMARY KEY CHECK (part ~ '^[0-9A-Za-z-]{1,100}$'),
    state       text        NOT NULL COLLATE "C" CHECK (state IN ('detached', 'verified', 'archived', 'restored')),
    table_name  text        NOT NULL COLLATE "C",
    from_at     timestamptz,
    to_at       timestamptz NOT NULL,
    tickets     bigint      NOT NULL DEFAULT 0,
    corrections bigint      NOT NULL DEFAULT 0,
    first_at    timestamptz,
    last_at     timestamptz,
    table_bytes bigint      NOT NULL DEFAULT 0,
    files       integer     NOT NULL DEFAULT 0,
    file_bytes  bigint      NOT NULL DEFAULT 0,
    sha256      bytea,
    manifest    text        NOT NULL DEFAULT '',
    manifest_sha256 bytea,
    url         text        NOT NULL DEFAULT '',
    runs        uuid[]      NOT NULL DEFAULT '{}',
    detached_at timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz,
    archived_at timestamptz,
    restored_at timestamptz,
    failed_at   timestamptz,
    failure     text        NOT NULL DEFAULT '' CHECK (length(failure) <= 1000)
);
CREATE INDEX archives_to_at ON archives (to_at);

COMMENT ON TABLE  archives IS 'Partitions of tickets that were detached to be archived (docs/archive.md), with those that are in the archive';
COMMENT ON COLUMN archives.state IS 'detached: the table has the tickets; verified: the table and the archive have them; archived: the archive has them; restored: the archive has them, and tickets has them again';
COMMENT ON COLUMN archives.table_name IS 'The detached table, or the partition that was restored; gone if it is archived';
COMMENT ON COLUMN archives.from_at IS 'NULL if the partition had no lower bound';
COMMENT ON COLUMN archives.first_at IS 'When its first ticket was received';
COMMENT ON COLUMN archives.sha256 IS 'Over the ids and bodies of its tickets, in the order of the files';
COMMENT ON COLUMN archives.manifest IS 'Where its manifest is in the archive';
COMMENT ON COLUMN archives.url IS 'The archive, without credentials';
COMMENT ON COLUMN archives.runs IS 'Its attempts, each noted before it writes anything; they are in the names of the files and in the manifest';

-- One row: how `myticket archive run --apply` was run last, for the metrics, and which process does so now.
CREATE TABLE archive_runs (
    only_row     boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (only_row),
    url          text        NOT NULL DEFAULT '',
    keep         interval    NOT NULL DEFAULT '0',
    began_at     timestamptz,
    succeeded_at timestamptz,
    failures     bigint      NOT NULL DEFAULT 0,
    failure      text        NOT NULL DEFAULT '' CHECK (length(failure) <= 1000),
    holder       uuid,
    held_until   timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO archive_runs DEFAULT VALUES;

COMMENT ON TABLE  archive_runs IS 'One row: the last run of the archive. began_at is NULL if there was none';
COMMENT ON COLUMN archive_runs.holder IS 'The process that archives; another one only after held_until';

COMMIT;
