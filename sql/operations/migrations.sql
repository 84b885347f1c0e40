-- What migrating needs besides the migrations (kasparro/store/migrations.py).

-- name: long_timeouts --
-- Waiting for the migrations of another process may take longer than any other lock or statement.
SELECT
    set_config('lock_timeout', '10min', true),
    set_config('statement_timeout', '30min', true);

-- name: short_timeouts --
-- While a migration waits for a table, every reader of the table waits behind it. So it gives up soon, and
-- the start tries again.
SELECT set_config('lock_timeout', '5s', true);

-- name: encoding --
SELECT current_setting('server_encoding');

-- name: lock --
-- One process migrates at a time; the lock ends with the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('kasparro migrations', 0));

-- name: table --
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: applied --
SELECT
    version,
    name,
    checksum
FROM schema_migrations
ORDER BY version;

-- name: table_exists --
SELECT to_regclass('schema_migrations') IS NOT NULL;

-- name: import_begun --
-- Whether an import has begun and not ended (operations/transfer.sql).
SELECT to_regclass('imported_parts') IS NOT NULL;

-- name: record --
INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3);
