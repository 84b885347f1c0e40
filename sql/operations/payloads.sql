-- Payloads and the raw text of rejects: saved, read again, trimmed (kasparro/store/payloads.py).

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
-- For each source of a run: the calls it made, the payloads that are kept, and those that a replay can read.
SELECT
    run_sources.source,
    run_sources.calls,
    count(payloads.id) AS stored,
    count(payloads.id) FILTER (WHERE payloads.status = 304) AS unchanged,
    coalesce(
        array_agg(payloads.id ORDER BY payloads.id)
        FILTER (WHERE payloads.status = 200 AND payloads.complete),
        '{}'
    ) AS readable,
    -- The caller holds the run lock or will take it: a run without an end ends now.
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
-- Deletes the payloads of whole runs, so that those of a run are all there or all gone: of the runs before
-- $1, and of the oldest runs, until the rest has at most $2 bytes.
WITH per_run AS (
    SELECT
        run_id,
        max(received_at) AS newest,
        sum(sum(compressed_bytes)) OVER (ORDER BY run_id DESC) AS bytes_so_far
    FROM payloads
    GROUP BY run_id
),
trimmed AS (
    DELETE FROM payloads
    USING per_run
    WHERE payloads.run_id = per_run.run_id AND (per_run.newest < $1 OR per_run.bytes_so_far > $2::bigint)
    RETURNING payloads.compressed_bytes
)
SELECT
    count(*) AS payloads,
    coalesce(sum(compressed_bytes), 0) AS bytes
FROM trimmed;

-- name: trim_rejects --
-- Deletes the rejects of runs before $1; their counts (reject_counts) stay.
DELETE FROM rejects
WHERE
    run_id <= (
        SELECT id
        FROM runs
        WHERE started_at < $1
        ORDER BY id DESC
        LIMIT 1
    );
