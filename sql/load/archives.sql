-- What is known of archives: their progress, the records that they share, and how far two of them disagree
-- (kasparro/store/archive_files.py).
{% from "macros/columns.sql" import CONTENT, listed, overwritten %}
{% set FILE = ["key", "name", "position", "complete", "bytes", "interpretation", "content", "coin"] %}
{% set LACKS = ["lacks_symbol", "lacks_name", "lacks_rank"] %}
{% set RECORD = ["source", "source_id", "observed_at"] + CONTENT + ["recorded_at", "content_hash"] + LACKS %}

-- name: known_files --
-- The files with this name or content.
SELECT
    id,
    {{ listed(FILE) }},
    problem,
    forgotten_at IS NOT NULL AS forgotten
FROM archive_files
WHERE source = $1 AND (name = $2 OR content = $3)
ORDER BY id;

-- name: named_file --
-- The newest file with this name that was not forgotten.
SELECT
    id,
    {{ listed(FILE) }},
    problem,
    false AS forgotten
FROM archive_files
WHERE source = $1 AND name = $2 AND forgotten_at IS NULL
ORDER BY updated_at DESC, id DESC
LIMIT 1;

-- name: all_files --
SELECT
    id,
    {{ listed(FILE) }},
    problem,
    forgotten_at IS NOT NULL AS forgotten,
    updated_at,
    quoted_in
FROM archive_files
WHERE source = $1
ORDER BY name, id;

-- name: continue_file --
-- The content of a file has changed, and it is read as before: its records stay. $5 says that it has only
-- grown; otherwise it is read from its start.
UPDATE archive_files
SET
    key = $3,
    content = $4,
    position = CASE WHEN $5 THEN position ELSE 0 END,
    complete = false,
    bytes = NULL,
    problem = NULL
WHERE source = $1 AND id = $2 AND key <> $3;

-- name: reopen_files --
-- Files that are about to be replaced lose records to the new one, so they are no longer loaded.
UPDATE archive_files
SET
    complete = false,
    position = 0,
    bytes = NULL
WHERE source = $1 AND id = ANY($2::integer[]) AND complete;

-- name: save_file --
-- The name decides between files, so the moments that a renamed file shares are settled again. Of a known
-- file, the currencies are left to `save_currencies`. Returns whether the file has moments to settle when it
-- is loaded to its end, besides those of `has_provisional`.
INSERT INTO archive_files AS known (
    source,
    {{ listed(FILE) }},
    updated_at,
    loading_since,
    quoted_in
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11::text[])
ON CONFLICT (source, key) WHERE forgotten_at IS NULL DO UPDATE SET
    {{ overwritten(FILE[1:]) }},
    updated_at = excluded.updated_at,
    loading_since = CASE WHEN known.position = 0 THEN excluded.updated_at ELSE known.loading_since END,
    unsettled_since = CASE
        WHEN known.name <> excluded.name THEN '-infinity'::timestamptz
        ELSE known.unsettled_since
    END
RETURNING
    id,
    loading_since,
    unsettled_since IS NOT NULL AS unsettled,
    quoted_in;

-- name: save_currencies --
UPDATE archive_files SET quoted_in = $2::text[] WHERE id = $1;

-- name: has_provisional --
-- Whether a file has moments that were its newest ones, which are to be settled once it has later ones.
SELECT EXISTS(SELECT 1 FROM shared_records WHERE file_id = $1 AND provisional);

-- name: save_bounds --
UPDATE archive_files
SET
    first_observed_at = least(first_observed_at, $2),
    last_observed_at = greatest(last_observed_at, $3)
WHERE id = $1;

-- name: rival_prices --
-- Moments for which the file ($2) has several prices, in this batch or since it is being read ($3). Prices
-- that differ by no more than the share $4 count as one price that was rounded.
WITH priced AS (
    SELECT
        staged_keys.source_id,
        staged_keys.observed_at,
        staged_contents.price_usd
    FROM staged_keys
    INNER JOIN staged_contents ON staged_keys.position = staged_contents.position
    UNION ALL
    SELECT
        changes.source_id,
        changes.observed_at,
        known.price_usd
    FROM staged_changes AS changes
    CROSS JOIN LATERAL (
        SELECT
            price_usd,
            file_id,
            recorded_at
        FROM unified_history
        WHERE source = $1 AND source_id = changes.source_id AND observed_at = changes.observed_at
        ORDER BY observed_at
    ) AS known
    WHERE changes.corrects AND known.file_id = $2 AND known.recorded_at >= $3
    UNION ALL
    SELECT
        changes.source_id,
        changes.observed_at,
        shared.price_usd
    FROM staged_changes AS changes
    INNER JOIN shared_records AS shared
        ON changes.source_id = shared.source_id AND changes.observed_at = shared.observed_at
    WHERE changes.shares AND shared.source = $1 AND shared.file_id = $2 AND shared.recorded_at >= $3
)
SELECT
    source_id,
    observed_at,
    min(price_usd)::text AS lowest,
    max(price_usd)::text AS highest,
    count(*) OVER () AS moments
FROM priced
GROUP BY source_id, observed_at
HAVING max(price_usd) - min(price_usd) > max(price_usd) * $4::numeric
ORDER BY observed_at, source_id
LIMIT 1;

-- name: note_unsettled --
UPDATE archive_files SET unsettled_since = least(unsettled_since, $2) WHERE id = $1;

-- name: share_known --
-- Of the moments that this file gives as well, what the other file gave.
INSERT INTO shared_records (
    {{ listed(RECORD) }},
    file_id,
    provisional
)
SELECT
    {{ listed(RECORD, "known.") }},
    known.file_id,
    false
