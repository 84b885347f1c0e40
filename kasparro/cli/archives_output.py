"""Prints which archives are loaded, as lines for people or as JSON."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec

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
    """Print two lines for each archive: its name, which may be long, and what the database holds of it."""
    if not archives:
        out.print("no archive is loaded")
    for archive in archives:
        out.print(archive.file, soft_wrap=True)
        out.print(f"  {_contents(archive)}", soft_wrap=True)
        if archive.problem is not None:
            out.print(f"  {archive.problem}", soft_wrap=True)


def _contents(archive: ArchiveReport) -> str:
    state = f"{archive.state} ({_day(archive.loaded_at)})"
    if not archive.rows:
        return f"{state}, no rows"
    rows = f"{archive.rows:,} row{'' if archive.rows == 1 else 's'} of {_coins(archive)}"
    return f"{state}, {rows}, {_day(archive.first_observed_at)} to {_day(archive.last_observed_at)}"


def _coins(archive: ArchiveReport) -> str:
    # With the currency of the prices, except for US dollars.
    if not archive.coins:
        return "-"
    coins = archive.coin or f"{archive.coins:,} coins"
    currency = "?" if archive.quoted_in is None else ", ".join(archive.quoted_in)
    return coins if currency == "USD" else f"{coins} in {currency}"


def _day(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d}"
