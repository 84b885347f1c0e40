-- Finds what is new in a batch (kasparro/store/loader.py), before it is merged.
{% from "macros/columns.sql" import LABELS %}

{#- Compares the staged records with the tables, or only the newest record of each coin. #}
{% macro compared(newest=false) -%}
WITH incoming AS (
    {% if newest %}
    -- No two records are of one moment, because `append_new` has added them. Grouping takes two thirds of the
    -- time of sorting.
    SELECT
        staged.position,
        staged.source_id,
        staged.observed_at,
        staged.content_hash,
        staged.has_source_time,
        true AS latest
    FROM (
        SELECT
            source_id,
            max(observed_at) AS observed_at
        FROM staged_keys
        GROUP BY source_id
    ) AS newest
    INNER JOIN staged_keys AS staged
        ON newest.source_id = staged.source_id AND newest.observed_at = staged.observed_at
    {% else %}
    SELECT DISTINCT ON (source_id, observed_at)
        position,
        source_id,
        observed_at,
        content_hash,
        has_source_time,
        observed_at = last_value(observed_at) OVER of_coin AS latest
    FROM staged_keys
    WINDOW of_coin AS (
        PARTITION BY source_id
        ORDER BY observed_at, position DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
    ORDER BY source_id, observed_at, position DESC
    {% endif %}
),
{% if not newest %}
known AS (
    SELECT
        incoming.position,
        history.content_hash,
        history.file_id
    FROM incoming
    CROSS JOIN LATERAL (
        SELECT
            content_hash,
            file_id
        FROM unified_history
        WHERE source = $1 AND source_id = incoming.source_id AND observed_at = incoming.observed_at
        ORDER BY observed_at
    ) AS history
),
{% endif %}
looked_up AS MATERIALIZED (
    SELECT
        incoming.*,
        known.content_hash AS known_hash,
        known.file_id AS known_file,
        coalesce(known.file_id <> $4::integer AND known.file_id <> ALL($5::integer[]), false) AS is_shared
    FROM incoming
    {% if newest %}
    CROSS JOIN LATERAL (
        SELECT
            incoming.content_hash,
            $4::integer AS file_id
    ) AS known
    {% else %}
    LEFT JOIN known ON incoming.position = known.position
    {% endif %}
),
shared AS (
    SELECT looked_up.position
    FROM looked_up
    CROSS JOIN LATERAL (
        SELECT content_hash
        FROM shared_records
        WHERE
            source = $1
            AND source_id = looked_up.source_id
            AND observed_at = looked_up.observed_at
            AND file_id = $4
        ORDER BY observed_at
    ) AS given
    WHERE looked_up.is_shared AND given.content_hash = looked_up.content_hash
),
shown AS (
    SELECT
        newest.*,
        replayed.content_hash AS replayed_hash
    FROM looked_up
    CROSS JOIN LATERAL (
        SELECT
            looked_up.position,
            CASE WHEN $2::timestamptz IS NULL THEN '-infinity' ELSE looked_up.observed_at END AS before,
            source,
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
        WHERE source = $1 AND source_id = looked_up.source_id
        ORDER BY source_id
    ) AS newest
    LEFT JOIN LATERAL (
        SELECT content_hash
        FROM unified_history
        WHERE
            source = newest.source
            AND source_id = newest.source_id
            AND observed_at < newest.before
            AND recorded_at <= coalesce($2, 'infinity')
        ORDER BY observed_at DESC
        LIMIT 1
    ) AS replayed ON true
    WHERE looked_up.latest OR NOT looked_up.has_source_time
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
            OR NOT coalesce(looked_up.content_hash IN (newest.content_hash, newest.replayed_hash), false)
        ) AS appends,
        coalesce(looked_up.known_hash <> looked_up.content_hash, false)
        AND NOT looked_up.is_shared AS corrects,
        coalesce(looked_up.known_hash = looked_up.content_hash, false)
        AND NOT looked_up.is_shared
        AND $4 IS NOT NULL
        AND coalesce(looked_up.known_file <> $4, true) AS claims,
        looked_up.is_shared AND looked_up.position NOT IN (SELECT position FROM shared) AS shares,
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
    LEFT JOIN shown AS newest ON looked_up.position = newest.position
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
FROM written
{%- endmacro %}

-- name: first_is_known --
-- Whether the history has the first staged record with the same content as a record of this file ($2).
SELECT EXISTS(
    SELECT 1
    FROM (
        SELECT
            source_id,
            observed_at,
            content_hash
        FROM staged_keys
        LIMIT 1
    ) AS first
    INNER JOIN unified_history AS history
        ON first.source_id = history.source_id AND first.observed_at = history.observed_at
    WHERE history.source = $1 AND history.file_id = $2 AND history.content_hash = first.content_hash
);

-- name: is_known --
-- Whether the history has all staged records with the same content as records of this file ($2), and they
-- change no row of unified_data; $3 names the fields that they lack. Then there is nothing to compare. One
-- look-up for each coin and month takes half the time of `compare`, which looks up each record. The content
-- hash of a record with a source time also covers the coin and the moment, so equal hashes are enough.
WITH
coins AS MATERIALIZED (
    SELECT
        source_id,
        min(observed_at) AS first_observed_at,
        max(observed_at) AS last_observed_at,
        array_agg(observed_at) AS moments,
        count(*) AS records,
        bool_and(has_source_time) AS have_source_times
    FROM staged_keys
    -- The look-ups then read one partition each.
    GROUP BY source_id, date_trunc('month', observed_at AT TIME ZONE 'UTC')
),

known AS MATERIALIZED (
    SELECT history.content_hash
    FROM coins
    CROSS JOIN LATERAL (
        SELECT content_hash
        FROM unified_history
        WHERE
            source = $1
            AND source_id = coins.source_id
            AND observed_at BETWEEN coins.first_observed_at AND coins.last_observed_at
            AND observed_at = ANY(coins.moments)
            AND file_id = $2
        ORDER BY source_id
    ) AS history
),

shown AS MATERIALIZED (
    SELECT
        coins.last_observed_at,
        newest.*
    FROM coins
    CROSS JOIN LATERAL (
        SELECT
            observed_at,
            content_hash,
            symbol_observed_at,
            name_observed_at,
            rank_observed_at
        FROM unified_data
        WHERE source = $1 AND source_id = coins.source_id AND has_source_time
        ORDER BY source_id
    ) AS newest
),

settled AS (
    SELECT 1
    FROM shown
    WHERE
        (
            observed_at > last_observed_at
            OR (observed_at = last_observed_at AND content_hash IN (SELECT content_hash FROM staged_keys))
        )
        {% for label in LABELS %}
        AND ({{ label }}_observed_at < last_observed_at AND '{{ label }}' <> ALL($3::text[])) IS NOT TRUE
        {% endfor %}
)

SELECT
    CASE
        WHEN NOT (SELECT bool_and(have_source_times) FROM coins) THEN false
        WHEN (SELECT count(*) FROM settled) < (SELECT count(*) FROM coins) THEN false
        ELSE (
            SELECT count(*)
            FROM staged_keys
            WHERE content_hash IN (SELECT content_hash FROM known)
        ) = (SELECT sum(records) FROM coins)
    END;

-- name: is_new --
-- Whether the history lacks all staged moments: it has no record of a coin between the first and the last
-- staged one. This takes one look-up for each coin, and is skipped if there are hardly fewer coins than
-- records, or if the first staged moment is known. A record with a time of fetching has to be compared with
-- the newest one.
WITH first AS (
    SELECT
        source_id,
        observed_at
    FROM staged_keys
    LIMIT 1
),

coins AS MATERIALIZED (
    SELECT
        source_id,
        min(observed_at) AS first_observed_at,
        max(observed_at) AS last_observed_at,
        count(*) AS records
    FROM staged_keys
    GROUP BY source_id
)

SELECT
    CASE
        WHEN NOT EXISTS (SELECT 1 FROM first) THEN false
        WHEN EXISTS (SELECT 1 FROM staged_keys WHERE NOT has_source_time) THEN false
        WHEN EXISTS (
            SELECT 1
            FROM first
            INNER JOIN unified_history AS history
                ON first.source_id = history.source_id AND first.observed_at = history.observed_at
            WHERE history.source = $1
        ) THEN false
        WHEN (SELECT 2 * count(*) > sum(records) FROM coins) THEN false
        ELSE NOT EXISTS (
            SELECT 1
            FROM coins
            CROSS JOIN LATERAL (
                SELECT 1
                FROM unified_history
                WHERE
                    source = $1
                    AND source_id = coins.source_id
                    AND observed_at BETWEEN coins.first_observed_at AND coins.last_observed_at
                ORDER BY source_id
            ) AS known
        )
    END;

-- name: new_months --
-- The first and the last staged moment of each month. Most batches have only one month, and finding the month
-- of each record takes three times as long as finding the first and the last one.
WITH bounds AS MATERIALIZED (
    SELECT
        min(observed_at) AS first_observed_at,
        max(observed_at) AS last_observed_at
    FROM staged_keys
),

single AS MATERIALIZED (
    SELECT
        first_observed_at,
        last_observed_at
    FROM bounds
    WHERE
        date_trunc('month', first_observed_at AT TIME ZONE 'UTC')
        = date_trunc('month', last_observed_at AT TIME ZONE 'UTC')
)

SELECT
    first_observed_at,
    last_observed_at
FROM single
UNION ALL
SELECT
    min(observed_at) AS first_observed_at,
    max(observed_at) AS last_observed_at
FROM staged_keys
WHERE NOT EXISTS (SELECT FROM single)
GROUP BY date_trunc('month', observed_at AT TIME ZONE 'UTC');

-- name: compare --
-- Stages what the tables do not have yet: records of moments that the history lacks (`appends`) or has with
-- other content (`corrects`), records that become the row in unified_data (`updates_latest`), and older
-- records that have a symbol, name or rank for a row whose own record lacks it (`updates_labels`). $3 names
-- the fields that the records of this batch lack. They are the same for all of them, so only the latest
-- record of each coin can update labels.
--
-- Of two records of one moment, the later in the batch counts. ORDER BY keeps the look-up in the history one
-- descent of the index for each row; PostgreSQL may plan a join to read whole partitions, which would cost
-- more every month. It does the same for unified_data, here and in `save_row_versions`, where a join may read
-- all rows of the source for every page. LIMIT would do the same, but with Citus each node looks up all rows
-- of a temporary table, and no node knows which of them others have found. For the same reason a row without
-- a match is found by a second join, and a look-up that needs LIMIT starts from a row of unified_data.
--
-- Of an archive, $4 is the file and $5 are the files that it replaces. A moment that another file gives, too,
-- is only noted (`shares`): when the file is loaded to its end, all records of the moment are compared
-- (archives.sql). A moment of a replaced file, or of no known file, becomes this file's (`claims` if its
-- content stays).
--
-- An older record never overwrites a newer one, and equal content writes nothing. A time of fetching is later
-- than any time that a source gives, so it gives way to the first time that the source gives. What a replay
-- ($2: when the replayed run ended) loads does not overwrite what was fetched later.
{{ compared() }};

-- name: compare_newest --
-- The same for the newest record of each coin, once `append_new` has added all of them to the history.
{{ compared(newest=true) }};
