{#- Points and candles of the history. Each statement reads one or more parts of it. Part N is a coin of a
    source, (:source_N, :source_id_N), from the moment :since_N up to :until_N, which is not part of it
    (kasparro/store/history.py). #}
{%- from "macros/columns.sql" import listed as in_a_row %}
{%- set POINT = ["price_usd", "market_cap_usd", "volume_24h_usd"] %}
{%- set PRICES = ["open", "high", "low", "close"] %}
{%- set UNITS = {"1h": "hour", "1d": "day", "1w": "week"} %}

{#- The records of part N, or with `endless` also those after it. #}
{%- macro _records(n, columns, endless=false) -%}
SELECT
    {{ columns }}
FROM unified_history
WHERE
    source = :source_{{ n }}
    AND source_id = :source_id_{{ n }}
    AND observed_at >= :since_{{ n }}
    {%- if not endless %}
    AND observed_at < :until_{{ n }}
    {%- endif %}
{%- endmacro %}

{#- The points of the parts: those of each part in the order of time. With `limit` only the first ones, of
    which some may be after the part: a plan for any two moments expects few records between them, so that
    PostgreSQL would read and sort all of them before it takes the first ones. #}
{%- macro points(parts, limit=none) %}
{%- for n in range(parts) %}
{{ "UNION ALL" if n }}
(
    {{ _records(n, "source, source_id, observed_at, " ~ in_a_row(POINT), endless=limit is not none) }}
    ORDER BY observed_at
    {% if limit is not none %}LIMIT {{ limit }}{% endif %}

)
{%- endfor %}
{%- endmacro %}

{#- Whether an interval of part N has all records that the record `history` stands for. Without N, whether an
    interval has them. #}
{%- macro _has_all(unit, n) -%}
history.thinned_from >= date_trunc('{{ unit }}', history.observed_at, 'UTC')
{%- if n is not none %} AND history.thinned_from >= :since_{{ n }}{% endif %}
{%- endmacro %}

{#- What the record `history` adds to the candle of its interval. An array of a time and a price sorts by
    time, so the least one has the first price. A record that stands for deleted ones adds these only to an
    interval that has all of them. #}
{%- macro contribution(unit, n=none) -%}
history.source,
history.source_id,
date_trunc('{{ unit }}', history.observed_at, 'UTC') AS time,
CASE
    WHEN {{ _has_all(unit, n) }}
        THEN ARRAY[extract(EPOCH FROM history.thinned_from), history.thinned_open]
    ELSE ARRAY[extract(EPOCH FROM history.observed_at), history.price_usd]
END AS opened,
CASE
    WHEN {{ _has_all(unit, n) }}
        THEN greatest(history.thinned_high, history.price_usd)
    ELSE history.price_usd
END AS high,
CASE
    WHEN {{ _has_all(unit, n) }}
        THEN least(history.thinned_low, history.price_usd)
    ELSE history.price_usd
END AS low,
ARRAY[extract(EPOCH FROM history.observed_at), history.price_usd] AS closed,
CASE
    WHEN {{ _has_all(unit, n) }}
        THEN history.thinned_count + 1
    ELSE 1
END AS count
{%- endmacro %}

{#- The prices of a candle, of such contributions. Trailing zeros are removed: of equal prices with different
    zeros, the order of reading would decide. #}
{%- macro prices() -%}
trim_scale((min(opened))[2]) AS open,
trim_scale(max(high)) AS high,
trim_scale(min(low)) AS low,
trim_scale((max(closed))[2]) AS close,
sum(count)::bigint AS count
{%- endmacro %}

{#- The candles of the parts, of intervals that lie within a part. `parts` says for each part whether it
    begins and ends with a day, so that the stored candles of its days may be used where they are current;
    the records of other days are read. The result is the same. `coin` says what has a candle of its own. With
    OFFSET 0, Citus sends the contributions to the coordinator: it cannot combine the least arrays of several
    nodes. #}
{%- macro candles(parts, interval, coin="source, source_id") %}
{%- set unit = UNITS[interval] %}
SELECT
    {{ coin }},
    time,
    {{ prices() }}
FROM (
    SELECT *
    FROM (
        {% for of_days in parts %}
        {{ "UNION ALL" if not loop.first }}
        {% set n = loop.index0 %}
        {% if of_days and interval != "1h" %}
        (
            WITH months AS MATERIALIZED (
                SELECT
                    month::timestamp AT TIME ZONE 'UTC' AS begins_at,
                    (month + interval '1 month')::timestamp AT TIME ZONE 'UTC' AS ends_at,
                    date_trunc('day', least(changed_from, stale_from), 'UTC') AS records_from
                FROM history_months
                WHERE
                    source = :source_{{ n }}
                    AND month > (:since_{{ n }}::timestamptz AT TIME ZONE 'UTC')::date - 31
                    AND month <= (:until_{{ n }}::timestamptz AT TIME ZONE 'UTC')::date
            )

            SELECT {{ contribution(unit, n) }}
            FROM months
            CROSS JOIN LATERAL (
                {{ _records(n, "*") }}
                AND observed_at >= months.begins_at
                AND observed_at >= months.records_from
                AND observed_at < months.ends_at
            ) AS history
            WHERE months.records_from < months.ends_at AND history.price_usd IS NOT NULL
            UNION ALL
            SELECT
                stored.source,
                stored.source_id,
                date_trunc('{{ unit }}', stored.time, 'UTC') AS time,
                ARRAY[extract(EPOCH FROM stored.time), stored.open] AS opened,
                stored.high,
                stored.low,
                ARRAY[extract(EPOCH FROM stored.time), stored.close] AS closed,
                stored.count
            FROM months
            CROSS JOIN LATERAL (
                SELECT *
                FROM daily_candles
                WHERE
                    source = :source_{{ n }}
                    AND source_id = :source_id_{{ n }}
                    AND time >= :since_{{ n }}
                    AND time < :until_{{ n }}
                    AND time >= months.begins_at
                    AND time < months.records_from
                    AND time < months.ends_at
            ) AS stored
        )
        {% else %}
        SELECT {{ contribution(unit, n) }}
        FROM (
            {{ _records(n, "*") }}
        ) AS history
        WHERE history.price_usd IS NOT NULL
        {% endif %}
        {% endfor %}
    ) AS contributions_of_parts
    OFFSET 0
) AS contributions
GROUP BY {{ coin }}, time
{%- endmacro %}

{#- The rows whose symbol or name is not that of their current link, of a relation of links, in a FROM: `coin`
    is the row in unified_data, with its link. `found` is its last record with the symbol and name that the
    link was confirmed for, and `since` the moment of the first record after it: then the link ends before it
    is ended. #}
{%- macro relabelled(links) -%}
(
    SELECT
        coin.*,
        link.valid_from,
        link.symbol AS linked_symbol,
        link.name AS linked_name
    FROM {{ links }} AS link
    INNER JOIN unified_data AS coin ON link.source = coin.source AND link.source_id = coin.source_id
    WHERE
        link.valid_until = 'infinity'
        AND link.method <> 'rule'
        AND (coin.symbol, coin.name) IS DISTINCT FROM (link.symbol, link.name)
    ORDER BY coin.source_id
) AS coin
CROSS JOIN LATERAL (
    SELECT
        before.*,
        next.since
    FROM unified_history AS before
    CROSS JOIN LATERAL (
        SELECT coalesce(min(history.observed_at), coin.observed_at) AS since
        FROM unified_history AS history
        WHERE
            history.source = coin.source
            AND history.source_id = coin.source_id
            AND history.observed_at > before.observed_at
    ) AS next
    WHERE
        before.source = coin.source
        AND before.source_id = coin.source_id
        AND before.observed_at >= coin.valid_from
        AND (before.lacks_symbol OR before.symbol IS NOT DISTINCT FROM coin.linked_symbol)
        AND (before.lacks_name OR before.name IS NOT DISTINCT FROM coin.linked_name)
    ORDER BY before.observed_at DESC
    LIMIT 1
) AS found
{%- endmacro %}
