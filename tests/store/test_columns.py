"""SQL and Python each write the columns of a record once; the two lists are equal."""

from typing import get_args

import jinja2
import msgspec

from kasparro.model import record
from kasparro.store import selection
from kasparro.store.sql import folder
from kasparro.web.routes import assets, data
from kasparro.web.schemas import AssetField, Field


def test_column_lists_are_equal() -> None:
    macros = jinja2.Template((folder("macros") / "columns.sql").read_text(encoding="utf-8")).module
    columns = {name: tuple(getattr(macros, name)) for name in ("VALUES", "CONTENT", "RECORD", "ASSET")}

    assert columns["VALUES"] == record.VALUE_FIELDS
    assert ("position", *columns["CONTENT"]) == record.CONTENT_COLUMNS
    assert columns["RECORD"] == tuple(selection.FIELDS)
    assert columns["ASSET"] == tuple(selection.ASSET_FIELDS)
    for rows in (selection.DATA, selection.ASSETS):
        assert rows.texts == {*macros.LISTS[rows.name]["texts"]}
        assert rows.texts >= {name for name, kind in rows.fields.items() if kind is str}
        booleans = {name for name, kind in rows.fields.items() if kind is bool}
        assert booleans == {*macros.LISTS[rows.name]["booleans"]}
    assert {field.name for field in msgspec.structs.fields(record.Record)} == {
        "source_id",
        "observed_at",
        "has_source_time",
        "invalid",
        *columns["CONTENT"],
    }
    assert get_args(Field) == data.Record.__struct_fields__ == (*columns["RECORD"], *selection.ON_REQUEST)
    assert get_args(AssetField) == assets.Asset.__struct_fields__ == columns["ASSET"]
