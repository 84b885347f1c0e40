-- Keeps unified_assets equal to the consensus of the rows of unified_data (kasparro/store/consensus.py). The
-- statements belong to the transaction that changes these rows.
{% from "macros/columns.sql" import ASSET, ASSET_VERSION, VALUES, listed, overwritten %}
{#- Everything of unified_assets that the consensus decides. #}
{% set DECIDED = ASSET[1:] + ["fresh_spread_percent", "listing_state"] %}

{#- The exact median of the values that count: of two middle values the mean. avg() would round. #}
{% macro median(values) -%}
CASE
    WHEN cardinality({{ values }}) % 2 = 1 THEN ({{ values }})[(cardinality({{ values }}) + 1) / 2]
    ELSE trim_scale(
        0.5 * (({{ values }})[cardinality({{ values }}) / 2] + ({{ values }})[cardinality({{ values }}) / 2 + 1])
    )
END
{%- endmacro %}

{#- The values of a column that count, in order. #}
{% macro counted(column, condition="excluded IS NULL") -%}
array_agg({{ column }} ORDER BY {{ column }}) FILTER (WHERE {{ condition }} AND {{ column }} IS NOT NULL)
{%- endmacro %}

{#- Why a quote does not count. #}
{% macro reason(column) -%}
json_build_object('source', source, 'source_id', source_id, 'reason', {{ column }})
{%- endmacro %}

-- name: staging --
-- The assets whose rows the transaction has changed. PostgreSQL overestimates the work of `settle`, and would
-- compile it for every batch.
SET LOCAL jit = off;

CREATE TEMPORARY TABLE IF NOT EXISTS touched_assets (
    asset text COLLATE "C" PRIMARY KEY
) ON COMMIT DELETE ROWS;

-- name: touch_changes --
-- The assets of the rows that a batch has changed.
WITH touched AS (
    INSERT INTO touched_assets (asset)
    SELECT DISTINCT link.asset
    FROM staged_changes AS changes
    CROSS JOIN LATERAL (
        SELECT asset
        FROM asset_links
        WHERE source = $1 AND source_id = changes.source_id AND valid_until = 'infinity'
        LIMIT 1
    ) AS link
    WHERE changes.updates_latest OR changes.updates_labels
    ON CONFLICT (asset) DO NOTHING
    RETURNING 1
)

SELECT count(*) FROM touched;

-- name: touch_settled --
-- The assets of the rows that settling archives has changed or removed.
WITH touched AS (
    INSERT INTO touched_assets (asset)
    SELECT DISTINCT link.asset
    FROM settled_coins AS settled
    INNER JOIN asset_links AS link
        ON link.source = $1 AND settled.source_id = link.source_id AND link.valid_until = 'infinity'
    ON CONFLICT (asset) DO NOTHING
    RETURNING 1
)

SELECT count(*) FROM touched;

-- name: touch_relinked --
-- The assets, before and after, of the rows whose asset is another now.
WITH touched AS (
    INSERT INTO touched_assets (asset)
    SELECT both_sides.asset
    FROM relinked_rows AS relinked
    CROSS JOIN LATERAL (VALUES (relinked.former), (relinked.asset)) AS both_sides (asset)
    WHERE both_sides.asset IS NOT NULL
    ON CONFLICT (asset) DO NOTHING
    RETURNING 1
)

SELECT count(*) FROM touched;

-- name: touch_all --
WITH touched AS (
    INSERT INTO touched_assets (asset)
    SELECT asset FROM unified_assets
    ON CONFLICT (asset) DO NOTHING
    RETURNING 1
)

SELECT count(*) FROM touched;

-- name: settle --
-- Writes the consensus of the touched assets as part of the data version $1, and saves earlier contents for
-- snapshot cursors. $2 is the time, $3 how much older than the newest quote a fresh one may be, and $4 the
-- spread in percent above which an asset is diverging. Returns how many assets have changed.
--
-- A quote is fresh if it has a price, its symbol and name are those that its link was confirmed for, and it
-- is not much older than the newest quote. So the consensus follows from the data alone, whatever the time
-- is. A fresh quote is outlying if it differs by more than a fifth from the median of three or more. Of two
-- quotes the outlying one is the one that is so far from the median of the asset's prices in the day before,
-- if the other one is not.
--
-- LIMIT, OFFSET and ORDER BY keep each look-up one descent of an index: most batches touch few assets, and
-- PostgreSQL may plan a join to read all of them. The condition on valid_until is outside of the look-up,
-- because PostgreSQL would also read the whole partial index of current links for each asset.
WITH links AS MATERIALIZED (
    SELECT link.*
    FROM touched_assets AS touched
    CROSS JOIN LATERAL (
        SELECT *
        FROM asset_links
        WHERE asset = touched.asset
        OFFSET 0
    ) AS link
),

quotes AS (
    SELECT
        link.asset,
        link.valid_from,
        coin.*,
        CASE
            WHEN coin.price_usd IS NULL THEN 'it has no price'
            WHEN
                link.method <> 'rule'
                AND (coin.symbol IS DISTINCT FROM link.symbol OR coin.name IS DISTINCT FROM link.name)
                THEN 'the source has renamed it, and the link is not confirmed yet'
        END AS unusable
    FROM links AS link
    CROSS JOIN LATERAL (
        SELECT
            source,
            source_id,
            rank,
            {{ listed(VALUES) }},
            symbol,
            name,
            observed_at,
            listing_state
        FROM unified_data
        -- A row that was deleted and added again gets its asset from the resolver.
        WHERE source = link.source AND source_id = link.source_id AND asset = link.asset
        ORDER BY source_id
    ) AS coin
    WHERE link.valid_until = 'infinity'
),

aged AS (
    SELECT
        *,
        count(*) OVER (PARTITION BY asset) = 1 AS is_only,
        CASE
            WHEN unusable IS NOT NULL THEN unusable
            WHEN
                observed_at
                < max(observed_at) FILTER (WHERE unusable IS NULL) OVER (PARTITION BY asset) - $3::interval
                THEN 'it is stale: another quote is much newer'
        END AS not_fresh
    FROM quotes
),

fresh AS (
    SELECT
        asset,
        count(*) AS quotes,
        max(price_usd) AS highest,
        min(price_usd) AS lowest,
        min(observed_at) AS began_at,
        {{ counted("price_usd", "true") }} AS prices
    FROM aged
    WHERE not_fresh IS NULL AND NOT is_only
    GROUP BY asset
),

day_before AS (
    SELECT
        fresh.asset,
        CASE
            WHEN count(*) > 2 THEN percentile_disc(0.5) WITHIN GROUP (ORDER BY history.price_usd)
        END AS price
    FROM fresh
    INNER JOIN links AS link ON fresh.asset = link.asset
    CROSS JOIN LATERAL (
        SELECT price_usd
        FROM unified_history
        WHERE
            source = link.source
            AND source_id = link.source_id
            AND observed_at >= fresh.began_at - interval '1 day'
            AND observed_at < fresh.began_at
            AND observed_at >= link.valid_from
            AND observed_at < link.valid_until
            AND price_usd IS NOT NULL
        ORDER BY source_id
    ) AS history
    WHERE fresh.quotes = 2 AND fresh.highest > 1.2 * fresh.lowest
    GROUP BY fresh.asset
),

referred AS (
    SELECT
        fresh.*,
        {{ median("fresh.prices") }} AS price,
        CASE WHEN fresh.quotes > 2 THEN {{ median("fresh.prices") }} ELSE day_before.price END AS reference
    FROM fresh
    LEFT JOIN day_before ON fresh.asset = day_before.asset
),

judged AS (
    SELECT
        aged.*,
        CASE
            WHEN aged.not_fresh IS NOT NULL THEN aged.not_fresh
            WHEN
                abs(aged.price_usd - referred.reference) > 0.2 * referred.reference
                AND (
                    referred.quotes > 2
                    OR abs(referred.highest + referred.lowest - aged.price_usd - referred.reference)
                    <= 0.2 * referred.reference
                )
                THEN 'it is outlying: its price is far from the others'
        END AS excluded
    FROM aged
    LEFT JOIN referred ON aged.asset = referred.asset
    WHERE NOT aged.is_only
),

collected AS (
    SELECT
        asset,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY rank) FILTER (WHERE excluded IS NULL) AS rank,
        count(*) FILTER (WHERE excluded IS NULL) AS source_count,
        max(price_usd) FILTER (WHERE excluded IS NULL) AS highest,
        min(price_usd) FILTER (WHERE excluded IS NULL) AS lowest,
        max(observed_at) FILTER (WHERE excluded IS NULL) AS observed_at,
        min(observed_at) FILTER (WHERE excluded IS NULL) AS oldest_observed_at,
        min(listing_state) AS listing_state,
        {% for column in ["price_usd", "market_cap_usd", "volume_24h_usd"] + VALUES[-3:] %}
        {{ counted(column) }} AS {{ column }},
        {% endfor %}
        {% for column in VALUES[3:6] %}
        percentile_disc(0.5) WITHIN GROUP (ORDER BY {{ column }})
            FILTER (WHERE excluded IS NULL) AS {{ column }},
        {% endfor %}
        json_agg({{ reason("excluded") }} ORDER BY source, source_id)
            FILTER (WHERE excluded IS NOT NULL) AS excluded
    FROM judged
    GROUP BY asset
),

combined AS (
    SELECT
        collected.asset,
        collected.rank,
        {{ median("collected.price_usd") }} AS price_usd,
        CASE
            WHEN collected.source_count > 1
                THEN trim_scale(round(
                    100 * (collected.highest - collected.lowest)
                    / nullif({{ median("collected.price_usd") }}, 0),
                    4
                ))
        END AS price_spread_percent,
        collected.source_count::integer AS source_count,
        coalesce(
            100 * (referred.highest - referred.lowest) > $4::numeric * referred.price,
            false
        ) AS diverging,
        {{ median("collected.market_cap_usd") }} AS market_cap_usd,
        {{ median("collected.volume_24h_usd") }} AS volume_24h_usd,
        {{ listed(VALUES[3:6], "collected.") }},
        {% for column in VALUES[-3:] %}
        {{ median("collected." ~ column) }} AS {{ column }},
        {% endfor %}
        collected.observed_at,
        collected.oldest_observed_at,
        trim_scale(round(
            100 * (referred.highest - referred.lowest) / nullif(referred.price, 0), 4
        )) AS fresh_spread_percent,
        collected.listing_state,
        collected.excluded
    FROM collected
    LEFT JOIN referred ON collected.asset = referred.asset
    UNION ALL
    -- Most assets have one quote. It counts unless it is not fresh, and needs no medians.
    SELECT
        asset,
        CASE WHEN not_fresh IS NULL THEN rank END,
        CASE WHEN not_fresh IS NULL THEN price_usd END,
        NULL,
        CASE WHEN not_fresh IS NULL THEN 1 ELSE 0 END,
        false,
        {% for column in VALUES[1:] + ["observed_at", "observed_at"] %}
        CASE WHEN not_fresh IS NULL THEN {{ column }} END,
        {% endfor %}
        CASE WHEN not_fresh IS NULL AND price_usd <> 0 THEN 0 END,
        listing_state,
        CASE
            WHEN not_fresh IS NOT NULL
                THEN json_build_array({{ reason("not_fresh") }})
        END
    FROM aged
    WHERE is_only
),

decided AS MATERIALIZED (
    SELECT
        combined.*,
        labels.symbol,
        labels.name
    FROM combined
    CROSS JOIN LATERAL (
        SELECT
            symbol,
            name
        FROM assets
        WHERE asset = combined.asset
        LIMIT 1
    ) AS labels
),

changed AS MATERIALIZED (
    SELECT
        touched.asset,
        known.asset IS NOT NULL AS is_known,
        decided.asset IS NULL AS is_gone
    FROM touched_assets AS touched
    LEFT JOIN LATERAL (
        SELECT *
        FROM unified_assets
        WHERE asset = touched.asset
        LIMIT 1
    ) AS known ON true
    LEFT JOIN decided ON touched.asset = decided.asset
    WHERE
        (known.asset IS NOT NULL OR decided.asset IS NOT NULL)
        AND (
            ({{ listed(DECIDED, "known.") }}, known.excluded::text)
            IS DISTINCT FROM ({{ listed(DECIDED, "decided.") }}, decided.excluded::text)
        )
),

saved AS (
    INSERT INTO unified_assets_versions (
        {{ listed(ASSET_VERSION) }},
        replaced_by_version,
        replaced_at
    )
    SELECT
        {{ listed(ASSET_VERSION, "known.") }},
        $1,
        $2
    FROM changed
    CROSS JOIN LATERAL (
        SELECT *
        FROM unified_assets
        WHERE asset = changed.asset
        LIMIT 1
    ) AS known
    WHERE changed.is_known
),

removed AS (
    DELETE FROM unified_assets
    USING changed
    WHERE unified_assets.asset = changed.asset AND changed.is_gone
),

written AS (
    INSERT INTO unified_assets (
        asset,
        {{ listed(DECIDED) }},
        excluded,
        version
    )
    SELECT
        decided.asset,
        {{ listed(DECIDED, "decided.") }},
        decided.excluded,
        $1
    FROM changed
    INNER JOIN decided ON changed.asset = decided.asset
    ON CONFLICT (asset) DO UPDATE SET
        {{ overwritten(DECIDED + ["excluded", "version"]) }}
)

SELECT count(*) FROM changed;
