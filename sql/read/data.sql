-- What is read of the data. How a statement comes out of these (kasparro/store/queries.py): a line with
-- /* include x */ stands for the lines under that name, a line that ends in /* if x */ stands only where x is
-- asked for, :name is a value, :"name" an identifier from a fixed list, or a list of such.

-- name: filters --
-- Follows a WHERE.
AND source = ANY(:sources) /* if sources */
AND source_id = ANY(:ids) /* if ids */
AND asset = ANY(:assets) /* if assets */
AND lower(symbol) = ANY(:symbols) /* if symbols */
AND lower(symbol) = :symbol /* if symbol */
AND (name COLLATE "default" ILIKE :text OR symbol COLLATE "default" ILIKE :text) /* if text */
AND rank >= :rank_min /* if rank_min */
AND rank <= :rank_max /* if rank_max */
AND price_usd >= :price_usd_min /* if price_usd_min */
AND price_usd <= :price_usd_max /* if price_usd_max */
AND market_cap_usd >= :market_cap_usd_min /* if market_cap_usd_min */
AND market_cap_usd <= :market_cap_usd_max /* if market_cap_usd_max */
AND volume_24h_usd >= :volume_24h_usd_min /* if volume_24h_usd_min */
AND volume_24h_usd <= :volume_24h_usd_max /* if volume_24h_usd_max */
AND updated_at >= :updated_since /* if updated_since */

-- name: columns --
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
    observed_at,
    first_seen_at,
    updated_at,
    rank_observed_at

-- name: rows_as_of --
-- Of every coin the newest record at a moment: the one it has now, where that is not younger, else one that
-- the key of the history leads to, in the latest month that has one. Where that record lacks the symbol or the
-- name, the coin's newest known ones stand; where it lacks the rank, the newest known, if it was known then.
FROM (
    SELECT
        coin.source,
        coin.source_id,
        coin.asset,
        told.symbol,
        told.name,
        told.rank,
        told.price_usd,
        told.market_cap_usd,
        told.volume_24h_usd,
        told.circulating_supply,
        told.total_supply,
        told.max_supply,
        told.percent_change_1h,
        told.percent_change_24h,
        told.percent_change_7d,
        told.observed_at,
        coin.first_seen_at,
        told.updated_at,
        told.rank_observed_at
    FROM unified_data AS coin
    CROSS JOIN LATERAL (
        SELECT
            coin.symbol,
            coin.name,
            coin.rank,
            coin.price_usd,
            coin.market_cap_usd,
            coin.volume_24h_usd,
            coin.circulating_supply,
            coin.total_supply,
            coin.max_supply,
            coin.percent_change_1h,
            coin.percent_change_24h,
            coin.percent_change_7d,
            coin.observed_at,
            coin.updated_at,
            coin.rank_observed_at
        WHERE coin.observed_at <= :as_of
        UNION ALL
        (
            SELECT
                CASE WHEN history.lacks_symbol THEN coin.symbol ELSE history.symbol END AS symbol,
                CASE WHEN history.lacks_name THEN coin.name ELSE history.name END AS name,
                CASE
                    WHEN history.lacks_rank IS NULL THEN history.rank
                    WHEN coin.rank_observed_at <= :as_of THEN coin.rank
                END AS rank,
                history.price_usd,
                history.market_cap_usd,
                history.volume_24h_usd,
                history.circulating_supply,
                history.total_supply,
                history.max_supply,
                history.percent_change_1h,
                history.percent_change_24h,
                history.percent_change_7d,
                history.observed_at,
                history.recorded_at,
                CASE WHEN history.lacks_rank THEN coin.rank_observed_at END
            FROM unified_history AS history
            WHERE
                coin.observed_at > :as_of
                AND history.source = coin.source
                AND history.source_id = coin.source_id
                AND history.observed_at <= :as_of
            ORDER BY history.observed_at DESC
            LIMIT 1
        )
    ) AS told
) AS rows_as_of

