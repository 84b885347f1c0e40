-- Reads which archives are loaded and which are rejected, as the database knows them
-- (kasparro/store/archive_queries.py).

-- name: page --
-- A page of the archives by name, how many there are of each state, how many files the newest run rejected,
-- and of how many of them a reject is kept. A file that the newest run rejected need not be in archive_files;
-- one that is may have records of an earlier content. One more than the page holds is read, to know whether
-- another page follows.
WITH newest AS (
    SELECT run_sources.run_id
    FROM run_sources
    INNER JOIN runs ON run_sources.run_id = runs.id
    WHERE
        run_sources.source = :source
        AND run_sources.status IN ('succeeded', 'partial', 'failed')
        AND runs.trigger NOT IN ('replay', 'forget')
    ORDER BY run_sources.run_id DESC
    LIMIT 1
),
kept AS (
    SELECT
        rejects.id,
        rejects.location,
        rejects.reason,
        rejects.setting,
        rejects.run_id
    FROM rejects
    INNER JOIN newest ON rejects.run_id = newest.run_id
    WHERE
        rejects.source = :source
        AND rejects.location IS NOT NULL
        AND rejects.line IS NULL
),
rejected AS (
    SELECT DISTINCT ON (location)
        location AS file,
        reason,
        setting,
        run_id
    FROM kept
    ORDER BY location, id
),
known AS (
    SELECT *
    FROM archive_files
    WHERE source = :source
),
archives AS (
    SELECT
        coalesce(known.name, rejected.file) COLLATE "C" AS file,
        coalesce(known.id, 0) AS id,
        CASE
            WHEN known.id IS NULL THEN 'rejected'
            WHEN known.forgotten_at IS NOT NULL THEN 'forgotten'
            WHEN known.problem IS NOT NULL THEN 'rejected'
            WHEN known.complete THEN 'loaded'
            ELSE 'incomplete'
        END AS state,
        known.updated_at AS loaded_at,
        known.coin,
        known.quoted_in,
        known.first_observed_at,
        known.last_observed_at,
        coalesce(rejected.reason, known.problem) AS problem,
        rejected.setting,
        rejected.run_id AS rejected_in
    FROM known
    FULL JOIN rejected ON known.name = rejected.file
),
selected AS (
    SELECT *
    FROM archives
    WHERE
        true
        {% if states %}
        AND state = ANY(:states::text[])
        {% endif %}
        {% if problem is not none %}
        AND (problem IS NOT NULL) = :problem::boolean
        {% endif %}
        {% if text %}
        AND strpos(lower(file), lower(:text)) > 0
        {% endif %}
)
SELECT
    (
        SELECT json_object_agg(counted.state, counted.files)::text
        FROM (
            SELECT
                state,
                count(*) AS files
            FROM archives
            GROUP BY state
        ) AS counted
    ) AS states,
    (SELECT count(*) FROM archives WHERE problem IS NOT NULL) AS problems,
    (
        SELECT coalesce(sum(reject_counts.rejects), 0)::bigint
        FROM reject_counts
        INNER JOIN newest ON reject_counts.run_id = newest.run_id
        WHERE reject_counts.source = :source AND reject_counts.reason = 'file rejected'
    ) AS rejected_files,
    (SELECT count(*) FROM kept) AS kept_files,
    (SELECT count(*) FROM selected) AS total,
    found.file,
    found.id,
    found.state,
    found.loaded_at,
    found.coin,
    found.quoted_in,
    found.first_observed_at,
    found.last_observed_at,
    found.problem,
    found.setting,
    found.rejected_in
FROM (VALUES (true)) AS always (one)
LEFT JOIN LATERAL (
    SELECT *
    FROM selected
    {% if after %}
    WHERE (file, id) > (:last_file COLLATE "C", :last_id::integer)
    {% endif %}
    ORDER BY file, id
    LIMIT :limit + 1
    {% if not after %}
    OFFSET :offset
    {% endif %}
) AS found ON always.one
ORDER BY found.file, found.id;

-- name: records --
-- How many records these files give, of how many coins, and of which time. The records of a file with one
-- coin are a range of the key; of other files, the time that they cover is read once for all of them.
WITH files AS (
    SELECT
        id,
        coin,
        first_observed_at,
        last_observed_at
    FROM archive_files
    WHERE source = :source AND id = ANY(:ids::integer[]) AND first_observed_at IS NOT NULL
),
given AS (
    SELECT
        history.file_id,
        history.source_id,
        history.observed_at,
        history.thinned_count
    FROM files
    INNER JOIN unified_history AS history
        ON
            files.coin = history.source_id
            AND files.id = history.file_id
            AND history.observed_at BETWEEN files.first_observed_at AND files.last_observed_at
    WHERE history.source = :source AND files.coin IS NOT NULL
    {% if tables %}
    UNION ALL
    SELECT
        file_id,
        source_id,
        observed_at,
        thinned_count
    FROM unified_history
    WHERE
        source = :source
        AND file_id = ANY(:tables::integer[])
        AND observed_at BETWEEN :first::timestamptz AND :last::timestamptz
    {% endif %}
    UNION ALL
    SELECT
        shared.file_id,
        shared.source_id,
        shared.observed_at,
        NULL AS thinned_count
    FROM files
    INNER JOIN shared_records AS shared ON files.id = shared.file_id
    LEFT JOIN unified_history AS history
        ON
            shared.source = history.source
            AND shared.source_id = history.source_id
            AND shared.observed_at = history.observed_at
            AND shared.file_id = history.file_id
    WHERE shared.source = :source AND history.file_id IS NULL
),
by_coin AS (
    SELECT
        file_id,
        source_id,
        count(*) + coalesce(sum(thinned_count), 0) AS records,
        min(observed_at) AS first_observed_at,
        max(observed_at) AS last_observed_at
    FROM given
    GROUP BY file_id, source_id
),
by_file AS (
    SELECT
        file_id,
        sum(records)::bigint AS records,
        count(*) AS coins,
        min(source_id) AS coin,
        min(first_observed_at) AS first_observed_at,
        max(last_observed_at) AS last_observed_at
    FROM by_coin
    GROUP BY file_id
)
SELECT
    by_file.file_id AS id,
    by_file.records,
    by_file.coins,
    CASE by_file.coins WHEN 1 THEN by_file.coin END AS coin,
    CASE by_file.coins WHEN 1 THEN link.asset END AS asset,
    by_file.first_observed_at,
    by_file.last_observed_at
FROM by_file
LEFT JOIN asset_links AS link
    ON link.source = :source AND by_file.coin = link.source_id AND link.valid_until = 'infinity';
