-- What GET /data reads. How a statement comes out of these (kasparro/store/reading.py): a line that ends in
-- /* if x */ stands only where x is asked for, :name is a value, :"name" an identifier from a fixed list.

-- name: page --
-- A page of rows as ready JSON, with the total of the same snapshot. One row more than the page holds is
-- read, to know whether another follows; the key of the page's last row comes along for the cursor.
WITH reach AS MATERIALIZED (
    -- Rows with a value to sort by (paged: all rows), then rows without one: two reads that an index serves
    -- each, where their OR would have it walk all that lies before a cursor.
    (
        SELECT *
        FROM unified_data
        WHERE
            true
            AND (:"column", source, source_id) > (:value, :last_source, :last_id) /* if above */
            AND :"column" <= :value /* if below */
            AND (:"column" < :value OR (source, source_id) > (:last_source, :last_id)) /* if below */
            AND false /* if tail */
            AND source = ANY(:sources) /* if sources */
            AND lower(symbol) = ANY(:symbols) /* if symbols */
            AND ( /* if pattern */
                name COLLATE "default" ILIKE :pattern /* if pattern */
                OR symbol COLLATE "default" ILIKE :pattern /* if pattern */
            ) /* if pattern */
        ORDER BY
            :"column" ASC NULLS LAST, /* if up */
            :"column" DESC NULLS LAST, /* if down */
            source ASC,
            source_id ASC
        LIMIT :limit + 1
        OFFSET :offset /* if paged */
    )
    UNION ALL
    (
        SELECT *
        FROM unified_data
        WHERE
            :"column" IS NULL
            AND (source, source_id) > (:last_source, :last_id) /* if tail */
            AND false /* if headed */
            AND source = ANY(:sources) /* if sources */
            AND lower(symbol) = ANY(:symbols) /* if symbols */
            AND ( /* if pattern */
                name COLLATE "default" ILIKE :pattern /* if pattern */
                OR symbol COLLATE "default" ILIKE :pattern /* if pattern */
            ) /* if pattern */
        ORDER BY
            source ASC,
            source_id ASC
        LIMIT :limit + 1
    )
    ORDER BY
        :"column" ASC NULLS LAST, /* if up */
        :"column" DESC NULLS LAST, /* if down */
        source ASC,
        source_id ASC
    LIMIT :limit + 1
),

page AS (
    SELECT
        source,
        source_id,
        asset,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        to_char(observed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS observed_at,
        to_char(first_seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS first_seen_at,
        to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at
    FROM reach
    LIMIT :limit
)

SELECT
    counted.total,
    written.lines,
    last.value,
    last.source,
    last.source_id
FROM (
    SELECT count(*) AS total
    FROM unified_data
    WHERE
        true
        AND source = ANY(:sources) /* if sources */
        AND lower(symbol) = ANY(:symbols) /* if symbols */
        AND ( /* if pattern */
            name COLLATE "default" ILIKE :pattern /* if pattern */
            OR symbol COLLATE "default" ILIKE :pattern /* if pattern */
        ) /* if pattern */
) AS counted
CROSS JOIN (SELECT string_agg(row_to_json(page)::text, ',') AS lines FROM page) AS written
LEFT JOIN (
    SELECT
        :"column" AS value,
        source,
        source_id
    FROM reach
    LIMIT 1 OFFSET :limit - 1
) AS last ON (SELECT count(*) > :limit FROM reach);

-- name: row --
-- One row as ready JSON.
SELECT row_to_json(record)::text
FROM (
    SELECT
        source,
        source_id,
        asset,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        to_char(observed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS observed_at,
        to_char(first_seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS first_seen_at,
        to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at
    FROM unified_data
    WHERE source = :source AND source_id = :source_id
) AS record;
