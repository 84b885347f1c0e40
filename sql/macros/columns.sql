{#- The columns of a record, each list written once, and ways to write a list.

    LABELS may be missing in a file's layout; VALUES are the figures. CONTENT is what a source reports of a
    coin. RECORD is a row of GET /data in the order of the contract, ASSET one of GET /assets. ROW_VERSION is
    what unified_data_versions saves of a row, ASSET_VERSION what unified_assets_versions does. #}
{%- set LABELS = ["symbol", "name", "rank"] %}
{%- set VALUES = [
    "price_usd",
    "market_cap_usd",
    "volume_24h_usd",
    "circulating_supply",
    "total_supply",
    "max_supply",
    "percent_change_1h",
    "percent_change_24h",
    "percent_change_7d",
] %}
{%- set CONTENT = LABELS + VALUES %}
{%- set TIMES = ["observed_at", "first_seen_at", "updated_at"] %}
{%- set RECORD = ["source", "source_id", "asset"] + CONTENT + TIMES %}
{%- set ROW_VERSION = RECORD + ["version", "rank_observed_at", "listing_state"] %}
{%- set CONSENSUS = ["rank", "price_usd", "price_spread_percent", "source_count", "diverging"] + VALUES[1:] %}
{%- set ASSET = ["asset", "symbol", "name"] + CONSENSUS + ["observed_at", "oldest_observed_at"] %}
{%- set ASSET_VERSION = ASSET + ["version", "listing_state"] %}

{#- The lists that GET /data and GET /assets read. `key` identifies a row and breaks ties, `columns` are those
    that a row is shown and sorted by. `texts`, `times` and `booleans` are the kinds of fields; all others are
    numbers. #}
{%- set LISTS = {
    "data": {
        "table": "unified_data",
        "versions": "unified_data_versions",
        "key": ["source", "source_id"],
        "columns": RECORD + ["rank_observed_at", "listing_state"],
        "texts": ["source", "source_id", "asset", "symbol", "name", "quoted_in"],
        "times": TIMES + ["rank_observed_at", "listed_at"],
        "booleans": [],
    },
    "assets": {
        "table": "unified_assets",
        "versions": "unified_assets_versions",
        "key": ["asset"],
        "columns": ASSET + ["listing_state"],
        "texts": ["asset", "symbol", "name"],
        "times": ["observed_at", "oldest_observed_at"],
        "booleans": ["diverging"],
    },
} %}

{#- `symbol, name, …`, each name between the prefix and the suffix. #}
{%- macro listed(names, prefix="", suffix="") %}
{%- for name in names %}{{ prefix }}{{ name }}{{ suffix }}{{ ", " if not loop.last }}{% endfor %}
{%- endmacro %}

{#- `symbol = excluded.symbol, …` for DO UPDATE. #}
{%- macro overwritten(names) %}
{%- for name in names %}{{ name }} = excluded.{{ name }}{{ ", " if not loop.last }}{% endfor %}
{%- endmacro %}

{#- A time in RFC 3339, in UTC, between two of `quote`. #}
{%- macro rfc3339(expression, quote="") -%}
to_char({{ expression }} AT TIME ZONE 'UTC', '{{ quote }}YYYY-MM-DD"T"HH24:MI:SS.US"Z"{{ quote }}')
{%- endmacro %}
