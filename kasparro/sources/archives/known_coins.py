"""The leading coins by symbol, name and id, to find a coin in the name of a file.

The list is `known_coins.csv`: symbol, name, CoinGecko's id, and other ids or spellings.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from importlib import resources

import msgspec

from kasparro.sources.archives.vocabulary import word_set

_NOT_WORD = re.compile(r"[\W_]+")
# Spellings of symbols that an exchange uses alone: Kraken's XBT is BTC.
SYMBOL_SPELLINGS = {"xbt": "BTC", "xxbt": "BTC", "xdg": "DOGE", "xxdg": "DOGE", "xeth": "ETH", "xltc": "LTC"}
# Single words that are a coin's name or symbol and more often mean something else. In a file's name they are
# a coin only in a pair.
_COMMON_WORDS = word_set(
    """
    status just gate flow compound secret gas fun one near link sand ape mask game people cake sun win not
    core hot ark pay storm salt req sub via pot burst clam amp wax uma mew elf turbo hive render maker
    quant nexus jupiter venus flare optimism immutable kin blur
    """
)


class KnownCoin(msgspec.Struct, frozen=True):
    """A coin of the list."""

    symbol: str
    name: str
    id: str


def phrase(words: Iterable[str]) -> str:
    """Words in lower case with dashes between them, in any script: a key of `KnownCoins.by_phrase`."""
    return "-".join(words).lower()


class KnownCoins:
    """Coins to find in names: those of the list, and those of the database that are given."""

    def __init__(self, coins: Iterable[KnownCoin], spellings: Mapping[str, KnownCoin]) -> None:
        self._by_phrase: dict[str, KnownCoin] = {}
        self._by_symbol: dict[str, KnownCoin] = {}
        for coin in coins:
            name = phrase(filter(None, _NOT_WORD.split(coin.name)))
            for key in (coin.id.lower(), name, f"{coin.symbol.lower()}-{name}"):
                self._by_phrase.setdefault(key, coin)
            self._by_symbol.setdefault(coin.symbol.lower(), coin)
        for spelling, coin in spellings.items():
            self._by_phrase.setdefault(spelling, coin)

    def by_phrase(self, key: str) -> KnownCoin | None:
        """The coin whose id, name or other spelling is this phrase."""
        return self._by_phrase.get(key)

    def by_symbol(self, word: str) -> KnownCoin | None:
        """The coin with this symbol, in any case."""
        return self._by_symbol.get(SYMBOL_SPELLINGS.get(word.lower(), word).lower())

    def by_word(self, word: str) -> KnownCoin | None:
        """The coin that a single word means without a pair; None for common words and short symbols."""
        if word.lower() in _COMMON_WORDS and not (word.isupper() and len(word) > 2):
            return None
        if (coin := self.by_phrase(word.lower())) is not None:
            return coin
        return self.by_symbol(word) if len(word) > 2 or word.isupper() else None

    def with_coins(self, coins: Iterable[KnownCoin]) -> "KnownCoins":
        """These coins and further ones, such as those of the database.

        Further coins are known by phrases of several words only: among thousands of coins every word is one.
        """
        more = KnownCoins(coins, {})
        more._by_phrase = {key: coin for key, coin in more._by_phrase.items() if "-" in key} | self._by_phrase
        more._by_symbol = self._by_symbol
        return more


def _read_list() -> KnownCoins:
    coins: list[KnownCoin] = []
    spellings: dict[str, KnownCoin] = {}
    text = resources.files(__package__).joinpath("known_coins.csv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines()):
        coins.append(KnownCoin(row["symbol"], row["name"], row["id"]))
        spellings |= dict.fromkeys(row["aliases"].split(), coins[-1])
    return KnownCoins(coins, spellings)


# Read when the module is imported: the archive worker cannot read files of the package later.
LEADING_COINS = _read_list()
