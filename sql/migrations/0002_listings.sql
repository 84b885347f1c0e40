-- Which coins the sources list, and the values that became null because they cannot be.

-- The coins that an upstream lists. Each crawl writes every row that it lists, so the row is narrow, and its
-- changes touch no index as long as the coin stays on its page.
CREATE TABLE listings (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    listed_at timestamptz NOT NULL,
    listed_from timestamptz NOT NULL,
    missing_since timestamptz,
    page integer NOT NULL,
    rejected_runs integer NOT NULL,
    reject_reason text,
    PRIMARY KEY (source, source_id)
) WITH (fillfactor = 50);

COMMENT ON COLUMN listings.listed_at IS 'When the source last listed the coin';
COMMENT ON COLUMN listings.listed_from IS 'Since when no usual list of the source has lacked the coin';
COMMENT ON COLUMN listings.missing_since IS
'The first run that read the whole list and did not find the coin. Null: the newest whole list has it';
COMMENT ON COLUMN listings.page IS 'The page of the list that had the coin; 1 for a list without pages';
COMMENT ON COLUMN listings.rejected_runs IS 'How many crawls in a row have rejected the record of the coin';

-- An unchanged page confirms the coins that it had, without naming them.
CREATE INDEX listings_by_page ON listings (source, page);
CREATE INDEX listings_missing ON listings (source) WHERE missing_since IS NOT NULL;
CREATE INDEX listings_rejected ON listings (source) WHERE rejected_runs >= 3;

-- Coins that were stored before were listed when their values were received, if not later.
INSERT INTO listings (source, source_id, listed_at, listed_from, page, rejected_runs)
SELECT
    source,
    source_id,
    coalesce(fetched_at, updated_at),
    coalesce(fetched_at, updated_at),
    0,
    0
FROM unified_data
WHERE source IN (SELECT source FROM pages);

-- The whole lists that a missing coin is judged by.
CREATE TABLE usual_lists (
    source text COLLATE "C" PRIMARY KEY,
    began_at timestamptz[] NOT NULL
);

COMMENT ON COLUMN usual_lists.began_at IS
'When the crawls of the newest whole lists began, newest first, without those that lacked usual coins';

-- It is part of the order by rank, so that a delisted row comes after the rows that are live. It changes with
-- the data version; listed_at does not.
ALTER TABLE unified_data ADD COLUMN listing_state smallint NOT NULL DEFAULT 2;
ALTER TABLE unified_data_versions ADD COLUMN listing_state smallint NOT NULL DEFAULT 2;

COMMENT ON COLUMN unified_data.listing_state IS
'0: listed by its source; 1: the source''s newest whole list lacks the coin; 2: the source has no list';

UPDATE unified_data SET listing_state = 0 WHERE source IN (SELECT source FROM pages);
UPDATE unified_data_versions SET listing_state = 0 WHERE source IN (SELECT source FROM pages);

DROP INDEX unified_data_by_rank;
CREATE INDEX unified_data_by_rank ON unified_data (rank, listing_state, source, source_id);
DROP INDEX unified_data_by_symbol_and_rank;
CREATE INDEX unified_data_by_symbol_and_rank
ON unified_data (lower(symbol), rank, listing_state, source, source_id) INCLUDE (symbol);

-- Versions before this one took any short page for the end of a list. The next crawl finds the end again.
UPDATE pages SET is_last = false;

-- Values of accepted records that their field cannot have: counted, with the first of each batch.
CREATE TABLE invalid_values (
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    location text NOT NULL,
    field text NOT NULL,
    reason text NOT NULL,
    records bigint NOT NULL,
    samples json NOT NULL,
    PRIMARY KEY (run_id, source, location, field, reason)
);

COMMENT ON TABLE invalid_values IS 'Values of accepted records that became null';

ANALYZE unified_data;
