-- Takes the records of archives back, and settles what remains: the moments that several files give, and the
-- rows of unified_data (kasparro/store/archive_files.py).
{% from "macros/columns.sql" import CONTENT, LABELS, ROW_VERSION, VALUES, listed, overwritten %}
{% from "macros/history_months.sql" import noted %}
{% from "macros/files.sql" import ranked %}
{% set LACKS = ["lacks_symbol", "lacks_name", "lacks_rank"] %}
{% set RECORD = ["source", "source_id", "observed_at"] + CONTENT + ["recorded_at", "content_hash"] + LACKS %}

{#- Deletes records of a file ($2) between two times. #}
{% macro deleted_records(condition="") -%}
WITH deleted AS (
    DELETE FROM unified_history
    WHERE source = $1 AND file_id = $2 AND observed_at BETWEEN $3 AND $4 {{ condition }}
    RETURNING source_id, observed_at
),

months AS (
    {{ noted("deleted") }}
),

coins AS (
    INSERT INTO touched_coins (source_id)
    SELECT DISTINCT source_id FROM deleted
    ON CONFLICT (source_id) DO NOTHING
)

SELECT count(*) FROM deleted;
{%- endmacro %}

-- name: staging --
-- Moments and coins that a transaction has changed and must settle, and the rows of unified_data that result.
-- The tables belong to the session and are empty after each commit.
CREATE TEMPORARY TABLE IF NOT EXISTS touched_moments (
    source_id text COLLATE "C" NOT NULL,
    observed_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, observed_at)
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS touched_coins (
    source_id text COLLATE "C" PRIMARY KEY
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS newest_moments (
    file_id integer NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    observed_at timestamptz NOT NULL,
    PRIMARY KEY (file_id, source_id)
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS settled_coins (
    source_id text COLLATE "C" PRIMARY KEY,
    symbol text COLLATE "C",
    name text COLLATE "C",
    rank integer,
    {{ listed(VALUES, suffix=" numeric") }},
    observed_at timestamptz,
    recorded_at timestamptz,
    content_hash uuid,
    symbol_observed_at timestamptz,
    name_observed_at timestamptz,
    rank_observed_at timestamptz
) ON COMMIT DELETE ROWS;

-- name: long_timeout --
-- Taking back a file of millions of rows may take longer than a batch.
SELECT set_config('statement_timeout', '1h', true);

-- name: file_bounds --
SELECT
    id,
    name,
    coin,
    first_observed_at,
    last_observed_at
FROM archive_files
WHERE source = $1 AND id = ANY($2::integer[])
ORDER BY id;

-- name: delete_records --
-- Deletes the records between two times that only this file ($2) gives.
{{ deleted_records() }}

-- name: delete_records_of_coin --
-- The same, for a file of one coin.
{{ deleted_records("AND source_id = $5") }}

-- name: delete_shared --
-- Deletes what these files give at moments that others give, too.
WITH deleted AS (
    DELETE FROM shared_records
    WHERE source = $1 AND file_id = ANY($2::integer[])
    RETURNING source_id, observed_at
),

moments AS (
    INSERT INTO touched_moments (source_id, observed_at)
    SELECT DISTINCT
        source_id,
        observed_at
    FROM deleted
    ON CONFLICT (source_id, observed_at) DO NOTHING
)

SELECT count(*) FROM deleted;

-- name: touch_shared --
-- The moments of this file that must be settled now that it is loaded to its end: those that it has shared
-- since it was settled last, and its newest ones, which are final once the file has later ones.
INSERT INTO touched_moments (source_id, observed_at)
SELECT
    shared.source_id,
    shared.observed_at
FROM archive_files AS file
INNER JOIN shared_records AS shared ON file.id = shared.file_id
WHERE
    file.source = $1
    AND file.id = $2
    AND (shared.provisional OR shared.recorded_at >= file.unsettled_since)
ON CONFLICT (source_id, observed_at) DO NOTHING;

-- name: note_settled --
UPDATE archive_files SET unsettled_since = NULL WHERE id = $1;

-- name: touch_coins --
-- The coins of a file that replaces another: their symbols and names may come from the replaced one.
INSERT INTO touched_coins (source_id)
SELECT DISTINCT source_id
FROM unified_history
WHERE source = $1 AND file_id = $2 AND observed_at BETWEEN $3 AND $4
ON CONFLICT (source_id) DO NOTHING;

-- name: touch_coin --
INSERT INTO touched_coins (source_id) VALUES ($1)
ON CONFLICT (source_id) DO NOTHING;

-- name: stage_newest --
-- The newest moment of each coin in each file that gives a touched moment.
INSERT INTO newest_moments (file_id, source_id, observed_at)
SELECT
    coins.file_id,
    coins.source_id,
    greatest(
        (
            SELECT max(shared_records.observed_at)
            FROM shared_records
            WHERE
                shared_records.file_id = coins.file_id
                AND shared_records.source_id = coins.source_id
                AND shared_records.source = $1
        ),
        (
            SELECT history.observed_at
            FROM unified_history AS history
            WHERE
                history.source = $1
                AND history.source_id = coins.source_id
                AND history.file_id = coins.file_id
            ORDER BY history.observed_at DESC
            LIMIT 1
        )
    )
FROM (
    SELECT DISTINCT
        shared.file_id,
        shared.source_id
    FROM touched_moments AS touched
    INNER JOIN shared_records AS shared
        ON touched.source_id = shared.source_id AND touched.observed_at = shared.observed_at
    WHERE shared.source = $1
) AS coins;

-- name: note_provisional --
-- Notes which of the touched records are the newest ones of their coin in their file.
UPDATE shared_records AS shared
SET provisional = NOT shared.provisional
FROM touched_moments AS touched, newest_moments AS newest
WHERE
    shared.source = $1
    AND shared.source_id = touched.source_id
    AND shared.observed_at = touched.observed_at
    AND shared.file_id = newest.file_id
    AND shared.source_id = newest.source_id
    AND shared.provisional = (shared.observed_at < newest.observed_at);

-- name: settle_moments --
-- Writes what the touched moments are now. The values are those of one file: of a file that is loaded to its
-- end before others, of a record that its file follows up with later ones before a newest one, of two newest
-- ones the one with more figures, and else of the file whose name comes last. Symbol, name and rank are those
-- of the first file in this order that has them. The order of loading has no influence. Returns how many
-- moments have other contents than before.
WITH grouped AS (
    SELECT
        shared.source_id,
        shared.observed_at,
        count(*) AS files,
        (array_agg(shared {{ ranked() }}))[1] AS winner,
        {% for label in LABELS %}
        (array_agg(shared.{{ label }} {{ ranked() }}) FILTER (WHERE shared.lacks_{{ label }} IS NULL))[1]
            AS {{ label }},
        CASE WHEN count(shared.lacks_{{ label }}) = count(*) THEN true END AS lacks_{{ label }}
        {{- "," if not loop.last }}
        {% endfor %}
    FROM touched_moments AS touched
    INNER JOIN shared_records AS shared
        ON touched.source_id = shared.source_id AND touched.observed_at = shared.observed_at
    INNER JOIN archive_files AS file ON shared.file_id = file.id
    WHERE shared.source = $1
    GROUP BY shared.source_id, shared.observed_at
),

settled AS MATERIALIZED (
    SELECT
        grouped.source_id,
        grouped.observed_at,
        grouped.symbol,
        grouped.name,
        grouped.rank,
        {% for column in VALUES + ["recorded_at", "content_hash"] %}
        (grouped.winner).{{ column }},
        {% endfor %}
        grouped.lacks_symbol,
        grouped.lacks_name,
        grouped.lacks_rank,
        CASE WHEN grouped.files = 1 THEN (grouped.winner).file_id ELSE 0 END AS file_id,
        known.content_hash IS NULL
        OR known.content_hash <> (grouped.winner).content_hash
        {% for label in LABELS %}
        OR known.{{ label }} <> grouped.{{ label }}
        OR num_nonnulls(known.{{ label }}, grouped.{{ label }}) = 1
        OR num_nonnulls(known.lacks_{{ label }}, grouped.lacks_{{ label }}) = 1
        {% endfor %}
        AS changed
    FROM grouped
    LEFT JOIN LATERAL (
        SELECT *
        FROM unified_history
        WHERE source = $1 AND source_id = grouped.source_id AND observed_at = grouped.observed_at
        LIMIT 1
    ) AS known ON true
),

written AS (
    INSERT INTO unified_history (
        {{ listed(RECORD) }},
        file_id
    )
    SELECT
        $1,
        {{ listed(RECORD[1:]) }},
        file_id
    FROM settled
    ON CONFLICT (source, source_id, observed_at) DO UPDATE SET
        {{ overwritten(CONTENT + ["recorded_at", "content_hash"] + LACKS + ["file_id"]) }}
),

months AS (
    {{ noted("settled") }}
),

coins AS (
    INSERT INTO touched_coins (source_id)
    SELECT DISTINCT source_id FROM settled WHERE changed
    ON CONFLICT (source_id) DO NOTHING
)

SELECT count(*) FROM settled WHERE changed;

-- name: abandoned_moments --
-- The touched moments that no file gives any more.
SELECT
    source_id,
    observed_at
FROM touched_moments
EXCEPT
SELECT
    given.source_id,
    given.observed_at
FROM touched_moments AS touched
CROSS JOIN LATERAL (
    SELECT
        source_id,
        observed_at
    FROM shared_records
    WHERE source = $1 AND source_id = touched.source_id AND observed_at = touched.observed_at
    ORDER BY observed_at
) AS given;

-- name: delete_moment --
WITH deleted AS (
    DELETE FROM unified_history
    WHERE source = $1 AND source_id = $2 AND observed_at = $3 AND file_id = 0
    RETURNING source_id, observed_at
),

months AS (
    {{ noted("deleted") }}
)

INSERT INTO touched_coins (source_id)
SELECT source_id FROM deleted
ON CONFLICT (source_id) DO NOTHING;

-- name: delete_single --
-- A moment that only one file gives any more needs no record of its own.
DELETE FROM shared_records AS shared
USING touched_moments AS touched
WHERE
    shared.source = $1
    AND shared.source_id = touched.source_id
    AND shared.observed_at = touched.observed_at
    AND NOT EXISTS (
        SELECT FROM shared_records AS others
        WHERE
            others.source = $1
            AND others.source_id = shared.source_id
            AND others.observed_at = shared.observed_at
            AND others.file_id <> shared.file_id
    );

-- name: settle_coins --
-- Stages the rows of unified_data that differ from the newest records of the touched coins: the newest
-- record, with each label that it lacks from the newest record that has it. Without a record, observed_at is
-- null.
WITH newest AS (
    SELECT
        shown.source_id,
        {{ listed(VALUES, "record.") }},
        record.observed_at,
        record.recorded_at,
        record.content_hash,
        CASE WHEN record.lacks_symbol THEN symbol.symbol ELSE record.symbol END AS symbol,
        CASE WHEN record.lacks_name THEN name.name ELSE record.name END AS name,
        CASE WHEN record.lacks_rank THEN rank.rank ELSE record.rank END AS rank,
        {% for label in LABELS %}
        CASE
            WHEN record.lacks_{{ label }} THEN coalesce({{ label }}.observed_at, '-infinity')
        END AS {{ label }}_observed_at,
        {% endfor %}
        shown.observed_at AS shown_observed_at,
        shown.content_hash AS shown_content_hash,
        {% for label in LABELS %}
        shown.{{ label }} AS shown_{{ label }},
        coalesce(shown.{{ label }}_observed_at, shown.observed_at) AS shown_{{ label }}_observed_at
        {{- "," if not loop.last }}
        {% endfor %}
    FROM touched_coins AS coin
    INNER JOIN unified_data AS shown ON shown.source = $1 AND coin.source_id = shown.source_id
    LEFT JOIN LATERAL (
        SELECT *
        FROM unified_history
        WHERE source = shown.source AND source_id = shown.source_id
        ORDER BY observed_at DESC
        LIMIT 1
    ) AS record ON true
    {% for label in LABELS %}
    LEFT JOIN LATERAL (
        SELECT
            {{ label }},
            observed_at
        FROM unified_history
        WHERE
            record.lacks_{{ label }}
            AND source = shown.source
            AND source_id = shown.source_id
            AND lacks_{{ label }} IS NULL
        ORDER BY observed_at DESC
        LIMIT 1
    ) AS {{ label }} ON true
    {% endfor %}
),

staged AS (
    INSERT INTO settled_coins (
        source_id,
        {{ listed(CONTENT) }},
        observed_at,
        recorded_at,
        content_hash,
        symbol_observed_at,
        name_observed_at,
        rank_observed_at
    )
    SELECT
        source_id,
        {{ listed(CONTENT) }},
        observed_at,
        recorded_at,
        content_hash,
        symbol_observed_at,
        name_observed_at,
        rank_observed_at
    FROM newest
    WHERE
        observed_at IS NULL
        OR observed_at <> shown_observed_at
        OR content_hash <> shown_content_hash
        {% for label in LABELS %}
        OR {{ label }} IS DISTINCT FROM shown_{{ label }}
        OR coalesce({{ label }}_observed_at, observed_at) <> shown_{{ label }}_observed_at
        {% endfor %}
    RETURNING observed_at
)

SELECT
    count(observed_at) AS updated,
    count(*) - count(observed_at) AS removed
FROM staged;

-- name: save_settled_versions --
-- Saves what the rows contain before they change, for snapshot cursors that started then.
INSERT INTO unified_data_versions (
    {{ listed(ROW_VERSION) }},
    replaced_by_version,
    replaced_at
)
SELECT
    {{ listed(ROW_VERSION, "known.") }},
    $3,
    $2
FROM settled_coins AS settled
INNER JOIN unified_data AS known ON known.source = $1 AND settled.source_id = known.source_id;

-- name: update_settled --
UPDATE unified_data AS newest
SET
    {% for column in CONTENT %}
    {{ column }} = settled.{{ column }},
    {% endfor %}
    observed_at = settled.observed_at,
    updated_at = $2,
    fetched_at = settled.recorded_at,
    content_hash = settled.content_hash,
    version = $3,
    symbol_observed_at = settled.symbol_observed_at,
    name_observed_at = settled.name_observed_at,
    rank_observed_at = settled.rank_observed_at
FROM settled_coins AS settled
WHERE newest.source = $1 AND newest.source_id = settled.source_id AND settled.observed_at IS NOT NULL;

-- name: delete_settled --
DELETE FROM unified_data AS newest
USING settled_coins AS settled
WHERE newest.source = $1 AND newest.source_id = settled.source_id AND settled.observed_at IS NULL;
