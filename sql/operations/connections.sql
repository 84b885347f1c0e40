-- How many connections PostgreSQL allows (kasparro/store/connections.py).

-- name: allowed --
-- For this role in this database, without those reserved for others. (reserved_connections is new in
-- PostgreSQL 16.)
SELECT least(
    current_setting('max_connections')::integer
    - current_setting('superuser_reserved_connections')::integer
    - coalesce(current_setting('reserved_connections', true)::integer, 0),
    nullif(pg_roles.rolconnlimit, -1),
    nullif(pg_database.datconnlimit, -1)
)
FROM pg_roles
CROSS JOIN pg_database
WHERE pg_roles.rolname = current_user AND pg_database.datname = current_database();
