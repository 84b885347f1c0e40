-- Row counts of whole sources (kasparro/store/row_counts.py).

-- name: row_counts --
-- How many rows each source has in addition to those that its batches counted, or fewer if rows were
-- deleted manually. This does not change from batch to batch. Without any source there is one row, for
-- `manual_edits`.
SELECT
    counted.source,
    counted.uncounted,
    instance.data_version - instance.counted_versions AS manual_edits
FROM instance
LEFT JOIN (
    SELECT
        source,
        coalesce(found.rows, 0) - coalesce(insert_counters.rows, 0) AS uncounted
    FROM insert_counters
    FULL JOIN (
        SELECT
            source,
            count(*) AS rows
        FROM unified_data
        GROUP BY source
    ) AS found USING (source)
) AS counted ON true;
