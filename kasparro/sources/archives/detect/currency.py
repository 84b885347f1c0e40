"""Decides the currency of a file's figures, and finds the columns that are in US dollars.

Only the file's own evidence answers: a header, the cells, a sign, a pair, or CoinMarketCap's number of the
currency. A layout answers only if its site offers no other currency. Evidence for another currency rejects
the file.
"""

from decimal import Decimal
from typing import NamedTuple

import msgspec

from kasparro.model.record import RejectedValue
from kasparro.printable import one_line
from kasparro.sources.archives.detect.columns import Candidates, Inputs
from kasparro.sources.archives.errors import FileRejected, Guess
from kasparro.sources.archives.findings import Finding
from kasparro.sources.archives.layouts import Layout
from kasparro.sources.archives.numbers import Notation
from kasparro.sources.archives.pairs import SEPARATORS, PairNotation
from kasparro.sources.archives.vocabulary import CURRENCIES, PEGGED, currencies_in

BY_OVERRIDES = "by its overrides"
# Names, symbols and ids of coins whose price in US dollars is about 1.
STABLECOINS = frozenset({"usdt", "usdc", "tether", "usd-coin", "usdt-tether", "usdc-usd-coin", "dai", "busd"})
# A median price of stablecoins within the first limits shows dollars; outside the others it shows another
# currency. Between them it shows nothing: in 2017 USDT cost up to 1.06 dollars, in 2022 a euro cost a dollar.
_DOLLARS = (Decimal("0.99"), Decimal("1.01"))
_MAY_BE_DOLLARS = (Decimal("0.97"), Decimal("1.1"))
# The share of rows that shows what a column is.
_NEARLY_ALL = 0.95
# CoinMarketCap's number of the US dollar, which its exports have in a column called name.
_USD_NUMBER = "2781"
_EXPORT_COLUMNS = frozenset({"timeopen", "timeclose", "marketcap"})


