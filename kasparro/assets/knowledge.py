"""What the resolver knows when it decides: rows, contracts, links, and what was said about them before."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

import msgspec

from kasparro.model.asset import Asset, Candidate, Coin, Contract, Key, Link

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
