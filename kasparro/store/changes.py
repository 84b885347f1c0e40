"""Reads the current data version, and which rows and assets changed since an earlier one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from kasparro.store.pool import Connection
from kasparro.store.sql import statements

_SQL = statements("read/changes.sql")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a database at one moment.

    `database` identifies the database. `manual_edits` counts the data versions for which nobody saved what
    rows contained before; changes since versions before `oldest_version` are not known either. `committed_at`
    and `committed_by_run` describe the current version; they are null if it is not known or no run worked.
    `run_id` is the newest run.
    """

    database: str
    version: int
    manual_edits: int
    oldest_version: int
    committed_at: datetime | None
    committed_by_run: int | None
    run_id: int | None
    run_status: str | None


class Changes(msgspec.Struct, frozen=True):
    """What changed between an earlier version and `state`, the leading coins first.

    `rows` are (source, source_id, asset). A row whose asset changed is there twice, with both assets.
    `assets` are those whose consensus changed.
    """

    state: State
    rows: Sequence[tuple[str, str, str | None]]
    assets: Sequence[str]


async def state(connection: Connection) -> State:
    """The current state."""
    (row,) = await connection.fetch(_SQL["state"])
    return _state(row)


async def changes(connection: Connection, since: int) -> Changes:
    """What changed since a data version. It is complete only if `state` knows the changes since then."""
    (row,) = await connection.fetch(_SQL["changes"], since)
    columns = (row["sources"] or (), row["source_ids"] or (), row["row_assets"] or ())
    return Changes(_state(row), list(zip(*columns, strict=True)), row["assets"])


def _state(row: Any) -> State:
    return State(**{name: row[name] for name in State.__struct_fields__})
