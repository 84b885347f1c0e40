-- Computes daily candles, and thins old months (kasparro/store/history_upkeep.py).
{% from "macros/columns.sql" import CONTENT, listed, overwritten %}
{% from "macros/history.sql" import PRICES, contribution, prices %}
{% set FIGURES = PRICES + ["count"] %}
{% set RECORD = ["source", "source_id", "observed_at"] + CONTENT
    + ["recorded_at", "content_hash", "lacks_symbol", "lacks_name", "lacks_rank", "file_id"] %}

-- name: long_timeout --
-- A month of a large history takes minutes.
SELECT set_config('statement_timeout', '1h', true), set_config('work_mem', '64MB', true);

-- name: stale_months --
-- The months whose candles lack a day that is over. A month is computed at most every six hours,
-- because an upstream may send old records in every run; and not while a run loads records of its source.
SELECT
    months.source,
    months.month
FROM history_months AS months
WHERE
    date_trunc('day', least(months.changed_from, months.stale_from), 'UTC')
    < date_trunc('day', :now::timestamptz, 'UTC')
    AND (
        months.candles_at IS NULL
        OR months.stale_from < 'infinity'
        OR months.candles_at NOT BETWEEN :now - interval '6 hours' AND :now
    )
    AND NOT EXISTS (
        SELECT FROM run_sources
        WHERE run_sources.status = 'running' AND run_sources.source = months.source
    )
ORDER BY months.month DESC, months.source ASC;

-- name: begin_candles --
-- From now on, batches note their changes for the next time. Returns from when on to compute candles.
UPDATE history_months
SET
    stale_from = least(stale_from, changed_from),
    changed_from = 'infinity',
    thinned_completely = false
WHERE source = :source AND month = :month
RETURNING greatest(date_trunc('day', stale_from, 'UTC'), month::timestamp AT TIME ZONE 'UTC');

-- name: write_candles --
-- Writes the candles of a month from a day on. The statement sees all changes that were noted before,
-- and perhaps later ones, which are noted again.
WITH fresh AS MATERIALIZED (
    SELECT
        source,
        source_id,
        time,
        {{ prices() }}
    FROM (
        SELECT {{ contribution("day") }}
        FROM unified_history AS history
        WHERE
            history.source = :source
            AND history.observed_at >= :begins_at
            AND history.observed_at < (:month::date + interval '1 month')::timestamp AT TIME ZONE 'UTC'
            AND history.price_usd IS NOT NULL
    ) AS contributions
    GROUP BY source, source_id, time
),

deleted AS (
    DELETE FROM daily_candles AS stored
    WHERE
        stored.source = :source
        AND stored.time >= :begins_at
        AND stored.time < (:month::date + interval '1 month')::timestamp AT TIME ZONE 'UTC'
        AND NOT EXISTS (
            SELECT FROM fresh
            WHERE fresh.source_id = stored.source_id AND fresh.time = stored.time
        )
)

INSERT INTO daily_candles AS stored (source, source_id, time, {{ listed(FIGURES) }})
SELECT
    source,
    source_id,
    time,
    {{ listed(FIGURES) }}
FROM fresh
ORDER BY source_id, time
ON CONFLICT (source, source_id, time) DO UPDATE SET {{ overwritten(FIGURES) }}
WHERE ({{ listed(FIGURES, "stored.") }}) IS DISTINCT FROM ({{ listed(FIGURES, "excluded.") }});

-- name: finish_candles --
UPDATE history_months
SET
    stale_from = 'infinity',
    candles_at = :now
WHERE source = :source AND month = :month;

-- name: months --
-- The state of each month that is over, by source.
SELECT
    month,
    source,
    thinned_to,
    thinned_completely,
    least(changed_from, stale_from) = 'infinity' AS settled
FROM history_months
WHERE
    (month + interval '1 month')::timestamp AT TIME ZONE 'UTC' <= :now
    AND to_regclass('unified_history_' || to_char(month, 'YYYY_MM')) IS NOT NULL
ORDER BY month, source;

-- name: present --
-- The moment that ages are counted from: by our clock, or if it is ahead of what the upstreams send, the
-- newest moment that they sent.
SELECT least(:now::timestamptz, max(observed_at)) FROM unified_data
WHERE listing_state <> 2;

-- name: leftovers --
-- Tables that an interrupted thinning left.
SELECT tables.relname
FROM pg_class AS tables
WHERE
    tables.relkind = 'r'
    AND NOT tables.relispartition
    AND tables.relnamespace = (
        SELECT history.relnamespace FROM pg_class AS history
        WHERE history.oid = 'unified_history'::regclass
    )
    AND tables.relname ~ '^unified_history_\d{4}_\d{2}_(new|old)$';

-- name: count --
SELECT count(*) FROM {{ month }};

