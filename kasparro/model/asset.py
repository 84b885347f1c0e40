"""Coins across sources: what the resolver reads and decides, and what the store keeps of it."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec

# (source, source_id): what identifies a row.
Key = tuple[str, str]
# A link without a beginning or an end.
ALWAYS = datetime.min.replace(tzinfo=UTC)
FOREVER = datetime.max.replace(tzinfo=UTC)
# No asset has these ids, because paths of the API do: /assets/candidates.
RESERVED = frozenset({"candidates"})


class Coin(msgspec.Struct, frozen=True, kw_only=True):
    """A row of unified_data, as far as it helps to identify its coin.

    `listed` is None for a source without a list. `first_seen_at` is when the source first reported the id.
    """

    source: str
    source_id: str
    symbol: str | None
    name: str | None
    rank: int | None = None
    price_usd: Decimal | None = None
    market_cap_usd: Decimal | None = None
    volume_24h_usd: Decimal | None = None
    circulating_supply: Decimal | None = None
    total_supply: Decimal | None = None
    max_supply: Decimal | None = None
    observed_at: datetime
    first_seen_at: datetime
    listed: bool | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the row."""
        return self.source, self.source_id


class Contract(msgspec.Struct, frozen=True):
    """A contract that a source gives for a coin; `platform` is the source's own id of the chain."""

    source: str
    source_id: str
    platform: str
    address: str


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Ties a source's id to an asset, for records observed from `valid_from` until before `valid_until`.

    `symbol` and `name` are those that the link was confirmed for. `evidence` is a list of JSON objects.
    """

    source: str
    source_id: str
    asset: str
    method: str
    score: float
    evidence: list[dict[str, Any]]
    symbol: str | None
    name: str | None
    valid_from: datetime = ALWAYS
    valid_until: datetime = FOREVER

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the row."""
        return self.source, self.source_id


class Asset(msgspec.Struct, frozen=True, kw_only=True):
    """One coin across sources. The id never changes; symbol and name follow the coin."""

    asset: str
    symbol: str | None
    name: str | None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """What the resolver left open about a row (`candidate`), or found contradictory (`conflict`).

    `asset` is the asset that the row may be or was, if there is one. `reason` is a sentence for a person. The
    symbol and name are those that were judged.
    """

    source: str
    source_id: str
    kind: Literal["candidate", "conflict"]
    asset: str | None
    score: float
    reason: str
    evidence: list[dict[str, Any]]
    symbol: str | None
    name: str | None


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of the resolver decided. Everything that it does not name stays as it is.

    `assets` are new or have another symbol or name. `ended` are current links that end at the given moment;
    ALWAYS or earlier than their beginning: they were wrong from the start. `links` are new links, and current
    ones with other labels, method or evidence. `candidates` replace all earlier ones.
    """

    assets: list[Asset] = []
    ended: dict[tuple[str, str], datetime] = {}
    links: list[Link] = []
    candidates: list[Candidate] = []
