"""Symbols that archives write as pairs with a quote currency: `BTC/USD`, `BTC-EUR`, `BTCUSD`."""

import re

import msgspec

from kasparro.sources.archives.known_coins import LEADING_COINS
from kasparro.sources.archives.vocabulary import CURRENCIES, FIAT, PEGGED_CODES, word_set

# Characters between the two symbols of a pair.
SEPARATORS = "/-_"
_QUOTED_COINS = frozenset({"btc", "eth", "bnb"})
# Currencies that exchanges join to a symbol: BTCUSDT, XBTEUR. Of several that fit, the first is read.
_JOINED_QUOTES = (
    *("USDT", "USDC", "FDUSD", "USD", "EUR", "GBP", "JPY", "KRW", "TRY", "BRL", "AUD", "CAD", "CHF", "RUB"),
    *("INR", "MXN", "ZAR", "IDR", "PLN", "UAH", "BTC", "XBT", "ETH", "BNB", "BUSD", "TUSD", "PYUSD", "RLUSD"),
    *("GUSD", "USDE", "USD1", "DAI"),
)
# Kraken's spelling of older pairs: XXBTZUSD, XETHZEUR.
_KRAKEN = re.compile(r"X(?P<base>[A-Z]{3,4})Z(?P<quote>USD|EUR|GBP|JPY|CAD|AUD|KRW)")
# What exchanges and charts add to a pair: BITSTAMP:BTCUSD, BTCUSDT.P, BTCUSD_PERP, BTC-USD-SWAP, BTC.V.
_PREFIX = re.compile(r"[A-Za-z]{1,12}[:.](?=[A-Z0-9])")
_SUFFIX = re.compile(r"(?:\.[PV]|[-_](?:PERP|SWAP))$", re.IGNORECASE)
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

    SHIBUSD is SHIB in USD, because SHIB is a known coin and SHI is none. Kraken's XXBTZUSD and Bitfinex's
    tBTCUSD are read too, if their symbol is known.
    """
    if (match := _KRAKEN.fullmatch(word)) is not None and LEADING_COINS.by_symbol(match["base"]):
        return match["base"], match["quote"]
    if word[:1] == "t" and word[1:].isupper() and (split := _split(word[1:])) and _is_known(split):
        return split
    return _split(word)


def _split(word: str) -> tuple[str, str] | None:
    upper = word.upper()
    if upper.lower() in NO_PAIR or not upper.isalnum():
        return None
    splits = [
        (word[: -len(quote)], quote)
        for quote in _JOINED_QUOTES
        if upper.endswith(quote) and 2 <= len(upper) - len(quote) <= 10
    ]
    return next(filter(_is_known, splits), splits[0] if splits else None)


def _is_known(split: tuple[str, str]) -> bool:
    return LEADING_COINS.by_symbol(split[0]) is not None


class PairNotation(msgspec.Struct, frozen=True):
    """How the symbols of a file are paired: the characters that separate a pair, and whether pairs are also
    written without one (`BTCUSD`).
    """

    separators: str = SEPARATORS
    joined: bool = False

    def split(self, cell: str) -> tuple[str, str | None]:
        """The symbol in a cell, and its quote currency; None if the cell is no pair."""
        cell = cell.strip()
        pair = _SUFFIX.sub("", _PREFIX.sub("", cell))
        for separator in self.separators:
            base, found, quote = pair.partition(separator)
            if found and base and quote.lower() in CURRENCIES:
                if base.lower() in FIAT | PEGGED_CODES and quote.lower() in _QUOTED_COINS:
                    # Poloniex and Upbit write the currency first: USDT_BTC, KRW-BTC.
                    return quote, base.upper()
                return base, quote.upper()
        if self.joined and (split := split_joined(pair)) is not None:
            return split
        bare = cell.removesuffix(".V")
        return bare if LEADING_COINS.by_symbol(bare) is not None else cell, None

    def are_pairs(self, cells: set[str]) -> bool:
        """Whether every cell is a pair."""
        return all(self.split(cell)[1] for cell in cells)
