"""Reads which archives are loaded and which are rejected, as the database knows them."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/archives.sql")
_STATES = msgspec.json.Decoder(dict[str, int])


class ArchiveFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which archives a list has: those in one of the `states`, with or without a `problem`, and with `text`
    in their names. None does not filter."""

    states: Sequence[str] | None = None
    problem: bool | None = None
    text: str | None = None


class ArchivePage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of archives: their rows, what the history has of each by its id, and the (name, id) of the last
    one (None if no archive follows it). `total` counts the archives of the list; `states`, by state, and
    `problems` count all archives. `unlisted` counts files that the newest run rejected and of which nothing
    is kept.
    """

    rows: list[asyncpg.Record]
    records: dict[int, asyncpg.Record]
    total: int
    last: tuple[str, int] | None
    states: dict[str, int]
    problems: int
    unlisted: int


async def archives(
    connection: Connection,
    source: str,
    filters: ArchiveFilters,
    *,
    limit: int,
    offset: int = 0,
    after: tuple[str, int] | None = None,
) -> ArchivePage:
    """A page of the archives by name, at an offset or after one of them."""
    last_file, last_id = after or ("", 0)
    values = {
        "source": source,
        "limit": limit,
        "offset": offset,
        "last_file": last_file,
        "last_id": last_id,
        **msgspec.structs.asdict(filters),
    }
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await _fetch(
            connection,
            "page",
            values,
            after=after is not None,
            states=filters.states is not None,
            problem=filters.problem,
            text=filters.text is not None,
        )
        # If the page is empty, there is one row without an archive.
        found = [row for row in rows[:limit] if row["file"] is not None]
        records = await _records(connection, source, found)
    return ArchivePage(
        rows=found,
        records=records,
        total=rows[0]["total"],
        last=(found[-1]["file"], found[-1]["id"]) if len(rows) > limit else None,
        states=_STATES.decode(rows[0]["states"] or "{}"),
        problems=rows[0]["problems"],
        unlisted=max(rows[0]["rejected_files"] - rows[0]["kept_files"], 0),
    )


async def _records(
    connection: Connection, source: str, files: Sequence[asyncpg.Record]
) -> dict[int, asyncpg.Record]:
    loaded = [file for file in files if file["first_observed_at"] is not None]
    if not loaded:
        return {}
    # Files whose columns give the coin.
    tables = [file for file in loaded if file["coin"] is None]
    values = {
        "source": source,
        "ids": [file["id"] for file in loaded],
        "tables": [file["id"] for file in tables],
        "first": min((file["first_observed_at"] for file in tables), default=None),
        "last": max((file["last_observed_at"] for file in tables), default=None),
    }
    rows = await _fetch(connection, "records", values, tables=bool(tables))
    return {row["id"]: row for row in rows}


async def _fetch(
    connection: Connection, name: str, values: dict[str, Any], **variables: bool | None
) -> list[asyncpg.Record]:
    statement = _SQL[name].compose(**variables)
    return await connection.fetch(statement.text, *statement.values(values))
