"""What an archive would load and how it was understood, for `kasparro check`; nothing is written."""

from datetime import datetime
from pathlib import Path

import msgspec

from kasparro.sources.archives.reader import Checked, check
from kasparro.sources.archives.recognise import Column, FileRefused, recognise, sampled


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One file as it was understood; `refused` tells why nothing of it would be loaded.

    `checked` counts what becomes of the rows looked at, which are all of them in files of up to 1 MiB.
    """

    name: str
    refused: str | None = None
    layout: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    columns: tuple[Column, ...] = ()
    coin: str | None = None
    currency: str | None = None
    decimal: str | None = None
    day_order: str | None = None
    zone: str | None = None
    candles_s: int | None = None
    notes: tuple[str, ...] = ()
    checked: Checked | None = None


async def explain(path: Path, now: datetime, name: str | None = None) -> Explanation:
    """What was recognised in a file: layout, columns, coin, currency, signs, dates, and its rows' outcome."""
    name = name or path.name
    try:
        sample = await sampled(path)
        found = recognise(sample, name, now)
    except FileRefused as refused:
        return Explanation(name=name, refused=str(refused))
    except OSError as error:
        return Explanation(name=name, refused=f"cannot be read ({error.strerror or error})")
    checked = check(sample, found, now)
    return Explanation(
        name=name,
        refused=checked.verdict,
        layout=found.layout.name,
        encoding=found.encoding.codec,
        delimiter=found.delimiter,
        columns=found.columns,
        coin=found.coin or "by its columns",
        currency=f"USD {found.currency_by}",
        decimal=found.decimal,
        day_order=found.order,
        zone=found.zone,
        candles_s=int(found.period.total_seconds()) if found.period else None,
        notes=found.notes,
        checked=checked,
    )
