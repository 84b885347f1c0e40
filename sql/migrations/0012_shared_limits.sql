-- The quotas of clients, if all processes share them (KASPARRO_SHARED_LIMITS). Unlogged: after a crash or a
-- failover every quota is full again, and standbys need none of it.

CREATE UNLOGGED TABLE shared_quotas (
    client text PRIMARY KEY,
    asked_at timestamptz NOT NULL,
    full_at timestamptz NOT NULL,
    granted integer NOT NULL
);

COMMENT ON TABLE shared_quotas IS 'What is left of the rate limit of each client, for all processes together';
COMMENT ON COLUMN shared_quotas.full_at IS 'When the quota is full again, without further requests';
COMMENT ON COLUMN shared_quotas.granted IS 'How many requests the last process that asked may answer';