FROM staged_changes AS changes
CROSS JOIN LATERAL (
    SELECT *
    FROM unified_history
    WHERE source = $1 AND source_id = changes.source_id AND observed_at = changes.observed_at
    ORDER BY observed_at
) AS known
WHERE changes.shares AND known.file_id <> 0
ON CONFLICT (source, source_id, observed_at, file_id) DO NOTHING;

-- name: share_staged --
-- And what this file gives.
INSERT INTO shared_records AS shared (
    source,
    source_id,
    observed_at,
    {{ listed(CONTENT) }},
    recorded_at,
    content_hash,
    {{ listed(LACKS) }},
    file_id,
    provisional
)
SELECT
    $1,
    changes.source_id,
    changes.observed_at,
    {{ listed(CONTENT, "staged.") }},
    $2,
    changes.content_hash,
    CASE WHEN 'symbol' = ANY($3::text[]) THEN true END,
    CASE WHEN 'name' = ANY($3) THEN true END,
    CASE WHEN 'rank' = ANY($3) THEN true END,
    $4,
    false
FROM staged_changes AS changes
INNER JOIN staged_contents AS staged ON changes.position = staged.position
WHERE changes.shares
ON CONFLICT (source, source_id, observed_at, file_id) DO UPDATE SET
    {{ overwritten(CONTENT + ["recorded_at", "content_hash"] + LACKS) }};

-- name: delete_files --
DELETE FROM archive_files
WHERE source = $1 AND id = ANY($2::integer[]);

-- name: delete_forgotten --
-- A file that is loaded is not forgotten, and an earlier version of it need not be remembered.
DELETE FROM archive_files
WHERE source = $1 AND name = $2 AND forgotten_at IS NOT NULL;

-- name: forget_files --
UPDATE archive_files
SET
    forgotten_at = $3,
    position = 0,
    complete = false,
    bytes = NULL,
    problem = NULL,
    first_observed_at = NULL,
    last_observed_at = NULL
WHERE source = $1 AND id = ANY($2::integer[]);

-- name: reject_file --
UPDATE archive_files
SET
    problem = $3,
    position = 0,
    complete = false,
    bytes = NULL,
    first_observed_at = NULL,
    last_observed_at = NULL
WHERE source = $1 AND id = $2;

-- name: delete_disagreements --
DELETE FROM file_disagreements
WHERE source = $1 AND (file_id = ANY($2::integer[]) OR other_id = ANY($2));

-- name: find_disagreements --
-- The files whose prices differ from this file's by more than 1 % at a third or more of the moments that both
-- give, and at three at least. Prices of two exchanges differ so at up to a quarter of the days; those of two
-- coins, or a day apart, at more than 40 %. Newest records do not count, because they may be unfinished.
INSERT INTO file_disagreements (source, source_id, file_id, other_id, moments, differing)
SELECT
    $1,
    mine.source_id,
    least(mine.file_id, other.file_id),
    greatest(mine.file_id, other.file_id),
    count(*),
    count(*) FILTER (
        WHERE abs(mine.price_usd - other.price_usd) > 0.01 * greatest(mine.price_usd, other.price_usd)
    )
FROM shared_records AS mine
INNER JOIN shared_records AS other
    ON
        mine.source = other.source
        AND mine.source_id = other.source_id
        AND mine.observed_at = other.observed_at
        AND mine.file_id <> other.file_id
WHERE
    mine.source = $1
    AND mine.file_id = $2
    AND NOT mine.provisional
    AND NOT other.provisional
    AND mine.price_usd IS NOT NULL
    AND other.price_usd IS NOT NULL
GROUP BY mine.source_id, mine.file_id, other.file_id
HAVING
    count(*) FILTER (
        WHERE abs(mine.price_usd - other.price_usd) > 0.01 * greatest(mine.price_usd, other.price_usd)
    ) >= greatest(3, count(*) / 3.0);

-- name: disagreements --
SELECT
    file.name AS file,
    other.name AS other,
    found.source_id,
    found.moments,
    found.differing
FROM file_disagreements AS found
INNER JOIN archive_files AS file ON found.file_id = file.id
INNER JOIN archive_files AS other ON found.other_id = other.id
WHERE found.source = $1
ORDER BY file.name, other.name, found.source_id;

-- name: file_records --
-- How many records each file gives, of how many coins, and of which time.
SELECT
    file_id,
    sum(records)::bigint AS records,
    count(*) AS coins,
    min(source_id) AS coin,
    min(first_observed_at) AS first_observed_at,
    max(last_observed_at) AS last_observed_at
FROM (
    SELECT
        file_id,
        source_id,
        count(*) + coalesce(sum(thinned_count), 0) AS records,
        min(observed_at) AS first_observed_at,
        max(observed_at) AS last_observed_at
    FROM (
        SELECT
            file_id,
            source_id,
            observed_at,
            thinned_count
        FROM unified_history
        WHERE source = $1 AND file_id <> 0
        UNION ALL
        SELECT
            shared.file_id,
            shared.source_id,
            shared.observed_at,
            NULL AS thinned_count
        FROM shared_records AS shared
        LEFT JOIN unified_history AS history
            ON
                shared.source = history.source
                AND shared.source_id = history.source_id
                AND shared.observed_at = history.observed_at
                AND shared.file_id = history.file_id
        WHERE shared.source = $1 AND history.file_id IS NULL
    ) AS given
    GROUP BY file_id, source_id
) AS by_coin
GROUP BY file_id;
