"""Prints which archives are loaded, as a table for people or as JSON."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from rich.table import Table

from kasparro.cli.terminal import out
from kasparro.sources.archives.folder_state import FileState
from kasparro.store.archive_files import ListedFile


class ArchiveReport(msgspec.Struct, frozen=True, kw_only=True):
    """An archive, and what the database holds of it."""

    file: str
    state: FileState
    loaded_at: datetime
    rows: Annotated[int, msgspec.Meta(description="Records in the history that this file gives.")]
    coin: Annotated[str | None, msgspec.Meta(description="The one coin of its rows; null if there are more.")]
    coins: int
    quoted_in: Annotated[
        Sequence[str] | None,
        msgspec.Meta(
            description="The currencies of its prices: USD, or coins that count as US dollars. "
            "Null: an earlier version of Kasparro loaded the file."
        ),
    ]
    first_observed_at: datetime | None
    last_observed_at: datetime | None
    problem: str | None


def report(file: ListedFile, state: FileState) -> ArchiveReport:
    """The report of one archive."""
    return ArchiveReport(
        file=file.known.name,
        state=state,
        loaded_at=file.loaded_at,
        rows=file.records,
        coin=file.coin,
        coins=file.coins,
        quoted_in=file.quoted_in,
        first_observed_at=file.first_observed_at,
        last_observed_at=file.last_observed_at,
        problem=file.known.problem,
    )


def print_archives(archives: Sequence[ArchiveReport]) -> None:
    """Print a table, and why archives are rejected."""
    if not archives:
        out.print("no archive is loaded")
        return
    table = Table("file", "state", "loaded", "rows", "coin", "first", "last", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    for column in (table.columns[2], *table.columns[5:]):
        column.no_wrap = True
    for archive in archives:
        table.add_row(
            archive.file,
            archive.state,
            _day(archive.loaded_at),
            f"{archive.rows:,}",
            _coins(archive),
            _day(archive.first_observed_at),
            _day(archive.last_observed_at),
        )
    out.print(table)
    for archive in archives:
        if archive.problem is not None:
            out.print(f"{archive.file}: {archive.problem}", soft_wrap=True)


def _coins(archive: ArchiveReport) -> str:
    # With the currency of the prices, except for US dollars.
    if not archive.coins:
        return "-"
    coins = archive.coin or f"{archive.coins:,} coins"
    currency = "?" if archive.quoted_in is None else ", ".join(archive.quoted_in)
    return coins if currency == "USD" else f"{coins} in {currency}"


def _day(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d}"
