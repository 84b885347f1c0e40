"""The expected content of the tables: what upstreams and archives sent, parsed without the service's code."""

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from kasparro.simulator.served import ServedResponse

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


class Reported(NamedTuple):
    """What a source reported of a coin at one moment; `values` in the order of `VALUES`."""

    observed_at: datetime
    values: tuple[Any, ...]


class Model:
    """All records that were reported, and the newest of each coin."""

    def __init__(self) -> None:
        self.reported: dict[Coin, set[Reported]] = {}
        """Every record that a service may have received."""
        self.newest: dict[Coin, Reported] = {}
        """By `observed_at`; of two records with the same moment, the later report."""

    def add(self, records: Iterable[tuple[Coin, Reported]]) -> None:
        """Add records in the order of their reports."""
        for coin, record in records:
            self.reported.setdefault(coin, set()).add(record)
            newest = self.newest.get(coin)
            if newest is None or record.observed_at >= newest.observed_at:
                self.newest[coin] = record


_INVALID_NAMES = frozenset({"bad-nul", "bad-long-name"})


def records_of_response(given: ServedResponse) -> Iterator[tuple[Coin, Reported]]:
    """The valid records of an upstream's response; none if it is not a list."""
    try:
        items = json.loads(given.body, parse_float=Decimal, parse_int=Decimal)
    except ValueError:
        return
    if not isinstance(items, list):
        return
    read = _coinpaprika if given.api == "coinpaprika" else _coingecko
    for item in items:
        # The simulator prefixes the ids of records that it made invalid. An invalid name costs only the name.
        if (
            isinstance(item, dict)
            and isinstance(item.get("id"), str)
            and (item["id"] in _INVALID_NAMES or not item["id"].startswith("bad-"))
        ):
            try:
                yield Coin(given.api, item["id"]), read(item)
            except KeyError:
                # Schema drift: a required field was dropped or renamed.
                continue


def records_of_archive(path: Path) -> Iterator[tuple[Coin, Reported]]:
    """The records of an archive that `World.write_archive` wrote."""
    with path.open() as file:
        for row in csv.DictReader(file):
            at = datetime.fromtimestamp(int(row["last_updated"]), UTC)
            values = (row["symbol"], row["name"], None, Decimal(row["price_usd"]), *[None] * 8)
            yield Coin("csv", row["id"]), Reported(at, values)


def _coinpaprika(item: dict[str, Any]) -> Reported:
    usd = item["quotes"]["USD"]
    return _reported(
        item,
        rank=item["rank"] or None,
        price=_number(usd["price"]),
        # A price of 0 is a price; a market cap or supply of 0 means unknown.
        cap=_number(usd["market_cap"]) or None,
        volume=_number(usd["volume_24h"]),
        supplies=(
            _number(item.get("circulating_supply")) or None,
            _number(item["total_supply"]),
            _number(item["max_supply"]) or None,
        ),
        changes=tuple(_number(usd[f"percent_change_{period}"]) for period in ("1h", "24h", "7d")),
    )


def _coingecko(item: dict[str, Any]) -> Reported:
    rank, cap = item["market_cap_rank"], item["market_cap"]
    return _reported(
        item,
        rank=rank,
        price=item["current_price"],
        # Without a rank, a market cap of 0 means unknown.
        cap=(cap or None) if rank is None else cap,
        volume=item["total_volume"],
        supplies=(item["circulating_supply"], item["total_supply"], item["max_supply"]),
        changes=tuple(
            item[f"price_change_percentage_{period}_in_currency"] for period in ("1h", "24h", "7d")
        ),
    )


def _reported(
    item: dict[str, Any],
    *,
    rank: Any,
    price: Any,
    cap: Any,
    volume: Any,
    supplies: tuple[Any, ...],
    changes: tuple[Any, ...],
) -> Reported:
    rank = None if rank is None else int(rank)
    name = None if item["id"] in _INVALID_NAMES else item["name"]
    values = (item["symbol"], name, rank, price, cap, volume, *supplies, *changes)
    return Reported(datetime.fromisoformat(item["last_updated"]), values)


def _number(value: Any) -> Any:
    # CoinPaprika writes the empty string for an unknown number.
    return None if value == "" else value
