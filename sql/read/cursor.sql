-- Pages after a cursor (kasparro/store/cursors.py). A cursor has the sort key of the last row that a client
-- has seen: (:value, :key_1, …), in the order by rank with :last_state before :key_1.
-- `position` says what follows:
--   key    the order is by the first column of the key, so the key alone decides
--   value  the row has a value in the sorted column
--   null   it has none: only rows without a value follow
{% import "macros/rows.sql" as rows with context %}
{% import "macros/columns.sql" as columns %}
{% set from = columns.LISTS[list] %}
{% set key = (["listing_state"] if column == "rank" else []) + from.key %}
{% set last_key = ([":last_state"] if column == "rank" else []) + [":key_1", ":key_2"][:from.key | length] %}
{% set key, last_key = key | join(", "), last_key | join(", ") %}
{% set key_follows = "(" ~ key ~ ") > (" ~ last_key ~ ")" %}

{#- Rows with a value that follow the cursor. #}
{% macro value_follows() %}
{% if position == "key" %}
{{ key_follows }}
{%- elif position == "null" %}
false
{%- elif descending %}
{{ column }} <= :value
AND ({{ column }} < :value OR {{ key_follows }})
{%- else %}
({{ column }}, {{ key }}) > (:value, {{ last_key }})
{%- endif %}
{% endmacro %}

{#- Rows without a value that follow, if the rows with one do not fill the page. #}
{% macro rows_without_value(snapshot) %}
{% if null_rows %}
UNION ALL
(
    SELECT *
    FROM {{ rows.selected_rows(unchanged_since_version=snapshot) }}
    WHERE
        {{ column }} IS NULL
        AND (SELECT count(*) <= {{ limit }} FROM valued)
        {% if position == "null" %}AND {{ key_follows }}{% endif %}

    {{ rows.order() }}
    LIMIT {{ limit + 1 }}
)
{% endif %}
{% endmacro %}

-- name: next_page --
-- For a cursor of the current data version. Rows with a value to sort by come first, then, if they run out
-- and with `null_rows`, those without one. An index serves each of these reads; for an OR of both conditions
-- PostgreSQL would read everything that is before the cursor.
{% set valued %}
AS MATERIALIZED (
    SELECT *
    FROM {{ rows.selected_rows() }}
    WHERE
        {{ value_follows() }}
    {{ rows.order() }}
    LIMIT {{ limit + 1 }}
),
{% endset %}
WITH
{% if null_rows %}
valued {{ valued }}
candidates AS MATERIALIZED (
    SELECT * FROM valued
    {{ rows_without_value(snapshot=false) }}
    {{ rows.order() }}
    LIMIT {{ limit + 1 }}
),
{% else %}
candidates {{ valued }}
{% endif %}

{{ rows.page_of_candidates() }};

-- name: next_page_of_snapshot --
-- For a cursor of an earlier data version (:version): the rows that have not changed since, and of the
-- others their contents of then. `bounded`, in the order by rank, ends the read of the index where the page
-- must end, however many changed rows are there.
WITH
earlier AS MATERIALIZED (
    SELECT {{ columns.listed(from.columns) }}
    FROM {{ from.versions }}
    WHERE
        replaced_by_version > :version
        AND version <= :version
        {% if position == "key" %}
        AND {{ key_follows }}
        {% elif position == "null" %}
        AND {{ column }} IS NULL
        AND {{ key_follows }}
        {% elif descending %}
        AND ({{ column }} <= :value OR {{ column }} IS NULL)
        AND (({{ column }} = :value) IS NOT TRUE OR {{ key_follows }})
        {% else %}
        AND (({{ column }}, {{ key }}) > (:value, {{ last_key }}) OR {{ column }} IS NULL)
        {% endif %}
        {{ rows.conditions() }}
    {{ rows.order() }}
    LIMIT {{ limit + 1 }}
),

valued AS MATERIALIZED (
    SELECT *
    FROM {{ rows.selected_rows(unchanged_since_version=true) }}
    WHERE
        {{ value_follows() }}
        {% if bounded %}
        AND rank <= coalesce((SELECT rank FROM earlier OFFSET {{ limit }}), 2147483647)
        {% endif %}
    {{ rows.order() }}
    LIMIT {{ limit + 1 }}
),

candidates AS MATERIALIZED (
    SELECT * FROM valued
    {{ rows_without_value(snapshot=true) }}
    UNION ALL
    SELECT * FROM earlier
    {{ rows.order() }}
    LIMIT {{ limit + 1 }}
),

{{ rows.page_of_candidates() }};
