-- A batch's way into the tables, a statement a step, all in one transaction.

-- name: fence --
-- The run's right to write: none once another process has marked it interrupted. The lock makes whoever
-- wants to mark it wait for this batch, and `batches` tells a retry whether its commit had gone through.
SELECT sources.batches
FROM run_sources AS sources
INNER JOIN runs ON sources.run_id = runs.id
WHERE
    sources.run_id = $1
    AND sources.source = $2
    AND sources.status = 'running'
    AND runs.status = 'running'
FOR UPDATE OF sources;

-- name: staging --
-- Where COPY puts a batch; it is the session's own and empties itself at the commit.
CREATE TEMPORARY TABLE IF NOT EXISTS staging (
    position integer NOT NULL,
    content_hash uuid NOT NULL,
    reported boolean NOT NULL,
    observed_at timestamptz NOT NULL,
    source_id text COLLATE "C" NOT NULL,
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
    percent_change_7d numeric
) ON COMMIT DELETE ROWS;

-- name: known_table --
-- Which rows of the batch tell of a moment that history has already, and whether they tell it otherwise.
CREATE TEMPORARY TABLE IF NOT EXISTS known (
    position integer NOT NULL,
    differs boolean NOT NULL
) ON COMMIT DELETE ROWS;

-- name: partitions --
-- The history's partitions for the months that the batch touches.
SELECT create_history_partition(months.month)
FROM (
    SELECT DISTINCT date_trunc('month', observed_at AT TIME ZONE 'UTC')::date AS month
    FROM staging
) AS months;

-- name: later_words --
-- Of a replay ($2 is when its run ended): records of moments that a later run told otherwise. They were told
-- before the words that stand, so they stay out, as an older record does.
DELETE FROM staging
USING unified_history AS history
WHERE
    history.source = $1
    AND history.source_id = staging.source_id
    AND history.observed_at = staging.observed_at
    AND history.recorded_at > $2;

-- name: compare --
-- Of two records of one moment the later in the batch is judged. The look-up is a scalar subquery so that it
-- stays one descent of the history's key a row; a join may be planned to read whole partitions, which would
-- cost more with every month.
WITH told AS (
    SELECT DISTINCT ON (source_id, observed_at)
        position,
        source_id,
        observed_at,
        content_hash,
        reported
    FROM staging
    ORDER BY source_id, observed_at, position DESC
),
looked_up AS MATERIALIZED (
    SELECT
        told.position,
        told.source_id,
        told.observed_at,
        told.content_hash,
        told.reported,
        (
            SELECT history.content_hash
            FROM unified_history AS history
            WHERE
                history.source = $1
                AND history.source_id = told.source_id
                AND history.observed_at = told.observed_at
        ) AS kept
    FROM told
),
compared AS (
    INSERT INTO known (position, differs)
    SELECT
        position,
        kept <> content_hash
    FROM looked_up
    WHERE kept IS NOT NULL
    UNION ALL
    -- A record whose time the source did not tell is known where its content is that of the newest record;
    -- in a replay, where it was then ($2).
    SELECT
        looked_up.position,
        false
    FROM looked_up
    WHERE
        NOT looked_up.reported
        AND looked_up.kept IS NULL
        AND looked_up.content_hash IN (
            (
                SELECT newest.content_hash
                FROM unified_data AS newest
                WHERE newest.source = $1 AND newest.source_id = looked_up.source_id
            ),
            (
                SELECT history.content_hash
                FROM unified_history AS history
                WHERE
                    $2::timestamptz IS NOT NULL
                    AND history.source = $1
                    AND history.source_id = looked_up.source_id
                    AND history.observed_at < looked_up.observed_at
                    AND history.recorded_at <= $2
                ORDER BY history.observed_at DESC
                LIMIT 1
            )
        )
    RETURNING differs
)
SELECT count(*) FILTER (WHERE differs) FROM compared;

