-- How many items of a payload's list belong to what the run fetched, where a setting bounds the list within a
-- page; null for all of them. A replay reads the same items.
ALTER TABLE payloads ADD COLUMN items_limit integer;
