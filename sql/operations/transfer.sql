-- Copies all state of a database into files and back (kasparro/store/transfer/).
{% from "macros/columns.sql" import listed %}

-- name: settings --
-- A part may take hours, and so may writing it to a slow disk. Texts of values must not depend on settings of
-- the server, the database or the role.
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO';
SET LOCAL intervalstyle = 'postgres';
SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex';

-- name: lock_history --
-- Until the export ends, no thinned month takes the place of another one. It comes before the snapshot,
-- because a month that came after the snapshot would look empty.
LOCK TABLE unified_history IN ACCESS SHARE MODE;

-- name: columns --
-- The columns of a table, in an order that does not depend on how the table came to have them.
SELECT attname
FROM pg_attribute
WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped
ORDER BY attname;

-- name: months --
-- The months that have a partition of the history.
SELECT to_date(right(partition.relid::text, 7), 'YYYY_MM') AS month
FROM pg_partition_tree('unified_history') AS partition
WHERE partition.isleaf AND partition.relid::text ~ 'unified_history_\d{4}_\d{2}"?$'
ORDER BY month;

-- name: create_month --
SELECT create_history_partition(:month);

-- name: applied --
-- The migrations of the database.
SELECT
    version,
    checksum
FROM schema_migrations
ORDER BY version;

-- name: fingerprint --
-- The number of the rows, and a digest of them that does not depend on their order: the digests of their
-- texts, combined by XOR. Equal rows of a table without a key cancel out, and then the number tells.
SELECT
    count(*) AS rows,
    coalesce(
        bit_xor(('x' || encode(substr(sha256(convert_to(part::text, 'UTF8')), 1, 16), 'hex'))::bit(128)),
        0::bit(128)
    )::text AS digest
FROM (
    SELECT {{ listed(columns) }}
    FROM {{ table }}
    {% if month %}
    WHERE
        observed_at >= :month::date::timestamp AT TIME ZONE 'UTC'
        AND observed_at < (:month::date + interval '1 month')::timestamp AT TIME ZONE 'UTC'
    {% endif %}

) AS part;

-- name: part --
-- The rows of a table, or of one month of the history. COPY takes no parameters, so the month is in the text.
SELECT {{ listed(columns) }}
FROM {{ table }}
{% if month %}
WHERE
    observed_at >= '{{ month }}'::date::timestamp AT TIME ZONE 'UTC'
    AND observed_at < ('{{ month }}'::date + interval '1 month')::timestamp AT TIME ZONE 'UTC'
{% endif %};

-- name: sequences --
-- The last number of each identity column.
SELECT
    pg_class.relname AS table_name,
    pg_attribute.attname AS column_name,
    pg_sequence_last_value(
        pg_get_serial_sequence(pg_class.relname::text, pg_attribute.attname)::regclass
    ) AS last_number
FROM pg_attribute
INNER JOIN pg_class ON pg_attribute.attrelid = pg_class.oid
WHERE
    pg_class.relname = ANY(:tables::text[])
    AND pg_table_is_visible(pg_class.oid)
    AND pg_attribute.attidentity <> ''
ORDER BY pg_class.relname;

-- name: set_sequence --
SELECT setval(pg_get_serial_sequence(:table_name, :column_name)::regclass, :last_number::bigint);

-- name: has_schema --
SELECT to_regclass('schema_migrations') IS NOT NULL;

-- name: begin_import --
-- While this table exists, the database is incomplete, and nothing else uses it
-- (kasparro/store/migrations.py).
CREATE TABLE imported_parts (
    export text NOT NULL,
    file text PRIMARY KEY
);

-- name: lock_migrations --
-- The lock of operations/migrations.sql: no process migrates the database between the look at it and
-- `begin_import`.
SELECT pg_advisory_xact_lock(hashtextextended('kasparro migrations', 0));

-- name: import_begun --
SELECT to_regclass('imported_parts') IS NOT NULL;

-- name: note_part --
INSERT INTO imported_parts (export, file) VALUES (:export, :file);

-- name: imported_parts --
SELECT
    export,
    file
FROM imported_parts;

-- name: empty --
DELETE FROM {{ table }};

-- name: end_import --
DROP TABLE imported_parts;

-- name: analyze --
ANALYZE {{ table }};
