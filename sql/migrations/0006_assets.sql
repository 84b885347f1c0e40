-- Which rows are the same coin, and the consensus of their prices.

CREATE TABLE assets (
    asset text COLLATE "C" PRIMARY KEY,
    symbol text COLLATE "C",
    name text COLLATE "C",
    created_at timestamptz NOT NULL
);

COMMENT ON TABLE assets IS 'Coins across sources; an id is never changed, given again or deleted';

-- Which asset a source's id means, and when. An id has at most one current link.
CREATE TABLE asset_links (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    valid_from timestamptz NOT NULL DEFAULT '-infinity',
    valid_until timestamptz NOT NULL DEFAULT 'infinity',
    asset text COLLATE "C" NOT NULL,
    method text NOT NULL,
    score double precision NOT NULL,
    evidence json NOT NULL,
    symbol text COLLATE "C",
    name text COLLATE "C",
    linked_at timestamptz NOT NULL,
    PRIMARY KEY (source, source_id, valid_from),
    CHECK (valid_from < valid_until)
);

COMMENT ON TABLE asset_links IS 'Which asset a (source, source_id) means, on what evidence, and when';
COMMENT ON COLUMN asset_links.valid_until IS
'The link holds for observed_at before this; infinity: it is the current link of the id';
COMMENT ON COLUMN asset_links.symbol IS
'The symbol that the link was confirmed for; a row with another one is not counted until it is confirmed';
COMMENT ON COLUMN asset_links.name IS 'The same for the name';

CREATE INDEX asset_links_by_asset ON asset_links (asset);
CREATE UNIQUE INDEX asset_links_current ON asset_links (source, source_id) WHERE valid_until = 'infinity';

-- What the resolver could not decide: rows without a link, and links that a new symbol or name
-- contradicts.
CREATE TABLE asset_candidates (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    kind text NOT NULL CHECK (kind IN ('candidate', 'conflict')),
    asset text COLLATE "C",
    score double precision NOT NULL,
    reason text NOT NULL,
    evidence json NOT NULL,
    symbol text COLLATE "C",
    name text COLLATE "C",
    found_at timestamptz NOT NULL
);

COMMENT ON TABLE asset_candidates IS 'Possible links below the bar, and links that became uncertain';
COMMENT ON COLUMN asset_candidates.asset IS 'The asset that it may be; null: another row without a link';
COMMENT ON COLUMN asset_candidates.symbol IS 'The symbol that the resolver judged';

CREATE INDEX asset_candidates_by_id ON asset_candidates (source, source_id);

-- The consensus of each asset, in the shape of unified_data: lists of both are read by the same statements.
CREATE TABLE unified_assets (
    asset text COLLATE "C" PRIMARY KEY,
    symbol text COLLATE "C",
    name text COLLATE "C",
    rank integer,
    price_usd numeric,
    price_spread_percent numeric,
    source_count integer NOT NULL,
    diverging boolean NOT NULL,
    market_cap_usd numeric,
    volume_24h_usd numeric,
    circulating_supply numeric,
    total_supply numeric,
    max_supply numeric,
    percent_change_1h numeric,
    percent_change_24h numeric,
    percent_change_7d numeric,
    observed_at timestamptz,
    oldest_observed_at timestamptz,
    fresh_spread_percent numeric,
    excluded json,
    listing_state smallint NOT NULL,
    version bigint NOT NULL
) WITH (fillfactor = 80);

COMMENT ON TABLE unified_assets IS 'The consensus of the fresh quotes of every asset';
COMMENT ON COLUMN unified_assets.fresh_spread_percent IS
'The spread of all fresh quotes, also of outlying ones: what `diverging` is decided by';
COMMENT ON COLUMN unified_assets.excluded IS
'Why quotes do not count: [{"source", "source_id", "reason"}, …]; null if all of them count';
COMMENT ON COLUMN unified_assets.listing_state IS 'The lowest listing_state of its rows';

CREATE INDEX unified_assets_by_rank ON unified_assets (rank, listing_state, asset);
CREATE INDEX unified_assets_by_symbol_and_rank
ON unified_assets (lower(symbol), rank, listing_state, asset) INCLUDE (symbol);
CREATE INDEX unified_assets_diverging ON unified_assets (asset) WHERE diverging;

-- Earlier contents, as in unified_data_versions.
CREATE TABLE unified_assets_versions (
    asset text COLLATE "C" NOT NULL,
    symbol text COLLATE "C",
    name text COLLATE "C",
    rank integer,
    price_usd numeric,
    price_spread_percent numeric,
    source_count integer NOT NULL,
    diverging boolean NOT NULL,
    market_cap_usd numeric,
    volume_24h_usd numeric,
    circulating_supply numeric,
    total_supply numeric,
    max_supply numeric,
    percent_change_1h numeric,
    percent_change_24h numeric,
    percent_change_7d numeric,
    observed_at timestamptz,
    oldest_observed_at timestamptz,
    listing_state smallint NOT NULL,
    version bigint NOT NULL,
    replaced_by_version bigint NOT NULL,
    replaced_at timestamptz NOT NULL
);

COMMENT ON TABLE unified_assets_versions IS 'Earlier rows of unified_assets, for snapshot cursors';

CREATE INDEX unified_assets_versions_by_replacement ON unified_assets_versions (replaced_by_version);
ALTER TABLE unified_assets_versions REPLICA IDENTITY FULL;

-- What the resolver depended on when it ran last. If it has changed, all rows without a link are judged
-- again.
ALTER TABLE instance ADD COLUMN resolved_with text, ADD COLUMN resolver_problem text;

COMMENT ON COLUMN instance.resolved_with IS
'A digest of what the resolver depends on besides the rows: rules, contracts, limits, version and day';
COMMENT ON COLUMN instance.resolver_problem IS 'Why the resolver failed when it ran last. Null: it did not';
