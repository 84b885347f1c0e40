-- What surrounds a batch's merge, in the same transaction: the right to write, how it compares with
-- what is there, rejects, how far the source has come, and counts.

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

-- name: price_moves --
-- How an API's batch compares with what is there, before it is merged: the age in seconds of each coin's
-- record where the source told its time; and of the coins that it brings news of, the logarithm of new over
-- old price and the seconds between the two. Another rank alone is no news of a coin: most change place
-- whenever one comes or goes. A run is judged by these against the runs before it. LIMIT keeps the look-up
-- one descent of the key a row.
WITH told AS (
    SELECT DISTINCT ON (staged_keys.source_id)
        staged_keys.source_id,
        staged_keys.observed_at,
        staged_keys.has_source_time,
        staged_keys.content_hash,
        staged_contents.price_usd
    FROM staged_keys
    INNER JOIN staged_contents ON staged_keys.position = staged_contents.position
    ORDER BY staged_keys.source_id, staged_keys.observed_at DESC, staged_keys.position DESC
),
compared AS (
    SELECT
        CASE WHEN told.has_source_time THEN extract(EPOCH FROM $2 - told.observed_at)::float8 END AS age,
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

-- name: rejects --
INSERT INTO rejects (run_id, source, reason, field, location, line, raw, setting)
SELECT $1, $2, told.reason, told.field, told.location, told.line, told.raw, told.setting
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[])
    AS told (reason, field, location, line, raw, setting);

-- name: count_rejects --
INSERT INTO reject_counts AS counted (run_id, source, location, field, reason, rejects)
SELECT $1, $2, told.location, told.field, told.reason, told.rejects
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) AS told (location, field, reason, rejects)
ON CONFLICT (run_id, source, location, field, reason) DO UPDATE
SET rejects = counted.rejects + excluded.rejects;

-- name: checkpoint --
-- Other content that had the name is void from here on: were it put back, its values would have to be too.
WITH superseded AS (
    DELETE FROM checkpoints
    WHERE source = $1 AND name = $3 AND key <> $2
)
INSERT INTO checkpoints (source, key, name, position, complete, updated_at, bytes, interpretation)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (source, key) DO UPDATE SET
    name = excluded.name,
    position = excluded.position,
    complete = excluded.complete,
    updated_at = excluded.updated_at,
    bytes = excluded.bytes,
    interpretation = excluded.interpretation;

-- name: known_checkpoint --
SELECT key, name, position, complete, bytes, interpretation
FROM checkpoints
WHERE source = $1 AND key = $2;

-- name: named_checkpoint --
SELECT key, name, position, complete, bytes, interpretation
FROM checkpoints
WHERE source = $1 AND name = $2
ORDER BY updated_at DESC
LIMIT 1;

-- name: save_page --
-- What lies behind the list's end is no page of it any more.
WITH gone AS (
    DELETE FROM pages
    WHERE source = $1 AND number > $2 AND $8
)
INSERT INTO pages (
    source,
    number,
    crawl_started_at,
    remaining_pages,
    fetched_at,
    read_at,
    records,
    is_last,
    request_fingerprint,
    etag,
    last_modified
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (source, number) DO UPDATE SET
    crawl_started_at = excluded.crawl_started_at,
    remaining_pages = excluded.remaining_pages,
    fetched_at = excluded.fetched_at,
    read_at = excluded.read_at,
    records = excluded.records,
    is_last = excluded.is_last,
    request_fingerprint = excluded.request_fingerprint,
    etag = excluded.etag,
    last_modified = excluded.last_modified;

-- name: known_pages --
SELECT
    number,
    crawl_started_at,
    remaining_pages,
    fetched_at,
    read_at,
    records,
    is_last,
    request_fingerprint,
    etag,
    last_modified
FROM pages
WHERE source = $1
ORDER BY number;

-- name: count_batch --
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

-- name: count_inserts --
INSERT INTO insert_counters AS counted (source, rows)
VALUES ($1, $2)
ON CONFLICT (source) DO UPDATE SET rows = counted.rows + excluded.rows;

-- name: increment_version --
-- Tells every process that answers reads, here and on other hosts, that the data has moved on.
UPDATE instance
SET
    data_version = data_version + 1,
    counted_versions = counted_versions + 1
RETURNING pg_notify('kasparro_data', data_version::text);
