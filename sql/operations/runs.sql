-- What a run writes about itself, and the locks of runs and of the leader (kasparro/store/runs.py,
-- kasparro/store/locks.py).

-- name: try_run --
-- One run at a time works on a database. The lock belongs to the session: it ends when the process dies, or
-- when the server ends the session because it was silent for its lease. No row: the session holds a lock of
-- another client already, and would get this one a second time.
SELECT pg_try_advisory_lock(hashtextextended('kasparro run', 0))
WHERE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid());

-- name: try_lead --
-- One process leads: its scheduler starts the runs.
SELECT pg_try_advisory_lock(hashtextextended('kasparro loop', 0))
WHERE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid());

-- name: has_leader --
-- Whether a process leads: a lock is two halves of its key in pg_locks.
SELECT EXISTS(
    SELECT FROM pg_locks
    WHERE
        locktype = 'advisory'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND objsubid = 1
        AND (classid::bigint << 32) | objid::bigint = hashtextextended('kasparro loop', 0)
);

-- name: try_history --
-- One process computes candles and thins the history.
SELECT pg_try_advisory_lock(hashtextextended('kasparro history', 0))
WHERE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid());

-- name: holds_lock --
-- Whether this session holds its lock. It is also the heartbeat of a session that does; the server ends a
-- session that was silent for its lease.
SELECT EXISTS(SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid());

-- name: release_locks --
-- A pooler keeps a session for a moment after its client has closed it.
SELECT pg_advisory_unlock_all();

-- name: terminate_stale_session --
-- An earlier session of this process ($1) may still exist after its connection was lost, and still hold the
-- lock.
SELECT pg_terminate_backend(pid, 2000)
FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND pid <> pg_backend_pid();

-- name: terminate_open_batches --
-- While we hold the run lock, open batches belong to dead runs: their process is stopped or cut off, and
-- would keep its rows locked for long. Only the fence of a batch takes this lock on this table.
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
-- Also if it is written already: the connection may have been lost after the commit and before its
-- confirmation.
WHERE run_id = $1 AND source = $2 AND status IN ('running', $3)
RETURNING fetched, valid, rejected;

-- name: save_calls --
UPDATE run_sources SET calls = $3
WHERE run_id = $1 AND source = $2;

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
-- Of the runs over all sources: an interrupted run, or one for another purpose, does not delay the next.
SELECT max(started_at)
FROM runs
WHERE status <> 'interrupted' AND trigger NOT IN ('replay', 'retry', 'forget');

-- name: unavailable_sources --
-- The sources among $1 whose newest run failed because the upstream sent nothing usable.
SELECT given.source
FROM unnest($1::text[]) AS given (source)
INNER JOIN LATERAL (
    SELECT upstream_unavailable
    FROM run_sources
    WHERE source = given.source AND status IN ('succeeded', 'partial', 'failed')
    ORDER BY run_id DESC
    LIMIT 1
) AS newest ON newest.upstream_unavailable;

-- name: count_call --
-- Counts one upstream call in its month, unless the month's budget ($3, null for none) is spent. No row:
-- spent.
INSERT INTO api_calls AS counted (source, month, calls)
VALUES ($1, $2, 1)
ON CONFLICT (source, month) DO UPDATE SET calls = counted.calls + 1
WHERE $3::bigint IS NULL OR counted.calls < $3
RETURNING calls;

-- name: uncount_call --
-- Takes back a call that was counted and not made.
UPDATE api_calls SET calls = calls - 1
WHERE source = $1 AND month = $2 AND calls > 0;

-- name: calls --
SELECT coalesce(sum(calls), 0) FROM api_calls WHERE source = $1 AND month = $2;

-- name: recent_source_runs --
-- The newest runs of a source that called its upstream or tried to, newest first.
SELECT
    finished_at,
    upstream_unavailable
FROM run_sources
WHERE source = $1 AND status IN ('succeeded', 'partial', 'failed') AND (calls > 0 OR upstream_unavailable)
ORDER BY run_id DESC
LIMIT $2;
