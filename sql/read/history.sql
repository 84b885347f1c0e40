-- Reads the history of coins (kasparro/store/history.py).
{% from "macros/history.sql" import POINT, PRICES, candles, points, relabelled %}
{% from "macros/columns.sql" import listed, rfc3339 %}
{% from "macros/lines.sql" import cells, members %}
{#- A point or a candle as JSON. #}
{% macro line(time, values) -%}
row_to_json(
    (SELECT shown FROM (SELECT {{ rfc3339(time) }} AS {{ time }}, {{ listed(values) }}) AS shown)
)::text
{%- endmacro %}
{#- The cells or the members of a point or a candle, for COPY. #}
{% macro exported(time, values, csv) -%}
{{ (cells if csv else members)([time] + values, {"times": [time], "texts": [], "booleans": []}) }}
{%- endmacro %}

-- name: span --
-- Whether there is such a coin, and the months between which the history of its source is.
SELECT
    EXISTS(SELECT 1 FROM unified_data WHERE source = :source AND source_id = :source_id) AS known,
    min(month)::timestamp AT TIME ZONE 'UTC' AS begins_at,
    (max(month) + interval '1 month')::timestamp AT TIME ZONE 'UTC' AS ends_at
FROM history_months
WHERE source = :source;

-- name: points --
-- The first records of a coin in the order of time.
SELECT
    observed_at AS at,
    {{ line("observed_at", POINT) }} AS line
FROM ({{ points(1, limit) }}) AS points
WHERE observed_at < :until_0
ORDER BY observed_at;

-- name: candles --
-- The candles of a coin in the order of time.
SELECT
    time AS at,
    {{ line("time", PRICES + ["count"]) }} AS line
FROM ({{ candles((of_days,), interval) }}) AS candles
ORDER BY time;

-- name: exported_points --
-- All records of a coin in the order of time, for COPY.
SELECT {{ exported("observed_at", POINT, csv) }}
FROM ({{ points(1) }}) AS points
ORDER BY points.observed_at;

-- name: exported_candles --
-- All candles of a coin in the order of time, for COPY.
SELECT {{ exported("time", PRICES + ["count"], csv) }}
FROM ({{ candles((of_days,), interval) }}) AS candles
ORDER BY candles.time;

-- name: next_price --
-- The moment of a coin's first record with a price in a part of the history.
SELECT observed_at
FROM unified_history
WHERE
    source = :source_0
    AND source_id = :source_id_0
    AND observed_at >= :since_0
    AND observed_at < :until_0
    AND price_usd IS NOT NULL
ORDER BY observed_at
LIMIT 1;

-- name: lock --
-- Waits while a thinned month takes the place of another, which lasts an instant.
LOCK TABLE ONLY unified_history IN ACCESS SHARE MODE;

-- name: asset_parts --
-- The rows of an asset, and the moments between which the history of each belongs to it. A row that has
-- another symbol or name than its link was confirmed for belongs to it only until then. Without such a
-- history there is one row, if there is such an asset.
WITH links AS MATERIALIZED (
    SELECT link.*
    FROM assets
    LEFT JOIN asset_links AS link ON assets.asset = link.asset
    WHERE assets.asset = :asset
),

renamed AS (
    SELECT
        coin.source,
        coin.source_id,
        coin.valid_from,
        found.since
    FROM {{ relabelled("links") }}
)

SELECT
    link.source,
    link.source_id,
    CASE WHEN months.begins_at IS NOT NULL THEN greatest(link.valid_from, months.begins_at) END AS since,
    CASE
        WHEN months.ends_at IS NOT NULL THEN least(link.valid_until, months.ends_at, renamed.since)
    END AS until
FROM links AS link
LEFT JOIN renamed
    ON
        link.source = renamed.source
        AND link.source_id = renamed.source_id
        AND link.valid_from = renamed.valid_from
LEFT JOIN LATERAL (
    SELECT
        min(month)::timestamp AT TIME ZONE 'UTC' AS begins_at,
        (max(month) + interval '1 month')::timestamp AT TIME ZONE 'UTC' AS ends_at
    FROM history_months
    WHERE source = link.source
) AS months ON true
ORDER BY link.source, link.source_id, link.valid_from;

-- name: asset_points --
-- The records with a price of several parts, in the order of time.
SELECT
    source,
    observed_at,
    {{ listed(POINT) }}
FROM ({{ points(parts) }}) AS points
WHERE price_usd IS NOT NULL
ORDER BY observed_at, source;

-- name: asset_candles --
-- The candles of several parts, one for each source, in the order of time. An asset may have had several ids
-- of a source, one after the other.
SELECT
    source,
    time,
    {{ listed(PRICES + ["count"]) }}
FROM ({{ candles(days_of_parts, interval, "source") }}) AS candles
ORDER BY time, source;
