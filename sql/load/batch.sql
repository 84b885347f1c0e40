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
-- Where COPY puts a batch, and what `compare` finds new in it; they are the session's own and empty
-- themselves at the commit.
CREATE TEMPORARY TABLE IF NOT EXISTS staged_keys (
    position integer NOT NULL,
    content_hash uuid NOT NULL,
    reported boolean NOT NULL,
    observed_at timestamptz NOT NULL,
    source_id text COLLATE "C" NOT NULL
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS staged_contents (
    position integer NOT NULL,
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

CREATE TEMPORARY TABLE IF NOT EXISTS fresh (
    position integer NOT NULL,
    content_hash uuid NOT NULL,
    reported boolean NOT NULL,
    observed_at timestamptz NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    appends boolean NOT NULL,
    corrects boolean NOT NULL,
    settles boolean NOT NULL
) ON COMMIT DELETE ROWS;

-- name: later_words --
-- Of a replay ($2 is when its run ended): records of moments that a later run told otherwise. They were told
-- before the words that stand, so they stay out, as an older record does.
DELETE FROM staged_keys
USING unified_history AS history
WHERE
    history.source = $1
    AND history.source_id = staged_keys.source_id
    AND history.observed_at = staged_keys.observed_at
    AND history.recorded_at > $2;

-- name: movement --
-- How an API's batch compares with what is there, before it is merged: the age in seconds of each coin's
-- record where the source told its time; and of the coins that it brings news of, the logarithm of new over
-- old price and the seconds between the two. Another rank alone is no news of a coin: most change place
-- whenever one comes or goes. A run is judged by these against the runs before it. LIMIT keeps the look-up
-- one descent of the key a row, as above.
WITH told AS (
    SELECT DISTINCT ON (staged_keys.source_id)
        staged_keys.source_id,
        staged_keys.observed_at,
        staged_keys.reported,
        staged_keys.content_hash,
        staged_contents.price_usd
    FROM staged_keys
    INNER JOIN staged_contents ON staged_keys.position = staged_contents.position
    ORDER BY staged_keys.source_id, staged_keys.observed_at DESC, staged_keys.position DESC
),
compared AS (
    SELECT
        CASE WHEN told.reported THEN extract(EPOCH FROM $2 - told.observed_at)::float8 END AS age,
        CASE
            WHEN
                known.content_hash <> told.content_hash
                AND (
                    known.observed_at < told.observed_at
                    OR (known.observed_at = told.observed_at AND known.price_usd <> told.price_usd)
                )
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

-- name: compare --
-- What the tables do not hold yet: moments that history has not (`appends`) or has otherwise (`corrects`),
-- and what is to stand in unified_data (`settles`).
--
-- Of two records of one moment the later in the batch is judged. The look-up is a scalar subquery so that it
-- stays one descent of the history's key a row; a join may be planned to read whole partitions, which would
-- cost more with every month. LIMIT does the same for unified_data, here and in `newest`: a join may be
-- planned to read all rows of the source for every page of it.
--
-- An older record never overwrites a newer one, and an equal one writes nothing. A time that we put in is the
-- time of fetching, which is later than any that a source tells, so it yields to the first that is told. Nor
-- does what a replay's run was told overwrite what was told after it.
WITH told AS (
    SELECT DISTINCT ON (source_id, observed_at)
        position,
        source_id,
        observed_at,
        content_hash,
        reported
    FROM staged_keys
    ORDER BY source_id, observed_at, position DESC
),
looked_up AS MATERIALIZED (
    SELECT
        told.*,
        coalesce(
            lead(told.source_id) OVER (ORDER BY told.source_id, told.observed_at) <> told.source_id, true
        ) AS latest,
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
judged AS (
    SELECT
        looked_up.position,
        looked_up.content_hash,
        looked_up.reported,
        looked_up.observed_at,
        looked_up.source_id,
        -- A record whose time the source did not tell is known where its content is the newest record's; in a
        -- replay ($2 is when its run ended), where it was then.
        looked_up.kept IS NULL
        AND (
            looked_up.reported
            OR NOT coalesce(
                looked_up.content_hash IN (
                    newest.content_hash,
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
                ),
                false
            )
        ) AS appends,
        coalesce(looked_up.kept <> looked_up.content_hash, false) AS corrects,
        looked_up.latest
        AND coalesce(newest.content_hash <> looked_up.content_hash, true)
        AND (
            newest.source_id IS NULL
            OR (
                (
                    looked_up.observed_at >= newest.observed_at
                    OR (looked_up.reported AND NOT newest.reported)
                )
                AND ($2::timestamptz IS NULL OR coalesce(newest.told_at, newest.updated_at) <= $2)
            )
        ) AS settles
    FROM looked_up
    LEFT JOIN LATERAL (
        SELECT
            source_id,
            content_hash,
            observed_at,
            reported,
            told_at,
            updated_at
        FROM unified_data
        WHERE
            (looked_up.latest OR NOT looked_up.reported)
            AND source = $1
            AND source_id = looked_up.source_id
        LIMIT 1
    ) AS newest ON true
),
written AS (
    INSERT INTO fresh (
        position, content_hash, reported, observed_at, source_id, appends, corrects, settles
    )
    SELECT
        position,
        content_hash,
        reported,
        observed_at,
        source_id,
        appends,
        corrects,
        settles
    FROM judged
    WHERE appends OR corrects OR settles
    RETURNING appends, corrects, settles
)
SELECT
    count(*) AS records,
    count(*) FILTER (WHERE appends) AS appended,
    count(*) FILTER (WHERE corrects) AS corrected,
    count(*) FILTER (WHERE settles) AS settled
FROM written;

-- name: partitions --
-- The history's partitions for the months that the batch adds to.
SELECT create_history_partition(months.month)
FROM (
    SELECT DISTINCT date_trunc('month', observed_at AT TIME ZONE 'UTC')::date AS month
    FROM fresh
    WHERE appends
) AS months;

-- name: append --
-- What history did not have. The run is the only writer of its source's rows, so none can come between the
-- comparison and this.
WITH written AS (
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
        fresh.source_id,
        fresh.observed_at,
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
        fresh.content_hash
    FROM fresh
    INNER JOIN staged_contents AS told ON fresh.position = told.position
    WHERE fresh.appends
    RETURNING 1
)
SELECT count(*) FROM written;

-- name: correct --
-- What the source now tells otherwise of a moment that it had told before: the later word stands.
WITH written AS (
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
        fresh.source_id,
        fresh.observed_at,
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
        fresh.content_hash
    FROM fresh
    INNER JOIN staged_contents AS told ON fresh.position = told.position
    WHERE fresh.corrects
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

-- name: next_version --
-- The version that this batch's commit makes. The lock, kept until then, puts the batches of all sources in
-- one order, so that whoever sees a version sees every row of it and of those before.
SELECT data_version + 1 FROM instance FOR UPDATE;

-- name: newest --
-- The newest record of each coin. What its row said before is kept for walks that began then. xmax is 0 on a
-- row that was inserted.
WITH kept AS (
    INSERT INTO unified_past (
        source,
        source_id,
        asset,
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
        version,
        replaced,
        replaced_at
    )
    SELECT
        known.source,
        known.source_id,
        known.asset,
        known.symbol,
        known.name,
        known.rank,
        known.price_usd,
        known.market_cap_usd,
        known.volume_24h_usd,
        known.circulating_supply,
        known.total_supply,
        known.max_supply,
        known.percent_change_1h,
        known.percent_change_24h,
        known.percent_change_7d,
        known.observed_at,
        known.first_seen_at,
        known.updated_at,
        known.version,
        $4,
        $2
    FROM fresh
    CROSS JOIN LATERAL (
        SELECT *
        FROM unified_data
        WHERE source = $1 AND source_id = fresh.source_id
        LIMIT 1
    ) AS known
    WHERE fresh.settles
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
        reported,
        version
    )
    SELECT
        $1,
        fresh.source_id,
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
        fresh.observed_at,
        $2,
        $2,
        coalesce($3::timestamptz, $2),
        fresh.content_hash,
        fresh.reported,
        $4
    FROM fresh
    INNER JOIN staged_contents AS told ON fresh.position = told.position
    WHERE fresh.settles
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
        reported = excluded.reported,
        version = excluded.version
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

-- name: count_inserted --
INSERT INTO inserted_rows AS counted (source, rows)
VALUES ($1, $2)
ON CONFLICT (source) DO UPDATE SET rows = counted.rows + excluded.rows;

-- name: move_version --
-- Tells every process that answers reads, here and on other hosts, that the data has moved on.
UPDATE instance
SET
    data_version = data_version + 1,
    batches = batches + 1
RETURNING pg_notify('kasparro_data', data_version::text);
