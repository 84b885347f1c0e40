-- The state of a database server (kasparro/store/server_state.py).

{#- How far a standby is behind its primary; null for a primary. A standby that has replayed all it received
    is up to date only while it is connected: then it has a WAL receiver. Null, too, if it is behind and has not
    replayed a transaction since it started: its lag is unknown then, and greatest() would take it for 0. #}
{%- macro lag_s() -%}
CASE
    WHEN NOT pg_is_in_recovery() THEN null
    WHEN
        pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
        AND EXISTS (SELECT FROM pg_stat_wal_receiver)
        THEN 0
    WHEN pg_last_xact_replay_timestamp() IS NULL THEN null
    ELSE greatest(extract(EPOCH FROM now() - pg_last_xact_replay_timestamp()), 0)
END::float8 AS lag_s
{%- endmacro %}

-- name: lag --
SELECT {{ lag_s() }};

-- name: state --
-- The size of the database, and the lag.
SELECT
    pg_database_size(current_database()) AS database_bytes,
    {{ lag_s() }};
