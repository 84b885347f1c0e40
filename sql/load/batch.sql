-- Merges a batch (kasparro/store/loader.py): one statement per step, all in one transaction.
{% from "macros/columns.sql" import CONTENT, ROW_VERSION, VALUES, listed, overwritten %}
{% from "macros/history_months.sql" import noted %}

-- name: staging --
-- The lock that a write of the history takes anyway: from here on, no thinned month takes its place.
LOCK TABLE ONLY unified_history IN ROW EXCLUSIVE MODE;

-- The tables that COPY fills with a batch, and staged_changes, in which `compare` notes what is new in it.
-- They belong to the session and are empty after each commit.
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
    {{ listed(VALUES, suffix=" numeric") }}

) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS staged_changes (
    position integer NOT NULL,
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
DELETE FROM staged_keys
USING history_months AS months
WHERE
    months.source = $1
    AND months.month = date_trunc('month', staged_keys.observed_at AT TIME ZONE 'UTC')::date
    AND months.thinned_to IS NOT NULL
    AND staged_keys.observed_at >= (
        SELECT history.thinned_from
        FROM unified_history AS history
        WHERE
            history.source = $1
            AND history.source_id = staged_keys.source_id
            AND history.observed_at > staged_keys.observed_at
            AND history.observed_at < (months.month + interval '1 month')::timestamp AT TIME ZONE 'UTC'
            AND history.price_usd IS NOT NULL
            AND history.file_id IS NOT DISTINCT FROM $2::integer
        ORDER BY history.observed_at
        LIMIT 1
    );

-- name: compare --
-- Stages what the tables do not have yet: records of moments that the history lacks (`appends`) or has with
-- other content (`corrects`), records that become the row in unified_data (`updates_latest`), and older
-- records that have a symbol, name or rank for a row whose own record lacks it (`updates_labels`). $3 names
-- the fields that the records of this batch lack. They are the same for all of them, so only the latest
-- record of each coin can update labels.
--
-- Of two records of one moment, the later in the batch counts. LIMIT keeps the look-up in the history one
-- descent of the index for each row; PostgreSQL may plan a join to read whole partitions, which would cost
-- more every month. It does the same for unified_data, here and in `save_row_versions`, where a join may read
-- all rows of the source for every page.
--
-- Of an archive, $4 is the file and $5 are the files that it replaces. A moment that another file gives, too,
-- is only noted (`shares`): when the file is loaded to its end, all records of the moment are compared
-- (archives.sql). A moment of a replaced file, or of no known file, becomes this file's (`claims` if its
-- content stays).
--
-- An older record never overwrites a newer one, and equal content writes nothing. A time of fetching is later
-- than any time that a source gives, so it gives way to the first time that the source gives. What a replay
-- ($2: when the replayed run ended) loads does not overwrite what was fetched later.
WITH incoming AS (
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
        incoming.*,
        known.content_hash AS known_hash,
        known.file_id AS known_file,
        coalesce(known.file_id <> $4::integer AND known.file_id <> ALL($5::integer[]), false) AS is_shared,
        coalesce(
            lead(incoming.source_id) OVER (ORDER BY incoming.source_id, incoming.observed_at)
            <> incoming.source_id,
            true
        ) AS latest
    FROM incoming
    LEFT JOIN LATERAL (
        SELECT
            content_hash,
            file_id
        FROM unified_history
        WHERE source = $1 AND source_id = incoming.source_id AND observed_at = incoming.observed_at
        LIMIT 1
    ) AS known ON true
),
compared AS (
    SELECT
        looked_up.position,
        looked_up.content_hash,
        looked_up.has_source_time,
        looked_up.observed_at,
        looked_up.source_id,
        -- A record with a time of fetching is known if its content is that of the newest record, or, in a
        -- replay, that of the newest record of the replayed run.
        looked_up.known_hash IS NULL
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
        coalesce(looked_up.known_hash <> looked_up.content_hash, false)
        AND NOT looked_up.is_shared AS corrects,
        coalesce(looked_up.known_hash = looked_up.content_hash, false)
        AND NOT looked_up.is_shared
        AND $4 IS NOT NULL
        AND coalesce(looked_up.known_file <> $4, true) AS claims,
        CASE
            WHEN looked_up.is_shared
                THEN NOT EXISTS (
                    SELECT FROM shared_records
                    WHERE
                        source = $1
                        AND source_id = looked_up.source_id
                        AND observed_at = looked_up.observed_at
                        AND file_id = $4
                        AND content_hash = looked_up.content_hash
                )
            ELSE false
        END AS shares,
        looked_up.latest
        AND NOT looked_up.is_shared
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
        ) AS updates_latest,
        -- A known moment counts again only if it is corrected, so the same file again writes nothing.
        looked_up.latest
        AND NOT looked_up.is_shared
        AND coalesce(
            (
                'symbol' <> ALL($3::text[])
                AND looked_up.observed_at >= newest.symbol_observed_at
                AND (
                    looked_up.observed_at > newest.symbol_observed_at
                    OR looked_up.known_hash <> looked_up.content_hash
                )
            )
            OR (
                'name' <> ALL($3)
                AND looked_up.observed_at >= newest.name_observed_at
                AND (
                    looked_up.observed_at > newest.name_observed_at
                    OR looked_up.known_hash <> looked_up.content_hash
                )
            )
            OR (
                'rank' <> ALL($3)
                AND looked_up.observed_at >= newest.rank_observed_at
                AND (
                    looked_up.observed_at > newest.rank_observed_at
                    OR looked_up.known_hash <> looked_up.content_hash
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
    INSERT INTO staged_changes (
        position,
        content_hash,
        has_source_time,
        observed_at,
        source_id,
        appends,
        corrects,
        updates_latest,
        updates_labels,
        claims,
        shares
    )
    SELECT
        position,
        content_hash,
        has_source_time,
        observed_at,
        source_id,
        appends,
        corrects,
        updates_latest,
        labels AND NOT updates_latest,
        claims,
        shares
    FROM compared
    WHERE appends OR corrects OR updates_latest OR labels OR claims OR shares
    RETURNING appends, corrects, updates_latest, updates_labels, claims, shares
)
SELECT
    count(*) AS records,
    count(*) FILTER (WHERE claims) AS claiming,
    count(*) FILTER (WHERE shares) AS sharing,
    (SELECT count(*) FROM looked_up) AS moments,
    (SELECT min(observed_at) FROM looked_up) AS first_observed_at,
    (SELECT max(observed_at) FROM looked_up) AS last_observed_at,
    count(*) FILTER (WHERE appends) AS appending,
    count(*) FILTER (WHERE corrects) AS correcting,
    count(*) FILTER (WHERE updates_latest) AS updating_latest,
    count(*) FILTER (WHERE updates_labels) AS updating_labels
FROM written;

-- name: partitions --
-- Creates the partitions of the months that the batch adds to.
SELECT create_history_partition(months.month)
FROM (
    SELECT DISTINCT date_trunc('month', observed_at AT TIME ZONE 'UTC')::date AS month
    FROM staged_changes
    WHERE appends
) AS months;

-- name: note_changes --
-- Notes from which moment on this batch changes each month of the history.
{{ noted("staged_changes", "appends OR corrects OR claims OR shares") }};

-- name: append_history --
-- Adds the moments that the history lacks. The run is the only writer of its source's rows, so nothing
-- changes between the comparison and this.
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
    FROM staged_changes AS changes
    INNER JOIN staged_contents AS staged ON changes.position = staged.position
    WHERE changes.appends
    RETURNING 1
)
SELECT count(*) FROM written;

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
    LIMIT 1
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
        LIMIT 1
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
