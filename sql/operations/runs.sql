-- What a run writes about itself, and the locks that make it single.

-- name: try_run --
-- Only one run works on a database at a time. The lock is the session's: it goes when the process dies, and
-- when the server ends the session of one that says nothing any more.
SELECT pg_try_advisory_lock(hashtextextended('kasparro run', 0));

-- name: try_lead --
-- Of the processes that could run the loop, one does.
SELECT pg_try_advisory_lock(hashtextextended('kasparro loop', 0));

-- name: beat --
-- Shows the server that the session's holder lives; it ends one that was silent for its lease.
SELECT true;

-- name: terminate_stale_session --
-- A session of ours ($1) that we lost sight of may live on, and would hold the lock against us.
SELECT pg_terminate_backend(pid, 2000)
FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND pid <> pg_backend_pid();

-- name: terminate_open_batches --
-- Batches that are still open while we hold the run lock are of dead runs: of a process that stands still or
-- is cut off, which would keep its rows locked for long. Only a batch's fence locks rows of this table so.
SELECT pg_terminate_backend(locks.pid, 2000)
FROM pg_locks AS locks
INNER JOIN pg_stat_activity AS sessions ON locks.pid = sessions.pid
WHERE
    locks.locktype = 'relation'
    AND locks.relation = 'run_sources'::regclass
    AND locks.mode = 'RowShareLock'
    AND locks.granted
    AND sessions.datname = current_database()
    AND sessions.usename = current_user
    AND sessions.application_name = 'kasparro'
    AND sessions.pid <> pg_backend_pid();

-- name: any_running --
SELECT EXISTS(SELECT FROM runs WHERE status = 'running');

-- name: interrupt_sources --
-- Runs that the holder of the run lock finds running are dead. Their sources come first: a batch that is
-- still committing holds that row, so this waits for it, and no later batch passes its fence.
UPDATE run_sources
SET
    status = 'interrupted',
    finished_at = $1,
    error = 'the process of this run ended'
WHERE status = 'running';

-- name: interrupt_runs --
UPDATE runs
SET
    status = 'interrupted',
    finished_at = $1,
    error = 'the process of this run ended'
WHERE status = 'running'
RETURNING id;

-- name: start_run --
INSERT INTO runs (trigger, status, started_at) VALUES ($1, 'running', $2)
RETURNING id;

-- name: start_source --
INSERT INTO run_sources (run_id, source, status, started_at) VALUES ($1, $2, 'running', $3);

-- name: finish_source --
UPDATE run_sources
SET
    status = $3,
    finished_at = $4,
    error = $5,
    calls = $6,
    note = $7,
    upstream_unavailable = $8
-- Also where it is written already: a line that was cut in mid-commit may have hidden that it went through.
WHERE run_id = $1 AND source = $2 AND status IN ('running', $3)
RETURNING fetched, valid, rejected;

-- name: finish_run --
UPDATE runs
SET
    status = $2,
    finished_at = $3,
    error = $4
WHERE id = $1 AND status IN ('running', $2)
RETURNING id;

-- name: abandon_sources --
UPDATE run_sources
SET
    status = 'interrupted',
    finished_at = $2,
    error = $3
WHERE run_id = $1 AND status = 'running';

-- name: counts --
SELECT fetched, valid, rejected, inserted, updated, unchanged
FROM run_sources
WHERE run_id = $1 AND source = $2;

-- name: last_start --
-- Of the runs that worked through all sources; one cut short does not put off the next, nor does a replay or
-- a retry.
SELECT max(started_at) FROM runs WHERE status <> 'interrupted' AND trigger NOT IN ('replay', 'retry');

-- name: unavailable_sources --
-- Of these sources those whose newest pass failed because the upstream gave nothing to use.
SELECT asked.source
FROM unnest($1::text[]) AS asked (source)
INNER JOIN LATERAL (
    SELECT upstream_unavailable
    FROM run_sources
    WHERE source = asked.source AND status IN ('succeeded', 'partial', 'failed')
    ORDER BY run_id DESC
    LIMIT 1
) AS newest ON newest.upstream_unavailable;

-- name: count_call --
-- Books one call upstream in its month, unless the month's budget ($3, null for none) is spent.
INSERT INTO api_calls AS booked (source, month, calls)
VALUES ($1, $2, 1)
ON CONFLICT (source, month) DO UPDATE SET calls = booked.calls + 1
WHERE $3::bigint IS NULL OR booked.calls < $3
RETURNING calls;

-- name: uncount_call --
-- Takes a booked call back.
UPDATE api_calls SET calls = calls - 1
WHERE source = $1 AND month = $2 AND calls > 0;

-- name: calls --
SELECT coalesce(sum(calls), 0) FROM api_calls WHERE source = $1 AND month = $2;

-- name: recent_source_runs --
-- How the source fared in its newest passes that asked its upstream, or tried to, the newest first.
SELECT
    finished_at,
    upstream_unavailable
FROM run_sources
WHERE source = $1 AND status IN ('succeeded', 'partial', 'failed') AND (calls > 0 OR upstream_unavailable)
ORDER BY run_id DESC
LIMIT $2;
