"""What the upstreams and the archives told, read without the service's code, to compare with the tables."""

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from kasparro.simulator.answers import Given

VALUES = (
    "symbol",
    "name",
    "rank",
    "price_usd",
    "market_cap_usd",
    "volume_24h_usd",
    "circulating_supply",
    "total_supply",
    "max_supply",
    "percent_change_1h",
    "percent_change_24h",
    "percent_change_7d",
)


class Coin(NamedTuple):
    """What identifies a row of unified_data."""

    source: str
    source_id: str


class Told(NamedTuple):
    """What a source said of a coin at one moment: `VALUES` in their order."""

    observed_at: datetime
    values: tuple[Any, ...]


class Model:
    """All that was told, and what of it was told last."""

    def __init__(self) -> None:
        self.told: dict[Coin, set[Told]] = {}
        """Every record that a service may have got hold of."""
        self.last: dict[Coin, Told] = {}
        """The newest of each coin, of two of one moment the one told later."""

    def hear(self, records: Iterable[tuple[Coin, Told]]) -> None:
        """Take what was told, in its order."""
        for coin, told in records:
            self.told.setdefault(coin, set()).add(told)
            last = self.last.get(coin)
            if last is None or told.observed_at >= last.observed_at:
                self.last[coin] = told


def of_answer(given: Given) -> Iterator[tuple[Coin, Told]]:
    """The records of an answer that are fit to be stored; none of one that is no list."""
    try:
        items = json.loads(given.body, parse_float=Decimal, parse_int=Decimal)
    except ValueError:
        return
    if not isinstance(items, list):
        return
    read = _coinpaprika if given.api == "coinpaprika" else _coingecko
    for item in items:
        # The simulator names the records so that it made unfit, but for those that have no id.
        if isinstance(item, dict) and isinstance(item.get("id"), str) and not item["id"].startswith("bad-"):
            try:
                yield Coin(given.api, item["id"]), read(item)
            except KeyError:
                # A field that every record has was dropped or renamed.
                continue


def of_archive(path: Path) -> Iterator[tuple[Coin, Told]]:
    """The records of one of our own archives."""
    with path.open() as file:
        for row in csv.DictReader(file):
            at = datetime.fromtimestamp(int(row["last_updated"]), UTC)
            values = (row["symbol"], row["name"], None, Decimal(row["price_usd"]), *[None] * 8)
            yield Coin("csv", row["id"]), Told(at, values)


def _coinpaprika(item: dict[str, Any]) -> Told:
    usd = item["quotes"]["USD"]
    return _told(
        item,
        rank=item["rank"] or None,
        price=_number(usd["price"]),
        # A price of 0 is a price; these are unknown where they are 0.
        cap=_number(usd["market_cap"]) or None,
        volume=_number(usd["volume_24h"]),
        supplies=(
            _number(item.get("circulating_supply")) or None,
            _number(item["total_supply"]),
            _number(item["max_supply"]) or None,
        ),
        changes=tuple(_number(usd[f"percent_change_{period}"]) for period in ("1h", "24h", "7d")),
    )


def _coingecko(item: dict[str, Any]) -> Told:
    rank, cap = item["market_cap_rank"], item["market_cap"]
    return _told(
        item,
        rank=rank,
        price=item["current_price"],
        # A cap of 0 is unknown where there is no rank.
        cap=(cap or None) if rank is None else cap,
        volume=item["total_volume"],
        supplies=(item["circulating_supply"], item["total_supply"], item["max_supply"]),
        changes=tuple(
            item[f"price_change_percentage_{period}_in_currency"] for period in ("1h", "24h", "7d")
        ),
    )


def _told(
    item: dict[str, Any],
    *,
    rank: Any,
    price: Any,
    cap: Any,
    volume: Any,
    supplies: tuple[Any, ...],
    changes: tuple[Any, ...],
) -> Told:
    whole = None if rank is None else int(rank)
    values = (item["symbol"], item["name"], whole, price, cap, volume, *supplies, *changes)
    return Told(datetime.fromisoformat(item["last_updated"]), values)


def _number(value: Any) -> Any:
    """CoinPaprika writes the empty string where it knows no number."""
    return None if value == "" else value
