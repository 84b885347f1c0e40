"""Symbols that archives write as pairs with a quote currency: `BTC/USD`, `BTC-EUR`, `BTCUSD`."""

import re

import msgspec

from kasparro.sources.archives.filename_hints import NO_PAIR
from kasparro.sources.archives.header_names import CURRENCIES

# Characters between the two symbols of a pair.
SEPARATORS = "/-_"
_JOINED = re.compile(r"([A-Z0-9]{3,10}?)(USDT|USDC|FDUSD|BUSD|USD|EUR|GBP|JPY|KRW|TRY|BRL)")


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
        if self.joined and cell.upper() not in NO_PAIR and (match := _JOINED.fullmatch(cell.upper())):
            return cell[: match.end(1)], match[2]
        return cell, None

    def are_pairs(self, cells: set[str]) -> bool:
        """Whether every cell is a pair."""
        return all(self.split(cell)[1] for cell in cells)
