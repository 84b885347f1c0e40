"""Decides which coin a row is about: by the columns of the coin, or one coin for the whole file."""

import re
from decimal import Decimal

import msgspec

from kasparro.model.record import RejectedValue, slug
from kasparro.printable import one_line
from kasparro.sources.archives.detect.columns import Candidates, Inputs
from kasparro.sources.archives.detect.currency import BY_OVERRIDES, pair_currency
from kasparro.sources.archives.detect.header import column_name
from kasparro.sources.archives.detect.time import TimeFormat
from kasparro.sources.archives.errors import FileRejected, Guess
from kasparro.sources.archives.findings import Finding
from kasparro.sources.archives.known_coins import LEADING_COINS, SYMBOL_SPELLINGS
from kasparro.sources.archives.numbers import Notation
from kasparro.sources.archives.overrides import Coin
from kasparro.sources.archives.pairs import PairNotation
from kasparro.sources.archives.vocabulary import COINS, FIAT, FIELD_OF, PEGGED

COIN_FIELDS = ("id", "symbol", "name")
# So many times with prices that are far from each other show two coins.
_FAR_RIVALS = 3
_WORD = re.compile(r"[^\W_]+")


class CoinColumns(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of the coin, or the one coin of all rows; and why other columns are not read, by column."""

    columns: dict[str, int]
    coin: Coin | None
    finding: Finding
    unread: dict[int, str]


def find_coin(inputs: Inputs, candidates: Candidates, times: TimeFormat, price_column: int) -> CoinColumns:
    """Find the coin of each row. Raises FileRejected if the file does not say which coin it is about."""
    columns, unread = _coin_columns(inputs, candidates)
    coin = inputs.overrides.coin
    if coin is not None:
        # A column of pairs stays, because it gives the currency of each row.
        for field in COIN_FIELDS:
            if field in columns and (field != "symbol" or pair_currency(inputs, candidates) is None):
                unread[columns.pop(field)] = "its overrides give the coin"
        _require_one_coin(inputs, times, price_column)
        return CoinColumns(
            columns=columns,
            coin=coin,
            finding=Finding(question="coin", answer=coin.source_id, evidence=(BY_OVERRIDES,)),
            unread=unread,
        )
    if columns:
        _require_agreement(inputs, candidates, columns)
        return CoinColumns(
            columns=columns,
            coin=None,
            finding=Finding(
                question="coin",
                answer="each row's own",
                evidence=tuple(
                    f"column {one_line(inputs.sample.header[column])[:40]}: {field}"
                    for field, column in columns.items()
                ),
                ruled_out=_ruled_out(inputs, unread),
            ),
            unread=unread,
        )
    coin, settled_by = _only_coin(inputs, candidates, times, price_column)
    return CoinColumns(
        columns={},
        coin=coin,
        finding=Finding(
            question="coin",
            answer=coin.source_id,
            evidence=(settled_by,),
            ruled_out=_ruled_out(inputs, unread),
        ),
        unread=unread,
    )


def _ruled_out(inputs: Inputs, unread: dict[int, str]) -> tuple[str, ...]:
    return tuple(f"column {one_line(inputs.sample.header[c])[:40]}: {reason}" for c, reason in unread.items())


def _coin_columns(inputs: Inputs, candidates: Candidates) -> tuple[dict[str, int], dict[int, str]]:
    # The columns of id, symbol and name that hold such values, and why the others are not read.
    columns: dict[str, int] = {}
    unread: dict[int, str] = {}
    for column in candidates.of("id"):
        if _are_numbers(inputs, column) and not inputs.headings[column].explicit:
            unread[column] = "bare numbers: a counter, or the keys of another table"
            continue
        columns["id"] = column
        break
    for field in ("symbol", "name"):
        for column in candidates.first(field):
            columns[field] = column
    # CoinMarketCap's own export has the number of the currency in a column called name.
    if "name" in columns and _are_numbers(inputs, columns["name"]):
        unread[columns.pop("name")] = "bare numbers, no names"
    return columns, unread


def _are_numbers(inputs: Inputs, column: int) -> bool:
    cells = filter(None, map(str.strip, inputs.cells(column)))
    first = next(cells, "")
    return first.isdigit() and all(map(str.isdigit, cells))


def _require_agreement(inputs: Inputs, candidates: Candidates, columns: dict[str, int]) -> None:
    # A file that names one known coin in its columns and another in its name is mistaken about one of them.
    if "symbol" not in columns or inputs.file_name.coin is None:
        return
    symbols = {PairNotation(joined=True).split(cell)[0] for cell in inputs.distinct([columns["symbol"]])}
    if len(symbols) != 1:
        return
    by_column = LEADING_COINS.by_symbol(symbol := symbols.pop())
    by_name = LEADING_COINS.by_phrase(inputs.file_name.coin) or LEADING_COINS.by_symbol(inputs.file_name.coin)
    if by_column is not None and by_name is not None and by_column != by_name:
        raise FileRejected(
            f"all its rows are about {symbol}, but its name has {inputs.file_name.coin_from}",
            Guess({"coin.id": slug(symbol)}, "as its rows say: check it"),
            question="coin",
        )


def _only_coin(
    inputs: Inputs, candidates: Candidates, times: TimeFormat, price_column: int
) -> tuple[Coin, str]:
    # The coin of a file without columns for it, and what settled it.
    for column in candidates.of("id"):
        numbers = [cell.strip() for cell in inputs.cells(column)]
        if 1 < len(set(numbers)) <= len(numbers) // 2:
            header = one_line(inputs.sample.header[column])
            raise FileRejected(
                f"its column {header!r} identifies coins by bare numbers only; no column has their symbols",
                None,
                question="coin",
            )
    _require_one_coin(inputs, times, price_column)
    name = inputs.file_name
    found: list[tuple[Coin, str]] = []
    if inputs.sample.ticker is not None:
        symbol, _ = PairNotation().split(inputs.sample.ticker)
        symbol = SYMBOL_SPELLINGS.get(symbol.lower(), symbol)
        found.append((Coin(id=slug(symbol), symbol=symbol), f"by its header ({inputs.sample.ticker})"))
    elif (in_header := _coin_of_header(inputs.sample.header[price_column])) is not None:
        header = one_line(inputs.sample.header[price_column])[:40]
        found.append((Coin(id=in_header), f"by its header ({header})"))
    if name.coin is not None:
        found.append((Coin(id=name.coin), f"by its name ({name.coin_from})"))
    if not found and (symbol_of_volume := _coin_of_volume(inputs)) is not None:
        found.append((Coin(id=symbol_of_volume), "by its header (the volume)"))
    if not found:
        raise _unknown_coin(inputs)
    coin = found[0][0]
    if len(found) > 1 and not _same_coin(found[0][0], found[1][0]):
        raise FileRejected(
            f"its coin is {found[0][0].source_id} {found[0][1]}, but {found[1][0].source_id} {found[1][1]}",
            Guess({"coin.id": coin.source_id}, "as its header says: check it"),
            question="coin",
        )
    return coin, "; ".join(text for _, text in found)


def _coin_of_header(cell: str) -> str | None:
    # The known coin that the header of a price begins with: `eth_price_usd`, `Ethereum Price (USD)`.
    words = _WORD.findall(cell)
    if not words:
        return None
    base, quote = PairNotation(joined=True).split(words[0])
    if quote is not None and LEADING_COINS.by_symbol(base) is not None:
        return slug(SYMBOL_SPELLINGS.get(base.lower(), base))
    if len(words) > 1 and LEADING_COINS.by_word(words[0]) is not None and words[0].lower() not in FIAT:
        return slug(SYMBOL_SPELLINGS.get(words[0].lower(), words[0]))
    return None


def _same_coin(one: Coin, other: Coin) -> bool:
    known = [
        LEADING_COINS.by_symbol(coin.source_id) or LEADING_COINS.by_phrase(coin.source_id)
        for coin in (one, other)
    ]
    return one.source_id == other.source_id or (known[0] is not None and known[0] == known[1])


def _unknown_coin(inputs: Inputs) -> FileRejected:
    name = inputs.file_name
    if name.unknown and name.guess is not None:
        words = ", ".join(repr(word) for word in name.unknown[:5])
        text = f"no column says which coin it is about, and its name has words of unknown meaning ({words})"
    elif name.guess is not None:
        text = "no column says which coin it is about, and its name has several coins"
    else:
        text = "neither a column nor the file name says which coin it is about"
    if name.guess is None:
        example = Guess({"coin.id": "bitcoin"}, "replace it by the coin", placeholder=True)
        return FileRejected(text, example, question="coin")
    return FileRejected(text, Guess({"coin.id": name.guess}), question="coin")


def _require_one_coin(inputs: Inputs, times: TimeFormat, price_column: int) -> None:
    if not _has_rival_prices(inputs, times, price_column):
        return
    names = [
        column_name(inputs.sample.header[column])
        for column, heading in enumerate(inputs.headings)
        if FIELD_OF.get(heading.base) is None
        and not heading.explicit
        and heading.full
        and 1 < len(inputs.distinct([column])) <= len(inputs.sample.rows) / 2
        and not _has_rival_prices(inputs, times, price_column, column)
    ]
    raise FileRejected(
        "many of its rows have different prices for the same time, so it is about several coins or markets, "
        "and no known column says which",
        Guess({"columns": {names[0]: "symbol"}}) if names and inputs.overrides.coin is None else None,
        question="coin",
    )


def _coin_of_volume(inputs: Inputs) -> str | None:
    # `Volume_(BTC)` next to prices in dollars: the coin that was traded.
    coins = {
        heading.currency
        for heading in inputs.headings
        if heading.base in {"volume", "vol"} and heading.currency and heading.currency.lower() in COINS - FIAT
    } - PEGGED
    return min(coins).lower() if len(coins) == 1 else None


def _has_rival_prices(
    inputs: Inputs, times: TimeFormat, price_column: int, coin_column: int | None = None
) -> bool:
    # Whether rows repeat an earlier time, for the same coin, with a different price: more than a fifth of the
    # rows, or some with a price that is far away.
    columns = [times.column, times.columns.get("clock"), coin_column]
    prices: dict[tuple[str, ...], set[str]] = {}
    rows = 0
    for row in inputs.sample.rows:
        if len(row) == len(inputs.sample.header):
            rows += 1
            key = tuple("" if column is None else row[column].strip() for column in columns)
            prices.setdefault(key, set()).add(row[price_column].strip())
    repeated = [rivals for rivals in prices.values() if len(rivals) > 1]
    if sum(len(rivals) - 1 for rivals in repeated) * 5 > rows:
        return True
    return sum(map(_are_far, repeated)) >= _FAR_RIVALS


def _are_far(rivals: set[str]) -> bool:
    figures = []
    for text in rivals:
        try:
            value = Notation().read(text, "price_usd", "money")
        except RejectedValue:
            return False
        if value is not None:
            figures.append(Decimal(value))
    return bool(figures) and max(figures) > 2 * min(figures)
