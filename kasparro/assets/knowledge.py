"""What the resolver knows when it decides: rows, contracts, links, and what was said about them before."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

import msgspec

from kasparro.model.asset import Asset, Candidate, Coin, Contract, Key, Link
from kasparro.model.asset_documents import KnownDocuments

# The prices of two rows at the same moments, in any order of time: the first row's price, the second's.
PricePairs = Sequence[tuple[Decimal, Decimal]]


class Relabelled(msgspec.Struct, frozen=True):
    """A linked row whose symbol or name has changed.

    `before` is its last record with the symbol and name of the link. `since` is the `observed_at` of the
    first record with others.
    """

    before: Coin
    since: datetime


class Knowledge(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a decision depends on, except the user's rules.

    `links` are all links, also ended ones. `assets` are all assets that were ever given, by id. `candidates`
    are those of the last resolution. `relabelled` and `prices` add evidence where they are given: `prices` by
    the keys of two rows in their order. `awaited` are sources that run but have delivered no list yet: until
    then a row of an archive that has only a symbol or an id founds no asset.
    """

    coins: Sequence[Coin]
    contracts: Sequence[Contract] = ()
    links: Sequence[Link] = ()
    assets: Mapping[str, Asset] = {}
    candidates: Sequence[Candidate] = ()
    relabelled: Mapping[Key, Relabelled] = {}
    prices: Mapping[tuple[Key, Key], PricePairs] = {}
    awaited: Collection[str] = ()


def knowledge_of(known: KnownDocuments) -> Knowledge:
    """What these documents say."""
    return read_knowledge(b"".join(known.pieces()).splitlines())


def read_knowledge(lines: Sequence[bytes], awaited: Collection[str] = ()) -> Knowledge:
    """What the lines of KnownDocuments say. `awaited` may have sources that have delivered rows."""
    documents = dict(zip(KnownDocuments.__struct_fields__, lines, strict=True))
    coins = msgspec.json.decode(documents["coins"], type=list[Coin])
    assets = msgspec.json.decode(documents["assets"], type=list[Asset])
    relabelled = msgspec.json.decode(documents["relabelled"], type=list[Relabelled])
    return Knowledge(
        coins=coins,
        contracts=msgspec.json.decode(documents["contracts"], type=list[Contract]),
        links=msgspec.json.decode(documents["links"], type=list[Link]),
        assets={each.asset: each for each in assets},
        candidates=msgspec.json.decode(documents["candidates"], type=list[Candidate]),
        relabelled={each.before.key: each for each in relabelled},
        awaited=set(awaited) - {coin.source for coin in coins},
    )


def read_prices(line: bytes, pairs: Sequence[tuple[Key, Key]]) -> Mapping[tuple[Key, Key], PricePairs]:
    """The prices of these pairs of rows, as `Knowledge.prices`; `line` has all that the store gives."""
    found: dict[tuple[Key, Key], list[tuple[Decimal, Decimal]]] = {}
    for position, price, other_price in msgspec.json.decode(line, type=list[tuple[int, Decimal, Decimal]]):
        found.setdefault(pairs[position - 1], []).append((price, other_price))
    return found