-- name: movement --
-- How an API's batch compares with what is there, before it is merged: the age in seconds of each coin's
-- record where the source told its time; and of the coins that it brings news of, the logarithm of new over
-- old price and the seconds between the two. A run is judged by these against the runs before it. LIMIT keeps
-- the look-up one descent of the key a row, as above.
WITH told AS (
    SELECT DISTINCT ON (source_id)
        source_id,
        observed_at,
        reported,
        content_hash,
        price_usd
    FROM staging
    ORDER BY source_id, observed_at DESC, position DESC
),
compared AS (
    SELECT
        CASE WHEN told.reported THEN extract(EPOCH FROM $2 - told.observed_at)::float8 END AS age,
        CASE
            WHEN
                known.content_hash <> told.content_hash
                AND known.observed_at <= told.observed_at
                AND known.price_usd > 0
                AND told.price_usd > 0
                THEN ln(told.price_usd::float8) - ln(known.price_usd::float8)
        END AS move,
        extract(EPOCH FROM told.observed_at - known.observed_at)::float8 AS gap
    FROM told
    LEFT JOIN LATERAL (
        SELECT
            content_hash,
            observed_at,
            price_usd
        FROM unified_data
        WHERE source = $1 AND source_id = told.source_id
        LIMIT 1
    ) AS known ON true
)
SELECT
    array_agg(age) FILTER (WHERE age IS NOT NULL) AS ages,
    array_agg(move) FILTER (WHERE move IS NOT NULL) AS moves,
    array_agg(gap) FILTER (WHERE move IS NOT NULL) AS gaps
FROM compared;

-- name: append --
-- What history did not have. The run is the only writer of its source's rows, so none can come between the
-- comparison and this.
WITH told AS (
    SELECT DISTINCT ON (source_id, observed_at) *
    FROM staging
    ORDER BY source_id, observed_at, position DESC
),
written AS (
    INSERT INTO unified_history (
        source,
        source_id,
        observed_at,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        recorded_at,
        content_hash
    )
    SELECT
        $1,
        told.source_id,
        told.observed_at,
        told.symbol,
        told.name,
        told.rank,
        told.price_usd,
        told.market_cap_usd,
        told.volume_24h_usd,
        told.circulating_supply,
        told.total_supply,
        told.max_supply,
        told.percent_change_1h,
        told.percent_change_24h,
        told.percent_change_7d,
        $2,
        told.content_hash
    FROM told
    WHERE NOT EXISTS (SELECT FROM known WHERE known.position = told.position)
    RETURNING 1
)
SELECT count(*) FROM written;

-- name: correct --
-- What the source now tells otherwise of a moment that it had told before: the later word stands.
WITH told AS (
    SELECT DISTINCT ON (source_id, observed_at) *
    FROM staging
    ORDER BY source_id, observed_at, position DESC
),
written AS (
    INSERT INTO unified_history (
        source,
        source_id,
        observed_at,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        recorded_at,
        content_hash
    )
    SELECT
        $1,
        told.source_id,
        told.observed_at,
        told.symbol,
        told.name,
        told.rank,
        told.price_usd,
        told.market_cap_usd,
        told.volume_24h_usd,
        told.circulating_supply,
        told.total_supply,
        told.max_supply,
        told.percent_change_1h,
        told.percent_change_24h,
        told.percent_change_7d,
        $2,
        told.content_hash
    FROM told
    WHERE EXISTS (SELECT FROM known WHERE known.position = told.position AND known.differs)
    ON CONFLICT (source, source_id, observed_at) DO UPDATE SET
        symbol = excluded.symbol,
        name = excluded.name,
        rank = excluded.rank,
        price_usd = excluded.price_usd,
        market_cap_usd = excluded.market_cap_usd,
        volume_24h_usd = excluded.volume_24h_usd,
        circulating_supply = excluded.circulating_supply,
        total_supply = excluded.total_supply,
        max_supply = excluded.max_supply,
        percent_change_1h = excluded.percent_change_1h,
        percent_change_24h = excluded.percent_change_24h,
        percent_change_7d = excluded.percent_change_7d,
        recorded_at = excluded.recorded_at,
        content_hash = excluded.content_hash
    RETURNING 1
)
SELECT count(*) FROM written;

