-- The row about this database (kasparro/store/instance.py, kasparro/store/cursors.py).

-- name: claim --
-- Marks the database as one for simulated ($1) or real data, unless it holds data of the other kind. True if
-- it is, or now becomes, of that kind. The row is written only if it changes, because a batch that is at work
-- holds its lock.
WITH changed AS (
    UPDATE instance
    SET demo = $1
    WHERE demo <> $1 AND NOT EXISTS (SELECT FROM runs)
    RETURNING true
)
SELECT EXISTS (SELECT FROM changed) OR EXISTS (SELECT FROM instance WHERE demo = $1);

-- name: cursor_key --
-- Signs the cursors: the same on every host and after a restart.
SELECT cursor_key FROM instance;

-- name: is_demo --
SELECT demo FROM instance;

-- name: new_cursor_key --
-- An export or a backup may be older than what clients have seen, and its data versions will be given again.
-- So cursors and streams of before must not continue.
UPDATE instance SET cursor_key = gen_random_uuid()::text || gen_random_uuid()::text;
