-- Limits that all processes of a database share (kasparro/store/shared_limits.py).

{#- How many requests a quota still has: of the $3 requests in $4 seconds that the rate allows, those that have
    come back by now. $5 requests that a process was given, and did not need, are back at once. #}
{%- set base -%}
greatest(quota.full_at - $5 * ($4::float8 / $3) * interval '1 second', excluded.asked_at)
{%- endset -%}
{%- set granted -%}
least(
    $2,
    greatest(
        0,
        floor(
            ($4 - extract(EPOCH FROM {{ base }} - excluded.asked_at)) / ($4::float8 / $3) + 0.000001
        )::integer
    )
)
{%- endset %}

-- name: take --
-- Takes up to $2 requests from the quota of client $1. `full_s` is the time until the quota is full again.
INSERT INTO shared_quotas AS quota (client, asked_at, full_at, granted)
VALUES (
    $1,
    clock_timestamp(),
    clock_timestamp() + least($2, $3) * ($4::float8 / $3) * interval '1 second',
    least($2, $3)
)
ON CONFLICT (client) DO UPDATE
SET
    asked_at = excluded.asked_at,
    granted = {{ granted }},
    full_at = {{ base }} + {{ granted }} * ($4::float8 / $3) * interval '1 second'
RETURNING granted, extract(EPOCH FROM full_at - asked_at)::float8 AS full_s;

-- name: delete_full --
-- A full quota is as good as none.
DELETE FROM shared_quotas
WHERE full_at < clock_timestamp();

-- name: try_turn --
-- Takes one of the turns $2 of client $1 for this session; its number, null if other sessions have all of them.
-- LIMIT ends the scan at the first lock that is taken.
SELECT number
FROM unnest($2::integer[]) AS number
WHERE pg_try_advisory_lock(hashtextextended('kasparro turn ' || $1, number))
LIMIT 1;

-- name: end_turn --
SELECT pg_advisory_unlock(hashtextextended('kasparro turn ' || $1, $2));

-- name: heartbeat --
SELECT true;
