-- Daily candles, and what is known of each month of the history.

-- A batch that changes the history notes the earliest moment that it changes in each month (changed_from).
-- The service later computes candles up to the present, in steps: it moves changed_from to stale_from, writes
-- the candles from there on, and then clears stale_from. So the candles of days before both are current
-- whenever they are read, and a service that is killed between two steps begins again at stale_from.
CREATE TABLE history_months (
    source text COLLATE "C" NOT NULL,
    month date NOT NULL,
    changed_from timestamptz NOT NULL,
    stale_from timestamptz NOT NULL,
    candles_at timestamptz,
    thinned_to text CHECK (thinned_to IN ('1h', '1d')),
    thinned_completely boolean NOT NULL,
    PRIMARY KEY (source, month)
);

COMMENT ON TABLE history_months IS 'The months of the history of each source';
COMMENT ON COLUMN history_months.changed_from IS
'The earliest moment that batches have changed since candles were last computed; infinity: none';
COMMENT ON COLUMN history_months.stale_from IS
'The moment from which candles are being computed again; infinity: none';
COMMENT ON COLUMN history_months.candles_at IS 'When candles were last computed';
COMMENT ON COLUMN history_months.thinned_to IS
'The interval of which one record is left for each coin and file; null: the month has all records';
COMMENT ON COLUMN history_months.thinned_completely IS
'Whether no record was added since the month was thinned';

-- A coin's year of candles is on a few pages, whereas its records are on as many pages as there were runs.
CREATE TABLE daily_candles (
    source text COLLATE "C" NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    time timestamptz NOT NULL,
    open numeric NOT NULL,
    high numeric NOT NULL,
    low numeric NOT NULL,
    close numeric NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (source, source_id, time)
);

COMMENT ON TABLE daily_candles IS 'The prices of each coin and day (UTC), computed from unified_history';

-- Months are written one after the other, so this finds those of a month, and takes hardly any room.
CREATE INDEX daily_candles_by_time ON daily_candles USING brin (time) WITH (pages_per_range = 16);

-- A thinned month has the last priced record of each interval, coin and file. It stands for the records
-- that were deleted, too: these columns are about them, and null in a record that stands for itself alone.
ALTER TABLE unified_history
ADD COLUMN thinned_from timestamptz,
ADD COLUMN thinned_open numeric,
ADD COLUMN thinned_high numeric,
ADD COLUMN thinned_low numeric,
ADD COLUMN thinned_count bigint;

COMMENT ON COLUMN unified_history.thinned_from IS
'The moment of the first record that was deleted when the month was thinned';
COMMENT ON COLUMN unified_history.thinned_count IS 'How many records were deleted';

-- Every month that exists has no candles yet.
INSERT INTO history_months (source, month, changed_from, stale_from, thinned_completely)
SELECT
    sources.source,
    months.month,
    months.month::timestamp AT TIME ZONE 'UTC',
    'infinity',
    false
FROM (SELECT DISTINCT source FROM unified_data) AS sources
CROSS JOIN (
    SELECT to_date(right(partition.relid::text, 7), 'YYYY_MM') AS month
    FROM pg_partition_tree('unified_history') AS partition
    WHERE partition.isleaf AND partition.relid::text ~ 'unified_history_\d{4}_\d{2}$'
) AS months
-- LIMIT keeps PostgreSQL from joining the whole history with the months.
CROSS JOIN LATERAL (
    SELECT FROM unified_history
    WHERE
        source = sources.source
        AND observed_at >= months.month::timestamp AT TIME ZONE 'UTC'
        AND observed_at < (months.month + interval '1 month')::timestamp AT TIME ZONE 'UTC'
    LIMIT 1
) AS found;
