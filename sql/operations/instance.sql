-- name: claim --
-- Real or invented figures ($1), once and for all: true where the database is, or now becomes, the kind. The
-- row is written only where it changes: a batch of a run at work holds its lock.
WITH changed AS (
    UPDATE instance
    SET demo = $1
    WHERE demo <> $1 AND NOT EXISTS (SELECT FROM runs)
    RETURNING true
)
SELECT EXISTS (SELECT FROM changed) OR EXISTS (SELECT FROM instance WHERE demo = $1);
