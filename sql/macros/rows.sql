{#- The rows that GET /data, GET /assets and their exports select (`list` says which of the two); import it
    with the context of the statement. #}
{%- from "macros/columns.sql" import ASSET, CONTENT, LISTS, TIMES, VALUES, listed as in_a_row, rfc3339 %}
{%- set from = LISTS[list] %}
{%- from "macros/files.sql" import currency_of_file, quoted_in %}

{#- The conditions of a selection, to follow a WHERE. ILIKE folds letters beyond ASCII only where the
    collation is not "C". #}
{%- macro conditions() %}
{%- if sources %} AND source = ANY(:sources){% endif %}
{%- if ids %} AND source_id = ANY(:ids){% endif %}
{%- if assets %} AND asset = ANY(:assets){% endif %}
{%- if symbols %} AND lower(symbol) = ANY(:symbols){% endif %}
{%- if symbol %} AND lower(symbol) = :symbol{% endif %}
{%- if text %} AND (name COLLATE "default" ILIKE :text OR symbol COLLATE "default" ILIKE :text){% endif %}
{%- if rank_min %} AND rank >= :rank_min{% endif %}
{%- if rank_max %} AND rank <= :rank_max{% endif %}
{%- if price_usd_min %} AND price_usd >= :price_usd_min{% endif %}
{%- if price_usd_max %} AND price_usd <= :price_usd_max{% endif %}
{%- if market_cap_usd_min %} AND market_cap_usd >= :market_cap_usd_min{% endif %}
{%- if market_cap_usd_max %} AND market_cap_usd <= :market_cap_usd_max{% endif %}
{%- if volume_24h_usd_min %} AND volume_24h_usd >= :volume_24h_usd_min{% endif %}
{%- if volume_24h_usd_max %} AND volume_24h_usd <= :volume_24h_usd_max{% endif %}
{%- if updated_since %} AND updated_at >= :updated_since{% endif %}
{%- if listed %} AND listing_state = CASE WHEN :listed::boolean THEN 0 ELSE 1 END{% endif %}
{%- if diverging %} AND diverging = :diverging{% endif %}
{%- if source_count_min %} AND source_count >= :source_count_min{% endif %}
{%- if listed_since %} AND (source, source_id) IN (
    SELECT
        coins.source,
        coins.source_id
    FROM listings AS coins
    WHERE coins.listed_at >= :listed_since
){% endif %}
{%- endmacro %}

{#- The newest record of each coin at the moment `as_of`: the one in unified_data, unless it is younger;
    then the one that the key of the history leads to, in the latest month that has one. If that record
    lacks the symbol or the name, the coin's newest known ones stand; if it lacks the rank, the newest known
    one, if it was known by then. #}
{%- macro rows_as_of() -%}
(
    SELECT
        source,
        source_id,
        asset,
        {{ in_a_row(CONTENT + TIMES) }},
        rank_observed_at,
        listing_state
    FROM unified_data
    WHERE observed_at <= :as_of
    UNION ALL
    SELECT
        coin.source,
        coin.source_id,
        coin.asset,
        CASE WHEN history.lacks_symbol THEN coin.symbol ELSE history.symbol END AS symbol,
        CASE WHEN history.lacks_name THEN coin.name ELSE history.name END AS name,
        CASE
            WHEN history.lacks_rank IS NULL THEN history.rank
            WHEN coin.rank_observed_at <= :as_of THEN coin.rank
        END AS rank,
        {{ in_a_row(VALUES, "history.") }},
        history.observed_at,
        coin.first_seen_at,
        history.recorded_at,
        CASE WHEN history.lacks_rank THEN coin.rank_observed_at END,
        coin.listing_state
    FROM unified_data AS coin
    CROSS JOIN LATERAL (
        SELECT *
        FROM unified_history
        WHERE source = coin.source AND source_id = coin.source_id AND observed_at <= :as_of
        ORDER BY observed_at DESC
        LIMIT 1
    ) AS history
    WHERE coin.observed_at > :as_of
) AS rows_as_of
{%- endmacro %}

{#- The rows of a selection. With `unchanged_since_version`, only those that have not changed since the
    version of a cursor. OFFSET 0 keeps a filter that few rows meet apart from the ordering: PostgreSQL would
    otherwise check it on every row of an index until enough rows meet it. Around it Citus cannot look up the
    currency of a row (`shown`). #}
{%- macro selected_rows(unchanged_since_version=false, looks_up=false) -%}
(
    SELECT {{ in_a_row(from.columns) }}
    FROM {% if as_of %}{{ rows_as_of() }}{% else %}{{ from.table }}{% endif %}

    WHERE
        true{% if unchanged_since_version %} AND version <= :version{% endif %}{{ conditions() }}
    {% if selective and not (looks_up and "quoted_in" in fields) %}OFFSET 0{% endif %}

) AS selected_rows
{%- endmacro %}

{#- A total order: rows without a value come last in both directions, and the key breaks ties. Of rows with
    the same rank, those that their source lists come first. #}
{%- macro order() -%}
ORDER BY
    {{ column }} {{ "DESC" if descending else "ASC" }} NULLS LAST,
    {% if column == "rank" %}
    listing_state ASC,
    {% endif %}
    {{ in_a_row(from.key, suffix=" ASC") }}
{%- endmacro %}

{#- The fields of a row as clients see them, in the order of the contract, to be selected from
    a relation. `listed_at` is when the row was listed, `currency` where the currency of its file is, and
    `time` a macro that formats a time. #}
{%- macro shown_fields(relation, listed_at, currency, time=rfc3339) -%}
{% if list == "assets" -%}
{{ in_a_row(ASSET[:-2]) }},
{{ time("observed_at") }} AS observed_at,
{{ time("oldest_observed_at") }} AS oldest_observed_at
{%- else -%}
source,
source_id,
asset,
{{ in_a_row(CONTENT) }},
{{ time("observed_at") }} AS observed_at,
{{ time("first_seen_at") }} AS first_seen_at,
{{ time("updated_at") }} AS updated_at,
CASE
    WHEN rank IS NOT NULL THEN {{ time("coalesce(rank_observed_at, observed_at)") }}
END AS rank_observed_at,
{% if "listed_at" in fields %}{{ time(listed_at) }}{% else %}NULL{% endif %} AS listed_at,
{% if "quoted_in" in fields %}{{ quoted_in(relation, currency) }}{% else %}NULL{% endif %} AS quoted_in
{%- endif %}
{%- endmacro %}

{#- The fields of the rows of a relation of the list, such as `selected_rows`, for an export or a row. Citus
    joins the nodes' rows to a local table, but cannot look it up for each of them. #}
{%- macro shown(relation, name=none, time=rfc3339) -%}
{% set currency -%} ({{ currency_of_file(name or relation) }}) {%- endset %}
SELECT {{ shown_fields(name or relation, "listed.listed_at", currency, time) }}
FROM {{ relation }}
{% if "listed_at" in fields %}
LEFT JOIN (
    SELECT
        source AS listed_source,
        source_id AS listed_source_id,
        listed_at
    FROM listings
) AS listed
    ON
        {{ name or relation }}.source = listed.listed_source
        AND {{ name or relation }}.source_id = listed.listed_source_id
{% endif %}
{%- endmacro %}

{%- macro _unformatted(time) %}{{ time }}{% endmacro %}

{#- The rows of a selection in its order, for an export. Their times are not formatted yet, because PostgreSQL
    would sort the texts with the rows. #}
{%- macro exported() -%}
{{ shown(selected_rows(looks_up=true), "selected_rows", _unformatted) }}
{{ order() }}
OFFSET 0
{%- endmacro %}

{#- What a page returns of `candidates`, which are one row more than the page shows: its rows as JSON, the
    data version, and the sort key of its last row, if another row follows it. #}
{%- macro page_of_candidates(total_column="") -%}
{% set listed_at -%}
(
    SELECT coins.listed_at
    FROM listings AS coins
    WHERE coins.source = candidates.source AND coins.source_id = candidates.source_id
)
{%- endset %}
{% set currency -%}
(SELECT json_object_agg(quoted.source || '/' || quoted.source_id, quoted.quoted_in)::jsonb FROM quoted)
->> (candidates.source || '/' || candidates.source_id)
{%- endset %}
{% if "quoted_in" in fields %}
quoted AS MATERIALIZED (
    SELECT
        candidates.source,
        candidates.source_id,
        given.quoted_in
    FROM candidates
    CROSS JOIN LATERAL (
        {{ currency_of_file("candidates") }}
        ORDER BY history.source_id
    ) AS given
    WHERE EXISTS (SELECT FROM archive_files AS files WHERE files.source = candidates.source)
),

{% endif %}
page AS (
    SELECT {{ fields }}
    FROM (
        SELECT {{ shown_fields("candidates", listed_at, currency) }}
        FROM candidates
    ) AS shown
    LIMIT {{ limit }}
)

SELECT
    instance.data_version AS version,
    instance.oldest_cursor_version,
    instance.data_version - instance.counted_versions AS manual_edits,
    {{ total_column }}
    json.lines,
    last_row.value,
    last_row.key,
    last_row.listing_state
FROM instance
CROSS JOIN (SELECT string_agg(row_to_json(page)::text, ',') AS lines FROM page) AS json
LEFT JOIN (
    SELECT
        {{ column }} AS value,
        ARRAY[{{ in_a_row(from.key) }}] AS key,
        listing_state
    FROM candidates
    LIMIT 1 OFFSET {{ limit - 1 }}
) AS last_row ON (SELECT count(*) > {{ limit }} FROM candidates)
{%- endmacro %}
