-- name: claim --
-- Real or invented figures ($1), once and for all: true where the database is, or can still become, the kind.
UPDATE instance
SET demo = $1
WHERE demo = $1 OR NOT EXISTS (SELECT FROM runs)
RETURNING true;
