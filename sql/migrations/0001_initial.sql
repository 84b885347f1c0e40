-- The schema. Unique keys of rows that belong to a coin contain source_id, there are no triggers, and no
-- merge depends on a column default: so Citus can distribute these tables.

-- Texts that identify or sort use the collation "C": the same order on every machine, and cheap to compare.
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
    has_source_time boolean NOT NULL DEFAULT true,
    fetched_at timestamptz,
    version bigint NOT NULL DEFAULT 0,
    symbol_observed_at timestamptz,
    name_observed_at timestamptz,
    rank_observed_at timestamptz,
    PRIMARY KEY (source, source_id)
) WITH (fillfactor = 80); -- room for updates in place: prices change in every run, the keys never do

COMMENT ON TABLE unified_data IS 'The newest record of every (source, source_id)';
COMMENT ON COLUMN unified_data.has_source_time IS
'Whether the source gave observed_at; otherwise it is the time of fetching';
COMMENT ON COLUMN unified_data.fetched_at IS
'When a run received these values; a replay of a run keeps the time of that run. Null: updated_at';
COMMENT ON COLUMN unified_data.version IS 'The data version (instance.data_version) that wrote the row last';
-- A file without a column for the symbol, the name or the rank leaves it unknown, which is not the same as
-- null: the newest known value stays.
COMMENT ON COLUMN unified_data.symbol_observed_at IS
'observed_at of the record that gave the symbol. Null: this row''s record; -infinity: no record has';
COMMENT ON COLUMN unified_data.name_observed_at IS 'The same for the name';
COMMENT ON COLUMN unified_data.rank_observed_at IS 'The same for the rank';

-- The default order of GET /data.
CREATE INDEX unified_data_by_rank ON unified_data (rank, source, source_id);

-- The rows of a symbol in any case, in the order by rank, so that a page reads no more rows than it shows.
-- `symbol` is included because PostgreSQL would otherwise fetch every row to count them.
CREATE INDEX unified_data_by_symbol_and_rank
ON unified_data (lower(symbol), rank, source, source_id) INCLUDE (symbol);

CREATE INDEX unified_data_by_asset ON unified_data (asset) WHERE asset IS NOT NULL;

-- The parameter q finds parts of names and symbols, which needs pg_trgm. It comes with PostgreSQL, and a role
-- that may create objects in the database may create it; but a managed PostgreSQL may leave it out or forbid
-- it. Then q reads the whole table, and everything else works as usual.
-- The index has the same expressions as the statement: ILIKE folds letters beyond ASCII only where the
-- collation is not "C".
DO $$
DECLARE
    extension_schema text;
BEGIN
    BEGIN
        CREATE EXTENSION IF NOT EXISTS pg_trgm;
    EXCEPTION
        WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR invalid_parameter_value THEN
            RAISE NOTICE 'no pg_trgm (%), so that the parameter q reads the whole table', sqlerrm;
    END;
    -- It may exist already, in a schema that is not on the search path.
    SELECT nspname INTO extension_schema
    FROM pg_extension
    INNER JOIN pg_namespace ON pg_extension.extnamespace = pg_namespace.oid
    WHERE extname = 'pg_trgm';
    IF extension_schema IS NOT NULL THEN
        EXECUTE format(
            'CREATE INDEX unified_data_by_text ON unified_data'
            ' USING gin ((name COLLATE "default") %1$I.gin_trgm_ops,'
            ' (symbol COLLATE "default") %1$I.gin_trgm_ops)',
            extension_schema
        );
    END IF;
END
$$;

-- Earlier contents of rows, for snapshot cursors. Together with the rows of unified_data whose version is not
-- later than V, the rows with version <= V < replaced_by_version are the table as it was at version V, for
-- every V since instance.oldest_cursor_version. Rows are appended in the order of replaced_by_version and
-- deleted after an hour, so that the only index costs the loader little.
CREATE TABLE unified_data_versions (
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
    replaced_by_version bigint NOT NULL,
    replaced_at timestamptz NOT NULL,
    rank_observed_at timestamptz
);

COMMENT ON TABLE unified_data_versions IS 'Earlier contents of rows of unified_data, for snapshot cursors';

CREATE INDEX unified_data_versions_by_replacement ON unified_data_versions (replaced_by_version);

