-- The currency of the prices of each archive.

ALTER TABLE archive_files ADD COLUMN quoted_in text[];

COMMENT ON COLUMN archive_files.quoted_in IS
'The currencies of its prices: USD, or coins that count as US dollars by its overrides. Null: a version before
this column loaded the file; the next run that finds the file reads it again';
