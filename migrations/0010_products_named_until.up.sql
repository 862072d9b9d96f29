-- What a ticket said about products can be taken back, when a person corrects it. This is a migration apart from the one before:
-- with both locks in one transaction, a report that reads products and tickets would deadlock with it.
-- The version before works on this schema. It may leave such a product as it is until the next ticket names it.
BEGIN;
SET LOCAL lock_timeout = '2s';

ALTER TABLE products ADD COLUMN named_until timestamptz;
COMMENT ON COLUMN products.named_until IS 'Set while name and price may be those of a text that was corrected: tickets that were received before this time and at first_seen_at or later say what is right';

COMMIT;
