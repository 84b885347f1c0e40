-- A batch's way into the tables, a statement a step, all in one transaction.

-- name: staging --
-- Where COPY puts a batch, and what `compare` finds new in it; they are the session's own and empty
-- themselves at the commit.
CREATE TEMPORARY TABLE IF NOT EXISTS staged_keys (
    position integer NOT NULL,
    content_hash uuid NOT NULL,
    has_source_time boolean NOT NULL,
    observed_at timestamptz NOT NULL,
    source_id text COLLATE "C" NOT NULL
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS staged_contents (
    position integer NOT NULL,
    symbol text COLLATE "C",
    name text COLLATE "C",
    rank integer,
    price_usd numeric,
    market_cap_usd numeric,
    volume_24h_usd numeric,
    circulating_supply numeric,
    total_supply numeric,
    max_supply numeric,
    percent_change_1h numeric,
    percent_change_24h numeric,
    percent_change_7d numeric
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS fresh (
    position integer NOT NULL,
    content_hash uuid NOT NULL,
    has_source_time boolean NOT NULL,
    observed_at timestamptz NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    appends boolean NOT NULL,
    corrects boolean NOT NULL,
    settles boolean NOT NULL,
    relabels boolean NOT NULL
) ON COMMIT DELETE ROWS;

-- name: skip_superseded --
-- Of a replay ($2 is when its run ended): records of moments that a later run told otherwise. They were told
-- before the words that stand, so they stay out, as an older record does.
DELETE FROM staged_keys
USING unified_history AS history
WHERE
    history.source = $1
    AND history.source_id = staged_keys.source_id
    AND history.observed_at = staged_keys.observed_at
    AND history.recorded_at > $2;

-- name: compare --
-- What the tables do not hold yet: moments that history has not (`appends`) or has otherwise (`corrects`),
-- what is to stand in unified_data (`settles`), and older records that have a symbol, name or rank for a row
-- whose own record lacks it (`relabels`). $3 names the fields that the batch's records lack. It is the same
-- for all of them, so the latest record of each coin is the only one that can relabel.
--
-- Of two records of one moment the later in the batch is judged. The look-up is a scalar subquery so that it
-- stays one descent of the history's key a row; a join may be planned to read whole partitions, which would
-- cost more with every month. LIMIT does the same for unified_data, here and in `newest`: a join may be
-- planned to read all rows of the source for every page of it.
--
-- An older record never overwrites a newer one, and an equal one writes nothing. A time that we put in is the
-- time of fetching, which is later than any that a source tells, so it yields to the first that is told. Nor
-- does what a replay's run was told overwrite what was told after it.
WITH told AS (
    SELECT DISTINCT ON (source_id, observed_at)
        position,
        source_id,
        observed_at,
        content_hash,
        has_source_time
    FROM staged_keys
    ORDER BY source_id, observed_at, position DESC
),
looked_up AS MATERIALIZED (
    SELECT
        told.*,
        coalesce(
            lead(told.source_id) OVER (ORDER BY told.source_id, told.observed_at) <> told.source_id, true
        ) AS latest,
        (
            SELECT history.content_hash
            FROM unified_history AS history
            WHERE
                history.source = $1
                AND history.source_id = told.source_id
                AND history.observed_at = told.observed_at
        ) AS kept
    FROM told
),
judged AS (
    SELECT
        looked_up.position,
        looked_up.content_hash,
        looked_up.has_source_time,
        looked_up.observed_at,
        looked_up.source_id,
        -- A record whose time the source did not tell is known where its content is the newest record's; in a
        -- replay ($2 is when its run ended), where it was then.
        looked_up.kept IS NULL
        AND (
            looked_up.has_source_time
            OR NOT coalesce(
                looked_up.content_hash IN (
                    newest.content_hash,
                    (
                        SELECT history.content_hash
                        FROM unified_history AS history
                        WHERE
                            $2::timestamptz IS NOT NULL
                            AND history.source = $1
                            AND history.source_id = looked_up.source_id
                            AND history.observed_at < looked_up.observed_at
                            AND history.recorded_at <= $2
                        ORDER BY history.observed_at DESC
                        LIMIT 1
                    )
                ),
                false
            )
        ) AS appends,
        coalesce(looked_up.kept <> looked_up.content_hash, false) AS corrects,
        looked_up.latest
        AND coalesce(newest.content_hash <> looked_up.content_hash, true)
        AND (
            newest.source_id IS NULL
            OR (
                (
                    looked_up.observed_at >= newest.observed_at
                    OR (looked_up.has_source_time AND NOT newest.has_source_time)
                )
                AND ($2::timestamptz IS NULL OR coalesce(newest.fetched_at, newest.updated_at) <= $2)
            )
        ) AS settles,
        -- A known moment counts again only where it is corrected, so the same file again writes nothing.
        looked_up.latest
        AND coalesce(
            (
                'symbol' <> ALL($3::text[])
                AND looked_up.observed_at >= newest.symbol_observed_at
                AND (
                    looked_up.observed_at > newest.symbol_observed_at
                    OR looked_up.kept <> looked_up.content_hash
                )
            )
            OR (
                'name' <> ALL($3)
                AND looked_up.observed_at >= newest.name_observed_at
                AND (
                    looked_up.observed_at > newest.name_observed_at
                    OR looked_up.kept <> looked_up.content_hash
                )
            )
            OR (
                'rank' <> ALL($3)
                AND looked_up.observed_at >= newest.rank_observed_at
                AND (
                    looked_up.observed_at > newest.rank_observed_at
                    OR looked_up.kept <> looked_up.content_hash
                )
            ),
            false
        ) AS labels
    FROM looked_up
    LEFT JOIN LATERAL (
        SELECT
            source_id,
            content_hash,
            observed_at,
            has_source_time,
            symbol_observed_at,
            name_observed_at,
            rank_observed_at,
            fetched_at,
            updated_at
        FROM unified_data
        WHERE
            (looked_up.latest OR NOT looked_up.has_source_time)
            AND source = $1
            AND source_id = looked_up.source_id
        LIMIT 1
    ) AS newest ON true
),
written AS (
    INSERT INTO fresh (
        position, content_hash, has_source_time, observed_at, source_id, appends, corrects, settles, relabels
    )
    SELECT
        position,
        content_hash,
        has_source_time,
        observed_at,
        source_id,
        appends,
        corrects,
        settles,
        labels AND NOT settles
    FROM judged
    WHERE appends OR corrects OR settles OR labels
    RETURNING appends, corrects, settles, relabels
)
SELECT
    count(*) AS records,
    count(*) FILTER (WHERE appends) AS appended,
    count(*) FILTER (WHERE corrects) AS corrected,
    count(*) FILTER (WHERE settles) AS settled,
    count(*) FILTER (WHERE relabels) AS relabeled
FROM written;

-- name: partitions --
-- The history's partitions for the months that the batch adds to.
SELECT create_history_partition(months.month)
FROM (
    SELECT DISTINCT date_trunc('month', observed_at AT TIME ZONE 'UTC')::date AS month
    FROM fresh
    WHERE appends
) AS months;

-- name: append --
-- What history did not have. The run is the only writer of its source's rows, so none can come between the
-- comparison and this.
WITH written AS (
    INSERT INTO unified_history (
        source,
        source_id,
        observed_at,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        recorded_at,
        content_hash,
        lacks_symbol,
        lacks_name,
        lacks_rank
    )
    SELECT
        $1,
        fresh.source_id,
        fresh.observed_at,
        told.symbol,
        told.name,
        told.rank,
        told.price_usd,
        told.market_cap_usd,
        told.volume_24h_usd,
        told.circulating_supply,
        told.total_supply,
        told.max_supply,
        told.percent_change_1h,
        told.percent_change_24h,
        told.percent_change_7d,
        $2,
        fresh.content_hash,
        CASE WHEN 'symbol' = ANY($3::text[]) THEN true END,
        CASE WHEN 'name' = ANY($3) THEN true END,
        CASE WHEN 'rank' = ANY($3) THEN true END
    FROM fresh
    INNER JOIN staged_contents AS told ON fresh.position = told.position
    WHERE fresh.appends
    RETURNING 1
)
SELECT count(*) FROM written;

-- name: correct --
-- What the source now tells otherwise of a moment that it had told before: the later word stands. A field
-- that it lacks keeps what is known of that moment.
WITH written AS (
    INSERT INTO unified_history AS history (
        source,
        source_id,
        observed_at,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        recorded_at,
        content_hash,
        lacks_symbol,
        lacks_name,
        lacks_rank
    )
    SELECT
        $1,
        fresh.source_id,
        fresh.observed_at,
        told.symbol,
        told.name,
        told.rank,
        told.price_usd,
        told.market_cap_usd,
        told.volume_24h_usd,
        told.circulating_supply,
        told.total_supply,
        told.max_supply,
        told.percent_change_1h,
        told.percent_change_24h,
        told.percent_change_7d,
        $2,
        fresh.content_hash,
        CASE WHEN 'symbol' = ANY($3::text[]) THEN true END,
        CASE WHEN 'name' = ANY($3) THEN true END,
        CASE WHEN 'rank' = ANY($3) THEN true END
    FROM fresh
    INNER JOIN staged_contents AS told ON fresh.position = told.position
    WHERE fresh.corrects
    ON CONFLICT (source, source_id, observed_at) DO UPDATE SET
        symbol = CASE WHEN excluded.lacks_symbol THEN history.symbol ELSE excluded.symbol END,
        name = CASE WHEN excluded.lacks_name THEN history.name ELSE excluded.name END,
        rank = CASE WHEN excluded.lacks_rank THEN history.rank ELSE excluded.rank END,
        price_usd = excluded.price_usd,
        market_cap_usd = excluded.market_cap_usd,
        volume_24h_usd = excluded.volume_24h_usd,
        circulating_supply = excluded.circulating_supply,
        total_supply = excluded.total_supply,
        max_supply = excluded.max_supply,
        percent_change_1h = excluded.percent_change_1h,
        percent_change_24h = excluded.percent_change_24h,
        percent_change_7d = excluded.percent_change_7d,
        recorded_at = excluded.recorded_at,
        content_hash = excluded.content_hash,
        lacks_symbol = CASE WHEN excluded.lacks_symbol AND history.symbol IS NULL THEN true END,
        lacks_name = CASE WHEN excluded.lacks_name AND history.name IS NULL THEN true END,
        lacks_rank = CASE WHEN excluded.lacks_rank AND history.rank IS NULL THEN true END
    RETURNING 1
)
SELECT count(*) FROM written;

-- name: next_version --
-- The version that this batch's commit makes. The lock, kept until then, puts the batches of all sources in
-- one order, so that whoever sees a version sees every row of it and of those before.
SELECT data_version + 1 FROM instance FOR UPDATE;

-- name: save_row_versions --
-- What rows say before they change is kept for walks that began then.
INSERT INTO unified_data_versions (
    source,
    source_id,
    asset,
    symbol,
    name,
    rank,
    price_usd,
    market_cap_usd,
    volume_24h_usd,
    circulating_supply,
    total_supply,
    max_supply,
    percent_change_1h,
    percent_change_24h,
    percent_change_7d,
    observed_at,
    first_seen_at,
    updated_at,
    version,
    rank_observed_at,
    replaced_by_version,
    replaced_at
)
SELECT
    known.source,
    known.source_id,
    known.asset,
    known.symbol,
    known.name,
    known.rank,
    known.price_usd,
    known.market_cap_usd,
    known.volume_24h_usd,
    known.circulating_supply,
    known.total_supply,
    known.max_supply,
    known.percent_change_1h,
    known.percent_change_24h,
    known.percent_change_7d,
    known.observed_at,
    known.first_seen_at,
    known.updated_at,
    known.version,
    known.rank_observed_at,
    $3,
    $2
FROM fresh
CROSS JOIN LATERAL (
    SELECT *
    FROM unified_data
    WHERE source = $1 AND source_id = fresh.source_id
    LIMIT 1
) AS known
WHERE fresh.settles OR fresh.relabels;

-- name: upsert_latest --
-- The newest record of each coin. Of a field that it lacks ($5) the newest known value stands. xmax is 0 on a
-- row that was inserted.
WITH written AS (
    INSERT INTO unified_data AS newest (
        source,
        source_id,
        symbol,
        name,
        rank,
        price_usd,
        market_cap_usd,
        volume_24h_usd,
        circulating_supply,
        total_supply,
        max_supply,
        percent_change_1h,
        percent_change_24h,
        percent_change_7d,
        observed_at,
        first_seen_at,
        updated_at,
        fetched_at,
        content_hash,
        has_source_time,
        version,
        symbol_observed_at,
        name_observed_at,
        rank_observed_at
    )
    SELECT
        $1,
        fresh.source_id,
        told.symbol,
        told.name,
        told.rank,
        told.price_usd,
        told.market_cap_usd,
        told.volume_24h_usd,
        told.circulating_supply,
        told.total_supply,
        told.max_supply,
        told.percent_change_1h,
        told.percent_change_24h,
        told.percent_change_7d,
        fresh.observed_at,
        $2,
        $2,
        coalesce($3::timestamptz, $2),
        fresh.content_hash,
        fresh.has_source_time,
        $4,
        CASE WHEN 'symbol' = ANY($5::text[]) THEN '-infinity'::timestamptz END,
        CASE WHEN 'name' = ANY($5) THEN '-infinity'::timestamptz END,
        CASE WHEN 'rank' = ANY($5) THEN '-infinity'::timestamptz END
    FROM fresh
    INNER JOIN staged_contents AS told ON fresh.position = told.position
    WHERE fresh.settles
    ON CONFLICT (source, source_id) DO UPDATE SET
        symbol = CASE WHEN 'symbol' = ANY($5) THEN newest.symbol ELSE excluded.symbol END,
        name = CASE WHEN 'name' = ANY($5) THEN newest.name ELSE excluded.name END,
        rank = CASE WHEN 'rank' = ANY($5) THEN newest.rank ELSE excluded.rank END,
        price_usd = excluded.price_usd,
        market_cap_usd = excluded.market_cap_usd,
        volume_24h_usd = excluded.volume_24h_usd,
        circulating_supply = excluded.circulating_supply,
        total_supply = excluded.total_supply,
        max_supply = excluded.max_supply,
        percent_change_1h = excluded.percent_change_1h,
        percent_change_24h = excluded.percent_change_24h,
        percent_change_7d = excluded.percent_change_7d,
        observed_at = excluded.observed_at,
        updated_at = excluded.updated_at,
        fetched_at = excluded.fetched_at,
        content_hash = excluded.content_hash,
        has_source_time = excluded.has_source_time,
        version = excluded.version,
        symbol_observed_at = CASE
            WHEN 'symbol' = ANY($5) THEN coalesce(newest.symbol_observed_at, newest.observed_at)
        END,
        name_observed_at = CASE
            WHEN 'name' = ANY($5) THEN coalesce(newest.name_observed_at, newest.observed_at)
        END,
        rank_observed_at = CASE
            WHEN 'rank' = ANY($5) THEN coalesce(newest.rank_observed_at, newest.observed_at)
        END
    RETURNING xmax = 0 AS inserted
)
SELECT
    count(*) FILTER (WHERE inserted) AS inserted,
    count(*) FILTER (WHERE NOT inserted) AS updated
FROM written;

-- name: relabel --
-- Symbol, name and rank for rows whose own record lacks them, from the newest record that has them. The
-- figures stay: those of another moment do not mix.
WITH offered AS (
    SELECT
        fresh.source_id,
        fresh.observed_at,
        staged.symbol,
        staged.name,
        staged.rank,
        'symbol' <> ALL($4::text[]) AND fresh.observed_at >= known.symbol_observed_at AS has_symbol,
        'name' <> ALL($4) AND fresh.observed_at >= known.name_observed_at AS has_name,
        'rank' <> ALL($4) AND fresh.observed_at >= known.rank_observed_at AS has_rank
    FROM fresh
    INNER JOIN staged_contents AS staged ON fresh.position = staged.position
    CROSS JOIN LATERAL (
        SELECT
            symbol_observed_at,
            name_observed_at,
            rank_observed_at
        FROM unified_data
        WHERE source = $1 AND source_id = fresh.source_id
        LIMIT 1
    ) AS known
    WHERE fresh.relabels
),

written AS (
    UPDATE unified_data AS newest
    SET
        symbol = CASE WHEN offered.has_symbol THEN offered.symbol ELSE newest.symbol END,
        name = CASE WHEN offered.has_name THEN offered.name ELSE newest.name END,
        rank = CASE WHEN offered.has_rank THEN offered.rank ELSE newest.rank END,
        symbol_observed_at = CASE
            WHEN offered.has_symbol THEN offered.observed_at ELSE newest.symbol_observed_at
        END,
        name_observed_at = CASE
            WHEN offered.has_name THEN offered.observed_at ELSE newest.name_observed_at
        END,
        rank_observed_at = CASE
            WHEN offered.has_rank THEN offered.observed_at ELSE newest.rank_observed_at
        END,
        updated_at = $2,
        version = $3
    FROM offered
    WHERE newest.source = $1 AND newest.source_id = offered.source_id
    RETURNING 1
)

SELECT count(*) FROM written;
