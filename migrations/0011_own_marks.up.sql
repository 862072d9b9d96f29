-- What only this version can do right has marks of its own, which the version before does not take away: it reads neither dialects
-- nor corrections. So it settles a product without such tickets, and steps over their lines. When this version runs again, it looks
-- at those products and tickets again. The version before works on this schema.
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE outbox_readers ADD COLUMN own_xid xid8;
COMMENT ON COLUMN outbox_readers.own_xid IS 'How far this version has read; the version before moves only xid';

ALTER TABLE products ADD COLUMN unsettled_from timestamptz;
COMMENT ON COLUMN products.unsettled_from IS 'Set by a change of name or price, until the server has made sure that no newer ticket says otherwise';
COMMENT ON COLUMN products.unsettled_at IS 'The same for the version before: not used any more';

UPDATE products SET unsettled_from = unsettled_at WHERE unsettled_at IS NOT NULL;
CREATE INDEX products_unsettled_from ON products (unsettled_from) WHERE unsettled_from IS NOT NULL;

CREATE FUNCTION products_unsettled_from() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.unsettled_from := NEW.unsettled_at;
    RETURN NEW;
END
$$;

-- Only statements of the version before name unsettled_at, so no other pays for this.
CREATE TRIGGER products_unsettled_from BEFORE UPDATE OF unsettled_at ON products FOR EACH ROW
    WHEN (NEW.unsettled_at IS NOT NULL AND NEW.unsettled_at IS DISTINCT FROM OLD.unsettled_at)
    EXECUTE FUNCTION products_unsettled_from();

-- The trigger products_unsettled, for the version before schema version 5, sets a column that its statement does not name.
CREATE OR REPLACE FUNCTION products_unsettled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.unsettled_at := NEW.unsettled_since;
    NEW.unsettled_from := NEW.unsettled_since;
    RETURN NEW;
END
$$;

COMMIT;
