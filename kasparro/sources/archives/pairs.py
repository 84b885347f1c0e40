"""Symbols that archives write as pairs with a quote currency: `BTC/USD`, `BTC-EUR`, `BTCUSD`."""

import msgspec

from kasparro.sources.archives.known_coins import LEADING_COINS
from kasparro.sources.archives.vocabulary import CURRENCIES, word_set

# Characters between the two symbols of a pair.
SEPARATORS = "/-_"
# Currencies that exchanges join to a symbol: BTCUSDT, XBTEUR.
_JOINED_QUOTES = (
    *("USDT", "USDC", "FDUSD", "BUSD", "TUSD", "USD", "EUR", "GBP", "JPY", "KRW", "TRY", "BRL", "AUD", "CAD"),
    *("CHF", "RUB", "INR", "MXN", "ZAR", "IDR", "PLN", "UAH", "BTC", "ETH", "BNB"),
)
# Symbols that look like such a pair. FRED's series CBBTCUSD is Coinbase's price of BTC; cbBTC is another
# coin.
NO_PAIR = word_set(
    """
    crvusd frxusd renbtc wsteth cbbtc cbeth steth reth wbeth cbbtcusd cbethusd cbltcusd cbbchusd hbtc tbtc
    lbtc wbtc weth meth ezeth rseth solvbtc frxeth sfrxeth pyusd rlusd gusd lusd susd busd tusd fdusd
    """
)


def split_joined(word: str) -> tuple[str, str] | None:
    """The symbol and the quote currency of a pair in one word, such as BTCUSDT; None if it is no pair.

    SHIBUSD is SHIB in USD, because SHIB is a known coin and SHI is none.
    """
    upper = word.upper()
    if upper.lower() in NO_PAIR or not upper.isalnum():
        return None
    splits = [
        (word[: -len(quote)], quote)
        for quote in _JOINED_QUOTES
        if upper.endswith(quote) and 2 <= len(upper) - len(quote) <= 10
    ]
    known = [split for split in splits if LEADING_COINS.by_symbol(split[0]) is not None]
    return next(iter(known or splits), None)


class PairNotation(msgspec.Struct, frozen=True):
    """How the symbols of a file are paired: the characters that separate a pair, and whether pairs are also
    written without one (`BTCUSD`).
    """

    separators: str = SEPARATORS
    joined: bool = False

    def split(self, cell: str) -> tuple[str, str | None]:
        """The symbol in a cell, and its quote currency; None if the cell is no pair."""
        cell = cell.strip()
        for separator in self.separators:
            base, found, quote = cell.partition(separator)
            if found and base and quote.lower() in CURRENCIES:
                return base, quote.upper()
        if self.joined and (split := split_joined(cell)) is not None:
            return split
        return cell, None

    def are_pairs(self, cells: set[str]) -> bool:
        """Whether every cell is a pair."""
        return all(self.split(cell)[1] for cell in cells)
