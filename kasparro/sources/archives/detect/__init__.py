"""Detects the format of an archive from its header, its name and its rows, before any row is loaded.

Each question has a module: `sample`, `header`, `columns`, `currency`, `time`, `grid`, `coin`. Each answer has
its evidence. Nothing is loaded by a guess: a file that leaves a question open is rejected, with the overrides
that may settle it (`attempt`).
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import chain

import msgspec

from kasparro.model.record import LABELS
from kasparro.printable import one_line
from kasparro.sources.archives.detect.coin import find_coin
from kasparro.sources.archives.detect.columns import Candidates, Inputs, find_candidates
from kasparro.sources.archives.detect.currency import find_dollar_columns, pair_notation
from kasparro.sources.archives.detect.grid import find_grid
from kasparro.sources.archives.detect.header import headings_of
from kasparro.sources.archives.detect.sample import Sample
from kasparro.sources.archives.detect.time import TimeFormat, find_times
from kasparro.sources.archives.file_names import read_name
from kasparro.sources.archives.findings import Finding
from kasparro.sources.archives.known_coins import LEADING_COINS, KnownCoins
from kasparro.sources.archives.layouts import Layout
from kasparro.sources.archives.numbers import DecimalSign, Notation, NumberKind, decimal_sign
from kasparro.sources.archives.overrides import NO_OVERRIDES, Coin, Overrides
from kasparro.sources.archives.pairs import PairNotation
from kasparro.sources.archives.text import Encoding
from kasparro.sources.archives.times import Epoch, Grid, Order, Stamp

_DAY = timedelta(days=1)
# Cells of each column that are shown.
SHOWN_CELLS = 3
# How the numeric fields of a record are written.
NUMBERS: dict[str, NumberKind] = {
    "price_usd": "money",
    "market_cap_usd": "money",
    "volume_24h_usd": "money",
    "circulating_supply": "supply",
    "total_supply": "supply",
    "max_supply": "supply",
    "percent_change_1h": "percent",
    "percent_change_24h": "percent",
    "percent_change_7d": "percent",
}


class DetectedColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column: the field that it gives, or why it is not read, and some of its cells."""

    header: str
    field: str | None
    note: str | None = None
    cells: tuple[str, ...] = ()


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """The format of a file: how its rows are read, and what `kasparro check --explain` shows.

    `column_of` gives the column of each field that is read. `coin` is the coin of all rows if the file's name
    or its overrides give one. `moment` is the time of all rows if no column gives one. `accept_pegged` says
    that coins pegged to the dollar count as dollars. `quoted_in` is the currency of prices whose row names
    none: USD, or such a coin. `grid` is None if the rows are no candles.
    """

    encoding: Encoding
    delimiter: str
    header_row: int
    width: int
    layout: Layout
    columns: tuple[DetectedColumn, ...]
    column_of: dict[str, int]
    decimal: DecimalSign
    order: Order | None
    zone: str
    grid: Grid | None
    coin: Coin | None
    moment: Stamp | None
    pairs: PairNotation
    accept_pegged: bool
    quoted_in: str
    epoch: Epoch | None
    epoch_unit: str | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def notation(self) -> Notation:
        """How its numbers are written."""
        return Notation(self.decimal)

    @property
    def lacks(self) -> tuple[str, ...]:
        """The labels that no row has, because no column and no override gives them."""
        given = {*self.column_of}
        if self.coin is not None:
            # The one coin of a file outranks its columns.
            given -= {"symbol", "name"}
            given |= {field for field in ("symbol", "name") if getattr(self.coin, field) is not None}
        return tuple(field for field in LABELS if field not in given)

    @property
    def interpretation(self) -> str:
        """A digest that is equal for files whose rows are read in the same way."""
        settled = (
            self.encoding.codec,
            self.delimiter,
            self.header_row,
            self.width,
            self.layout.kind,
            self.column_of,
            self.decimal,
            self.order,
            self.zone,
            self.grid,
            self.coin,
            self.moment,
            self.pairs.separators,
            self.pairs.joined,
            self.accept_pegged,
            self.quoted_in,
            self.epoch,
        )
        return blake2b(msgspec.json.encode(settled, order="deterministic"), digest_size=16).hexdigest()


