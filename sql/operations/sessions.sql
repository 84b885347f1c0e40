-- How a session is set up, and which server process works for it (kasparro/store/sessions.py).

-- name: configure --
-- Sets the settings $1 to the values $2: until the transaction ends ($3), or for the whole session. If $4 is
-- given, nothing happens unless this server process has that id. Citus plans most statements only with their
-- values. Returns how many were set.
SELECT
    count(
        set_config(
            given.name,
            CASE
                WHEN
                    given.name = 'plan_cache_mode'
                    AND to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
                    THEN 'force_custom_plan'
                ELSE given.value
            END,
            $3
        )
    )
FROM unnest($1::text[], $2::text[]) AS given (name, value)
WHERE $4::integer IS NULL OR pg_backend_pid() = $4;

-- name: server_process --
SELECT pg_backend_pid();
