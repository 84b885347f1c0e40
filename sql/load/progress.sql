-- What else a batch writes, in the same transaction as its merge (kasparro/store/loader.py): the fence, price
-- moves, rejects, the page of a list and counts.
{% from "macros/columns.sql" import listed, overwritten %}
{% set PAGE = [
    "number",
    "crawl_started_at",
    "remaining_pages",
    "fetched_at",
    "read_at",
    "records",
    "is_last",
    "request_fingerprint",
    "etag",
    "last_modified",
] %}

-- name: fence --
-- The run's right to write: no row, if another process has marked the run as interrupted. With the lock, a
-- process that wants to mark it waits for this batch. `batches` tells a retry whether the first attempt was
-- committed.
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
-- Compares an API's batch with unified_data before it is merged: the age in seconds of each record with a
-- source time; and for each coin with a new price, ln(new price / old price) and the seconds between the
-- two. A new rank alone does not count: most ranks move whenever a coin comes or goes. Anomalies are found
-- by comparing these figures with those of earlier runs. ORDER BY keeps the look-up one descent of the index
-- for each row (`compare`).
WITH incoming AS (
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
        CASE
            WHEN
                known.content_hash <> incoming.content_hash
                AND (
                    known.observed_at < incoming.observed_at
                    OR (known.observed_at = incoming.observed_at AND known.price_usd <> incoming.price_usd)
                )
                AND known.price_usd > 0
                AND incoming.price_usd > 0
                THEN ln(incoming.price_usd::float8) - ln(known.price_usd::float8)
        END AS move,
        extract(EPOCH FROM incoming.observed_at - known.observed_at)::float8 AS gap
    FROM incoming
    CROSS JOIN LATERAL (
        SELECT
            content_hash,
            observed_at,
            price_usd
        FROM unified_data
        WHERE source = $1 AND source_id = incoming.source_id
        ORDER BY source_id
    ) AS known
)
SELECT
    (
        SELECT array_agg(extract(EPOCH FROM $2 - observed_at)::float8)
        FROM incoming
        WHERE has_source_time
    ) AS ages,
    array_agg(move) FILTER (WHERE move IS NOT NULL) AS moves,
    array_agg(gap) FILTER (WHERE move IS NOT NULL) AS gaps
FROM compared;

-- name: save_rejects --
INSERT INTO rejects (run_id, source, reason, field, location, line, raw, setting)
SELECT
    $1,
    $2,
    rejected.reason,
    rejected.field,
    rejected.location,
    rejected.line,
    rejected.raw,
    rejected.setting
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[])
    AS rejected (reason, field, location, line, raw, setting);

-- name: count_rejects --
INSERT INTO reject_counts AS counted (run_id, source, location, field, reason, rejects)
SELECT $1, $2, rejected.location, rejected.field, rejected.reason, rejected.rejects
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) AS rejected (location, field, reason, rejects)
ON CONFLICT (run_id, source, location, field, reason) DO UPDATE
SET rejects = counted.rejects + excluded.rejects;

-- name: save_page --
-- Pages after the end of the list are deleted. A page that is saved once more, because it has turned out to
-- be the last one, keeps its validators: it may have none.
WITH deleted AS (
    DELETE FROM pages
    WHERE source = $1 AND number > $2 AND $8
)
INSERT INTO pages (
    source,
    {{ listed(PAGE) }}
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (source, number) DO UPDATE SET
    {{ overwritten(PAGE[1:-2]) }},
    etag = CASE WHEN pages.fetched_at = excluded.fetched_at THEN pages.etag ELSE excluded.etag END,
    last_modified = CASE
        WHEN pages.fetched_at = excluded.fetched_at THEN pages.last_modified
        ELSE excluded.last_modified
    END;

-- name: known_pages --
SELECT {{ listed(PAGE) }}
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

-- name: count_settled --
-- Moments that were counted as unchanged in their batches, and changed when the file was loaded to its end.
UPDATE run_sources
SET
    updated = updated + least($3, unchanged),
    corrected = corrected + least($3, unchanged),
    unchanged = unchanged - least($3, unchanged)
WHERE run_id = $1 AND source = $2;

-- name: count_forgotten --
-- The records that a forgotten file gave: those that are removed or replaced, and those that stay because
-- another file gives them, too.
UPDATE run_sources
SET
    fetched = fetched + $3 + $4,
    valid = valid + $3 + $4,
    updated = updated + $3,
    unchanged = unchanged + $4
WHERE run_id = $1 AND source = $2;

-- name: count_inserts --
-- Of rows that were removed, the number is negative.
INSERT INTO insert_counters AS counted (source, rows)
VALUES ($1, $2)
ON CONFLICT (source) DO UPDATE SET rows = counted.rows + excluded.rows;

-- name: increment_version --
-- Notifies every process that serves reads, here and on other hosts, of the new data version.
UPDATE instance
SET
    data_version = data_version + 1,
    counted_versions = counted_versions + 1,
    committed_version = data_version + 1,
    committed_at = clock_timestamp(),
    committed_by_run = (SELECT max(runs.id) FROM runs WHERE runs.status = 'running')
RETURNING pg_notify('kasparro_data', data_version::text);

-- name: confirm_version --
-- With Citus, the other nodes commit an instant after the coordinator. So a reader may have seen the new
-- version with rows of before. Another version, once all nodes have committed, makes all caches forget these
-- rows.
UPDATE instance
SET
    data_version = data_version + 1,
    counted_versions = counted_versions + 1,
    committed_version = data_version + 1
WHERE to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
RETURNING pg_notify('kasparro_data', data_version::text);

-- name: count_invalid_values --
INSERT INTO invalid_values AS counted (run_id, source, location, field, reason, records, samples)
SELECT $1, $2, invalid.location, invalid.field, invalid.reason, invalid.records, invalid.samples
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::json[])
    AS invalid (location, field, reason, records, samples)
ON CONFLICT (run_id, source, location, field, reason) DO UPDATE
SET records = counted.records + excluded.records;

-- name: known_coins --
-- The leading coins of other sources than $1.
SELECT
    symbol,
    name,
    source_id
FROM unified_data
WHERE
    source <> $1
    AND rank <= 1000
    AND symbol IS NOT NULL
    AND name IS NOT NULL
ORDER BY rank, source, source_id;
