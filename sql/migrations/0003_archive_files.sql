-- Which archive gave which records, so that a file can be taken back.

-- `checkpoints` becomes the list of files. Before, a file was known by its content alone, and no record named
-- its file: the next run reads every file once more, and notes which records it gives.
ALTER TABLE checkpoints RENAME TO archive_files;
ALTER INDEX checkpoints_by_name RENAME TO archive_files_by_name;
ALTER TABLE archive_files DROP CONSTRAINT checkpoints_pkey;
ALTER TABLE archive_files
ADD COLUMN id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
ADD COLUMN content text NOT NULL DEFAULT '',
ADD COLUMN coin text COLLATE "C",
ADD COLUMN loading_since timestamptz,
ADD COLUMN unsettled_since timestamptz,
ADD COLUMN first_observed_at timestamptz,
ADD COLUMN last_observed_at timestamptz,
ADD COLUMN problem text,
ADD COLUMN forgotten_at timestamptz;
UPDATE archive_files SET content = split_part(key, ':', 2);

COMMENT ON TABLE archive_files IS 'The archives that were loaded or forgotten, and how far each was loaded';
COMMENT ON COLUMN archive_files.key IS
'Parser version, content, overrides and interpretation; equal for files that give the same records';
COMMENT ON COLUMN archive_files.content IS 'The digest of the content';
COMMENT ON COLUMN archive_files.coin IS 'The one coin of all its rows; null: its columns give the coin';
COMMENT ON COLUMN archive_files.loading_since IS
'When a run began to read this content; records that were written since are of this content';
COMMENT ON COLUMN archive_files.unsettled_since IS
'Since when the file gives moments that others give, too, and that are not yet settled; null: none is left';
COMMENT ON COLUMN archive_files.first_observed_at IS
'No record of the file is older, and none is newer than last_observed_at; null: it has no record';
COMMENT ON COLUMN archive_files.problem IS
'Why the file was rejected after its first batch; it has no records then';
COMMENT ON COLUMN archive_files.forgotten_at IS
'When the file was forgotten; under this name and key it is not loaded again';

-- Files that are not forgotten are unique by their key.
CREATE UNIQUE INDEX archive_files_by_key ON archive_files (source, key) WHERE forgotten_at IS NULL;
CREATE INDEX archive_files_by_content ON archive_files (source, content);

-- A null costs no bytes, so records of APIs are not larger than before. There is no index: a file is found by
-- its coin and its first and last time, and an index would slow every load down.
ALTER TABLE unified_history ADD COLUMN file_id integer;

COMMENT ON COLUMN unified_history.file_id IS
'The file that gives the record; 0: several do (shared_records). Null: an API does, or no file is known';

-- What each file gives, for moments of a coin that several files give. The row in unified_history is made of
-- these records, so that a file can be taken back without reading the others again.
CREATE TABLE shared_records (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    observed_at timestamptz NOT NULL,
    file_id integer NOT NULL,
    symbol text COLLATE "C",
    name text COLLATE "C",
    rank integer,
    price_usd numeric,
    market_cap_usd numeric,
    volume_24h_usd numeric,
    circulating_supply numeric,
    total_supply numeric,
    max_supply numeric,
    percent_change_1h numeric,
    percent_change_24h numeric,
    percent_change_7d numeric,
    recorded_at timestamptz NOT NULL,
    content_hash uuid NOT NULL,
    lacks_symbol boolean,
    lacks_name boolean,
    lacks_rank boolean,
    provisional boolean NOT NULL,
    PRIMARY KEY (source, source_id, observed_at, file_id)
);

COMMENT ON TABLE shared_records IS 'What each file gives, for moments of a coin that several files give';
COMMENT ON COLUMN shared_records.provisional IS
'Whether it is the newest record of its coin in its file, so that it may be unfinished';

CREATE INDEX shared_records_by_file ON shared_records (file_id, source_id, observed_at);
CREATE INDEX shared_records_provisional ON shared_records (file_id) WHERE provisional;

-- Pairs of files whose prices of a coin differ at many moments.
CREATE TABLE file_disagreements (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    file_id integer NOT NULL,
    other_id integer NOT NULL,
    moments bigint NOT NULL,
    differing bigint NOT NULL,
    PRIMARY KEY (source, source_id, file_id, other_id)
);

ALTER TABLE runs DROP CONSTRAINT runs_trigger_check;
ALTER TABLE runs ADD CONSTRAINT runs_trigger_check
CHECK (trigger IN ('startup', 'schedule', 'retry', 'api', 'etl', 'replay', 'forget'));
