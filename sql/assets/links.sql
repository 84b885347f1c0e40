-- Reads what the resolver needs, and writes what it decides (kasparro/store/assets.py).
{% from "macros/columns.sql" import ROW_VERSION, VALUES, listed %}
{% from "macros/history.sql" import relabelled %}
{#- The figures that the resolver compares. #}
{% set FIGURES = ["rank"] + VALUES[:6] %}
{% set LINK = ["asset", "method", "score", "evidence", "symbol", "name"] %}

{#- A field of the given JSON that is a moment. `datetime.min` and `datetime.max` stand for no moment. #}
{% macro moment(field) -%}
CASE
    WHEN {{ field }} <= '0001-01-01 00:00:00+00' THEN '-infinity'
    WHEN {{ field }} >= '9999-12-31 23:59:59.999999+00' THEN 'infinity'
    ELSE {{ field }}
END
{%- endmacro %}

{#- The given candidates ($1, in JSON) in their order. #}
{% macro given_candidates() -%}
json_array_elements($1::json) WITH ORDINALITY AS element (candidate, position)
CROSS JOIN LATERAL json_to_record(element.candidate) AS given (
    source text,
    source_id text,
    kind text,
    asset text,
    score double precision,
    reason text,
    evidence json,
    symbol text,
    name text
)
{%- endmacro %}

{#- Whether a known candidate is the given one. #}
{% macro is_given() -%}
known.source = given.source
AND known.source_id = given.source_id
AND (known.kind, known.asset, known.score, known.reason, known.evidence::text, known.symbol, known.name)
IS NOT DISTINCT FROM
(given.kind, given.asset, given.score, given.reason, given.evidence::text, given.symbol, given.name)
{%- endmacro %}

{#- Notes the assets of saved rows, whose consensus may change; returns how many are new among the touched
    ones. #}
{% macro touch_saved() -%}
touched AS (
    INSERT INTO touched_assets (asset)
    SELECT asset FROM saved
    ON CONFLICT (asset) DO NOTHING
    RETURNING 1
)

SELECT count(*) FROM touched;
{%- endmacro %}

-- name: fence --
-- The run's right to write, as for a batch.
SELECT true FROM runs WHERE id = $1 AND status = 'running' FOR SHARE;

-- name: pending --
-- Whether the resolver has something to decide: a row that it has not judged, a row with another symbol or
-- name than it has judged, a row whose asset is not that of its link, or any change of what it depends on
-- besides the rows ($1).
SELECT
    (instance.resolved_with = $1) IS NOT TRUE
    OR instance.resolver_problem IS NOT NULL
    OR EXISTS (
        SELECT 1
        FROM unified_data AS coin
        LEFT JOIN asset_links AS link
            ON
                coin.source = link.source
                AND coin.source_id = link.source_id
                AND link.valid_until = 'infinity'
        LEFT JOIN (
            SELECT DISTINCT
                source,
                source_id,
                symbol,
                name
            FROM asset_candidates
        ) AS judged ON coin.source = judged.source AND coin.source_id = judged.source_id
        WHERE
            coin.asset IS DISTINCT FROM link.asset
            OR (
                link.asset IS NULL
                AND (
                    judged.source IS NULL
                    OR (coin.symbol, coin.name) IS DISTINCT FROM (judged.symbol, judged.name)
                )
            )
            OR (
                link.asset IS NOT NULL
                AND link.method <> 'rule'
                AND (coin.symbol, coin.name) IS DISTINCT FROM (link.symbol, link.name)
                AND (coin.symbol, coin.name) IS DISTINCT FROM (judged.symbol, judged.name)
            )
    )
FROM instance;

-- name: coins --
-- Without OFFSET 0, the nodes of Citus would make the documents, and name the fields f1, f2 and so on.
SELECT row_to_json(coin) AS document
FROM (
    SELECT
        source,
        source_id,
        symbol,
        name,
        {{ listed(FIGURES) }},
        observed_at,
        first_seen_at,
        CASE listing_state WHEN 0 THEN true WHEN 1 THEN false END AS listed
    FROM unified_data
    OFFSET 0
) AS coin;

-- name: labels --
-- A digest of the rows without their figures and times.
SELECT
    encode(
        sha256(convert_to(coalesce(string_agg(labels, ',' ORDER BY source, source_id), ''), 'UTF8')), 'hex'
    ) AS digest
FROM (
    SELECT
        source,
        source_id,
        (source, source_id, symbol, name, listing_state)::text AS labels
    FROM unified_data
    OFFSET 0
) AS coin;

-- name: contracts --
SELECT row_to_json(contract) AS document
FROM (
    SELECT
        source,
        source_id,
        platform,
        address
    FROM contracts
    ORDER BY source, source_id, platform, address
) AS contract;

-- name: links --
SELECT row_to_json(link) AS document
FROM (
    SELECT
        source,
        source_id,
        {{ listed(LINK) }},
        greatest(valid_from, '0001-01-01 00:00:00+00') AS valid_from,
        least(valid_until, '9999-12-31 23:59:59.999999+00') AS valid_until
    FROM asset_links
) AS link;

-- name: assets --
SELECT row_to_json(known) AS document
FROM (
    SELECT
        asset,
        symbol,
        name
    FROM assets
) AS known;

-- name: candidates --
SELECT row_to_json(candidate) AS document
FROM (
    SELECT
        source,
        source_id,
        kind,
        {{ listed(LINK[:1] + LINK[2:]) }},
        reason
    FROM asset_candidates
    ORDER BY id
) AS candidate;

-- name: save_assets --
WITH saved AS (
    INSERT INTO assets (asset, symbol, name, created_at)
    SELECT
        given.asset,
        given.symbol,
        given.name,
        $2
    FROM json_to_recordset($1::json) AS given (asset text, symbol text, name text)
    ON CONFLICT (asset) DO UPDATE SET
        symbol = excluded.symbol,
        name = excluded.name
    RETURNING asset
),

{{ touch_saved() }}

-- name: end_links --
-- Ends the current links of these ids at a moment.
UPDATE asset_links AS link
SET valid_until = {{ moment("given.valid_until") }}
FROM json_to_recordset($1::json) AS given (source text, source_id text, valid_until timestamptz)
WHERE
    link.source = given.source
    AND link.source_id = given.source_id
    AND link.valid_until = 'infinity'
    AND link.valid_from < {{ moment("given.valid_until") }};

-- name: delete_links --
-- Deletes the current links of these ids that would end before they begin: they were wrong from the start.
DELETE FROM asset_links AS link
USING json_to_recordset($1::json) AS given (source text, source_id text, valid_until timestamptz)
WHERE
    link.source = given.source
    AND link.source_id = given.source_id
    AND link.valid_until = 'infinity'
    AND link.valid_from >= {{ moment("given.valid_until") }};

-- name: save_links --
WITH saved AS (
    INSERT INTO asset_links (
        source,
        source_id,
        {{ listed(LINK) }},
        valid_from,
        valid_until,
        linked_at
    )
    SELECT
        given.source,
        given.source_id,
        {{ listed(LINK, "given.") }},
        {{ moment("given.valid_from") }},
        {{ moment("given.valid_until") }},
        $2
    FROM json_to_recordset($1::json) AS given (
        source text,
        source_id text,
        asset text,
        method text,
        score double precision,
        evidence json,
        symbol text,
        name text,
        valid_from timestamptz,
        valid_until timestamptz
    )
    ON CONFLICT (source, source_id, valid_from) DO UPDATE SET
        asset = excluded.asset,
        method = excluded.method,
        score = excluded.score,
        evidence = excluded.evidence,
        symbol = excluded.symbol,
        name = excluded.name,
        valid_until = excluded.valid_until
    RETURNING asset
),

{{ touch_saved() }}

-- name: delete_candidates --
-- Deletes the candidates that are not among the given ones.
DELETE FROM asset_candidates AS known
WHERE NOT EXISTS (
    SELECT
    FROM {{ given_candidates() }}
    WHERE
        {{ is_given() }}
);

-- name: add_candidates --
-- Adds the candidates that are not known, in their order.
INSERT INTO asset_candidates (
    source,
    source_id,
    kind,
    asset,
    score,
    reason,
    evidence,
    symbol,
    name,
    found_at
)
SELECT
    given.source,
    given.source_id,
    given.kind,
    given.asset,
    given.score,
    given.reason,
    given.evidence,
    given.symbol,
    given.name,
    $2
FROM {{ given_candidates() }}
WHERE NOT EXISTS (
    SELECT
    FROM asset_candidates AS known
    WHERE
        {{ is_given() }}
)
ORDER BY element.position;

-- name: staging --
-- The rows whose asset changes, with the asset before and after.
CREATE TEMPORARY TABLE IF NOT EXISTS relinked_rows (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    former text COLLATE "C",
    asset text COLLATE "C",
    PRIMARY KEY (source, source_id)
) ON COMMIT DELETE ROWS;

-- name: stage_relinked --
-- Returns how many rows these are.
WITH staged AS (
    INSERT INTO relinked_rows (source, source_id, former, asset)
    SELECT
        coin.source,
        coin.source_id,
        coin.asset AS former,
        link.asset
    FROM unified_data AS coin
    LEFT JOIN asset_links AS link
        ON coin.source = link.source AND coin.source_id = link.source_id AND link.valid_until = 'infinity'
    WHERE coin.asset IS DISTINCT FROM link.asset
    RETURNING 1
)

SELECT count(*) FROM staged;

-- name: save_relinked_versions --
-- Saves what the rows contain before they change, for snapshot cursors that started then.
INSERT INTO unified_data_versions (
    {{ listed(ROW_VERSION) }},
    replaced_by_version,
    replaced_at
)
SELECT
    {{ listed(ROW_VERSION, "known.") }},
    $2,
    $1
FROM relinked_rows AS relinked
INNER JOIN unified_data AS known
    ON relinked.source = known.source AND relinked.source_id = known.source_id;

-- name: update_relinked --
UPDATE unified_data AS newest
SET
    asset = relinked.asset,
    updated_at = $1,
    version = $2
FROM relinked_rows AS relinked
WHERE newest.source = relinked.source AND newest.source_id = relinked.source_id;

-- name: note_resolved --
-- Returns true if it has changed.
UPDATE instance SET resolved_with = $1 WHERE resolved_with IS DISTINCT FROM $1
RETURNING true;

-- name: note_problem --
UPDATE instance SET resolver_problem = $1 WHERE resolver_problem IS DISTINCT FROM $1;

-- name: explained_rows --
-- The rows that a person may mean: an asset, a source's id, or both in one text (source/source_id).
SELECT
    source,
    source_id
FROM unified_data
WHERE source_id = $1 OR asset = $1 OR source || '/' || source_id = $1
ORDER BY source, source_id;

-- name: relabelled --
-- The linked rows whose symbol or name is not that of their link: their last record with these, and the time
-- of the first record with others. A row without such a record is left out.
SELECT json_build_object('before', row_to_json(before), 'since', before.since) AS document
FROM (
    SELECT
        coin.source,
        coin.source_id,
        coin.linked_symbol AS symbol,
        coin.linked_name AS name,
        {{ listed(FIGURES, "found.") }},
        found.observed_at,
        coin.first_seen_at,
        CASE coin.listing_state WHEN 0 THEN true WHEN 1 THEN false END AS listed,
        found.since
    FROM {{ relabelled("asset_links") }}
    OFFSET 0
) AS before;

-- name: prices --
-- Prices of two rows at about the same moments: each of the newest prices of the first row with the price of
-- the second that is nearest before it, at most 15 minutes older.
WITH ones AS MATERIALIZED (
    SELECT
        pair.position,
        pair.other_source,
        pair.other_id,
        newest.prices,
        newest.moments
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
    WITH ORDINALITY AS pair (source, source_id, other_source, other_id, position)
    INNER JOIN unified_data AS coin ON pair.source = coin.source AND pair.source_id = coin.source_id
    CROSS JOIN LATERAL (
        SELECT
            array_agg(one.price_usd) AS prices,
            array_agg(one.observed_at) AS moments
        FROM (
            SELECT
                price_usd,
                observed_at
            FROM unified_history
            WHERE source = coin.source AND source_id = coin.source_id AND price_usd IS NOT NULL
            ORDER BY observed_at DESC
            LIMIT 200
        ) AS one
    ) AS newest
)

SELECT json_build_array(coin.position, coin.price_usd, other.price_usd) AS document
FROM (
    SELECT
        ones.position,
        unnest(ones.prices) AS price_usd,
        unnest(ones.moments) AS observed_at,
        known.source,
        known.source_id
    FROM ones
    INNER JOIN unified_data AS known ON ones.other_source = known.source AND ones.other_id = known.source_id
) AS coin
CROSS JOIN LATERAL (
    SELECT price_usd
    FROM unified_history
    WHERE
        source = coin.source
        AND source_id = coin.source_id
        AND price_usd IS NOT NULL
        AND observed_at <= coin.observed_at
        AND observed_at > coin.observed_at - interval '15 minutes'
    ORDER BY observed_at DESC
    LIMIT 1
) AS other;
