-- Expiry of row versions (kasparro/store/row_versions.py).

-- name: delete_expired --
-- Deletes what was replaced before $1, and returns the latest data version that had replaced any of it.
WITH deleted AS (
    DELETE FROM unified_data_versions
    WHERE replaced_at < $1
    RETURNING replaced_by_version
),

deleted_assets AS (
    DELETE FROM unified_assets_versions
    WHERE replaced_at < $1
    RETURNING replaced_by_version
)

SELECT max(replaced_by_version)
FROM (
    SELECT replaced_by_version FROM deleted
    UNION ALL
    SELECT replaced_by_version FROM deleted_assets
) AS both_lists;

-- name: expire_cursors --
-- Cursors of data versions before $1 would need the deleted rows.
UPDATE instance SET oldest_cursor_version = greatest(oldest_cursor_version, $1);
