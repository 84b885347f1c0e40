-- Reads the recent prices of several assets for small charts (kasparro/store/sparklines.py).

-- name: sparklines --
-- For each row of the assets and each of :parts equal parts of the time from the first record to :until, the
-- last price in this part. Rows that do not count now are left out. The number of look-ups depends on the
-- numbers of rows and parts, not on the number of records.
WITH coins AS MATERIALIZED (
    SELECT
        link.asset,
        link.source,
        link.source_id
    FROM unified_assets AS found
    INNER JOIN asset_links AS link ON found.asset = link.asset
    WHERE
        found.asset = ANY(:assets::text[])
        -- Without this, PostgreSQL reads all links.
        AND link.asset = ANY(:assets::text[])
        AND link.valid_until = 'infinity'
        AND NOT EXISTS (
            SELECT
            FROM json_to_recordset(found.excluded) AS excluded (source text, source_id text)
            WHERE excluded.source = link.source AND excluded.source_id = link.source_id
        )
),

bounds AS MATERIALIZED (
    SELECT min(earliest.observed_at) AS since
    FROM coins
    INNER JOIN unified_data AS coin ON coins.source = coin.source AND coins.source_id = coin.source_id
    CROSS JOIN LATERAL (
        SELECT observed_at
        FROM unified_history
        WHERE
            source = coin.source
            AND source_id = coin.source_id
            AND observed_at >= :since
            AND observed_at <= :until
            AND price_usd IS NOT NULL
        ORDER BY observed_at
        LIMIT 1
    ) AS earliest
),

parts AS MATERIALIZED (
    SELECT
        number,
        bounds.since + (number - 1) * (:until - bounds.since) / :parts AS after,
        bounds.since + number * (:until - bounds.since) / :parts AS until
    FROM bounds
    CROSS JOIN generate_series(1, :parts) AS number
    WHERE bounds.since < :until
)

SELECT
    coin.asset,
    coin.number,
    coin.since,
    coin.source,
    latest.observed_at,
    latest.price_usd
FROM (
    SELECT
        coins.asset,
        parts.number,
        parts.after,
        parts.until,
        bounds.since,
        known.source,
        known.source_id
    FROM bounds
    CROSS JOIN parts
    CROSS JOIN coins
    INNER JOIN unified_data AS known ON coins.source = known.source AND coins.source_id = known.source_id
    ORDER BY parts.number
) AS coin
CROSS JOIN LATERAL (
    SELECT
        observed_at,
        price_usd
    FROM unified_history
    WHERE
        source = coin.source
        AND source_id = coin.source_id
        AND observed_at >= coin.after
        AND observed_at <= coin.until
        AND price_usd IS NOT NULL
    ORDER BY observed_at DESC
    LIMIT 1
) AS latest
ORDER BY coin.asset, coin.number, latest.observed_at;
