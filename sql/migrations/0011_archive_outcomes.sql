-- A file that has no column for a coin's symbol, name or rank leaves them unknown, which is not null: the
-- newest known ones stand. And a refused file is a reject of its own, with the setting that would settle it.

-- When the record was observed that reported the value. Null where that is the row's own record, -infinity
-- where no record has reported the field yet.
ALTER TABLE unified_data
ADD COLUMN symbol_observed_at timestamptz,
ADD COLUMN name_observed_at timestamptz,
ADD COLUMN rank_observed_at timestamptz;

ALTER TABLE unified_past ADD COLUMN rank_observed_at timestamptz;

-- Null means no: records of an API lack none of them, and a null costs no bytes.
ALTER TABLE unified_history
ADD COLUMN lacks_symbol boolean,
ADD COLUMN lacks_name boolean,
ADD COLUMN lacks_rank boolean;

-- Rows that an earlier version wrote do not say whether the field was null or missing. The files are read
-- again after this upgrade, and settle it.
UPDATE unified_data
SET
    symbol_observed_at = CASE WHEN symbol IS NULL THEN '-infinity'::timestamptz END,
    name_observed_at = CASE WHEN name IS NULL THEN '-infinity'::timestamptz END,
    rank_observed_at = CASE WHEN rank IS NULL THEN '-infinity'::timestamptz END
WHERE source = 'csv' AND (symbol IS NULL OR name IS NULL OR rank IS NULL);

ALTER TABLE rejects ADD COLUMN setting text;

-- Refused files are few beside refused rows, and each report of a run names them.
CREATE INDEX rejects_of_files ON rejects (run_id, source, id) WHERE place IS NOT NULL AND line IS NULL;
