-- A run is judged against its source's own past: what fields its records held (drift), and how many there
-- were, how far their prices moved and how old they were (anomalies). Null where a pass was not judged.
ALTER TABLE run_sources
    ADD COLUMN figures json,
    ADD COLUMN drift json,
    ADD COLUMN anomalies json;

-- What each source used to send, field by field. (json and not jsonb: it is only read whole, and a field's
-- name may hold what jsonb refuses.)
CREATE TABLE source_profiles (
    source text PRIMARY KEY,
    run_id bigint NOT NULL,
    profile json NOT NULL,
    updated_at timestamptz NOT NULL
);

-- A source's runs in their own order: times are of a clock that may be set back.
DROP INDEX run_sources_succeeded;
CREATE INDEX run_sources_by_source ON run_sources (source, run_id);
CREATE INDEX run_sources_succeeded ON run_sources (source, run_id) WHERE status = 'succeeded';
CREATE INDEX run_sources_judged ON run_sources (source, run_id) WHERE figures IS NOT NULL;
