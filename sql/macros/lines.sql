{#- Rows as lines of CSV or of JSON, for COPY (kasparro/store/exports.py). COPY writes values as their types
    do, which is faster than making a text of each line. `kinds` lists the `texts`, `times` and `booleans`
    among the columns; all others are numbers. #}
{%- from "macros/columns.sql" import rfc3339 %}

{#- The cells of a line of CSV. In a spreadsheet, a text that starts like a formula (OWASP's list of first
    characters) gets an apostrophe in front. #}
{%- macro cells(names, kinds, spreadsheet=false) -%}
{% for name in names %}
{% if name in kinds.times %}
{{ rfc3339(name) }} AS {{ name }},
{% elif name in kinds.booleans %}
{{ name }}::text AS {{ name }},
{% elif name in kinds.texts and spreadsheet %}
CASE
    WHEN {{ name }} ~ '^[-=+@\t\r\n\uff0b\uff0d\uff1d\uff20]' THEN '''' || {{ name }}
    ELSE {{ name }}
END AS {{ name }},
{% else %}
{{ name }},
{% endif %}
{% endfor %}
E'\r' AS line_end
{%- endmacro %}

{#- The pieces of a line of JSON: the names of the members with what stands around them, and their values. #}
{%- macro members(names, kinds) -%}
{% for name in names %}
'{{ "{" if loop.first else "," }}"{{ name }}":',
{% if name in kinds.times %}
{{ rfc3339(name, quote='\\"') }} AS {{ name }},
{% elif name in kinds.booleans %}
{{ name }}::text AS {{ name }},
{% elif name in kinds.texts %}
to_json({{ name }}) AS {{ name }},
{% else %}
{{ name }},
{% endif %}
{% endfor %}
'}'
{%- endmacro %}
