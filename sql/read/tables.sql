-- Sizes of the tables (kasparro/store/tables.py).

-- name: tables --
-- The tables of this service with their bytes, including indexes and long values, and an estimate of their
-- rows. Partitions are summed into their table. The estimate of the last ANALYZE is scaled to the table's
-- present size; without one, the statistics of this server count.
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
-- The exact number of rows; only for small tables.
SELECT count(*) FROM {{ table }};
