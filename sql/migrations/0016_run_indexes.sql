-- Without these, PostgreSQL reads all source runs that ever were: the first when a run is assessed, because
-- it expects that few of them are usual, and the second every five seconds.
CREATE INDEX run_sources_usual ON run_sources (source, run_id)
WHERE metrics IS NOT NULL AND anomalies::text = '[]';
CREATE INDEX run_sources_running ON run_sources (source) WHERE status = 'running';
