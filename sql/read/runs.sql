-- Reads runs, rejects and the state of the sources, for the API and the commands
-- (kasparro/store/run_queries.py).

-- name: page --
-- The ids of a page of runs, newest first, and the total. One more than the page holds is read, to know
-- whether another page follows.
SELECT
    (
        SELECT count(*)
        FROM runs
        WHERE
            true
            {% if status %}
            AND status = :status
            {% endif %}
    ) AS total,
    ARRAY(
        SELECT id
        FROM runs
        WHERE
            true
            {% if after %}
            AND id < :last_id
            {% endif %}
            {% if status %}
            AND status = :status
            {% endif %}
        ORDER BY id DESC
        LIMIT :limit + 1
        {% if not after %}
        OFFSET :offset
        {% endif %}
    ) AS ids;

-- name: runs --
-- Whole runs, one row for each of their sources. The duration of a running one ends now. Rejected files
-- come first among the counts (kasparro/model/record.py, FILE_REJECTED): a file matters more than a row.
SELECT
    runs.id,
    runs.trigger,
    runs.status,
    runs.started_at,
    runs.finished_at,
    extract(
        EPOCH FROM
        coalesce(runs.finished_at, CASE runs.status WHEN 'running' THEN now() END) - runs.started_at
    )::float8 AS duration_s,
    runs.error,
    run_sources.source,
    run_sources.status AS source_status,
    run_sources.started_at AS source_started_at,
    run_sources.finished_at AS source_finished_at,
    extract(
        EPOCH FROM
        coalesce(run_sources.finished_at, CASE run_sources.status WHEN 'running' THEN now() END)
        - run_sources.started_at
    )::float8 AS source_duration_s,
    run_sources.fetched,
    run_sources.valid,
    run_sources.rejected,
    run_sources.inserted,
    run_sources.updated,
    run_sources.unchanged,
    run_sources.corrected,
    run_sources.calls,
    run_sources.note,
    stored.payloads,
    stored.payload_bytes,
    run_sources.error AS source_error,
    coalesce(run_sources.drift, '[]') AS drift,
    coalesce(run_sources.anomalies, '[]') AS anomalies,
    run_sources.metrics,
    (
        SELECT coalesce(json_agg(row_to_json(most)), '[]'::json)::text
        FROM (
            SELECT
                nullif(reject_counts.location, '') AS location,
                nullif(reject_counts.field, '') AS field,
                reject_counts.reason,
                reject_counts.rejects
            FROM reject_counts
            WHERE reject_counts.run_id = run_sources.run_id AND reject_counts.source = run_sources.source
            ORDER BY
                (reject_counts.reason = 'file rejected') DESC,
                reject_counts.rejects DESC,
                reject_counts.location ASC,
                reject_counts.field ASC,
                reject_counts.reason ASC
            LIMIT 50
        ) AS most
    ) AS rejects,
    (
        SELECT coalesce(json_agg(row_to_json(most)), '[]'::json)::text
        FROM (
            SELECT
                nullif(invalid_values.location, '') AS location,
                invalid_values.field,
                invalid_values.reason,
                invalid_values.records,
                invalid_values.samples
            FROM invalid_values
            WHERE invalid_values.run_id = run_sources.run_id AND invalid_values.source = run_sources.source
            ORDER BY
                invalid_values.records DESC,
                invalid_values.location ASC,
                invalid_values.field ASC,
                invalid_values.reason ASC
            LIMIT 50
        ) AS most
    ) AS invalid_fields,
    (
        SELECT coalesce(json_agg(row_to_json(rejected_file)), '[]'::json)::text
        FROM (
            SELECT
                rejects.location AS file,
                rejects.reason,
                rejects.setting
            FROM rejects
            WHERE
                rejects.run_id = run_sources.run_id
                AND rejects.source = run_sources.source
                AND rejects.location IS NOT NULL
                AND rejects.line IS NULL
            ORDER BY rejects.id
            LIMIT 50
        ) AS rejected_file
    ) AS rejected_files
FROM runs
LEFT JOIN run_sources ON runs.id = run_sources.run_id
LEFT JOIN LATERAL (
    SELECT
        count(*) AS payloads,
        coalesce(sum(payloads.compressed_bytes), 0) AS payload_bytes
    FROM payloads
    WHERE payloads.run_id = run_sources.run_id AND payloads.source = run_sources.source
) AS stored ON true
WHERE runs.id = ANY(:ids)
ORDER BY runs.id DESC, run_sources.source ASC;

-- name: rejects --
-- A page of a run's rejects in their order; no row if there is no such run.
SELECT
    (
        SELECT count(*)
        FROM rejects
        WHERE rejects.run_id = runs.id
    ) AS total,
    reject.id,
    reject.source,
    reject.reason,
    reject.setting,
    reject.field,
    reject.location,
    reject.line,
    reject.raw
FROM runs
LEFT JOIN LATERAL (
    SELECT *
    FROM rejects
    WHERE
        run_id = runs.id
        {% if after %}
        AND id > :last_id
        {% endif %}
    ORDER BY id
    LIMIT :limit + 1
    {% if not after %}
    OFFSET :offset
    {% endif %}
) AS reject ON true
WHERE runs.id = :run_id
ORDER BY reject.id;

