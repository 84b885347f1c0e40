-- Raw payloads, so that what was fetched can be read again after a fix of the reader; the trigger of the runs
-- that do so; and when a row's values were told, so that reading an older payload again leaves later words.

CREATE TABLE payloads (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    source text NOT NULL,
    path text NOT NULL,
    parameters jsonb NOT NULL,
    received_at timestamptz NOT NULL,
    status smallint, -- null: no answer began
    headers jsonb NOT NULL,
    complete boolean NOT NULL, -- whether the body is all of it
    body_bytes bigint NOT NULL, -- of the body as it was answered
    bytes integer NOT NULL, -- of the body as it is kept
    body bytea NOT NULL -- compressed with zstd
);

COMMENT ON TABLE payloads IS 'What each call upstream was answered, kept for a set time and size';

-- Compressed already; and sums over the other columns never come across it.
ALTER TABLE payloads ALTER COLUMN body SET STORAGE EXTERNAL;

-- How many a run has, and how large they are, is read from the index alone.
CREATE INDEX payloads_of_run ON payloads (run_id, source, id) INCLUDE (bytes);

ALTER TABLE runs DROP CONSTRAINT runs_trigger_check;
ALTER TABLE runs ADD CONSTRAINT runs_trigger_check
CHECK (trigger IN ('startup', 'schedule', 'api', 'etl', 'replay'));

-- Null in rows that are older than this column; updated_at stands in.
ALTER TABLE unified_data ADD COLUMN told_at timestamptz;

COMMENT ON COLUMN unified_data.told_at IS 'When a run was told these values, not when they were read';
COMMENT ON COLUMN unified_history.recorded_at IS 'When a run was told these values, not when they were read';
