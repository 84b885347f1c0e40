-- Keeps which coins an upstream lists (kasparro/store/listings.py).

-- name: repeats_coins --
-- Whether the crawl that began at $4 has found one of the coins of page $2 ($3) on another page already.
SELECT EXISTS(
    SELECT 1
    FROM listings
    WHERE source = $1 AND source_id = ANY($3::text[]) AND page <> $2 AND listed_at >= $4
);

-- name: list_coins --
-- Notes the coins of a batch ($2, with the reason in $3 if the record was rejected). A coin that the newest
-- usual list lacked starts again as a new one. A coin belongs to the page on which the crawl that began at $6
-- found it first: only that one has validators, so only that one can be unchanged later and confirm the coin.
INSERT INTO listings AS known (
    source,
    source_id,
    page,
    listed_at,
    listed_from,
    rejected_runs,
    reject_reason
)
SELECT
    $1,
    listed.source_id,
    $4,
    $5,
    $5,
    CASE WHEN listed.reason IS NULL THEN 0 ELSE 1 END,
    listed.reason
FROM unnest($2::text[], $3::text[]) AS listed (source_id, reason)
ON CONFLICT (source, source_id) DO UPDATE SET
    page = CASE WHEN known.listed_at >= $6 THEN known.page ELSE excluded.page END,
    listed_at = excluded.listed_at,
    listed_from = CASE
        WHEN known.listed_at < (SELECT began_at[1] FROM usual_lists WHERE source = $1)
            THEN excluded.listed_from
        ELSE known.listed_from
    END,
    missing_since = NULL,
    rejected_runs = CASE
        WHEN excluded.reject_reason IS NULL THEN 0
        ELSE known.rejected_runs + 1
    END,
    reject_reason = excluded.reject_reason;

-- name: confirm_page --
-- Notes that a page has not changed since $4: it still lists the coins that it had then.
UPDATE listings
SET
    listed_at = $3,
    missing_since = NULL
WHERE source = $1 AND page = $2 AND listed_at >= $4;

-- name: mark_missing --
-- Notes which coins the whole list lacks whose crawl began at $2.
UPDATE listings
SET missing_since = $3
WHERE source = $1 AND listed_at < $2 AND missing_since IS NULL;

-- name: missing_coins --
-- The usual coins that the whole list lacks whose crawl began at $2: those of every list in usual_lists. A
-- coin that has been missing since before $3 is not expected any more. $4 is the lowest rank that is judged:
-- coins at the end of a limited list come and go.
WITH usual AS (
    SELECT
        coins.source_id,
        coins.listed_at < $2 AS missing,
        newest.rank,
        newest.name
    FROM listings AS coins
    INNER JOIN usual_lists ON coins.source = usual_lists.source
    LEFT JOIN unified_data AS newest
        ON coins.source = newest.source AND coins.source_id = newest.source_id
    WHERE
        coins.source = $1
        AND coins.listed_at >= usual_lists.began_at[1]
        AND coins.listed_from < coalesce(
            usual_lists.began_at[cardinality(usual_lists.began_at) - 1],
            $2
        )
        AND (coins.missing_since IS NULL OR coins.missing_since > $3)
        AND ($4::integer IS NULL OR newest.rank <= $4)
),

counted AS (
    SELECT count(*) AS coins FROM usual
)

SELECT
    counted.coins AS usual,
    usual.source_id,
    usual.rank,
    usual.name
FROM usual
CROSS JOIN counted
WHERE usual.missing
ORDER BY usual.rank ASC NULLS LAST, usual.source_id ASC;

-- name: stage_states --
-- Stages the rows whose listing state is not what the listings say, as changes of a batch.
WITH changed AS (
    INSERT INTO staged_changes (
        position,
        content_hash,
        has_source_time,
        observed_at,
        source_id,
        appends,
        corrects,
        updates_latest,
        updates_labels
    )
    SELECT
        0,
        newest.content_hash,
        newest.has_source_time,
        newest.observed_at,
        newest.source_id,
        false,
        false,
        true,
        false
    FROM unified_data AS newest
    INNER JOIN listings AS coins
        ON newest.source = coins.source AND newest.source_id = coins.source_id
    WHERE
        newest.source = $1
        AND newest.listing_state <> CASE WHEN coins.missing_since IS NULL THEN 0 ELSE 1 END
    RETURNING 1
)

SELECT count(*) FROM changed;

-- name: settle_states --
UPDATE unified_data AS newest
SET
    listing_state = CASE WHEN coins.missing_since IS NULL THEN 0 ELSE 1 END,
    version = $2
FROM staged_changes AS changes
INNER JOIN listings AS coins
    ON changes.source_id = coins.source_id AND coins.source = $1
WHERE newest.source = $1 AND newest.source_id = changes.source_id;

-- name: add_usual_list --
-- Adds a whole list that lacks no usual coin to those that later lists are judged by.
INSERT INTO usual_lists AS known (source, began_at)
VALUES ($1, ARRAY[$2::timestamptz])
ON CONFLICT (source) DO UPDATE
SET began_at = (excluded.began_at || known.began_at)[1:5]
WHERE known.began_at[1] < excluded.began_at[1];
