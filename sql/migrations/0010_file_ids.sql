-- Citus gives rows of reference tables only numbers of this type. The numbers of files stay small, so the
-- columns file_id of the large tables keep theirs.

ALTER TABLE archive_files ALTER COLUMN id TYPE bigint;