-- name: filtered --
-- The rows that the filters let through; of a walk, only those that have not changed since it began. OFFSET 0
-- keeps a filter that few rows pass out of the ordering, where it would be tried on every row of an index until
-- enough have passed.
FROM (
    /* include columns */
    /* include rows_as_of */ /* if as_of */
    FROM unified_data /* if now */
    WHERE
        true
        AND version <= :version /* if walked */
        /* include filters */
    OFFSET 0 /* if selective */
) AS record

-- name: order --
ORDER BY
    :"column" ASC NULLS LAST, /* if up */
    :"column" DESC NULLS LAST, /* if down */
    source ASC,
    source_id ASC

-- name: record --
-- A row as it is told, all fields in the order of the contract.
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
    to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at,
    CASE
        WHEN rank IS NOT NULL
            THEN to_char(
                coalesce(rank_observed_at, observed_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
            )
    END AS rank_observed_at

-- name: earlier --
-- Of a walk: rows that have changed since it began, as they were then and in the places that they had.
earlier AS MATERIALIZED (
    /* include columns */
    FROM unified_data_versions
    WHERE
        replaced_by_version > :version AND version <= :version
        AND (source, source_id) > (:last_source, :last_id) /* if by_key */
        AND ((:"column", source, source_id) > (:value, :last_source, :last_id) OR :"column" IS NULL) /* if above */
        AND (:"column" <= :value OR :"column" IS NULL) /* if below */
        AND ((:"column" = :value) IS NOT TRUE OR (source, source_id) > (:last_source, :last_id)) /* if below */
        AND :"column" IS NULL AND (source, source_id) > (:last_source, :last_id) /* if tail */
        /* include filters */
    /* include order */
    LIMIT (:"limit" + 1)
),

-- name: page --
-- A page of rows as ready JSON, and the version of the data that it shows. One row more than the page holds is
-- read, to know whether another follows; the key of the page's last row comes along for the cursor.
WITH
/* include earlier */ /* if walked */
-- Rows with a value to sort by (paged: all rows), then, where they run out, rows without one: two reads that an
-- index serves each, where their OR would have it walk all that lies before a cursor. Bounded: no further along
-- the index than the page can reach, however many changed rows lie there.
head AS MATERIALIZED (
    SELECT *
    /* include filtered */
    WHERE
        true
        AND (source, source_id) > (:last_source, :last_id) /* if by_key */
        AND (:"column", source, source_id) > (:value, :last_source, :last_id) /* if above */
        AND :"column" <= :value /* if below */
        AND (:"column" < :value OR (source, source_id) > (:last_source, :last_id)) /* if below */
        AND false /* if tail */
        AND rank <= coalesce((SELECT rank FROM earlier OFFSET :"limit"), 2147483647) /* if bounded */
    /* include order */
    LIMIT (:"limit" + 1)
    OFFSET :offset /* if offset */
),

reach AS MATERIALIZED (
    SELECT * FROM head
    UNION ALL
    (
        SELECT *
        /* include filtered */
        WHERE
            :"column" IS NULL
            AND (SELECT count(*) <= :"limit" FROM head)
            AND (source, source_id) > (:last_source, :last_id) /* if tail */
            AND false /* if headed */
        /* include order */
        LIMIT (:"limit" + 1)
    )
    UNION ALL /* if walked */
    SELECT * FROM earlier /* if walked */
    /* include order */
    LIMIT (:"limit" + 1)
),

page AS (
    SELECT :"fields"
    FROM (
        /* include record */
        FROM reach
    ) AS record
    LIMIT :"limit"
)

SELECT
    instance.data_version AS version,
    instance.oldest_cursor_version,
    instance.data_version - instance.counted_versions AS manual_edits,
    (SELECT json_object_agg(source, rows)::text FROM insert_counters) AS inserted, /* if summed */
    /* include total */ /* if counted */
    written.lines,
    last.value,
    last.source,
    last.source_id
FROM instance
CROSS JOIN (SELECT string_agg(row_to_json(page)::text, ',') AS lines FROM page) AS written
LEFT JOIN (
    SELECT
        :"column" AS value,
        source,
        source_id
    FROM reach
    LIMIT 1 OFFSET (:"limit" - 1)
) AS last ON (SELECT count(*) > :"limit" FROM reach);

-- name: total --
(
    SELECT count(*)
    FROM unified_data
    WHERE
        true
        /* include filters */
) AS total,

-- name: rows --
-- How many rows each source has beyond those that its batches counted (fewer, where rows were taken out by
-- hand): the same from batch to batch. Without any source, one line tells the rest.
SELECT
    counted.source,
    counted.beyond,
    instance.data_version - instance.counted_versions AS manual_edits
FROM instance
LEFT JOIN (
    SELECT
        source,
        coalesce(found.rows, 0) - coalesce(insert_counters.rows, 0) AS beyond
    FROM insert_counters
    FULL JOIN (
        SELECT
            source,
            count(*) AS rows
        FROM unified_data
        GROUP BY source
    ) AS found USING (source)
) AS counted ON true;

-- name: row --
-- One row as ready JSON; for a moment before its first record, the time of that record instead.
WITH asked AS (
    SELECT row_to_json(chosen)::text AS line
    FROM (
        SELECT :"fields"
        FROM (
            /* include record */
            /* include rows_as_of */ /* if as_of */
            FROM unified_data /* if now */
            WHERE source = :source AND source_id = :source_id
        ) AS record
    ) AS chosen
)

SELECT
    line,
    NULL::timestamptz AS first_observed_at
FROM asked
/* include first_observed */ /* if as_of */
;

-- name: first_observed --
UNION ALL
SELECT
    NULL AS line,
    least(
        coin.observed_at,
        (
            SELECT history.observed_at
            FROM unified_history AS history
            WHERE history.source = coin.source AND history.source_id = coin.source_id
            ORDER BY history.observed_at
            LIMIT 1
        )
    ) AS first_observed_at
FROM unified_data AS coin
WHERE
    coin.source = :source
    AND coin.source_id = :source_id
    AND NOT EXISTS (SELECT FROM asked)

-- name: all --
-- All rows of a selection, in order.
FROM (
    SELECT *
    /* include filtered */
    /* include order */
) AS record

-- name: ndjson --
-- A line of JSON a row.
SELECT row_to_json(asked)::text
FROM (
    SELECT :"fields"
    FROM (
        /* include record */
        /* include all */
    ) AS told
) AS asked;

-- name: csv --
-- A line of CSV (RFC 4180) a row: null is an empty cell, a text is in quotes, and a number is its digits. For a
-- spreadsheet, a text that it would read as a formula (OWASP's list of first characters) starts with an
-- apostrophe. A quote between a comma and such a character always opens a text: inside a text quotes are
-- doubled, and a comma or the end follows a closing quote.
SELECT line /* if exact */
SELECT regexp_replace(line, '(^|,)"(?=[-=+@\t\r\n\uff0b\uff0d\uff1d\uff20])', '\1"''', 'g') /* if spreadsheet */
FROM (
    SELECT array_to_string(ARRAY[:"fields"], ',', '') AS line
    FROM (
        SELECT
            '"' || replace(source, '"', '""') || '"' AS source,
            '"' || replace(source_id, '"', '""') || '"' AS source_id,
            '"' || replace(asset, '"', '""') || '"' AS asset,
            '"' || replace(symbol, '"', '""') || '"' AS symbol,
            '"' || replace(name, '"', '""') || '"' AS name,
            rank::text AS rank,
            price_usd::text AS price_usd,
            market_cap_usd::text AS market_cap_usd,
            volume_24h_usd::text AS volume_24h_usd,
            circulating_supply::text AS circulating_supply,
            total_supply::text AS total_supply,
            max_supply::text AS max_supply,
            percent_change_1h::text AS percent_change_1h,
            percent_change_24h::text AS percent_change_24h,
            percent_change_7d::text AS percent_change_7d,
            observed_at,
            first_seen_at,
            updated_at,
            rank_observed_at
        FROM (
            /* include record */
            /* include all */
        ) AS told
    ) AS cells
) AS lines;
