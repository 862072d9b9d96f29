-- Products have a mark of this version's own. This is a migration apart from the one before, which locks the view order_lines: with
-- both locks in one transaction, a report that reads products and order_lines would deadlock with it.
--
-- The version before settles a product by the lines in tickets, so it would overlook tickets of this version. Its mark therefore
-- does not count any more: this version has a mark of its own, which only it takes away.
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE products ADD COLUMN unsettled_at timestamptz;

COMMENT ON COLUMN products.unsettled_at IS 'Set by a change of name or price, until the server has made sure that no newer ticket says otherwise';
COMMENT ON COLUMN products.unsettled_since IS 'The same for the version before: not used any more';

UPDATE products SET unsettled_at = unsettled_since WHERE unsettled_since IS NOT NULL;
CREATE INDEX products_unsettled_at ON products (unsettled_at) WHERE unsettled_at IS NOT NULL;

CREATE FUNCTION products_unsettled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.unsettled_at := NEW.unsettled_since;
    RETURN NEW;
END
$$;

-- Only statements of the version before name unsettled_since, so no other pays for this.
CREATE TRIGGER products_unsettled BEFORE UPDATE OF unsettled_since ON products FOR EACH ROW
    WHEN (NEW.unsettled_since IS NOT NULL AND NEW.unsettled_since IS DISTINCT FROM OLD.unsettled_since)
    EXECUTE FUNCTION products_unsettled();

COMMIT;
