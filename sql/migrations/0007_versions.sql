-- What a walk by cursor and an exact total need to know of a commit: which version of the data each row's
-- values came with, what they were before, and how many rows there are more.

ALTER TABLE unified_data ADD COLUMN version bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN unified_data.version IS 'The data version (instance) that the values came with';

-- A row as it was from `version` until before `replaced`: with the rows of unified_data whose version is not
-- later, this is the table as it was at any version since instance.walks_from. Rows are appended in the order
-- of `replaced` and forgotten after an hour, so that its one index costs the loader little.
CREATE TABLE unified_past (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    asset text COLLATE "C",
    symbol text COLLATE "C",
    name text COLLATE "C",
    rank integer,
    price_usd numeric,
    market_cap_usd numeric,
    volume_24h_usd numeric,
    circulating_supply numeric,
    total_supply numeric,
    max_supply numeric,
    percent_change_1h numeric,
    percent_change_24h numeric,
    percent_change_7d numeric,
    observed_at timestamptz NOT NULL,
    first_seen_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    version bigint NOT NULL,
    replaced bigint NOT NULL,
    replaced_at timestamptz NOT NULL
);

COMMENT ON TABLE unified_past IS 'What rows of unified_data said before, for walks by cursor that began then';

CREATE INDEX unified_past_by_replaced ON unified_past (replaced);

-- Without a key, rows could not be deleted where all tables are published to logical replicas.
ALTER TABLE unified_past REPLICA IDENTITY FULL;

-- The earliest version that a walk may have begun at.
ALTER TABLE instance ADD COLUMN walks_from bigint NOT NULL DEFAULT 0;

-- How many versions were batches that counted their rows; whoever moves the version by hand has not.
ALTER TABLE instance ADD COLUMN batches bigint NOT NULL DEFAULT 0;

-- How many rows the batches of a source have put into unified_data: no count of the table, but exactly what a
-- count has to grow by from one version to another.
CREATE TABLE inserted_rows (
    source text COLLATE "C" PRIMARY KEY,
    rows bigint NOT NULL
);