class DollarColumns(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of money that are in US dollars, and why others are not read, by column.

    `columns` always has `price_usd`. If each row names its currency, it has `currency` too. `pegged` is the
    coin that counts as US dollars because the overrides say so.
    """

    columns: dict[str, int]
    finding: Finding
    volume: Finding
    unread: dict[int, str]
    pegged: str | None


class _Currency(NamedTuple):
    # `settled_by` says what settled the code, or why it is None.
    code: str | None
    settled_by: str


def find_dollar_columns(inputs: Inputs, candidates: Candidates) -> DollarColumns:
    """Find the columns of money in US dollars. Raises FileRejected if no price is in US dollars."""
    price_field = "close" if inputs.layout.kind == "candles" and candidates.of("close") else "price"
    prices = candidates.of(price_field)
    volumes, unread = _volumes(inputs, candidates)
    currency_column = _currency_column(inputs, candidates)
    evidence = _evidence(inputs, candidates, prices, currency_column)
    default = _default_currency(inputs, evidence)
    columns: dict[str, int] = {}
    settled_by = ""
    pegged: str | None = None
    reasons: dict[int, str] = {}
    for field, of_field in (
        ("price_usd", prices),
        ("market_cap_usd", candidates.of("market_cap_usd")),
        ("volume_24h_usd", candidates.of("volume_24h_usd") + volumes),
    ):
        for column in of_field:
            currency = _currency_of(inputs, column, default)
            counts = currency.code in PEGGED and inputs.overrides.pegged_as_usd
            if currency.code != "USD" and not counts:
                reasons[column] = (
                    f"in {currency.code}, not USD ({currency.settled_by})"
                    if currency.code
                    else currency.settled_by
                )
            elif field not in columns:
                columns[field] = column
                settled_by = settled_by or currency.settled_by
                pegged = currency.code if counts else pegged
    if "price_usd" not in columns:
        if inputs.overrides.currency != "USD":
            raise _rejected(inputs, next((reasons[column] for column in prices), ""), prices, default)
        # The header or the cells of every price name another currency; the overrides outrank them.
        columns["price_usd"], settled_by = prices[0], BY_OVERRIDES
        for column in prices:
            del reasons[column]
    _drop_equal_cap(inputs, columns, unread)
    if currency_column is not None:
        columns["currency"] = currency_column
    answer = f"{pegged}, which counts as USD by its overrides" if pegged else "USD"
    return DollarColumns(
        columns=columns,
        finding=Finding(
            question="currency",
            answer=answer,
            evidence=tuple(dict.fromkeys([settled_by, *evidence.speaking])),
            ruled_out=tuple(
                f"{one_line(inputs.sample.header[column])[:40]}: {reason}"
                for column, reason in reasons.items()
            ),
        ),
        volume=_volume_finding(inputs, candidates, columns, unread),
        unread=unread | reasons,
        pegged=pegged,
    )


def _rejected(inputs: Inputs, reason: str, prices: list[int], default: _Currency) -> FileRejected:
    # What a file without a price in US dollars is rejected for. Evidence for another currency gets no guess.
    text = f"its prices are {reason}" if reason.startswith("in ") else reason
    code = _currency_of(inputs, prices[0], default).code if prices else None
    if code in PEGGED:
        guess = Guess({"pegged_as_usd": True}, f"if {code} may count as US dollars")
        return FileRejected(text, guess, question="currency")
    if code is not None or inputs.overrides.currency or inputs.file_name.other_currencies - {"USD"}:
        if not inputs.overrides.currency:
            text += "; if they are in US dollars, the key currency in its overrides can say so"
        return FileRejected(text, None, question="currency")
    return FileRejected(
        text, Guess({"currency": "USD"}, "if its prices are in US dollars"), question="currency"
    )


def pair_notation(inputs: Inputs, candidates: Candidates, layout: Layout) -> PairNotation:
    """How the symbols of a file are paired, if it has the given layout."""
    symbols = inputs.distinct(candidates.first("symbol"))
    if candidates.of("id") or candidates.of("name"):
        # Next to ids or names, a symbol such as BSC-USD is a coin's own, unless every symbol looks so.
        return PairNotation(SEPARATORS if PairNotation().are_pairs(symbols) else "/")
    joined = layout.kind == "candles" and bool(symbols) and PairNotation(joined=True).are_pairs(symbols)
    return PairNotation(joined=joined)


def pair_currency(inputs: Inputs, candidates: Candidates) -> str | None:
    """The quote currency of the pairs in a file's symbols; None if they are no pairs."""
    if inputs.sample.ticker is not None:
        return PairNotation().split(inputs.sample.ticker)[1]
    notation = pair_notation(inputs, candidates, inputs.layout)
    for column in candidates.first("symbol"):
        quotes: set[str] = set()
        for cell in set(inputs.cells(column)):
            if (quote := notation.split(cell)[1]) is None:
                break
            quotes.add(quote)
        else:
            if quotes:
                return "USD" if "USD" in quotes else min(quotes)
    return None


class _Evidence(NamedTuple):
    # What speaks for a currency, most specific first; and in words.
    found: list[_Currency]
    speaking: list[str]


def _evidence(
    inputs: Inputs, candidates: Candidates, prices: list[int], currency_column: int | None
) -> _Evidence:
    found: list[_Currency] = []
    if currency_column is not None:
        codes = {cell.strip().upper() for cell in inputs.cells(currency_column)}
        found.append(_Currency("USD" if "USD" in codes else min(codes), "by its currency column"))
    if (number := _currency_number(inputs, candidates)) is not None:
        code = "USD" if number == _USD_NUMBER else "another currency"
        found.append(_Currency(code, f"by CoinMarketCap's number {number} in its column name"))
    if (quote := pair_currency(inputs, candidates)) is not None:
        where = "header" if inputs.sample.ticker else "symbols"
        found.append(_Currency(quote, f"by the pairs in its {where}"))
    if inputs.file_name.currency is not None:
        found.append(_Currency(inputs.file_name.currency, "by its name"))
    if (price := _stablecoin_price(inputs, candidates, prices)) is not None:
        if _DOLLARS[0] < price < _DOLLARS[1]:
            found.append(_Currency("USD", f"by the stablecoins in it, at {price:f}"))
        elif not _MAY_BE_DOLLARS[0] < price < _MAY_BE_DOLLARS[1]:
            found.append(_Currency("another currency", f"by the stablecoins in it, at {price:f}"))
    return _Evidence(found, [item.settled_by for item in found])


def _default_currency(inputs: Inputs, evidence: _Evidence) -> _Currency:
    # The currency of columns whose header and cells name none.
    if inputs.overrides.currency:
        return _Currency(inputs.overrides.currency, BY_OVERRIDES)
    if evidence.found:
        # A price in USD and one in another currency, each with evidence, is a conflict.
        other = next((item for item in evidence.found if item.code != "USD"), None)
        return other or evidence.found[0]
    if others := inputs.file_name.other_currencies - {"USD"}:
        if len(others) == 1 and others == inputs.file_name.other_currencies:
            return _Currency(next(iter(others)), "by its name")
        codes = " and ".join(sorted(inputs.file_name.other_currencies))
        return _Currency(None, f"its name mentions {codes}, and nothing shows which currency its prices have")
    layout = inputs.layout
    cells = {cell.strip().rstrip("*") for cell in inputs.sample.header}
    if layout.usd and (not layout.spelled or cells & layout.spelled):
        return _Currency("USD", f"as {inputs.layout.name} is")
    return _Currency(None, "its currency is unknown: no header, cell or pair gives it")


def _currency_number(inputs: Inputs, candidates: Candidates) -> str | None:
    # CoinMarketCap's number of the currency, if a column called name has one; "" if it has several.
    if not {heading.full for heading in inputs.headings} & _EXPORT_COLUMNS:
        return None
    for column in candidates.first("name"):
        numbers = inputs.distinct([column])
        if numbers and all(number.isdigit() for number in numbers):
            return numbers.pop() if len(numbers) == 1 else ", ".join(sorted(numbers)[:5])
    return None


def _volumes(inputs: Inputs, candidates: Candidates) -> tuple[list[int], dict[int, str]]:
    # The columns called just volume that are amounts of money, and why the others are not read.
    money, unread = [], {}
    for column in candidates.of("volume"):
        if (
            inputs.layout.volume == "money"
            # Lists of coins with their market caps give volumes in the same currency.
            or (inputs.layout.kind == "quotes" and candidates.of("market_cap_usd"))
            or inputs.headings[column].currency
            or _sign(inputs, column)
        ):
            money.append(column)
        elif inputs.layout.volume == "coins":
            unread[column] = "counts coins"
        else:
            unread[column] = "may count coins or dollars"
    return money, unread


def _drop_equal_cap(inputs: Inputs, columns: dict[str, int], unread: dict[int, str]) -> None:
    # Alpha Vantage writes the traded coins in two columns, `volume` and `market cap`.
    cap, volume = columns.get("market_cap_usd"), None
    volumes = [c for c, heading in enumerate(inputs.headings) if heading.base in {"volume", "vol"}]
    if cap is None:
        return
    for volume in volumes:
        rows = [
            (row[cap].strip(), row[volume].strip())
            for row in inputs.sample.rows
            if len(row) > max(cap, volume) and row[cap].strip("0., -")
        ]
        if len(set(rows)) > 1 and sum(one == other for one, other in rows) >= _NEARLY_ALL * len(rows):
            unread[columns.pop("market_cap_usd")] = (
                "equal to the volume in nearly every row, so it is no market cap"
            )
            unread[volume] = "equal to the market cap in nearly every row, so it counts coins"
            if columns.get("volume_24h_usd") == volume:
                del columns["volume_24h_usd"]
            return


def _volume_finding(
    inputs: Inputs, candidates: Candidates, columns: dict[str, int], unread: dict[int, str]
) -> Finding:
    header = inputs.sample.header
    column = columns.get("volume_24h_usd")
    considered = [*candidates.of("volume_24h_usd"), *candidates.of("volume")]
    return Finding(
        question="unit of the volume",
        answer="none is read" if column is None else "the money traded",
        evidence=() if column is None else (f"column {one_line(header[column])[:40]}",),
        ruled_out=tuple(
            f"{one_line(header[c])[:40]}: {unread[c]}" for c in considered if c in unread and c != column
        ),
    )


def _currency_column(inputs: Inputs, candidates: Candidates) -> int | None:
    for column in candidates.first("currency"):
        codes = {cell.strip().lower() for cell in inputs.cells(column)}
        if inputs.overrides.currency or (codes and codes <= CURRENCIES):
            return column
    return None


def _stablecoin_price(inputs: Inputs, candidates: Candidates, prices: list[int]) -> Decimal | None:
    # The median price of the stablecoins in a file.
    coins = [column for field in ("id", "symbol", "name") for column in candidates.first(field)]
    stable = {
        column: {cell for cell in set(inputs.cells(column)) if cell.strip().lower() in STABLECOINS}
        for column in coins
    }
    if not any(stable.values()) or not prices:
        return None
    values = []
    for row in inputs.sample.rows:
        if len(row) > max(*coins, prices[0]) and any(row[column] in stable[column] for column in coins):
            try:
                value = Notation().read(row[prices[0]], "price_usd", "money")
            except RejectedValue:
                continue
            if value is not None:
                values.append(Decimal(value))
    return sorted(values)[len(values) // 2] if values else None


def _currency_of(inputs: Inputs, column: int, default: _Currency) -> _Currency:
    if (currency := inputs.headings[column].currency) is not None:
        return _Currency(currency, "by its header")
    sign = _sign(inputs, column)
    # A dollar sign may be that of another dollar, so it outranks nothing.
    if sign is not None and not inputs.overrides.currency and (sign != "USD" or default.code is None):
        return _Currency(sign, "by the signs in its cells")
    return default


def _sign(inputs: Inputs, column: int) -> str | None:
    # The currency of the signs and codes in a column; "USD" if all are of the dollar.
    found = currencies_in("\n".join(inputs.cells(column)))
    return min(found - {"USD"}, default="USD") if found else None
