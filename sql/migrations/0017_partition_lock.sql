-- A partition that another session has created can be seen for a moment before PostgreSQL tells the sessions
-- that the history has one more. An INSERT in that moment does not find it. The creator holds a lock on the
-- partition until then, so a load takes the lock that it needs anyway.
CREATE OR REPLACE FUNCTION create_history_partition(month date) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    partition text := to_char(month, '"unified_history_"YYYY_MM');
BEGIN
    IF to_regclass(partition) IS NULL THEN
        -- ATTACH takes this lock anyway. Taking it before the second look is for two sources that miss the
        -- same month at the same time.
        LOCK TABLE unified_history IN SHARE UPDATE EXCLUSIVE MODE;
        IF to_regclass(partition) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE unified_history INCLUDING ALL)', partition);
            EXECUTE format(
                'ALTER TABLE unified_history ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                partition,
                month::timestamp AT TIME ZONE 'UTC',
                (month + interval '1 month')::timestamp AT TIME ZONE 'UTC'
            );
        END IF;
    END IF;
    EXECUTE format('LOCK TABLE %I IN ROW EXCLUSIVE MODE', partition);
END
$$;
