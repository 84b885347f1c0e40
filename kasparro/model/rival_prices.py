"""Finds several prices for one coin and time among the first rows of an archive."""

from collections.abc import Sequence
from decimal import Decimal

from kasparro.model.record import CONTENT_COLUMNS, copy_cell

# Prices that differ by no more than this share are one price that was rounded.
ROUNDING = Decimal("0.0001")
_PRICE = CONTENT_COLUMNS.index("price_usd") - 1
_NULL = copy_cell(None)


class RivalPrices:
    """Collects rows as lines of COPY text."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._contents: list[str] = []

    def add(self, keys: Sequence[str], contents: Sequence[str]) -> None:
        """Add rows; `keys` and `contents` as for `copy_lines`."""
        self._keys += keys
        self._contents += contents

    @property
    def conflict(self) -> str | None:
        """Why the file is rejected; None if each moment of each coin has one price."""
        if len(set(self._keys)) == len(self._keys):
            return None
        prices: dict[str, list[Decimal]] = {}
        for key, content in zip(self._keys, self._contents, strict=True):
            if (price := content.split("\t", _PRICE + 1)[_PRICE]) != _NULL:
                prices.setdefault(key, []).append(Decimal(price))
        rivals = [
            (key, min(found), max(found))
            for key, found in prices.items()
            if max(found) - min(found) > max(found) * ROUNDING
        ]
        if not rivals:
            return None
        key, lowest, highest = rivals[0]
        when, _, coin = key.partition("\t")
        return describe(coin, when.replace(" ", "T"), f"{lowest:f}", f"{highest:f}", len(rivals))


def describe(coin: str, when: str, lowest: str, highest: str, moments: int) -> str:
    """The reason to reject a file with several prices of a coin for one time; `moments` counts such times."""
    more = f" ({moments:,} such moments)" if moments > 1 else ""
    return f"several prices for one coin and time: {coin} at {when} is {lowest} and {highest}{more}"