def detect(
    sample: Sample,
    name: str,
    now: datetime,
    overrides: Overrides = NO_OVERRIDES,
    known_coins: KnownCoins = LEADING_COINS,
) -> Detection:
    """Detect the format of a file called `name`. Raises FileRejected if something stays open."""
    layout = sample.layout
    if overrides.period and layout.kind != "candles":
        layout = msgspec.structs.replace(layout, kind="candles")
    inputs = Inputs(
        sample=sample,
        headings=headings_of(sample.header, overrides),
        layout=layout,
        file_name=read_name(name, known_coins),
        overrides=overrides,
        now=now,
    )
    candidates = find_candidates(inputs)
    dollars = find_dollar_columns(inputs, candidates)
    times = find_times(inputs, candidates)
    candles = find_grid(inputs, times)
    coin = find_coin(inputs, candidates, times, dollars.columns["price_usd"])

    others = {
        field: column
        for field in ("rank", *NUMBERS)
        if NUMBERS.get(field) != "money"
        for column in candidates.first(field)
    }
    column_of = {**coin.columns, **others, **dollars.columns, **times.columns}
    if candles.field == "time":
        column_of.pop("closed_at", None)
    unread = candidates.unread | dollars.unread | coin.unread
    if candles.grid is not None and candles.grid.length != _DAY and "volume_24h_usd" in column_of:
        unread[column_of.pop("volume_24h_usd")] = "the volume of a candle that is not a day"
    field_of = {column: field for field, column in column_of.items()}
    return Detection(
        encoding=sample.encoding,
        delimiter=sample.delimiter,
        header_row=sample.header_row,
        width=len(sample.header),
        layout=layout,
        columns=tuple(
            DetectedColumn(
                header=one_line(cell),
                field=field_of.get(column),
                note=unread.get(column),
                cells=tuple(_shown_cells(inputs.cells(column))),
            )
            for column, cell in enumerate(sample.header)
        ),
        column_of=column_of,
        decimal=overrides.decimal or _decimal_sign(inputs, candidates, column_of),
        order=times.order,
        zone=times.zone,
        grid=candles.grid,
        coin=coin.coin,
        moment=times.moment,
        pairs=pair_notation(inputs, candidates, layout),
        accept_pegged=overrides.currency == "USD" or overrides.pegged_as_usd,
        quoted_in=dollars.pegged or "USD",
        epoch=overrides.epoch,
        epoch_unit=times.epoch_unit,
        findings=(times.finding, *candles.findings, coin.finding, dollars.finding, dollars.volume),
        notes=(
            *([sample.encoding.note] if sample.encoding.note else ()),
            *times.notes,
            *_unfinished_notes(inputs, candidates, times),
        ),
    )


def _unfinished_notes(inputs: Inputs, candidates: Candidates, times: TimeFormat) -> tuple[str, ...]:
    # A site writes the candle in progress without market cap and volume.
    rows = inputs.sample.rows
    if inputs.layout.kind != "candles" or len(rows) < 3 or len(times.stamps) < 3:
        return ()
    newest = rows[-1] if times.stamps[-1].at >= times.stamps[0].at else rows[0]
    fields = ("market_cap_usd", "volume_24h_usd", "volume")
    columns = [column for field in fields for column in candidates.of(field)]
    if (
        not columns
        or any(len(newest) <= column or newest[column].strip("0., ") for column in columns)
        or not all(
            sum(bool(cell.strip("0., ")) for cell in inputs.cells(column)) * 2 > len(rows)
            for column in columns
        )
    ):
        return ()
    return ("its newest row has no volume or market cap beside others that have them: it may be unfinished",)


def _decimal_sign(inputs: Inputs, candidates: Candidates, column_of: dict[str, int]) -> DecimalSign:
    columns = [column_of[field] for field in NUMBERS if field in column_of]
    # Columns that are not loaded are written in the same notation.
    columns += [column for field in ("open", "high", "low") for column in candidates.of(field)]
    return decimal_sign(chain.from_iterable(map(inputs.cells, columns)), inputs.sample.delimiter)


def _shown_cells(cells: Iterable[str]) -> list[str]:
    # The first cells that are not blank, shortened.
    some: list[str] = []
    for cell in cells:
        if cell.strip():
            some.append(one_line(cell)[:60])
            if len(some) == SHOWN_CELLS:
                break
    return some
