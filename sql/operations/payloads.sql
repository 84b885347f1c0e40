-- Raw payloads and the rejects' raw text: kept, read again, trimmed.

-- name: save_payload --
INSERT INTO payloads (
    run_id,
    source,
    path,
    parameters,
    received_at,
    status,
    headers,
    complete,
    raw_bytes,
    compressed_bytes,
    body,
    items_limit
)
VALUES ($1, $2, $3, $4::text::jsonb, $5, $6, $7::text::jsonb, $8, $9, $10, $11, $12);

-- name: run_payloads --
-- A run's sources: how many calls each made, how many of these are kept, and which can be read again.
SELECT
    run_sources.source,
    run_sources.calls,
    count(payloads.id) AS kept,
    count(payloads.id) FILTER (WHERE payloads.status = 304) AS unchanged,
    coalesce(
        array_agg(payloads.id ORDER BY payloads.id)
        FILTER (WHERE payloads.status = 200 AND payloads.complete),
        '{}'
    ) AS good,
    -- Whoever asks holds the run lock or is about to: a run without an end has ended now.
    coalesce(runs.finished_at, now()) AS ended_at
FROM runs
INNER JOIN run_sources ON runs.id = run_sources.run_id
LEFT JOIN payloads ON runs.id = payloads.run_id AND run_sources.source = payloads.source
WHERE runs.id = $1
GROUP BY run_sources.source, run_sources.calls, runs.finished_at
ORDER BY run_sources.source;

-- name: known_run --
SELECT EXISTS(SELECT FROM runs WHERE id = $1);

-- name: payload --
SELECT
    path,
    parameters,
    received_at,
    status,
    headers,
    complete,
    body,
    items_limit
FROM payloads
WHERE id = $1;

-- name: trim_payloads --
-- Whole runs at a time, so that what a run was told is there or is not: those older than $1, and the oldest
-- of those that together exceed $2 bytes.
WITH told AS (
    SELECT
        run_id,
        max(received_at) AS newest,
        sum(sum(compressed_bytes)) OVER (ORDER BY run_id DESC) AS bytes_so_far
    FROM payloads
    GROUP BY run_id
),
trimmed AS (
    DELETE FROM payloads
    USING told
    WHERE payloads.run_id = told.run_id AND (told.newest < $1 OR told.bytes_so_far > $2::bigint)
    RETURNING payloads.compressed_bytes
)
SELECT
    count(*) AS payloads,
    coalesce(sum(compressed_bytes), 0) AS bytes
FROM trimmed;

-- name: trim_rejects --
-- Their counts (reject_counts) stay.
DELETE FROM rejects
WHERE
    run_id <= (
        SELECT id
        FROM runs
        WHERE started_at < $1
        ORDER BY id DESC
        LIMIT 1
    );
