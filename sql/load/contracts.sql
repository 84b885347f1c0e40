-- Contract lists: which one is due, and what a new one changes (kasparro/store/contracts.py).

-- name: add_lists --
INSERT INTO contract_lists (source, path)
SELECT
    $1,
    path
FROM unnest($2::text[]) AS given (path)
ON CONFLICT (source, path) DO NOTHING;

-- name: drop_lists --
-- Drops the lists that the source no longer names, unless it lacks half of them at once.
DELETE FROM contract_lists
WHERE
    source = $1
    AND path <> ALL($2::text[])
    AND (
        SELECT count(*) FILTER (WHERE path = ANY($2)) * 2 > count(*)
        FROM contract_lists
        WHERE source = $1
    );

-- name: requested --
-- How many lists were requested since $2, the beginning of the day, and before $3, its end.
SELECT count(*)
FROM contract_lists
WHERE source = $1 AND attempted_at >= $2 AND attempted_at < $3;

-- name: due_list --
-- The list requested longest ago of those that were not fetched from $2 to $3, the day. None while the source
-- rests, because a request since $4 failed.
SELECT path
FROM contract_lists
WHERE
    source = $1
    AND NOT coalesce(fetched_at >= $2 AND fetched_at < $3, false)
    AND NOT EXISTS (
        SELECT
        FROM contract_lists AS failed
        WHERE
            failed.source = $1
            AND failed.attempted_at > $4
            AND failed.attempted_at <= $5
            AND coalesce(failed.fetched_at < failed.attempted_at, true)
    )
ORDER BY attempted_at NULLS FIRST, path
LIMIT 1;

-- name: note_request --
UPDATE contract_lists SET attempted_at = $3
WHERE source = $1 AND path = $2;

-- name: lock_list --
-- One process at a time loads a list. No row: a newer one was loaded. One from the future ($4: now) was dated
-- by a wrong clock.
SELECT short_since
FROM contract_lists
WHERE source = $1 AND path = $2 AND coalesce(fetched_at <= $3 OR fetched_at > $4, true)
FOR UPDATE;

-- name: staging --
CREATE TEMPORARY TABLE IF NOT EXISTS staged_contracts (
    source_id text COLLATE "C" NOT NULL,
    platform text COLLATE "C" NOT NULL,
    address text COLLATE "C" NOT NULL
) ON COMMIT DELETE ROWS;

-- name: add_contracts --
WITH added AS (
    INSERT INTO contracts (source, source_id, platform, address)
    SELECT DISTINCT
        $1,
        source_id,
        platform,
        address
    FROM staged_contracts
    ON CONFLICT (source, source_id, platform, address) DO NOTHING
    RETURNING 1
)

SELECT count(*) FROM added;

-- name: compare --
-- How many contracts of this source are stored, on one platform ($2) or on all (null), and how many of them
-- the list lacks.
SELECT
    count(*) AS stored,
    count(*) FILTER (
        WHERE NOT EXISTS (
            SELECT FROM staged_contracts AS staged
            WHERE
                staged.source_id = contracts.source_id
                AND staged.platform = contracts.platform
                AND staged.address = contracts.address
        )
    ) AS missing
FROM contracts
WHERE source = $1 AND ($2::text IS NULL OR platform = $2);

-- name: remove_contracts --
DELETE FROM contracts
WHERE
    source = $1
    AND ($2::text IS NULL OR platform = $2)
    AND NOT EXISTS (
        SELECT FROM staged_contracts AS staged
        WHERE
            staged.source_id = contracts.source_id
            AND staged.platform = contracts.platform
            AND staged.address = contracts.address
    );

-- name: note_list --
UPDATE contract_lists
SET
    fetched_at = $3,
    short_since = $4,
    changed_at = coalesce($5, changed_at)
WHERE source = $1 AND path = $2;

-- name: changed_at --
SELECT max(changed_at) FROM contract_lists;