-- Without a key, rows could not be deleted where all tables are published to logical replicas.
ALTER TABLE unified_data_versions REPLICA IDENTITY FULL;

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
    -- Null means no: API records lack none of these, and a null costs no bytes.
    lacks_symbol boolean,
    lacks_name boolean,
    lacks_rank boolean,
    PRIMARY KEY (source, source_id, observed_at)
) PARTITION BY RANGE (observed_at);

COMMENT ON TABLE unified_history IS 'Every record whose content was new; one partition per month (UTC)';
COMMENT ON COLUMN unified_history.recorded_at IS
'When a run received these values; a replay of a run keeps the time of that run';
COMMENT ON COLUMN unified_history.lacks_symbol IS 'Whether the record''s file has no column for the symbol';

-- Creates the partition of a month of the history if it is missing. ATTACH takes a lock that does not block
-- readers and writers, as CREATE TABLE … PARTITION OF would.
CREATE FUNCTION create_history_partition(month date) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    partition text := to_char(month, '"unified_history_"YYYY_MM');
BEGIN
    IF to_regclass(partition) IS NOT NULL THEN
        RETURN;
    END IF;
    -- ATTACH takes this lock anyway. Taking it before the second look is for two sources that miss the same
    -- month at the same time.
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

CREATE TABLE runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    trigger text NOT NULL CHECK (trigger IN ('startup', 'schedule', 'retry', 'api', 'etl', 'replay')),
    status text NOT NULL CHECK (status IN ('running', 'succeeded', 'partial', 'failed', 'interrupted')),
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    error text
);

CREATE INDEX runs_running ON runs (id) WHERE status = 'running';

-- One source's part in a run. The loader counts in it, batch by batch; its row lock is the fence of a batch.
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
    corrected bigint NOT NULL DEFAULT 0,
    calls bigint NOT NULL DEFAULT 0,
    error text,
    note text,
    upstream_unavailable boolean NOT NULL DEFAULT false,
    -- json and not jsonb: these are only read whole, and a field's name may contain what jsonb rejects.
    metrics json,
    drift json,
    anomalies json,
    PRIMARY KEY (run_id, source)
);

COMMENT ON COLUMN run_sources.corrected IS 'Of updated: moments that were known, with other values';
COMMENT ON COLUMN run_sources.note IS 'What a reader should know that is no error, such as which pages';
COMMENT ON COLUMN run_sources.upstream_unavailable IS
'Whether it failed because the upstream sent nothing usable; the circuit breaker counts these';
COMMENT ON COLUMN run_sources.metrics IS
'Number of records, price moves and age, to compare later runs with. Null: not assessed';

-- Runs of a source in the order of their ids: a clock may be set back.
CREATE INDEX run_sources_by_source ON run_sources (source, run_id);
CREATE INDEX run_sources_succeeded ON run_sources (source, run_id) WHERE status = 'succeeded';
CREATE INDEX run_sources_assessed ON run_sources (source, run_id) WHERE metrics IS NOT NULL;

-- What each source usually sends, field by field: drift is a difference from this.
CREATE TABLE source_profiles (
    source text PRIMARY KEY,
    run_id bigint NOT NULL,
    profile json NOT NULL,
    updated_at timestamptz NOT NULL
);

-- Rejected records and files. A rejected file has a location and no line.
CREATE TABLE rejects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    reason text NOT NULL,
    field text,
    location text,
    line bigint,
    raw text NOT NULL,
    setting text
);

COMMENT ON COLUMN rejects.setting IS 'The override that would settle what made us reject the file';

CREATE INDEX rejects_of_run ON rejects (run_id, id);
-- Rejected files are few compared with rejected rows, and every report of a run names them.
CREATE INDEX rejects_of_files ON rejects (run_id, source, id) WHERE location IS NOT NULL AND line IS NULL;

-- How many records were rejected for each reason, by file (an empty location: by an API). These counts are
-- complete; of the rejects themselves only the first ones are kept.
CREATE TABLE reject_counts (
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    location text NOT NULL,
    field text NOT NULL,
    reason text NOT NULL,
    rejects bigint NOT NULL,
    PRIMARY KEY (run_id, source, location, field, reason)
);

-- How far each archive was loaded, by the digest of its content. If a file has grown and `interpretation`
-- (how it was understood) is the same, only the part after `bytes` is loaded.
CREATE TABLE checkpoints (
    source text NOT NULL,
    key text NOT NULL,
    name text NOT NULL,
    position bigint NOT NULL,
    complete boolean NOT NULL,
    updated_at timestamptz NOT NULL,
    bytes bigint,
    interpretation text,
    PRIMARY KEY (source, key)
);

