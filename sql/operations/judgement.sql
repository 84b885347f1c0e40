-- What a source's passes are judged by, and what they came to.

-- name: profile --
SELECT profile
FROM source_profiles
WHERE source = $1;

-- name: past --
-- The newest passes that were judged, newest first.
SELECT
    figures,
    anomalies
FROM run_sources
WHERE source = $1 AND figures IS NOT NULL AND run_id <> $2
ORDER BY run_id DESC
LIMIT $3;

-- name: judge_source --
UPDATE run_sources
SET
    figures = $3,
    drift = $4,
    anomalies = $5
WHERE run_id = $1 AND source = $2;

-- name: remember --
INSERT INTO source_profiles (source, run_id, profile, updated_at)
VALUES ($1, $2, $3, $4)
ON CONFLICT (source) DO UPDATE SET
    run_id = excluded.run_id,
    profile = excluded.profile,
    updated_at = excluded.updated_at;
