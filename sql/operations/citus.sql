-- Distributes the tables of a database with Citus (kasparro/store/citus.py). Only these statements need the
-- extension.

-- name: has_extension --
SELECT EXISTS(SELECT FROM pg_extension WHERE extname = 'citus');

-- name: state --
-- Whether this node may distribute tables, and how many nodes take shards.
SELECT
    citus_is_coordinator() AS is_coordinator,
    (
        SELECT count(*)
        FROM pg_dist_node
        WHERE noderole = 'primary' AND isactive AND shouldhaveshards
    ) AS nodes;

-- name: known --
-- The tables that are distributed or copied to all nodes.
SELECT logicalrelid::text
FROM pg_dist_partition
WHERE logicalrelid = ANY(SELECT to_regclass(name) FROM unnest($1::text[]) AS given (name));

-- name: settings --
-- Existing rows are moved, which may take hours. Several tables in one transaction need one connection to
-- each node.
SELECT
    set_config('statement_timeout', '0', true),
    set_config('idle_in_transaction_session_timeout', '0', true),
    set_config('citus.multi_shard_modify_mode', 'sequential', true);

-- name: distribute --
SELECT create_distributed_table($1::regclass, 'source_id', colocate_with => $2);

-- name: copy_to_all_nodes --
SELECT create_reference_table($1::regclass);

-- name: drop_local_rows --
-- The rows that the coordinator had before they were moved, and that no query reads any more.
SELECT truncate_local_data_after_distributing_table($1::regclass);
