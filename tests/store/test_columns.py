"""A record's fields stand in many lists, in SQL and in Python: all of them have all fields, in one order."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec

from kasparro.model import record
from kasparro.store import queries
from kasparro.web.routes import data

SQL = Path(__file__).parents[2] / "sql"
# What a source says of a coin beside its time, as the table that COPY fills has it.
CONTENT = ("symbol", "name", "rank", *record.VALUE_FIELDS)
# Fewer of them in a row are no list of a record.
ENOUGH = 4


def lists(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The lists of a record's columns in a file of SQL, a column a line, with where each begins."""
    begun, found = 0, list[str]()
    for number, line in enumerate([*file.read_text(encoding="utf-8").splitlines(), ""], start=1):
        if column := _column(line):
            begun, found = begun or number, [*found, column]
            continue
        if len(set(CONTENT).intersection(found)) >= ENOUGH:
            yield f"{file.relative_to(SQL)}:{begun}", found
        begun, found = 0, []


def _column(line: str) -> str | None:
    begins = r"\s+(?:\w+\.)?(\w+)(?:,|$| = (?:excluded\.|CASE )| [a-z]+)"
    named = re.search(r"\bAS (\w+),?$", line) or re.match(begins, line)
    return named[1] if named else None


def test_every_list_of_columns_has_every_field_of_a_record() -> None:
    counted = Counter[str]()

    for file in sorted(SQL.rglob("*.sql")):
        for where, columns in lists(file):
            counted[where.partition(":")[0]] += 1
            assert tuple(one for one in columns if one in CONTENT) == CONTENT, where
            if "asset" in columns:
                assert [one for one in columns if one in queries.FIELDS] == [*queries.FIELDS], where

    assert counted == {
        "load/batch.sql": 11,
        "migrations/0001_initial.sql": 3,
        "read/data.sql": 6,
    }


def test_python_s_lists_have_every_field_of_a_record() -> None:
    fields = msgspec.structs.fields(record.Record)
    told = ("source", "source_id", "asset", *CONTENT, "observed_at", "first_seen_at", "updated_at")

    assert {field.name for field in fields} == {"source_id", "observed_at", "has_source_time", *CONTENT}
    assert ("position", *CONTENT) == record.CONTENT_COLUMNS
    assert tuple(queries.FIELDS) == told
    assert get_args(data.Field) == (*told, *queries.ON_REQUEST)
    assert data.Record.__struct_fields__ == (*told, *queries.ON_REQUEST)
