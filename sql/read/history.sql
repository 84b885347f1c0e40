-- Reads the history of coins (kasparro/store/history.py).
{% from "macros/history.sql" import POINT, PRICES, candles, points %}
{% from "macros/columns.sql" import digits, listed, rfc3339 %}
{#- A point or a candle as a line of JSON or of CSV. #}
{% macro line(time, values, csv) -%}
{% if csv -%}
array_to_string(ARRAY[{{ rfc3339(time) }}, {{ listed(values, suffix="::text") }}], ',', '')
{%- else -%}
row_to_json(
    (SELECT shown FROM (SELECT {{ rfc3339(time) }} AS {{ time }}, {{ listed(values) }}) AS shown)
)::text
{%- endif %}
{%- endmacro %}

-- name: span --
-- Whether there is such a coin, and the months between which the history of its source is.
SELECT
    EXISTS(SELECT FROM unified_data WHERE source = :source AND source_id = :source_id) AS known,
    min(month)::timestamp AT TIME ZONE 'UTC' AS begins_at,
    (max(month) + interval '1 month')::timestamp AT TIME ZONE 'UTC' AS ends_at
FROM history_months
WHERE source = :source;

-- name: points --
-- The records of a coin in the order of time.
SELECT
    observed_at AS at,
    {{ line("observed_at", POINT, csv) }} AS line
FROM ({{ points(1, limit) }}) AS points
ORDER BY observed_at;

-- name: candles --
-- The candles of a coin in the order of time.
SELECT
    time AS at,
    {{ line("time", PRICES + ["count"], csv) }} AS line
FROM ({{ candles((of_days,), interval) }}) AS candles
ORDER BY time;

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
