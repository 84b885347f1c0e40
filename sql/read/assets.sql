-- Reads one asset, and what the resolver left open (kasparro/store/asset_queries.py). Lists of assets are
-- read by data.sql and cursor.sql.
{% from "macros/columns.sql" import ASSET, listed, rfc3339 %}

-- name: asset --
-- An asset as JSON, with the current row of each of its links.
WITH links AS MATERIALIZED (
    SELECT
        source,
        source_id,
        asset,
        method,
        score,
        evidence
    FROM asset_links
    WHERE asset = :asset AND valid_until = 'infinity'
),

coins AS MATERIALIZED (
    SELECT
        coin.source,
        coin.source_id,
        coin.price_usd,
        coin.observed_at,
        link.method,
        link.score,
        link.evidence
    FROM links AS link
    INNER JOIN unified_data AS coin
        ON
            link.source = coin.source
            AND link.source_id = coin.source_id
            AND link.asset = coin.asset
)

SELECT row_to_json(shown)::text AS line
FROM (
    SELECT
        {{ listed(ASSET[:-2], "found.") }},
        {{ rfc3339("found.observed_at") }} AS observed_at,
        {{ rfc3339("found.oldest_observed_at") }} AS oldest_observed_at,
        (
            SELECT json_agg(quote ORDER BY quote.source, quote.source_id)
            FROM (
                SELECT
                    coin.source,
                    coin.source_id,
                    coin.price_usd,
                    {{ rfc3339("coin.observed_at") }} AS observed_at,
                    round(extract(EPOCH FROM now() - coin.observed_at), 1) AS age_s,
                    excluded.reason IS NULL AS counted,
                    excluded.reason AS excluded_because,
                    json_build_object(
                        'method', coin.method, 'score', coin.score, 'evidence', coin.evidence
                    ) AS link
                FROM coins AS coin
                LEFT JOIN LATERAL (
                    SELECT given.reason
                    FROM json_to_recordset(found.excluded) AS given (source text, source_id text, reason text)
                    WHERE given.source = coin.source AND given.source_id = coin.source_id
                ) AS excluded ON true
            ) AS quote
        ) AS quotes
    FROM unified_assets AS found
    WHERE found.asset = :asset
) AS shown;

-- name: candidates --
-- A page of the candidates and conflicts in their order, and the total. One more than the page holds is read,
-- to know whether another page follows.
SELECT
    (
        SELECT count(*)
        FROM asset_candidates
        WHERE
            true
            {% if kind %}
            AND kind = :kind
            {% endif %}
    ) AS total,
    found.id,
    found.kind,
    found.source,
    found.source_id,
    found.symbol,
    found.name,
    found.asset,
    found.score,
    found.reason,
    found.evidence,
    found.found_at
FROM (VALUES (true)) AS always (one)
LEFT JOIN LATERAL (
    SELECT *
    FROM asset_candidates
    WHERE
        true
        {% if after %}
        AND id > :last_id
        {% endif %}
        {% if kind %}
        AND kind = :kind
        {% endif %}
    ORDER BY id
    LIMIT :limit + 1
    {% if not after %}
    OFFSET :offset
    {% endif %}
) AS found ON always.one
ORDER BY found.id;

-- name: totals --
-- How many assets, diverging ones, candidates and conflicts there are, and the diverging ones of the highest
-- ranks.
SELECT
    (SELECT resolver_problem FROM instance) AS problem,
    (SELECT count(*) FROM unified_assets) AS assets,
    (SELECT count(*) FROM unified_assets WHERE diverging) AS diverging,
    (SELECT count(*) FROM asset_candidates WHERE kind = 'candidate') AS candidates,
    (SELECT count(*) FROM asset_candidates WHERE kind = 'conflict') AS conflicts,
    (
        SELECT coalesce(array_agg(found.asset), '{}')
        FROM (
            SELECT asset
            FROM unified_assets
            WHERE diverging
            ORDER BY rank, asset
            LIMIT 10
        ) AS found
    ) AS diverging_first;
