-- The assessment of source runs: profiles, metrics, drift and anomalies (kasparro/store/runs.py).

-- name: profile --
SELECT profile
FROM source_profiles
WHERE source = $1;

-- name: newest_assessment --
SELECT
    metrics,
    anomalies
FROM run_sources
WHERE source = $1 AND metrics IS NOT NULL AND run_id <> $2
ORDER BY run_id DESC
LIMIT 1;

-- name: baseline --
-- The newest assessed runs of a source without anomalies, newest first. A run with an anomaly never becomes
-- part of what is usual.
SELECT metrics
FROM run_sources
WHERE source = $1 AND metrics IS NOT NULL AND run_id <> $2 AND anomalies::text = '[]'
ORDER BY run_id DESC
LIMIT $3;

-- name: save_assessment --
UPDATE run_sources
SET
    metrics = $3,
    drift = $4,
    anomalies = $5
WHERE run_id = $1 AND source = $2;

-- name: save_profile --
INSERT INTO source_profiles (source, run_id, profile, updated_at)
VALUES ($1, $2, $3, $4)
ON CONFLICT (source) DO UPDATE SET
    run_id = excluded.run_id,
    profile = excluded.profile,
    updated_at = excluded.updated_at;
