-- Reads unified_data and unified_assets (kasparro/store/queries.py). Values are `:name`; Jinja puts in the
-- conditions of the filters, column names from fixed lists, and limits.
{% import "macros/rows.sql" as rows with context %}
{% from "macros/columns.sql" import LISTS %}

-- name: first_page --
-- A page that starts at an offset, 0 or more, as the rows are now.
WITH
candidates AS MATERIALIZED (
    SELECT *
    FROM {{ rows.selected_rows() }}
    {{ rows.order() }}
    LIMIT {{ limit + 1 }}
    {% if offset %}OFFSET :offset{% endif %}
),

{% set total_column %}
    {% if total == "inserts" %}
    (SELECT json_object_agg(source, rows)::text FROM insert_counters) AS inserted,
    {% elif total == "count" %}
    (SELECT count(*) FROM {{ LISTS[list].table }} WHERE true{{ rows.conditions() }}) AS total,
    {% endif %}
{% endset %}
{{ rows.page_of_candidates(total_column) }};

-- name: row --
-- One row as JSON, and the data version. For a moment before the coin's first record, the time of that record
-- instead of the row.
WITH chosen AS (
    SELECT row_to_json(shown)::text AS line
    FROM (
        SELECT {{ fields }}
        FROM (
            {{ rows.shown(rows.rows_as_of(), "rows_as_of") if as_of else rows.shown("unified_data") }}
            WHERE source = :source AND source_id = :source_id
        ) AS record
    ) AS shown
)

SELECT
    line,
    NULL::timestamptz AS first_observed_at,
    (SELECT data_version FROM instance) AS version
FROM chosen
{% if as_of %}
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
    ) AS first_observed_at,
    (SELECT data_version FROM instance) AS version
FROM unified_data AS coin
WHERE
    coin.source = :source
    AND coin.source_id = :source_id
    AND NOT EXISTS (SELECT FROM chosen)
{%- endif %};
