-- Limits that all processes of a database share (kasparro/store/shared_limits.py).

{#- The rate allows $3 requests in $4 seconds. #}
{%- set request -%} ($4::float8 / $3::integer * interval '1 second') {%- endset -%}

{#- When the quota is full again, if $5 requests are back that a process was given and did not need. #}
{%- set full_at -%} greatest(quota.full_at - $5::integer * {{ request }}, excluded.asked_at) {%- endset -%}

{#- How many requests the quota has by now, of the $2 that are asked for. Sums of floats have small errors. #}
{%- set granted -%}
least(
    $2::integer,
    greatest(
        0,
        floor(
            ($4 - extract(EPOCH FROM {{ full_at }} - excluded.asked_at)) * $3 / $4 + 0.000001
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
    clock_timestamp() + least($2::integer, $3::integer) * {{ request }},
    least($2::integer, $3::integer)
)
ON CONFLICT (client) DO UPDATE
SET
    asked_at = excluded.asked_at,
    granted = {{ granted }},
    full_at = {{ full_at }} + {{ granted }} * {{ request }}
RETURNING granted, extract(EPOCH FROM full_at - asked_at)::float8 AS full_s;

-- name: delete_full --
-- A full quota is as good as none.
DELETE FROM shared_quotas
WHERE full_at < clock_timestamp();

-- name: try_turn --
-- Takes one of the turns $2 of client $1 for this session; its number, null if others have all of them.
-- LIMIT ends the scan at the first lock that is taken.
SELECT number
FROM unnest($2::integer[]) AS number
WHERE pg_try_advisory_lock(hashtextextended('kasparro turn ' || $1, number))
LIMIT 1;

-- name: end_turn --
SELECT pg_advisory_unlock(hashtextextended('kasparro turn ' || $1, $2));

-- name: heartbeat --
SELECT true;
