{#- Which file's record stands, of those that several files give for one moment. #}

{#- The order of the records (`shared`) of one moment, with their files (`file`). #}
{% macro ranked() -%}
ORDER BY
    file.complete DESC,
    shared.provisional ASC,
    CASE
        WHEN shared.provisional THEN num_nulls(shared.market_cap_usd, shared.volume_24h_usd)
    END ASC,
    file.name COLLATE "C" DESC,
    shared.file_id DESC
{%- endmacro %}

{#- The currency of the file that gives a row; of several, of the file whose values stand. No row: no file is
    known to give it. Null: a version that did not note the currency loaded the file. #}
{%- macro currency_of_file(row) -%}
SELECT array_to_string(file.quoted_in, ',') AS quoted_in
FROM unified_history AS history
INNER JOIN archive_files AS file
    ON file.id = CASE
        WHEN history.file_id <> 0 THEN history.file_id
        ELSE (
            SELECT shared.file_id
            FROM shared_records AS shared
            INNER JOIN archive_files AS file ON shared.file_id = file.id
            WHERE
                shared.source = history.source
                AND shared.source_id = history.source_id
                AND shared.observed_at = history.observed_at
                AND shared.content_hash = history.content_hash
            {{ ranked() }}
            LIMIT 1
        )
    END
WHERE
    history.source = {{ row }}.source
    AND history.source_id = {{ row }}.source_id
    AND history.observed_at = {{ row }}.observed_at
{%- endmacro %}

{#- The currency of a row's prices: that of its file. Prices of APIs are in USD. #}
{%- macro quoted_in(row, of_file) -%}
CASE
    WHEN NOT EXISTS (SELECT FROM archive_files AS files WHERE files.source = {{ row }}.source) THEN 'USD'
    ELSE {{ of_file }}
END
{%- endmacro %}
