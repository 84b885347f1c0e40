-- Merges a batch (kasparro/store/loader.py): one statement per step, all in one transaction.
{% from "macros/columns.sql" import CONTENT, ROW_VERSION, VALUES, listed, overwritten %}
{% from "macros/history_months.sql" import noted %}

{#- Creates the partitions of the months of some moments. #}
{% macro partitions(relation, condition="true") -%}
SELECT create_history_partition(months.month)
FROM (
    SELECT DISTINCT date_trunc('month', observed_at AT TIME ZONE 'UTC')::date AS month
    FROM {{ relation }}
    WHERE {{ condition }}
) AS months
{%- endmacro %}

{#- Adds staged records to the history. #}
{% macro appended(relation, condition="") -%}
WITH written AS (
    INSERT INTO unified_history (
        source,
        source_id,
        observed_at,
        {{ listed(CONTENT) }},
        recorded_at,
        content_hash,
        lacks_symbol,
        lacks_name,
        lacks_rank,
        file_id
    )
    SELECT
        $1,
        changes.source_id,
        changes.observed_at,
        {{ listed(CONTENT, "staged.") }},
        $2,
        changes.content_hash,
        CASE WHEN 'symbol' = ANY($3::text[]) THEN true END,
        CASE WHEN 'name' = ANY($3) THEN true END,
        CASE WHEN 'rank' = ANY($3) THEN true END,
        $4::integer
    FROM {{ relation }} AS changes
    INNER JOIN staged_contents AS staged ON changes.position = staged.position
    {{ condition }}
    RETURNING 1
)
SELECT count(*) FROM written
{%- endmacro %}

-- name: staging --
-- The lock that a write of the history takes anyway: from here on, no thinned month takes its place.
LOCK TABLE ONLY unified_history IN ROW EXCLUSIVE MODE;

-- A merged batch is sorted and joined in memory; the default of 4 MB is too little for that.
SET LOCAL work_mem = '32MB';

-- PostgreSQL overestimates the work of `compare`, and would compile it for every batch.
SET LOCAL jit = off;

-- The tables that COPY fills with a batch, and staged_changes, in which `compare` notes what is new in it.
-- They belong to the session and are empty after each commit.
CREATE TEMPORARY TABLE IF NOT EXISTS staged_keys (
    position bigint NOT NULL,
    content_hash uuid NOT NULL,
    has_source_time boolean NOT NULL,
    observed_at timestamptz NOT NULL,
    source_id text COLLATE "C" NOT NULL
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS staged_contents (
    position bigint NOT NULL,
    symbol text COLLATE "C",
    name text COLLATE "C",
    rank integer,
    {{ listed(VALUES, suffix=" numeric") }}

) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS staged_changes (
    position bigint NOT NULL,
    content_hash uuid NOT NULL,
    has_source_time boolean NOT NULL,
    observed_at timestamptz NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    appends boolean NOT NULL,
    corrects boolean NOT NULL,
    updates_latest boolean NOT NULL,
    updates_labels boolean NOT NULL,
    claims boolean NOT NULL DEFAULT false,
    shares boolean NOT NULL DEFAULT false
) ON COMMIT DELETE ROWS;

-- name: skip_superseded --
-- In a replay ($2: when the replayed run ended), drops records of moments for which a later run has written
-- other content, because that content is newer.
DELETE FROM staged_keys
USING unified_history AS history
WHERE
    history.source = $1
    AND history.source_id = staged_keys.source_id
    AND history.observed_at = staged_keys.observed_at
    AND history.recorded_at > $2;

-- name: is_thinned --
-- Whether the source has months that were thinned.
SELECT EXISTS(SELECT FROM history_months WHERE source = $1 AND thinned_to IS NOT NULL);

-- name: skip_thinned --
-- Drops the records of a file ($2; null: of an API) that an already thinned record of the same file stands
-- for: they are known, but no longer there to be compared.
WITH known AS (
    SELECT coin.position
    FROM staged_keys AS staged
    INNER JOIN history_months AS months
        ON months.month = date_trunc('month', staged.observed_at AT TIME ZONE 'UTC')::date
    CROSS JOIN LATERAL (
        SELECT
            staged.position,
            staged.observed_at,
            (months.month + interval '1 month')::timestamp AT TIME ZONE 'UTC' AS ends_at,
            source,
            source_id
        FROM unified_data
        WHERE source = $1 AND source_id = staged.source_id
        ORDER BY source_id
    ) AS coin
    CROSS JOIN LATERAL (
        SELECT history.thinned_from
        FROM unified_history AS history
        WHERE
            history.source = coin.source
            AND history.source_id = coin.source_id
            AND history.observed_at > coin.observed_at
            AND history.observed_at < coin.ends_at
            AND history.price_usd IS NOT NULL
            AND history.file_id IS NOT DISTINCT FROM $2::integer
        ORDER BY history.observed_at
        LIMIT 1
    ) AS next
    WHERE
        months.source = $1
        AND months.thinned_to IS NOT NULL
        AND coin.observed_at >= next.thinned_from
)

DELETE FROM staged_keys
USING known
WHERE staged_keys.position = known.position;

-- name: partitions --
-- Creates the partitions of the months that the batch adds to.
{{ partitions("staged_changes", "appends") }};

-- name: note_changes --
-- Notes from which moment on this batch changes each month of the history.
{{ noted("staged_changes", "appends OR corrects OR claims OR shares") }};

-- name: new_partitions --
-- Creates the partitions of the months of these moments.
{{ partitions("unnest($1::timestamptz[]) AS staged (observed_at)") }};

-- name: note_new --
-- Notes that the batch changes these months from these moments ($2) on.
{{ noted("unnest($2::timestamptz[]) AS staged (observed_at)") }};

-- name: append_history --
-- Adds the moments that the history lacks. The run is the only writer of its source's rows, so nothing
-- changes between the comparison and this.
{{ appended("staged_changes", "WHERE changes.appends") }};

-- name: append_new --
-- Adds all records of a batch for which `is_new` is true. Raises a unique violation if two of them are of one
-- moment.
{{ appended("staged_keys") }};

-- name: correct_history --
-- Overwrites the moments that the source now reports with other content, or that become this file's. A field
-- that the record lacks keeps its known value, unless a file that is replaced gave it.
WITH written AS (
    INSERT INTO unified_history AS history (
        source,
        source_id,
        observed_at,
        {{ listed(CONTENT) }},
        recorded_at,
        content_hash,
        lacks_symbol,
        lacks_name,
        lacks_rank,
        file_id
    )
    SELECT
        $1,
        changes.source_id,
        changes.observed_at,
        {{ listed(CONTENT, "staged.") }},
        $2,
        changes.content_hash,
        CASE WHEN 'symbol' = ANY($3::text[]) THEN true END,
        CASE WHEN 'name' = ANY($3) THEN true END,
        CASE WHEN 'rank' = ANY($3) THEN true END,
        $4::integer
    FROM staged_changes AS changes
    INNER JOIN staged_contents AS staged ON changes.position = staged.position
    WHERE changes.corrects OR changes.claims
    ON CONFLICT (source, source_id, observed_at) DO UPDATE SET
        symbol = CASE WHEN excluded.lacks_symbol AND $4 IS NULL THEN history.symbol ELSE excluded.symbol END,
        name = CASE WHEN excluded.lacks_name AND $4 IS NULL THEN history.name ELSE excluded.name END,
        rank = CASE WHEN excluded.lacks_rank AND $4 IS NULL THEN history.rank ELSE excluded.rank END,
        {{ overwritten(VALUES) }},
        recorded_at = CASE
            WHEN history.content_hash = excluded.content_hash THEN history.recorded_at
            ELSE excluded.recorded_at
        END,
        content_hash = excluded.content_hash,
        file_id = excluded.file_id,
        lacks_symbol = CASE
            WHEN excluded.lacks_symbol AND ($4 IS NOT NULL OR history.symbol IS NULL) THEN true
        END,
        lacks_name = CASE
            WHEN excluded.lacks_name AND ($4 IS NOT NULL OR history.name IS NULL) THEN true
        END,
        lacks_rank = CASE
            WHEN excluded.lacks_rank AND ($4 IS NOT NULL OR history.rank IS NULL) THEN true
        END
    RETURNING 1
)
SELECT count(*) FROM written;

-- name: next_version --
-- The data version that the commit of this batch makes. The lock lasts until then, and so puts the batches
-- of all sources in one order: a reader that sees a version sees every row of it and of the versions
-- before.
SELECT data_version + 1 FROM instance FOR UPDATE;

-- name: save_row_versions --
-- Saves what rows contain before they change, for snapshot cursors that started then.
INSERT INTO unified_data_versions (
    {{ listed(ROW_VERSION) }},
    replaced_by_version,
    replaced_at
)
SELECT
    {{ listed(ROW_VERSION, "known.") }},
    $3,
    $2
FROM staged_changes AS changes
CROSS JOIN LATERAL (
    SELECT *
    FROM unified_data
    WHERE source = $1 AND source_id = changes.source_id
    ORDER BY source_id
) AS known
WHERE changes.updates_latest OR changes.updates_labels;

-- name: upsert_latest --
-- Writes the newest record of each coin. A field that the records lack ($5) keeps its newest known value.
-- xmax is 0 in a row that was inserted. A new row gets the listing state $6; `settle_states` changes it.
WITH written AS (
    INSERT INTO unified_data AS newest (
        source,
        source_id,
        {{ listed(CONTENT) }},
        observed_at,
        first_seen_at,
        updated_at,
        fetched_at,
        content_hash,
        has_source_time,
        version,
        listing_state,
        symbol_observed_at,
        name_observed_at,
        rank_observed_at
    )
    SELECT
        $1,
        changes.source_id,
        {{ listed(CONTENT, "staged.") }},
        changes.observed_at,
        $2,
        $2,
        coalesce($3::timestamptz, $2),
        changes.content_hash,
        changes.has_source_time,
        $4,
        $6,
        CASE WHEN 'symbol' = ANY($5::text[]) THEN '-infinity'::timestamptz END,
        CASE WHEN 'name' = ANY($5) THEN '-infinity'::timestamptz END,
        CASE WHEN 'rank' = ANY($5) THEN '-infinity'::timestamptz END
    FROM staged_changes AS changes
    INNER JOIN staged_contents AS staged ON changes.position = staged.position
    WHERE changes.updates_latest
    ON CONFLICT (source, source_id) DO UPDATE SET
        symbol = CASE WHEN 'symbol' = ANY($5) THEN newest.symbol ELSE excluded.symbol END,
        name = CASE WHEN 'name' = ANY($5) THEN newest.name ELSE excluded.name END,
        rank = CASE WHEN 'rank' = ANY($5) THEN newest.rank ELSE excluded.rank END,
        {{ overwritten(VALUES) }},
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

-- name: update_labels --
-- Writes the symbol, name and rank of rows whose own record lacks them, from the newest record that has them.
-- Other values stay: those of different moments are never mixed.
WITH offered AS (
    SELECT
        changes.source_id,
        changes.observed_at,
        staged.symbol,
        staged.name,
        staged.rank,
        'symbol' <> ALL($4::text[]) AND changes.observed_at >= known.symbol_observed_at AS has_symbol,
        'name' <> ALL($4) AND changes.observed_at >= known.name_observed_at AS has_name,
        'rank' <> ALL($4) AND changes.observed_at >= known.rank_observed_at AS has_rank
    FROM staged_changes AS changes
    INNER JOIN staged_contents AS staged ON changes.position = staged.position
    CROSS JOIN LATERAL (
        SELECT
            symbol_observed_at,
            name_observed_at,
            rank_observed_at
        FROM unified_data
        WHERE source = $1 AND source_id = changes.source_id
        ORDER BY source_id
    ) AS known
    WHERE changes.updates_labels
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
