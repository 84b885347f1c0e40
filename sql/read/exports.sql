-- Reads all rows of a selection for COPY (kasparro/store/exports.py). With OFFSET 0, Citus keeps the order of
-- the rows: it would otherwise make lines on each node, in an order of its own.
{% import "macros/rows.sql" as rows with context %}
{% from "macros/columns.sql" import LISTS %}
{% from "macros/lines.sql" import cells, members %}

-- name: csv --
-- The cells of each row (RFC 4180): null is an empty cell, a text is in quotes, and a number is its digits.
SELECT {{ cells(fields.split(", "), LISTS[list], spreadsheet) }}
FROM (
    {{ rows.exported() }}
) AS record;

-- name: ndjson --
-- Each row as a line of JSON.
SELECT {{ members(fields.split(", "), LISTS[list]) }}
FROM (
    {{ rows.exported() }}
) AS record;
