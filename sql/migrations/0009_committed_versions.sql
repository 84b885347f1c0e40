-- When the current data version was committed, and by which run.

ALTER TABLE instance
ADD COLUMN committed_version bigint,
ADD COLUMN committed_at timestamptz,
ADD COLUMN committed_by_run bigint;

COMMENT ON COLUMN instance.committed_version IS
'The data version that the next two columns describe; manual edits leave them behind';
COMMENT ON COLUMN instance.committed_by_run IS 'The run that worked then; null: none did';
