-- A run of the sources alone that failed for a transient reason.
ALTER TABLE runs DROP CONSTRAINT runs_trigger_check;
ALTER TABLE runs ADD CONSTRAINT runs_trigger_check
CHECK (trigger IN ('startup', 'schedule', 'retry', 'api', 'etl', 'replay'));
