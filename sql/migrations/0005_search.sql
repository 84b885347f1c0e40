-- Looks up rows of GET /data by the coin across sources, and by any part of a name or symbol.

-- No row has an asset yet, and none will lose one: nothing to keep up until then.
CREATE INDEX unified_data_by_asset ON unified_data (asset) WHERE asset IS NOT NULL;

-- The parts of names need pg_trgm. It comes with PostgreSQL and may be created by whoever may create in the
-- database, but a managed one may leave it out or forbid it: then `q` reads the table, and all else is as it
-- was.
-- The index spells the comparison as the statement does: ILIKE folds letters beyond ASCII only where the
-- collation is not C.
DO $$
DECLARE
    room text;
BEGIN
    BEGIN
        CREATE EXTENSION IF NOT EXISTS pg_trgm;
    EXCEPTION
        WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR invalid_parameter_value THEN
            RAISE NOTICE 'no pg_trgm (%), so that the parameter q reads the whole table', sqlerrm;
    END;
    -- It may have been created before, in a schema off the search path.
    SELECT nspname INTO room
    FROM pg_extension
    INNER JOIN pg_namespace ON pg_extension.extnamespace = pg_namespace.oid
    WHERE extname = 'pg_trgm';
    IF room IS NOT NULL THEN
        EXECUTE format(
            'CREATE INDEX unified_data_by_text ON unified_data'
            ' USING gin ((name COLLATE "default") %1$I.gin_trgm_ops,'
            ' (symbol COLLATE "default") %1$I.gin_trgm_ops)',
            room
        );
    END IF;
END
$$;
