"""Decides the currency of a file's figures, and finds the columns that are in US dollars."""

from decimal import Decimal
from typing import NamedTuple

import msgspec

from kasparro.model.record import RejectedValue
from kasparro.sources.archives.detect.columns import Candidates, Evidence
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.header_names import CURRENCIES, SIGNS, Layout
from kasparro.sources.archives.numbers import Notation
from kasparro.sources.archives.pairs import SEPARATORS, PairNotation

BY_OVERRIDES = "by its overrides"
# Names, symbols and ids of coins whose price in US dollars is about 1.
STABLECOINS = frozenset({"usdt", "usdc", "tether", "usd-coin", "usdt-tether", "usdc-usd-coin", "dai", "busd"})


class DollarColumns(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of money that are in US dollars, and why others are not read, by column.

    `columns` always has `price_usd`. If each row names its currency, it has `currency` too. `settled_by` says
    what settled the currency of the price.
    """

    columns: dict[str, int]
    settled_by: str
    unread: dict[int, str]


class _Currency(NamedTuple):
    # `settled_by` says what settled the code, or why it is None.
    code: str | None
    settled_by: str


def find_dollar_columns(evidence: Evidence, candidates: Candidates) -> DollarColumns:
    """Find the columns of money in US dollars. Raises FileRejected if no price is in US dollars."""
    price_field = "close" if evidence.layout.kind == "candles" and candidates.of("close") else "price"
    prices = candidates.of(price_field)
    volumes, unread = _volumes(evidence, candidates)
    currency_column = _currency_column(evidence, candidates)
    default = _default_currency(evidence, candidates, prices, currency_column)
    columns: dict[str, int] = {}
    settled_by = ""
    reasons: dict[int, str] = {}
    for field, of_field in (
        ("price_usd", prices),
        ("market_cap_usd", candidates.of("market_cap_usd")),
        ("volume_24h_usd", candidates.of("volume_24h_usd") + volumes),
    ):
        for column in of_field:
            currency = _currency_of(evidence, column, default)
            if currency.code != "USD":
                reasons[column] = (
                    f"in {currency.code}, not USD ({currency.settled_by})"
                    if currency.code
                    else currency.settled_by
                )
            elif field not in columns:
                columns[field] = column
                settled_by = settled_by or currency.settled_by
    if "price_usd" not in columns:
        if evidence.overrides.currency != "USD":
            reason = next((reasons[column] for column in prices), "")
            raise FileRejected(
                f"its prices are {reason}" if reason.startswith("in ") else reason,
                None if evidence.overrides.currency else 'currency = "USD"',
            )
        # The header or the cells of every price name another currency; the overrides outrank them.
        columns["price_usd"], settled_by = prices[0], BY_OVERRIDES
        for column in prices:
            del reasons[column]
    if currency_column is not None:
        columns["currency"] = currency_column
    return DollarColumns(columns=columns, settled_by=settled_by, unread=unread | reasons)


def pair_notation(evidence: Evidence, candidates: Candidates, layout: Layout) -> PairNotation:
    """How the symbols of a file are paired, if it has the given layout."""
    symbols = evidence.distinct(candidates.first("symbol"))
    if candidates.of("id") or candidates.of("name"):
        # Next to ids or names, a symbol such as BSC-USD is a coin's own, unless every symbol looks so.
        return PairNotation(SEPARATORS if PairNotation().are_pairs(symbols) else "/")
    joined = layout.kind == "candles" and bool(symbols) and PairNotation(joined=True).are_pairs(symbols)
    return PairNotation(joined=joined)


def pair_currency(evidence: Evidence, candidates: Candidates) -> str | None:
    """The quote currency of the pairs in a file's symbols; None if they are no pairs."""
    if evidence.sample.ticker is not None:
        return PairNotation().split(evidence.sample.ticker)[1]
    # If an override of the period turns quotes into candles, joined pairs do not settle the currency.
    notation = pair_notation(evidence, candidates, evidence.sample.layout)
    for column in candidates.first("symbol"):
        quotes = {notation.split(cell)[1] for cell in evidence.cells(column)}
        if quotes and None not in quotes:
            return "USD" if "USD" in quotes else min(str(quote) for quote in quotes)
    return None


def _volumes(evidence: Evidence, candidates: Candidates) -> tuple[list[int], dict[int, str]]:
    # The columns called just volume that are amounts of money, and why the others are not read.
    money, unread = [], {}
    for column in candidates.of("volume"):
        if (
            evidence.layout.volume_usd
            or evidence.layout.kind == "quotes"
            or evidence.headings[column].currency
            or _sign(evidence, column)
        ):
            money.append(column)
        else:
            unread[column] = "may count coins or dollars"
    return money, unread


def _currency_column(evidence: Evidence, candidates: Candidates) -> int | None:
    for column in candidates.first("currency"):
        codes = {cell.strip().lower() for cell in evidence.cells(column)}
        if evidence.overrides.currency or (codes and codes <= CURRENCIES):
            return column
    return None


def _default_currency(
    evidence: Evidence, candidates: Candidates, prices: list[int], currency_column: int | None
) -> _Currency:
    # The currency of columns whose header and cells name none.
    if evidence.overrides.currency:
        return _Currency(evidence.overrides.currency, BY_OVERRIDES)
    if currency_column is not None:
        codes = {cell.strip().upper() for cell in evidence.cells(currency_column)}
        return _Currency("USD" if "USD" in codes else min(codes), "by its currency column")
    if (quote := pair_currency(evidence, candidates)) is not None:
        return _Currency(quote, "by the pairs in its symbols")
    if evidence.hints.currency is not None:
        return _Currency(evidence.hints.currency, "by its name")
    if (price := _stablecoin_price(evidence, candidates, prices)) is not None:
        dollars = Decimal("0.97") < price < Decimal("1.03")
        return _Currency("USD" if dollars else "another currency", "by the stablecoins in it")
    if evidence.layout.usd:
        return _Currency("USD", f"as {evidence.layout.name} is")
    return _Currency(
        None,
        "its currency is unknown: neither header, cells nor file name give it; "
        "a name such as coin-usd.csv would",
    )


def _stablecoin_price(evidence: Evidence, candidates: Candidates, prices: list[int]) -> Decimal | None:
    # The median price of the stablecoins in a file.
    coins = [column for field in ("id", "symbol", "name") for column in candidates.first(field)]
    if not coins or not prices:
        return None
    values = []
    for row in evidence.sample.rows:
        if len(row) > max(*coins, prices[0]) and any(
            row[column].strip().lower() in STABLECOINS for column in coins
        ):
            try:
                value = Notation().read(row[prices[0]], "price_usd", "money")
            except RejectedValue:
                continue
            if value is not None:
                values.append(Decimal(value))
    return sorted(values)[len(values) // 2] if values else None


def _currency_of(evidence: Evidence, column: int, default: _Currency) -> _Currency:
    if (currency := evidence.headings[column].currency) is not None:
        return _Currency(currency, "by its header")
    sign = _sign(evidence, column)
    # A dollar sign may be that of another dollar, so it outranks nothing.
    if sign is not None and not evidence.overrides.currency and (sign != "USD" or default.code is None):
        return _Currency(sign, "by the signs in its cells")
    return default


def _sign(evidence: Evidence, column: int) -> str | None:
    # The currency of the first sign in a column; "USD" if all signs are dollar signs.
    dollar = False
    for cell in evidence.cells(column):
        for sign, currency in SIGNS.items():
            if sign in cell:
                return currency
        dollar = dollar or "$" in cell
    return "USD" if dollar else None
