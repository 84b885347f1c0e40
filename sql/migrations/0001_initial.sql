-- The tables Kasparro begins with. Every unique key holds source_id where rows belong to a coin, there are
-- no triggers and no defaults that a merge depends on, so that Citus can distribute the two data tables.

-- Texts that identify or sort use the C collation: the same order on every machine, and cheap to compare.
CREATE TABLE unified_data (
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
    content_hash uuid NOT NULL,
    -- Whether the source told observed_at, or we put in the time of fetching.
    reported boolean NOT NULL DEFAULT true,
    PRIMARY KEY (source, source_id)
) WITH (fillfactor = 80); -- room for updates in place: prices change every run, the keys never do

COMMENT ON TABLE unified_data IS 'The newest record of every (source, source_id)';

-- The default order of GET /data, and the look-up by symbol in any case.
CREATE INDEX unified_data_by_rank ON unified_data (rank, source, source_id);
CREATE INDEX unified_data_by_symbol ON unified_data (lower(symbol));

CREATE TABLE unified_history (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    observed_at timestamptz NOT NULL,
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
    recorded_at timestamptz NOT NULL,
    content_hash uuid NOT NULL,
    PRIMARY KEY (source, source_id, observed_at)
) PARTITION BY RANGE (observed_at);

COMMENT ON TABLE unified_history IS 'Every record whose content was new; one partition a month (UTC)';

CREATE TABLE runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    trigger text NOT NULL CHECK (trigger IN ('startup', 'schedule', 'api', 'etl')),
    status text NOT NULL CHECK (status IN ('running', 'succeeded', 'partial', 'failed', 'interrupted')),
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    error text
);

CREATE INDEX runs_running ON runs (id) WHERE status = 'running';

CREATE TABLE run_sources (
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    status text NOT NULL
    CHECK (status IN ('running', 'succeeded', 'partial', 'failed', 'interrupted', 'skipped')),
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    batches bigint NOT NULL DEFAULT 0,
    fetched bigint NOT NULL DEFAULT 0,
    valid bigint NOT NULL DEFAULT 0,
    rejected bigint NOT NULL DEFAULT 0,
    inserted bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    unchanged bigint NOT NULL DEFAULT 0,
    corrected bigint NOT NULL DEFAULT 0, -- of the updated: moments told before, with other values
    calls bigint NOT NULL DEFAULT 0,
    error text,
    PRIMARY KEY (run_id, source)
);

CREATE INDEX run_sources_succeeded ON run_sources (source, finished_at) WHERE status = 'succeeded';

CREATE TABLE rejects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    reason text NOT NULL,
    field text,
    place text,
    line bigint,
    raw text NOT NULL
);

CREATE INDEX rejects_of_run ON rejects (run_id, id);

-- How many were refused for what, of each file or, where place is empty, of an API: all of them, while of
-- the rejects themselves only so many are kept.
CREATE TABLE reject_counts (
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    place text NOT NULL,
    field text NOT NULL,
    reason text NOT NULL,
    rejects bigint NOT NULL,
    PRIMARY KEY (run_id, source, place, field, reason)
);

-- What was worked through already, by the digest of its content; only archives need it. `bytes` and `reading`
-- tell how long a file was and how it was read, so that of one that grew only the rest is loaded.
CREATE TABLE checkpoints (
    source text NOT NULL,
    key text NOT NULL,
    name text NOT NULL,
    position bigint NOT NULL,
    complete boolean NOT NULL,
    updated_at timestamptz NOT NULL,
    bytes bigint,
    reading text,
    PRIMARY KEY (source, key)
);

CREATE INDEX checkpoints_by_name ON checkpoints (source, name);

-- Calls made upstream, by calendar month (UTC), whoever made them.
CREATE TABLE api_calls (
    source text NOT NULL,
    month date NOT NULL,
    calls bigint NOT NULL,
    PRIMARY KEY (source, month)
);

-- One row that is this database's own: the key that signs cursors, so that they outlive a restart and are
-- good on every host; the version of the data, which every commit that changes a row moves; and whether its
-- figures are the demo's invention, which must never mix with real ones.
CREATE TABLE instance (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    cursor_key text NOT NULL,
    data_version bigint NOT NULL,
    demo boolean NOT NULL DEFAULT false
);

-- gen_random_uuid() draws 122 strong random bits; two of them make a key. (No pgcrypto needed.)
INSERT INTO instance (cursor_key, data_version)
VALUES (gen_random_uuid()::text || gen_random_uuid()::text, 0);

-- Makes sure of a month's partition of the history. ATTACH takes a lock that lets readers and writers go on,
-- where CREATE TABLE … PARTITION OF would shut them out.
CREATE FUNCTION create_history_partition(month date) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    partition text := to_char(month, '"unified_history_"YYYY_MM');
BEGIN
    IF to_regclass(partition) IS NOT NULL THEN
        RETURN;
    END IF;
    -- The lock that ATTACH takes anyway, before looking again: two sources may miss one month together.
    LOCK TABLE unified_history IN SHARE UPDATE EXCLUSIVE MODE;
    IF to_regclass(partition) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE unified_history INCLUDING ALL)', partition);
    EXECUTE format(
        'ALTER TABLE unified_history ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        partition,
        month::timestamp AT TIME ZONE 'UTC',
        (month + interval '1 month')::timestamp AT TIME ZONE 'UTC'
    );
END
$$;
