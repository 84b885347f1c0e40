{#- Notes in which months of the history, and from which moment on, the source $1 has other records: those of
    a relation, with a condition. This goes into the transaction that changes them. The row is locked also if
    it stays as it is, so that candles are not computed without these records
    (kasparro/store/history_upkeep.py). #}
{%- macro noted(relation, condition="true") -%}
INSERT INTO history_months AS known (source, month, changed_from, stale_from, thinned_completely)
SELECT
    $1,
    date_trunc('month', observed_at AT TIME ZONE 'UTC')::date AS month,
    min(observed_at) AS changed_from,
    'infinity' AS stale_from,
    false AS thinned_completely
FROM {{ relation }}
WHERE {{ condition }}
GROUP BY date_trunc('month', observed_at AT TIME ZONE 'UTC')
ON CONFLICT (source, month) DO UPDATE SET changed_from = excluded.changed_from
WHERE excluded.changed_from < known.changed_from
{%- endmacro %}
