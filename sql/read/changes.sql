-- The current data version, and what changed since an earlier one (kasparro/store/changes.py).
{% from "macros/columns.sql" import LISTS %}

{#- The current version. `database` tells databases apart without revealing the key. #}
{%- macro state_columns() -%}
left(encode(sha256(convert_to(instance.cursor_key, 'UTF8')), 'hex'), 12) AS database,
instance.data_version AS version,
instance.data_version - instance.counted_versions AS manual_edits,
instance.oldest_cursor_version AS oldest_version,
CASE WHEN instance.committed_version = instance.data_version THEN instance.committed_at END AS committed_at,
CASE
    WHEN instance.committed_version = instance.data_version THEN instance.committed_by_run
END AS committed_by_run,
newest_run.id AS run_id,
newest_run.status AS run_status
{%- endmacro %}

{#- The rows of a list that changed after version $1, as they are and as they were. A replaced row is found by
    the index of its earlier contents. Only the table itself has new rows. With OFFSET 0, Citus keeps the
    order: it would otherwise collect the rows on each node, and these in any order. #}
{%- macro changed(list, columns) -%}
SELECT
    {{ columns }},
    min(rank) AS rank
FROM (
    SELECT
        {{ columns }},
        rank
    FROM {{ LISTS[list].table }}
    WHERE version > $1
    UNION ALL
    SELECT
        {{ columns }},
        rank
    FROM {{ LISTS[list].versions }}
    WHERE replaced_by_version > $1
) AS {{ list }}_now_and_then
GROUP BY {{ columns }}
ORDER BY min(rank) ASC NULLS LAST, {{ columns }}
OFFSET 0
{%- endmacro %}

-- name: state --
SELECT {{ state_columns() }}
FROM instance
LEFT JOIN (
    SELECT
        id,
        status
    FROM runs
    ORDER BY id DESC
    LIMIT 1
) AS newest_run ON true;

-- name: changes --
-- The leading coins come first. A row whose asset changed is there with both assets.
SELECT
    {{ state_columns() }},
    changed_rows.sources,
    changed_rows.source_ids,
    changed_rows.row_assets,
    ARRAY(SELECT asset FROM ({{ changed("assets", "asset") }}) AS changed_assets) AS assets
FROM instance
LEFT JOIN (
    SELECT
        id,
        status
    FROM runs
    ORDER BY id DESC
    LIMIT 1
) AS newest_run ON true
CROSS JOIN (
    SELECT
        array_agg(source) AS sources,
        array_agg(source_id) AS source_ids,
        array_agg(asset) AS row_assets
    FROM ({{ changed("data", "source, source_id, asset") }}) AS changed_data
) AS changed_rows;
