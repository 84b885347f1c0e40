-- What rows said before (kasparro/store/row_versions.py).

-- name: forget --
-- What was replaced earlier than $1; tells the latest version that replaced any of it.
WITH forgotten AS (
    DELETE FROM unified_past
    WHERE replaced_at < $1
    RETURNING replaced
)
SELECT max(replaced) FROM forgotten;

-- name: end_walks --
-- Walks that began before version $1 would need what is forgotten.
UPDATE instance SET walks_from = greatest(walks_from, $1);
