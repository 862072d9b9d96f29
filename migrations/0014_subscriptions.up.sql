-- Who gets events, and what could not be delivered. How far a subscription has come is in outbox_readers, under the name
-- subscription/NAME, so the outbox keeps what it has not read. The version before works on this schema, and keeps that, too.
BEGIN;
SET LOCAL lock_timeout = '2s';

CREATE TABLE subscriptions (
    name          text        NOT NULL COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    target        text        NOT NULL CHECK (length(target) <= 2048),
    settings      jsonb       NOT NULL DEFAULT '{}' CHECK (length(settings::text) <= 131072),
    filter        jsonb       NOT NULL DEFAULT '{}' CHECK (length(filter::text) <= 131072),
    body          boolean     NOT NULL DEFAULT false,
    declared      boolean     NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    paused_at     timestamptz,
    paused_why    text        NOT NULL DEFAULT '',
    delivered     bigint      NOT NULL DEFAULT 0,
    delivered_at  timestamptz,
    failing_since timestamptz,
    failure       text        NOT NULL DEFAULT '',
    replay_from   timestamptz,
    replay_until  timestamptz,
    replay_after  uuid,
    CHECK ((replay_from IS NULL) = (replay_until IS NULL))
);

COMMENT ON TABLE  subscriptions IS 'Who gets events about tickets and products (docs/events.md). No secret is in it';
COMMENT ON COLUMN subscriptions.target IS 'The URL of the target, without credentials';
COMMENT ON COLUMN subscriptions.settings IS 'How to speak to the target; secrets by reference, as file:PATH or env:NAME';
COMMENT ON COLUMN subscriptions.filter IS 'Which events: {types, sources, statuses}, each an array; what is missing selects all';
COMMENT ON COLUMN subscriptions.body IS 'Events about tickets have the body';
COMMENT ON COLUMN subscriptions.declared IS 'It is from a file (--subscriptions-file), which may change it; a person made the others';
COMMENT ON COLUMN subscriptions.paused_at IS 'Since when nothing is delivered; NULL if it is';
COMMENT ON COLUMN subscriptions.delivered IS 'Events that the target has, about: it is written a moment later';
COMMENT ON COLUMN subscriptions.failing_since IS 'Since when the target does not take events; NULL if it does';
COMMENT ON COLUMN subscriptions.failure IS 'Why not';
COMMENT ON COLUMN subscriptions.replay_from IS 'A replay is under way: tickets that were received from this time on, and before replay_until, are delivered again';
COMMENT ON COLUMN subscriptions.replay_after IS 'How far the replay has come; NULL at its beginning';

CREATE TABLE dead_letters (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription text        NOT NULL COLLATE "C" REFERENCES subscriptions ON DELETE CASCADE,
    event        text        NOT NULL COLLATE "C",
    type         text        NOT NULL COLLATE "C",
    ticket_id    uuid        NOT NULL,
    product_id   text        COLLATE "C",
    at           timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL,
    reason       text        NOT NULL CHECK (length(reason) <= 1000)
);
CREATE UNIQUE INDEX dead_letters_event ON dead_letters (subscription, event);

COMMENT ON TABLE  dead_letters IS 'Events that a target refused. The tickets themselves are stored';
COMMENT ON COLUMN dead_letters.event IS 'The id of the event';
COMMENT ON COLUMN dead_letters.ticket_id IS 'What the event is about: the ticket, or that which says what the product is';

COMMIT;