-- name: totals --
-- All runs in figures. Runs that read no source, such as replays, are no successes or failures, here and in
-- `health`.
SELECT
    (SELECT id FROM runs ORDER BY id DESC LIMIT 1) AS last_run,
    EXISTS(SELECT FROM runs WHERE status = 'running') AS running,
    (SELECT count(*) FROM runs) AS runs,
    (
        SELECT max(finished_at)
        FROM runs
        WHERE status = 'succeeded' AND trigger NOT IN ('replay', 'forget')
    ) AS last_success_at,
    (
        SELECT max(finished_at)
        FROM runs
        WHERE status IN ('partial', 'failed', 'interrupted') AND trigger NOT IN ('replay', 'forget')
    ) AS last_failure_at;

-- name: rows_by_source --
SELECT
    source,
    count(*) AS rows
FROM unified_data
GROUP BY source;

-- name: ended_by_status --
-- The number of runs that ended with each status, and their total duration.
SELECT
    status,
    count(*) AS runs,
    coalesce(sum(extract(EPOCH FROM finished_at - started_at)), 0)::float8 AS seconds
FROM runs
WHERE status <> 'running'
GROUP BY status;

-- name: records_by_source --
-- The records of each source by outcome, over all runs.
SELECT
    source,
    sum(fetched)::bigint AS fetched,
    sum(valid)::bigint AS valid,
    sum(rejected)::bigint AS rejected,
    sum(inserted)::bigint AS inserted,
    sum(updated)::bigint AS updated,
    sum(unchanged)::bigint AS unchanged
FROM run_sources
GROUP BY source;

-- name: calls_in_month --
SELECT
    source,
    calls
FROM api_calls
WHERE month = :month;

-- name: drift --
-- The drift that the newest assessed run of each source found.
SELECT
    given.source,
    newest.drift
FROM unnest(:sources::text[]) WITH ORDINALITY AS given (source, position)
INNER JOIN LATERAL (
    SELECT drift
    FROM run_sources
    WHERE source = given.source AND drift IS NOT NULL
    ORDER BY run_id DESC
    LIMIT 1
) AS newest ON true
ORDER BY given.position;

-- name: health --
-- The state of each source: its newest finished run, its newest success and the start times of those before
-- it, the time without a success (since its first run, if there was none), the anomalies of its newest
-- assessed run, and the coins that it lists but that three crawls in a row have rejected. Runs are ordered by
-- id, because a clock may have been set back.
SELECT
    given.source,
    newest.status,
    newest.error,
    success.finished_at AS last_success_at,
    extract(EPOCH FROM now() - success.finished_at)::float8 AS age_s,
    extract(EPOCH FROM now() - coalesce(success.finished_at, earliest.started_at))::float8 AS without_s,
    ARRAY(
        SELECT extract(EPOCH FROM started_at)::float8
        FROM run_sources
        WHERE source = given.source AND status = 'succeeded' AND NOT EXISTS (
            SELECT FROM runs
            WHERE runs.id = run_sources.run_id AND runs.trigger IN ('replay', 'forget')
        )
        ORDER BY run_id DESC
        LIMIT :rhythm
    ) AS starts,
    coalesce(assessed.anomalies, '[]') AS anomalies,
    rejected.coins AS rejected_coins,
    rejected.first AS first_rejected_coins
FROM unnest(:sources::text[]) WITH ORDINALITY AS given (source, position)
LEFT JOIN LATERAL (
    SELECT
        status,
        error
    FROM run_sources
    WHERE source = given.source AND status <> 'running' AND NOT EXISTS (
        SELECT FROM runs
        WHERE runs.id = run_sources.run_id AND runs.trigger IN ('replay', 'forget')
    )
    ORDER BY run_id DESC
    LIMIT 1
) AS newest ON true
LEFT JOIN LATERAL (
    SELECT finished_at
    FROM run_sources
    WHERE source = given.source AND status = 'succeeded' AND NOT EXISTS (
        SELECT FROM runs
        WHERE runs.id = run_sources.run_id AND runs.trigger IN ('replay', 'forget')
    )
    ORDER BY run_id DESC
    LIMIT 1
) AS success ON true
LEFT JOIN LATERAL (
    SELECT started_at
    FROM run_sources
    WHERE source = given.source
    ORDER BY run_id
    LIMIT 1
) AS earliest ON true
LEFT JOIN LATERAL (
    SELECT anomalies
    FROM run_sources
    WHERE source = given.source AND metrics IS NOT NULL
    ORDER BY run_id DESC
    LIMIT 1
) AS assessed ON true
LEFT JOIN LATERAL (
    SELECT
        count(*) AS coins,
        array_agg(numbered.coin ORDER BY numbered.position) FILTER (WHERE numbered.position <= 3) AS first
    FROM (
        SELECT
            format('%s (%s)', source_id, reject_reason) AS coin,
            row_number() OVER (ORDER BY rejected_runs DESC, source_id ASC) AS position
        FROM listings
        WHERE source = given.source AND rejected_runs >= 3 AND missing_since IS NULL
    ) AS numbered
) AS rejected ON true
ORDER BY given.position;
