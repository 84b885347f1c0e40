"""Decides which coin a row is about: by the columns of the coin, or one coin for the whole file."""

import msgspec

from kasparro.model.record import slug
from kasparro.sources.archives.detect.columns import Candidates, Evidence
from kasparro.sources.archives.detect.currency import BY_OVERRIDES, pair_currency
from kasparro.sources.archives.detect.time import TimeFormat
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.header_names import COINS, PEGGED
from kasparro.sources.archives.overrides import Coin
from kasparro.sources.archives.pairs import PairNotation
from kasparro.sources.archives.text import one_line

COIN_FIELDS = ("id", "symbol", "name")
_SETTING = 'coin.id = "bitcoin", or columns."HEADER" = "symbol"'


class CoinColumns(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of the coin, or the one coin of all rows; and why other columns are not read, by column.

    `settled_by` is for people.
    """

    columns: dict[str, int]
    coin: Coin | None
    settled_by: str
    unread: dict[int, str]


def find_coin(
    evidence: Evidence, candidates: Candidates, times: TimeFormat, price_column: int
) -> CoinColumns:
    """Find the coin of each row. Raises FileRejected if the file does not say which coin it is about."""
    columns, unread = _coin_columns(evidence, candidates)
    coin = evidence.overrides.coin
    if coin is not None:
        # A column of pairs stays, because it gives the currency of each row.
        for field in COIN_FIELDS:
            if field in columns and (field != "symbol" or pair_currency(evidence, candidates) is None):
                unread[columns.pop(field)] = "its overrides give the coin"
        return CoinColumns(
            columns=columns, coin=coin, settled_by=f"{coin.source_id}, {BY_OVERRIDES}", unread=unread
        )
    if columns:
        settled_by = f"by its columns ({', '.join(columns)})"
        return CoinColumns(columns=columns, coin=None, settled_by=settled_by, unread=unread)
    coin, settled_by = _only_coin(evidence, candidates, times, price_column)
    return CoinColumns(columns={}, coin=coin, settled_by=settled_by, unread=unread)


def _coin_columns(evidence: Evidence, candidates: Candidates) -> tuple[dict[str, int], dict[int, str]]:
    # The columns of id, symbol and name that hold such values, and why the others are not read.
    columns: dict[str, int] = {}
    unread: dict[int, str] = {}
    for column in candidates.of("id"):
        cells = [cell.strip() for cell in evidence.cells(column)]
        numbers = cells and all(cell.isdigit() for cell in cells if cell)
        if numbers and not evidence.headings[column].explicit:
            unread[column] = "bare numbers: a counter, or the keys of another table"
            continue
        columns["id"] = column
        break
    for field in ("symbol", "name"):
        for column in candidates.first(field):
            columns[field] = column
    # CoinMarketCap's own export has the number of the currency in a column called name.
    names = evidence.distinct(candidates.first("name"))
    if names and all(name.isdigit() for name in names) and not evidence.overrides.columns:
        unread[columns.pop("name")] = "bare numbers, no names"
    return columns, unread


def _only_coin(
    evidence: Evidence, candidates: Candidates, times: TimeFormat, price_column: int
) -> tuple[Coin, str]:
    # The coin of a file without columns for it, and what settled it.
    for column in candidates.of("id"):
        numbers = [cell.strip() for cell in evidence.cells(column)]
        if 1 < len(set(numbers)) <= len(numbers) // 2:
            header = one_line(evidence.sample.header[column])
            raise FileRejected(f"its column {header!r} identifies coins by bare numbers only", _SETTING)
    if evidence.sample.ticker is not None:
        symbol, _ = PairNotation().split(evidence.sample.ticker)
        coin = Coin(id=slug(symbol), symbol=symbol)
        return coin, f"{coin.source_id}, by its header"
    coin_id = evidence.hints.coin or _coin_of_volume(evidence)
    if coin_id is None:
        raise FileRejected("neither a column nor the file name says which coin it is about", _SETTING)
    if times.stamps and _has_rival_prices(evidence, times, price_column):
        raise FileRejected(
            "many of its rows have different prices for the same time, so it is about several coins, "
            "and no known column says which",
            _SETTING,
        )
    coin = Coin(id=coin_id)
    return coin, f"{coin.source_id}, by its {'name' if evidence.hints.coin else 'header'}"


def _coin_of_volume(evidence: Evidence) -> str | None:
    # `Volume_(BTC)` next to prices in dollars: the coin that was traded.
    coins = {
        heading.currency
        for heading in evidence.headings
        if heading.base == "volume" and heading.currency and heading.currency.lower() in COINS
    } - PEGGED
    return min(coins).lower() if len(coins) == 1 else None


def _has_rival_prices(evidence: Evidence, times: TimeFormat, price_column: int) -> bool:
    # Whether more than a fifth of the rows repeat an earlier time with a different price.
    clock = times.columns.get("clock")
    prices: dict[tuple[str, str], set[str]] = {}
    rows = 0
    for row in evidence.sample.rows:
        if times.column is not None and len(row) == len(evidence.sample.header):
            rows += 1
            when = (row[times.column].strip(), "" if clock is None else row[clock].strip())
            prices.setdefault(when, set()).add(row[price_column].strip())
    repeated = sum(len(rivals) - 1 for rivals in prices.values())
    return repeated * 5 > rows