CREATE INDEX checkpoints_by_name ON checkpoints (source, name);

-- Each page of an upstream's list, committed with the batch of the page. An interrupted crawl resumes from
-- here, the page schedule takes the pages that were fetched longest ago, and an upstream that still has what
-- we read last need not send it again.
CREATE TABLE pages (
    source text NOT NULL,
    number integer NOT NULL,
    crawl_started_at timestamptz NOT NULL,
    remaining_pages integer[] NOT NULL,
    fetched_at timestamptz NOT NULL,
    read_at timestamptz NOT NULL,
    records integer NOT NULL,
    is_last boolean NOT NULL,
    etag text,
    last_modified text,
    request_fingerprint text NOT NULL,
    PRIMARY KEY (source, number)
);

COMMENT ON COLUMN pages.crawl_started_at IS 'When the crawl started that fetched the page last';
COMMENT ON COLUMN pages.remaining_pages IS 'The pages that this crawl still had to fetch after this one';
COMMENT ON COLUMN pages.read_at IS
'When the page was sent in full; if fetched_at is later, the upstream answered 304 then';
COMMENT ON COLUMN pages.is_last IS 'Whether the list ends with this page';
COMMENT ON COLUMN pages.request_fingerprint IS
'A digest of the request and of the parser version: etag and last_modified are valid for these only';

-- Calls to each upstream by calendar month (UTC), of all processes.
CREATE TABLE api_calls (
    source text NOT NULL,
    month date NOT NULL,
    calls bigint NOT NULL,
    PRIMARY KEY (source, month)
);

-- The response to each upstream call, kept for a time and up to a size, to be read again after a fix of a
-- parser.
CREATE TABLE payloads (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    path text NOT NULL,
    parameters jsonb NOT NULL,
    received_at timestamptz NOT NULL,
    status smallint,
    headers jsonb NOT NULL,
    complete boolean NOT NULL,
    raw_bytes bigint NOT NULL,
    compressed_bytes integer NOT NULL,
    body bytea NOT NULL,
    items_limit integer
);

COMMENT ON COLUMN payloads.status IS 'The HTTP status; null if no response began';
COMMENT ON COLUMN payloads.complete IS 'Whether the body is whole';
COMMENT ON COLUMN payloads.body IS 'Compressed with zstd';
COMMENT ON COLUMN payloads.items_limit IS
'How many items of the list the run used, if a setting ends the list within a page; null: all of them';

-- The body is compressed already. Stored externally, it does not slow down sums over the other columns.
ALTER TABLE payloads ALTER COLUMN body SET STORAGE EXTERNAL;

-- The number and the size of a run's payloads are read from this index alone.
CREATE INDEX payloads_of_run ON payloads (run_id, source, id) INCLUDE (compressed_bytes);

-- One row about this database.
CREATE TABLE instance (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    cursor_key text NOT NULL,
    data_version bigint NOT NULL,
    demo boolean NOT NULL DEFAULT false,
    oldest_cursor_version bigint NOT NULL DEFAULT 0,
    counted_versions bigint NOT NULL DEFAULT 0
);

COMMENT ON COLUMN instance.cursor_key IS
'Signs cursors: they stay valid after a restart and on every host';
COMMENT ON COLUMN instance.data_version IS 'Every commit that changes a row of unified_data increments it';
COMMENT ON COLUMN instance.demo IS 'Whether the data is simulated; simulated and real data never mix';
COMMENT ON COLUMN instance.oldest_cursor_version IS 'The earliest version that a snapshot cursor may show';
COMMENT ON COLUMN instance.counted_versions IS
'How many versions were batches, which count their rows; the others were manual edits';

-- gen_random_uuid() draws 122 random bits; two of them make a key, without pgcrypto.
INSERT INTO instance (cursor_key, data_version)
VALUES (gen_random_uuid()::text || gen_random_uuid()::text, 0);

-- How many rows the batches of each source have inserted into unified_data. This is no count of the table,
-- but exactly what a count grows by from one version to another.
CREATE TABLE insert_counters (
    source text COLLATE "C" PRIMARY KEY,
    rows bigint NOT NULL
);

-- PostgreSQL estimates with an index's expressions only after this.
ANALYZE unified_data;
