-- What this database says of itself.

-- name: cursor_key --
-- Signs the cursors: the same on every host, and after a restart.
SELECT cursor_key FROM instance;

-- name: tables --
-- The tables of this service with their bytes (indexes and long values included) and the rows they probably
-- hold, partitions summed into their table. A row estimate of the last ANALYZE grows with the table's size
-- since; where there was none yet, the statistics of this server count.
SELECT
    ours.name,
    sum(pg_total_relation_size(leaf.oid))::bigint AS bytes,
    sum(
        CASE
            WHEN leaf.reltuples >= 0 AND leaf.relpages > 0
                THEN
                    leaf.reltuples / leaf.relpages
                    * (pg_relation_size(leaf.oid) / current_setting('block_size')::integer)
            ELSE coalesce(pg_stat_get_live_tuples(leaf.oid), 0)
        END
    )::bigint AS rows
FROM unnest(:names::text[]) WITH ORDINALITY AS ours (name, position)
INNER JOIN pg_class AS root ON root.oid = to_regclass(ours.name)
LEFT JOIN LATERAL pg_partition_tree(root.oid) AS tree ON true
INNER JOIN pg_class AS leaf ON leaf.oid = coalesce(tree.relid, root.oid)
GROUP BY ours.name, ours.position
ORDER BY ours.position;

-- name: count --
-- Exactly; asked for small tables only.
SELECT count(*) FROM :"table"; -- noqa: PRS
