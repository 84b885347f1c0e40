-- Reads the recent prices of several assets for small charts (kasparro/store/sparklines.py).
{#- The rows of the assets whose quotes count. #}
{% macro counted(name) -%}
(
    SELECT
        asset,
        source,
        source_id
    FROM unified_data
    WHERE
        asset = ANY(:assets::text[])
        AND NOT EXISTS (
            SELECT
            FROM excluded
            WHERE excluded.source = unified_data.source AND excluded.source_id = unified_data.source_id
        )
) AS {{ name }}
{%- endmacro %}

-- name: sparklines --
-- For each row of the assets and each of :parts equal parts of the time from the first record to :until, the
-- last price in this part. Rows that do not count now are left out. The number of look-ups depends on the
-- numbers of rows and parts, not on the number of records.
WITH excluded AS MATERIALIZED (
    SELECT
        quote.source,
        quote.source_id
    FROM unified_assets AS found
    CROSS JOIN LATERAL json_to_recordset(found.excluded) AS quote (source text, source_id text)
    WHERE found.asset = ANY(:assets::text[])
),

bounds AS MATERIALIZED (
    SELECT min(earliest.observed_at) AS since
    FROM {{ counted('coin') }}
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
        bounds.since,
        array_agg(number) AS numbers,
        array_agg(bounds.since + (number - 1) * (:until - bounds.since) / :parts) AS begins,
        array_agg(bounds.since + number * (:until - bounds.since) / :parts) AS ends
    FROM bounds
    CROSS JOIN generate_series(1, :parts) AS number
    WHERE bounds.since < :until
    GROUP BY bounds.since
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
        counted.asset,
        counted.source,
        counted.source_id,
        parts.since,
        unnest(parts.numbers) AS number,
        unnest(parts.begins) AS after,
        unnest(parts.ends) AS until
    FROM parts
    CROSS JOIN {{ counted('counted') }}
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
