-- The contract lists of the sources: which contract stands for which coin.

CREATE TABLE contracts (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    platform text COLLATE "C" NOT NULL,
    address text COLLATE "C" NOT NULL,
    PRIMARY KEY (source, source_id, platform, address)
);

COMMENT ON TABLE contracts IS 'The contracts that the sources give for their coins';
COMMENT ON COLUMN contracts.platform IS 'The source''s own id of the chain';

CREATE TABLE contract_lists (
    source text COLLATE "C" NOT NULL,
    path text COLLATE "C" NOT NULL,
    attempted_at timestamptz,
    fetched_at timestamptz,
    changed_at timestamptz,
    short_since timestamptz,
    PRIMARY KEY (source, path)
);

COMMENT ON TABLE contract_lists IS 'The contract lists of the sources, and when each was fetched';
COMMENT ON COLUMN contract_lists.path IS 'The path of the list below the base URL of the source';
COMMENT ON COLUMN contract_lists.attempted_at IS 'When a run last requested the list';
COMMENT ON COLUMN contract_lists.fetched_at IS 'When the source sent the newest list that was loaded';
COMMENT ON COLUMN contract_lists.changed_at IS 'When a list last added or removed a contract';
COMMENT ON COLUMN contract_lists.short_since IS
'Since when the list has lacked many of the contracts that were loaded. Null: it does not';
