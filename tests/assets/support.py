"""Builds rows and applies resolutions, as the store does."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from kasparro.assets.knowledge import Knowledge
from kasparro.assets.resolve import resolve
from kasparro.assets.rules import NO_RULES, Rules
from kasparro.model.asset import FOREVER, Coin, Key, Link, Resolution

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=400)


def coin(row: str, symbol: str | None = None, name: str | None = None, **values: Any) -> Coin:
    """A row such as `coinpaprika/btc-bitcoin`; figures may be given as text."""
    source, _, source_id = row.partition("/")
    for field in ("price_usd", "market_cap_usd", "circulating_supply", "total_supply"):
        if field in values:
            values[field] = Decimal(values[field])
    defaults = {
        "observed_at": NOW,
        "first_seen_at": LONG_AGO,
        "listed": None if source == "csv" else True,
    }
    return Coin(source=source, source_id=source_id, symbol=symbol, name=name, **{**defaults, **values})


def key(row: str) -> Key:
    """The key of a row such as `coinpaprika/btc-bitcoin`."""
    source, _, source_id = row.partition("/")
    return source, source_id


def applied(knowledge: Knowledge, resolution: Resolution) -> Knowledge:
    """What is known after the store has written a resolution."""
    links: dict[tuple[Key, datetime], Link] = {(link.key, link.valid_from): link for link in knowledge.links}
    for row, moment in resolution.ended.items():
        for at, link in list(links.items()):
            if link.key == row and link.valid_until == FOREVER:
                del links[at]
                if moment > link.valid_from:
                    links[at] = msgspec.structs.replace(link, valid_until=moment)
    for link in resolution.links:
        assert (link.key, link.valid_from) not in links or links[
            link.key, link.valid_from
        ].valid_until == FOREVER, "a link that has ended is never written again"
        links[link.key, link.valid_from] = link
    assets = {**knowledge.assets, **{each.asset: each for each in resolution.assets}}
    return msgspec.structs.replace(
        knowledge, links=list(links.values()), assets=assets, candidates=resolution.candidates
    )


class World:
    """Rows that arrive over time, and the links that follow."""

    def __init__(self, *coins: Coin, rules: Rules = NO_RULES, **known: Any) -> None:
        self.rules = rules
        self.knowledge = Knowledge(coins=[])
        self.load(*coins, **known)

    def load(self, *coins: Coin, **known: Any) -> Resolution:
        """Load rows, replace those with the same id, and resolve."""
        rows = {each.key: each for each in (*self.knowledge.coins, *coins)}
        self.knowledge = msgspec.structs.replace(self.knowledge, coins=list(rows.values()), **known)
        resolution = resolve(self.knowledge, self.rules)
        self.knowledge = applied(self.knowledge, resolution)
        self.check()
        return resolution

    def check(self) -> None:
        """What holds after every resolution."""
        current = [link for link in self.knowledge.links if link.valid_until == FOREVER]
        assert len({link.key for link in current}) == len(current), "a row has two current links"
        slots = [(link.asset, link.source) for link in current]
        assert len(set(slots)) == len(slots), "two ids of one source share an asset"
        assert {link.asset for link in current} <= self.knowledge.assets.keys()
        judged = {(each.source, each.source_id, each.symbol, each.name) for each in self.knowledge.candidates}
        linked = {link.key: (link.symbol, link.name) for link in current}
        for each in self.knowledge.coins:
            ruled = (link := self.link("/".join(each.key))) is not None and link.method == "rule"
            assert (
                ruled
                or (*each.key, each.symbol, each.name) in judged
                or linked.get(each.key) == (each.symbol, each.name)
            ), f"{each.key} would be judged again for ever"

    def link(self, row: str) -> Link | None:
        """The current link of a row."""
        return next(
            (link for link in self.knowledge.links if link.key == key(row) and link.valid_until == FOREVER),
            None,
        )

    def asset(self, row: str) -> str | None:
        """The asset of a row."""
        link = self.link(row)
        return link.asset if link else None

    def candidates(self, row: str) -> list[str]:
        """The reasons of what is open about a row."""
        return [
            each.reason for each in self.knowledge.candidates if (each.source, each.source_id) == key(row)
        ]

    def conflicts(self) -> list[str]:
        """The rows with a conflict."""
        return [
            f"{each.source}/{each.source_id}" for each in self.knowledge.candidates if each.kind == "conflict"
        ]

    def partition(self) -> set[frozenset[Key]]:
        """The rows of each asset."""
        found: dict[str, set[Key]] = {}
        for link in self.knowledge.links:
            if link.valid_until == FOREVER:
                found.setdefault(link.asset, set()).add(link.key)
        return {frozenset(rows) for rows in found.values()}


def texts(evidence: Iterable[dict[str, Any]]) -> str:
    """The sentences of evidence."""
    return "; ".join(each["text"] for each in evidence)