-- name: newest --
-- Settle the newest record of each coin: an older one never overwrites a newer one, and an equal one writes
-- nothing. xmax is 0 on a row that was inserted.
WITH told AS (
    SELECT DISTINCT ON (source_id) *
    FROM staging
    ORDER BY source_id, observed_at DESC, position DESC
),
written AS (
    INSERT INTO unified_data AS newest (
        source,
        source_id,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        observed_at,
        first_seen_at,
        updated_at,
        told_at,
        content_hash,
        reported
    )
    SELECT
        $1,
        told.source_id,
        told.symbol,
        told.name,
        told.rank,
        told.price_usd,
        told.market_cap_usd,
        told.volume_24h_usd,
        told.circulating_supply,
        told.total_supply,
        told.max_supply,
        told.percent_change_1h,
        told.percent_change_24h,
        told.percent_change_7d,
        told.observed_at,
        $2,
        $2,
        coalesce($3::timestamptz, $2),
        told.content_hash,
        told.reported
    FROM told
    LEFT JOIN unified_data AS known ON known.source = $1 AND told.source_id = known.source_id
    WHERE
        known.source_id IS NULL
        OR (
            known.content_hash <> told.content_hash
            -- A time that we put in is the time of fetching, which is later than any that a source tells.
            AND (told.observed_at >= known.observed_at OR (told.reported AND NOT known.reported))
            -- Nor does what a replay's run was told overwrite what was told after it ($3).
            AND ($3::timestamptz IS NULL OR coalesce(known.told_at, known.updated_at) <= $3)
        )
    ON CONFLICT (source, source_id) DO UPDATE SET
        symbol = excluded.symbol,
        name = excluded.name,
        rank = excluded.rank,
        price_usd = excluded.price_usd,
        market_cap_usd = excluded.market_cap_usd,
        volume_24h_usd = excluded.volume_24h_usd,
        circulating_supply = excluded.circulating_supply,
        total_supply = excluded.total_supply,
        max_supply = excluded.max_supply,
        percent_change_1h = excluded.percent_change_1h,
        percent_change_24h = excluded.percent_change_24h,
        percent_change_7d = excluded.percent_change_7d,
        observed_at = excluded.observed_at,
        updated_at = excluded.updated_at,
        told_at = excluded.told_at,
        content_hash = excluded.content_hash,
        reported = excluded.reported
    RETURNING xmax = 0 AS inserted
)
SELECT
    count(*) FILTER (WHERE inserted) AS inserted,
    count(*) FILTER (WHERE NOT inserted) AS updated
FROM written;

-- name: rejects --
INSERT INTO rejects (run_id, source, reason, field, place, line, raw)
SELECT $1, $2, told.reason, told.field, told.place, told.line, told.raw
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
    AS told (reason, field, place, line, raw);

-- name: count_rejects --
INSERT INTO reject_counts AS counted (run_id, source, place, field, reason, rejects)
SELECT $1, $2, told.place, told.field, told.reason, told.rejects
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) AS told (place, field, reason, rejects)
ON CONFLICT (run_id, source, place, field, reason) DO UPDATE
SET rejects = counted.rejects + excluded.rejects;

-- name: checkpoint --
-- Other content that had the name is void from here on: were it put back, its values would have to be too.
WITH superseded AS (
    DELETE FROM checkpoints
    WHERE source = $1 AND name = $3 AND key <> $2
)
INSERT INTO checkpoints (source, key, name, position, complete, updated_at, bytes, reading)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (source, key) DO UPDATE SET
    name = excluded.name,
    position = excluded.position,
    complete = excluded.complete,
    updated_at = excluded.updated_at,
    bytes = excluded.bytes,
    reading = excluded.reading;

-- name: known_checkpoint --
SELECT key, name, position, complete, bytes, reading
FROM checkpoints
WHERE source = $1 AND key = $2;

-- name: named_checkpoint --
SELECT key, name, position, complete, bytes, reading
FROM checkpoints
WHERE source = $1 AND name = $2
ORDER BY updated_at DESC
LIMIT 1;

-- name: page --
-- What lies behind the list's end is no page of it any more.
WITH gone AS (
    DELETE FROM pages
    WHERE source = $1 AND number > $2 AND $8
)
INSERT INTO pages (
    source, number, walk, ahead, fetched_at, read_at, records, last, reading, etag, last_modified
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (source, number) DO UPDATE SET
    walk = excluded.walk,
    ahead = excluded.ahead,
    fetched_at = excluded.fetched_at,
    read_at = excluded.read_at,
    records = excluded.records,
    last = excluded.last,
    reading = excluded.reading,
    etag = excluded.etag,
    last_modified = excluded.last_modified;

-- name: known_pages --
SELECT number, walk, ahead, fetched_at, read_at, records, last, reading, etag, last_modified
FROM pages
WHERE source = $1
ORDER BY number;

-- name: count --
UPDATE run_sources
SET
    batches = batches + 1,
    fetched = fetched + $3,
    valid = valid + $4,
    rejected = rejected + $5,
    inserted = inserted + $6,
    updated = updated + $7,
    unchanged = unchanged + $8,
    corrected = corrected + $9
WHERE run_id = $1 AND source = $2;

-- name: move_version --
-- Tells every process that answers reads, here and on other hosts, that the data has moved on.
UPDATE instance SET data_version = data_version + 1
RETURNING pg_notify('kasparro_data', data_version::text);