-- name: create_thinned --
CREATE TABLE {{ month }}_new (LIKE unified_history INCLUDING ALL);

-- name: fill_thinned --
-- Of the priced records of each coin, interval and file with one symbol and name, the last one stands for
-- all. What it says about the
-- earlier ones leaves out its own values, which may be corrected later. Records that other files give, too,
-- stay as they are, because these files can be taken back one by one. If an id
-- comes to mean another coin, its symbol or name changes: no record stands for records of both coins.
WITH ordered AS (
    SELECT
        source,
        source_id,
        observed_at,
        thinned_from,
        thinned_open,
        thinned_high,
        thinned_low,
        thinned_count,
        min(coalesce(thinned_from, observed_at)) OVER earlier AS earlier_from,
        min(
            ARRAY[
                extract(EPOCH FROM coalesce(thinned_from, observed_at)),
                coalesce(thinned_open, price_usd)
            ]
        ) OVER earlier AS earlier_opened,
        max(greatest(thinned_high, price_usd)) OVER earlier AS earlier_high,
        min(least(thinned_low, price_usd)) OVER earlier AS earlier_low,
        sum(coalesce(thinned_count, 0) + 1) OVER earlier AS earlier_count,
        lead(observed_at) OVER same IS NULL AS is_last
    FROM (
        SELECT
            history.*,
            CASE
                WHEN
                    price_usd IS NULL
                    OR EXISTS (
                        SELECT FROM shared_records AS shared
                        WHERE
                            shared.source = history.source
                            AND shared.source_id = history.source_id
                            AND shared.observed_at = history.observed_at
                            AND shared.observed_at >= :begins_at
                            AND shared.observed_at < :begins_at::timestamptz + interval '1 month'
                    )
                    THEN observed_at
            END AS alone
        FROM {{ month }} AS history
    ) AS records
    WINDOW
        same AS (
            PARTITION BY
                source,
                source_id,
                date_trunc('{{ unit }}', observed_at, 'UTC'),
                file_id,
                lacks_symbol,
                lacks_name,
                lacks_rank,
                symbol,
                name,
                alone
            ORDER BY observed_at
        ),
        earlier AS (same ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)

INSERT INTO {{ month }}_new (
    {{ listed(RECORD) }},
    thinned_from,
    thinned_open,
    thinned_high,
    thinned_low,
    thinned_count
)
SELECT
    {{ listed(RECORD, "history.") }},
    least(ordered.earlier_from, ordered.thinned_from),
    (
        least(
            ordered.earlier_opened,
            CASE
                WHEN ordered.thinned_from IS NOT NULL
                    THEN ARRAY[extract(EPOCH FROM ordered.thinned_from), ordered.thinned_open]
            END
        )
    )[2],
    greatest(ordered.earlier_high, ordered.thinned_high),
    least(ordered.earlier_low, ordered.thinned_low),
    nullif(coalesce(ordered.earlier_count, 0) + coalesce(ordered.thinned_count, 0), 0)::bigint
FROM ordered
INNER JOIN {{ month }} AS history USING (source, source_id, observed_at)
WHERE ordered.is_last
ORDER BY source, source_id, observed_at;

-- name: bound_thinned --
-- ATTACH reads the whole table, unless this says what is in it.
ALTER TABLE {{ month }}_new ADD CONSTRAINT of_month CHECK (
    observed_at >= '{{ begins_at }}'::timestamptz AND observed_at < '{{ ends_at }}'::timestamptz
);

-- name: analyze_thinned --
ANALYZE {{ month }}_new;

-- name: short_lock_timeout --
-- While this waits for a lock, everybody who comes later waits, too.
SELECT set_config('lock_timeout', '200ms', true);

-- name: lock --
LOCK TABLE ONLY unified_history, {{ month }} IN ACCESS EXCLUSIVE MODE;

-- name: settled --
-- Whether nobody has changed the month since its candles were computed; every change is noted.
SELECT bool_and(least(changed_from, stale_from) = 'infinity') FROM history_months
WHERE month = :month;

-- name: detach --
-- The thinned table takes the place of the month's, in five statements. Citus accepts only one at a time.
ALTER TABLE unified_history DETACH PARTITION {{ month }};

-- name: set_aside --
ALTER TABLE {{ month }} RENAME TO {{ month }}_old;

-- name: rename --
ALTER TABLE {{ month }}_new RENAME TO {{ month }};

-- name: attach --
ALTER TABLE unified_history ATTACH PARTITION {{ month }}
FOR VALUES FROM ('{{ begins_at }}') TO ('{{ ends_at }}');

-- name: drop_bound --
ALTER TABLE {{ month }} DROP CONSTRAINT of_month;

-- name: note_thinned --
UPDATE history_months
SET
    thinned_to = :interval,
    thinned_completely = true
WHERE month = :month;

-- name: drop --
DROP TABLE {{ table }};
